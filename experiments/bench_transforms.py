"""`bench transforms`: what methods cost beside the update of the weights.

  python -m experiments.bench transforms

One process, pinned to a core, whose CPU time counts; all arms of a row take
turns. Every compiled program is the one that training runs.

`--rows` are batches of `rdpo_mixed.py`, of that many rows with four rewards:
one application of each reward transform, by itself and with what is logged of
it, and all that the loop does from rewards to advantages (`credit`), against
one update: forward, backward and optimizer over all microbatches.

`--cases` are sizes of `aopd_sums.py`: the update under GRPO, OPD and AOPD, the
pass of the teacher that AOPD and OPD run before it, and one forward pass of
teacher and of student. Beside the time there is the memory that the compiler
reserves for temporaries, also with smaller chunks of the vocabulary's product,
and of `naive`, the same AOPD update with the logits `[B, T, V]` of policy and
teacher in memory, which is compared with ours before ours is timed.

Finished rows are kept in experiments/results/bench_transforms.json.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import os
import pathlib
import statistics
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import bench_sparse, run
from experiments.configs import aopd_sums, rdpo_mixed, sft_sums
from jaxagent import losses, rewards, types
from jaxagent.models import logprobs, sharding
from jaxagent.rewards import diagnostics
from jaxagent.training import build, loop
from jaxagent.training import state as state_lib
from jaxagent.training import update as update_lib

RESULTS = pathlib.Path(__file__).parent / 'results' / 'bench_transforms.json'
TRANSFORMS = {
  'GRPO': 'group_normalize',
  'GDPO': 'gdpo',
  'quantile': 'quantile',
  'whitening': 'whitening',
  'RDPO': 'rdpo',
}
LOSSES = {
  'GRPO': dict(name='grpo', kl_weight=0.0),
  'OPD': aopd_sums.METHODS['opd'],
  'AOPD': aopd_sums.METHODS['aopd'],
}
CHUNK = 64  # action tokens at once, for memory; the config has more
TOLERANCE = 1e-4  # relative
NARROW = f'AOPD update, chunks of {CHUNK}'
EXTRA = (
  ('all of it', ('ms', '{:.4g}')),
  ('of it in the update', ('update_ms', '{:.4g}')),
  ('beyond one teacher forward', ('beyond_ms', '{:.4g}')),
  ('**in teacher forwards**', ('forwards', '**{:.2f}x**')),
)


class Case(NamedTuple):
  """Sizes of a batch to distil on; its first tokens are a prompt."""

  vocab: int
  rows: int
  length: int
  acting: int  # tokens that the student wrote, the last ones of each row
  microbatch: int


CASES = {
  'sums': Case(vocab=1024, rows=64, length=24, acting=8, microbatch=16),
  'small': Case(vocab=1024, rows=8, length=128, acting=127, microbatch=8),
  'large': Case(vocab=49_152, rows=8, length=128, acting=127, microbatch=8),
}


class Program(NamedTuple):
  """Something compiled, ready to be called."""

  call: Callable[[], Any]
  temporary: int  # bytes


def add_arguments(parser: argparse.ArgumentParser):
  """The options of `transforms`."""
  parser.add_argument('--rows', default='72,512')
  parser.add_argument('--cases', default=','.join(CASES))
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--core', type=int, help='default: the last one')
  parser.add_argument('--fresh', action='store_true', help='forget old rows')


class Naive(update_lib.Passes):
  """The same passes, with all logits of policy and teacher in memory."""

  def score(self, head, rows, hidden, budget, needs=(), teacher=None):
    """As `logprobs.score`, without its positions and its chunks."""

    def every(hidden, head):
      before = jnp.pad(hidden[:, :-1], ((0, 0), (1, 0), (0, 0)))
      logits = jax.vmap(logprobs.logits, (0, None, None))
      return jax.nn.log_softmax(logits(before, head, self.temperature))

    def take(x, ids):
      return jnp.take_along_axis(x, ids, axis=-1)

    ours = every(hidden, head)
    theirs = every(teacher.hidden, teacher.unembedding)
    ids = jax.lax.top_k(theirs, min(self.loss.top_k, self.vocab))[1]
    token = rows.tokens[..., None]
    return logprobs.Scores(
      logprobs=take(ours, token)[..., 0],
      teacher_logprobs=take(theirs, token)[..., 0],
      entropy=-jnp.sum(jnp.exp(ours) * ours, axis=-1),
      candidates=types.Candidates(ids, take(ours, ids), take(theirs, ids)),
    )


def _pass(passes, teacher_params, params, batch) -> Program:
  """The forward passes of fixed weights that a loss reads."""
  arguments = teacher_params, params, batch
  compiled = update_lib.Passes.fixed.lower(
    passes, *arguments, _budget(batch)
  ).compile()
  return Program(functools.partial(compiled, *arguments), _temporary(compiled))


def _forward(policy, params, batch) -> Program:
  """Log-probabilities of the rows: what a reference policy is run for."""
  passes = update_lib.Passes(policy, losses.from_config({'name': 'grpo'}))
  return _pass(passes, params, params, batch)


def _update(setup: loop.Setup, passes, batch, fixed) -> Program:
  """The update; every call goes on from the state of the last one."""
  state = state_lib.init(
    jax.tree.map(jnp.copy, setup.params), setup.optimizer, ()
  )
  teacher = setup.params if passes.teacher is None else setup.teacher_params
  head = jnp.copy(passes.unembed_teacher(teacher))
  update = update_lib.make_update(passes, setup.optimizer, setup.reduce)
  compiled = update.lower(state, batch, fixed, head, _budget(batch)).compile()

  def call():
    nonlocal state
    state, metrics = compiled(state, batch, fixed, head)
    return metrics

  return Program(call, _temporary(compiled))


def _budget(batch) -> int:
  return int(np.asarray(batch.mask).sum((1, 2)).max())


def _temporary(compiled) -> int:
  return compiled.memory_analysis().temp_size_in_bytes


def reward_row(config, *, repeats: int = 7) -> dict[str, Any]:
  """Times all transforms on one batch, and the update on it.

  Args:
    config: of `rdpo_mixed.py`; its untrained policy writes the batch. The
      values of the rewards are drawn at random, with ties.
    repeats: of each arm, after one that does not count.

  Returns:
    `rows`, `rewards`, the shape of what is transformed; `parameters`; and
    `arms`, CPU milliseconds of every repetition: 'update', 'credit', for each
    of `TRANSFORMS` its name, and its name with ', logged'.
  """
  setup = build.from_config(config.to_dict())
  trajectory = setup.source.next(setup.params, 0).trajectory
  rng = np.random.default_rng(0)
  shape = trajectory.rewards.shape
  trajectory = trajectory.replace(
    rewards=rng.integers(0, 11, shape).astype(np.float32) / 10
  )
  columns = types.Rewards(
    values=trajectory.rewards,
    active=trajectory.active,
    group=trajectory.group,
    episode=trajectory.episode,
    part=trajectory.part,
  )
  calls = {}
  for label, name in TRANSFORMS.items():
    transform = rewards.from_config({**config.rewards.transform, 'name': name})
    state = transform.init(shape[1])
    logged = functools.partial(diagnostics.observe, transform)
    for suffix, fn in (('', transform.apply), (', logged', logged)):
      calls[label + suffix] = functools.partial(jax.jit(fn), columns, state)
  credit = loop.make_credit(setup, sharding.make_mesh())
  state = setup.transform.init(shape[1])
  calls['credit'] = functools.partial(credit, trajectory, state)
  advantages, *_ = credit(trajectory, state)
  batch = jax.device_put(
    update_lib.microbatches(trajectory, advantages, config.train.microbatch)
  )
  fixed = setup.passes.fixed(setup.params, setup.params, batch, _budget(batch))
  calls['update'] = _update(setup, setup.passes, batch, fixed).call
  return {
    'rows': shape[0],
    'rewards': shape[1],
    'parameters': _count(setup.params),
    'arms': bench_sparse.take_turns(calls, repeats),
  }


def distillation_row(case: Case, *, repeats: int = 7) -> dict[str, Any]:
  """Times and sizes one case: updates, passes of the teacher, forward passes.

  Args:
    case: of the batch; student and teacher are those of `sft_sums.py`, neither
      trained. Its tokens are drawn at random.
    repeats: of each arm, after one that does not count.

  Returns:
    The fields of `case`; `parameters` of student and teacher; `arms`, CPU
    milliseconds of every repetition; `temporary`, bytes by arm, and of two
    that are not timed, `NARROW` and 'naive'; and `logits`, bytes of one
    `[b, T, V]`.

  Raises:
    AssertionError: the naive update differs by more than `TOLERANCE`.
  """
  setups = {name: _sums(case, loss) for name, loss in LOSSES.items()}
  aopd = setups['AOPD']
  student, teacher = aopd.passes.policy, aopd.passes.teacher
  batch = _random_batch(case)
  programs = {
    'student forward': _forward(student, aopd.params, batch),
    'teacher forward': _forward(teacher, aopd.teacher_params, batch),
  }
  for name, setup in setups.items():
    # As in the loop: without a teacher of its own the policy stands for it.
    params = setup.params if name == 'GRPO' else setup.teacher_params
    ready = _pass(setup.passes, params, setup.params, batch)
    fixed = ready.call()
    if name != 'GRPO':
      programs[f'{name} teacher pass'] = ready
    programs[f'{name} update'] = _update(setup, setup.passes, batch, fixed)
  passes = Naive(**vars(aopd.passes))
  naive = _update(aopd, passes, batch, fixed)
  check_equal(naive.call(), programs['AOPD update'].call())
  calls = {name: program.call for name, program in programs.items()}
  sizes = {name: p.temporary for name, p in programs.items()}
  narrow = dataclasses.replace(aopd.passes, chunk=CHUNK)
  sizes[NARROW] = _update(aopd, narrow, batch, fixed).temporary
  return {
    **case._asdict(),
    'parameters': [_count(aopd.params), _count(aopd.teacher_params)],
    'arms': bench_sparse.take_turns(calls, repeats),
    'temporary': {**sizes, 'naive': naive.temporary},
    'logits': 4 * case.microbatch * case.length * case.vocab,
  }


def _sums(case, loss) -> loop.Setup:
  config = aopd_sums.get_config()
  config.loss = loss
  config.train.microbatch = case.microbatch
  for section, arg in ((config.model, ''), (config.teacher, 'teacher')):
    section.init = 'tiny_qwen3'
    section.overrides = sft_sums.get_config(arg).model.overrides
    section.overrides.vocab = case.vocab
  return build.from_config(config.to_dict())


def _random_batch(case) -> update_lib.Batch:
  """Rows of random tokens, in microbatches."""
  rng = np.random.default_rng(0)
  shape = (case.rows // case.microbatch, case.microbatch, case.length)
  tokens = rng.integers(0, case.vocab, shape).astype(np.int32)
  acting = np.arange(case.length) >= case.length - case.acting
  noise = rng.normal(size=shape).astype(np.float32)
  return jax.device_put(
    update_lib.Batch(
      tokens=tokens,
      mask=np.broadcast_to(acting, shape),
      old_logprobs=-np.abs(noise),
      advantages=noise,
      teacher_tokens=tokens,
      teacher_shift=np.zeros(shape[:2], np.int32),
      teacher_mask=np.ones(shape[:2], bool),
    )
  )


def check_equal(got: Mapping[str, Any], want: Mapping[str, Any]):
  """Raises an AssertionError where two updates differ by their metrics."""
  for name in ('loss', 'gradient/norm'):
    error = abs(float(got[name]) / float(want[name]) - 1)
    if not error <= TOLERANCE:
      raise AssertionError(f'{name} of the naive update is off by {error:.1e}.')


def _count(params) -> int:
  return sum(x.size for x in jax.tree.leaves(params))


def transforms(options: argparse.Namespace) -> dict[str, Any]:
  """Time of reward transforms and of distillation against the update's."""
  core = options.core
  core = max(os.sched_getaffinity(0)) if core is None else core
  os.sched_setaffinity(0, {core})  # before XLA counts the cores
  path = getattr(options, 'out', None) or RESULTS
  result = {'rewards': {}, 'distillation': {}}
  if path.exists() and not options.fresh:
    result |= json.loads(path.read_text())
  for rows in options.rows.split(','):
    if rows and rows not in result['rewards']:
      config = rdpo_mixed.get_config()
      config.batch.tasks = int(rows) // config.batch.group
      made = functools.partial(reward_row, config)
      _measure(path, result, 'rewards', rows, made, options)
  for name in options.cases.split(','):
    if name and name not in result['distillation']:
      made = functools.partial(distillation_row, CASES[name])
      _measure(path, result, 'distillation', name, made, options)
  return result


