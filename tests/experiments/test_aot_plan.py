"""Plans of pod runs: compiled for TPUs that are not there."""

import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import pytest

from experiments import aot_compile, aot_plan, aot_report

TOPOLOGY = 'v5e:2x2'
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="needs the TPU compiler: pip install 'jaxagent[tpu]'",
)


def tiny(mesh, **changes):
  config = aot_plan.plan_config('debug')
  changes = {
    'model.overrides.layers': 3,
    'model.overrides.hidden': 512,
    'rollout.cache_lengths': (64,),
    'batch.teacher_extra': 8,
    'batch.tasks': 1,
    'batch.chunk': 64,
    'train.microbatch': 4,
    **changes,
  }
  for field, value in changes.items():
    aot_plan.change(config, field, value)
  aot_plan.complete(config, TOPOLOGY, mesh)
  return config


def compiled(config, program='update'):
  plain = json.loads(config.to_json_best_effort())
  result = aot_plan.compile_program(plain, TOPOLOGY, program, limit=500)
  return aot_plan.judge(result, TOPOLOGY)


@pytest.fixture(scope='module')
def split():
  return compiled(tiny('data:1,fsdp:4,tensor:1'))


@needs_libtpu
def test_the_update_compiles_with_memory_and_collectives(split):
  assert split.get('failed') is None and split['fits']
  assert split['devices'] == 4 and split['tokens'] == 8 * 64
  assert split['need'] > split['arguments'] > 0 and split['temporary'] > 0
  found = split['collectives']
  assert found['all-reduce']['count'] > 0
  # Two microbatches, three layers: a loop's collectives run more often.
  assert found['all-reduce']['runs'] > found['all-reduce']['count']
  assert found['all-reduce']['bytes'] > 0


@needs_libtpu
def test_the_state_is_donated(split):
  assert split['aliased'] >= 0.95 * split['state'] > 0


@needs_libtpu
def test_fsdp_takes_less_memory_a_device(split):
  whole = compiled(tiny('data:4,fsdp:1,tensor:1'))
  assert whole['state'] > 3 * split['state']
  assert whole['arguments'] > 2 * split['arguments']
  assert whole['need'] > split['need']
  assert whole['parameters'] == split['parameters']
  assert whole['flops'] == split['flops']  # of all devices together


@needs_libtpu
@pytest.mark.slow
def test_kernels_are_compiled_into_a_step_on_many_devices():
  config = aot_plan.plan_config('debug_hybrid')
  for field, value in {
    'rollout.cache_lengths': (64,),
    'batch.teacher_extra': 64,
    'batch.tasks': 1,
    'batch.chunk': 64,
  }.items():
    aot_plan.change(config, field, value)
  aot_plan.complete(config, TOPOLOGY, 'data:1,fsdp:2,tensor:2')
  result = compiled(config)
  assert result.get('failed') is None
  assert result['kernel_calls'] >= 2  # forward and backward


@needs_libtpu
@pytest.mark.slow
def test_a_model_that_does_not_fit_says_so(monkeypatch, capsys):
  config = tiny(
    'data:4,fsdp:1,tensor:1',
    **{
      'model.overrides.layers': 1,
      'model.overrides.hidden': 8192,
      'model.overrides.intermediate': 65_536,
    },
  )
  result = compiled(config, 'fixed')
  assert 'RESOURCE_EXHAUSTED' in result['refused']
  assert result['need'] > result['room'] and not result['fits']


def test_what_does_not_fit_is_told_with_what_may_help(monkeypatch, capsys):
  asked = []

  def compile_program(config, topology, program, *, limit, kernels):
    asked.append(config['mesh'])
    size = 20 * 2**30 // config['mesh']['fsdp']
    sizes = dict.fromkeys(('arguments', 'outputs', 'aliased'), 0)
    sizes |= {'temporary': size, 'peak': size, 'code': 0, 'resident': 2**30}
    work = {'parameters': 1, 'tokens': 1, 'flops': 1, 'devices': 4}
    return {**work, **sizes, 'collectives': {}}

  monkeypatch.setattr(aot_plan, 'compile_program', compile_program)
  monkeypatch.setattr(aot_plan, '_versions', lambda: {'jax': '', 'libtpu': ''})
  monkeypatch.setattr(
    aot_plan.importlib.util, 'find_spec', lambda name: object()
  )
  aot_plan.main([
    '--config=qwen3-8b',
    f'--topology={TOPOLOGY}',
    '--mesh=data:4,fsdp:1,tensor:1',
    '--suggest',
  ])  # fmt: skip
  shown = capsys.readouterr().out
  assert 'Does not fit: fixed 21.00 of 16 GiB' in shown
  assert '--config.mesh.fsdp="4"' in shown
  assert 'fits: fixed 6.00 of 16 GiB' in shown
  assert [mesh['fsdp'] for mesh in asked] == [1, 1, 4, 4]