def _measure(path, result, kind, name, made, options):
  print(f'{kind}: {name} ...', file=sys.stderr, flush=True)
  row = made(repeats=options.repeats)
  row |= {'load': os.getloadavg()[0], 'commit': run.commit()}
  result[kind][name] = row
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(result, indent=1) + '\n')


def medians(row: Mapping[str, Any]) -> dict[str, float]:
  """CPU milliseconds by arm."""
  return {name: statistics.median(x) for name, x in row['arms'].items()}


def extra(row: Mapping[str, Any]) -> dict[str, float]:
  """What AOPD adds to GRPO, in milliseconds and in teacher forward passes.

  Returns:
    `ms`, of the teacher's pass and of the update together; `update_ms`, of the
    update alone; `beyond_ms`, the first less one forward pass of the teacher;
    and `forwards`, the first over it.
  """
  times = medians(row)
  update = times['AOPD update'] - times['GRPO update']
  whole, forward = update + times['AOPD teacher pass'], times['teacher forward']
  return {
    'ms': whole,
    'update_ms': update,
    'beyond_ms': whole - forward,
    'forwards': whole / forward,
  }


def table(result: Mapping[str, Any]) -> str:
  """Medians and shares of the update, then memory."""
  parts = ['CPU milliseconds of one core, medians.']
  chosen = result['rewards'].values()
  if chosen:
    heads = [f'{r["rows"]} rows x {r["rewards"]} rewards' for r in chosen]
    parts += [
      '**From rewards to advantages**, in brackets the share of the update',
      _table(heads, chosen, _share),
    ]
  chosen = result['distillation'].values()
  if chosen:
    heads = [
      f'{name}: {r["rows"]} x {r["length"]}, V = {r["vocab"]:,}'
      for name, r in result['distillation'].items()
    ]
    parts += [
      '**Distillation**',
      _table(heads, chosen, lambda row, arm: f'{medians(row)[arm]:.4g}'),
      '**What AOPD adds to GRPO**: its teacher pass, and the difference of the'
      ' updates',
      _lines(heads, {what: _extras(chosen, *how) for what, how in EXTRA}),
      '**MiB of temporaries**',
      _memory(heads, chosen),
    ]
  return '\n\n'.join(parts)


def _share(row, arm):
  times = medians(row)
  return f'{times[arm]:.3g} ({times[arm] / times["update"]:.2%})'


def _extras(rows, name, form):
  return [form.format(extra(row)[name]) for row in rows]


def _memory(heads, rows):
  arms = [arm for arm in next(iter(rows))['temporary'] if 'update' in arm]
  arms += ['naive', 'AOPD teacher pass']
  lines = {
    arm: [f'{r["temporary"][arm] / 2**20:,.1f}' for r in rows] for arm in arms
  }
  lines['one [b, T, V]'] = [f'{r["logits"] / 2**20:,.1f}' for r in rows]
  lines['**naive / AOPD update**'] = [
    f'**{r["temporary"]["naive"] / r["temporary"]["AOPD update"]:.1f}x**'
    for r in rows
  ]
  return _lines(heads, lines)


def _table(heads: Sequence[str], rows, cell) -> str:
  arms = next(iter(rows))['arms']
  return _lines(heads, {arm: [cell(row, arm) for row in rows] for arm in arms})


def _lines(heads, lines: Mapping[str, Sequence[str]]) -> str:
  cells = [['', *heads], ['---'] * (len(heads) + 1)]
  cells += [[name, *line] for name, line in lines.items()]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in cells)