def test_without_the_compiler_the_user_is_told(monkeypatch):
  monkeypatch.setattr(aot_plan.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(SystemExit, match=r'jaxagent\[tpu\]'):
    aot_plan.main(['--config=debug', f'--topology={TOPOLOGY}'])


def test_a_compiler_that_takes_too_long_is_ended():
  result = compiled_in(0.0)
  assert '--limit' in result['failed'] and not result['fits']


def compiled_in(limit):
  plain = json.loads(tiny('').to_json_best_effort())
  result = aot_plan.compile_program(plain, TOPOLOGY, 'fixed', limit=limit)
  return aot_plan.judge(result, TOPOLOGY)


@pytest.mark.parametrize(
  'topology, axes',
  [
    ('v5e:16x16', (1, 16, 16)),
    ('v6e:4x4', (1, 4, 4)),
    ('tpu7x:2x2x1', (1, 8, 1)),
  ],
)
def test_the_mesh_is_that_of_the_chips(topology, axes):
  config = aot_plan.plan_config('qwen3-8b')
  aot_plan.complete(config, topology)
  assert tuple(config.mesh[a] for a in ('data', 'fsdp', 'tensor')) == axes
  assert config.train.microbatch == axes[0] * axes[1]


def test_wrong_words_are_refused():
  config = aot_plan.plan_config('debug')
  with pytest.raises(SystemExit, match='v5e:16x16'):
    aot_plan.complete(config, 'h100:8')
  with pytest.raises(SystemExit, match='no such field'):
    aot_plan.change(config, 'model.remats', True)
  with pytest.raises(SystemExit, match='no such field'):
    aot_plan.change(config, 'name.init', 'x')


def test_a_training_config_is_planned_as_it_trains():
  path = 'experiments/configs/sdar_alfworld.py:debug'
  config = aot_plan.plan_config(str(aot_plan.ROOT / path))
  assert (config.model.remat, config.batch.chunk) == (False, 256)
  model = aot_compile.model_config(config.to_dict())
  assert model.vocab != 512  # the tokenizer's, as `build.load_model` does


def test_operations_count_loops_by_their_trips():
  w = jnp.ones((8, 8))

  def loop(x):
    return jax.lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, length=5)[0]

  def count(function):
    return aot_compile.flops(jax.make_jaxpr(function)(jnp.ones((4, 8))))

  one = 2 * 4 * 8 * 8
  assert count(lambda x: x @ w) == one
  assert count(loop) == 5 * one
  assert count(jax.jit(loop)) == 5 * one
  grad = jax.grad(lambda x: jax.checkpoint(loop)(x).sum())
  assert count(grad) == 5 * one + 5 * one + 5 * one  # forward, again, backward


HLO = """
HloModule step

%cond (p: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%fused (p: f32[8]) -> f32[8] {
  %r = f32[8]{0} all-reduce(%p), channel_id=2, to_apply=%add
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %g = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%x), channel_id=1
  %d = bf16[16]{0} all-gather-done(%g)
  %f = f32[8]{0} fusion(%y), kind=kCustom, calls=%fused
  %h = f32[8]{0} fusion(%y), kind=kCustom, calls=%fused
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%cond, body=%body
  %z = (f32[2,3]{1,0}, s32[5]{0}) all-reduce(%b, %c), to_apply=%add
}
"""


def test_collectives_are_counted_by_channel_and_trip():
  found = aot_compile.collectives(HLO)
  assert found == {
    'all-gather': {'count': 1, 'runs': 7, 'bytes': 7 * 32},
    'all-reduce': {'count': 2, 'runs': 15, 'bytes': 14 * 32 + 44},
  }


def test_need_is_the_larger_estimate_with_what_stays():
  sizes = {
    'arguments': 6, 'outputs': 5, 'aliased': 4, 'temporary': 3, 'code': 2,
    'peak': 8, 'resident': 1,
  }  # fmt: skip
  assert aot_plan.judge(sizes, TOPOLOGY)['need'] == 10 + 2 + 1
  assert aot_plan.judge({**sizes, 'peak': 20}, TOPOLOGY)['need'] == 20 + 2 + 1
  limit = aot_report.HEADROOM
  full = {**sizes, 'peak': 16 * 2**30 * (1 - limit)}
  assert not aot_plan.judge(full, TOPOLOGY)['fits']


def test_words_of_the_compiler_become_bytes():
  assert aot_plan._asked('Used 18.5G of 15.75G hbm.', 7) == 18.5 * 2**30
  words = 'HLO temporaries (512.00M) exceeds available HBM (15.75G)'
  assert aot_plan._asked(words, 7) == 512 * 2**20 + 7
  assert math.isnan(aot_plan._asked('other words', 7))
