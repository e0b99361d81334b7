"""A teacher with parameters, a size and a file of its own."""

import dataclasses
import functools
import json
import math

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from safetensors import numpy as safetensors
import tokenizers

from experiments import run
from experiments.configs import aopd_chains, sft_chains
from jaxagent import envs, losses, tokens, types
from jaxagent.losses import base
from jaxagent.models import config as config_lib
from jaxagent.models import policy as policy_lib
from jaxagent.models import sharding, weights
from jaxagent.training import build, loop
from jaxagent.training import state as state_lib
from jaxagent.training import update as update_lib

SMALL = config_lib.ModelConfig(
  family='qwen3', vocab=61, hidden=32, layers=1, heads=4, kv_heads=2,
  head_dim=8, intermediate=64, qk_norm=True, init_std=0.2,
)  # fmt: skip
LARGE = dataclasses.replace(SMALL, hidden=48, layers=2, tie_embeddings=False)
POLICY, TEACHER = policy_lib.build(SMALL), policy_lib.build(LARGE)
B, T, K = 8, 24, 5
AOPD = {'name': 'aopd', 'top_k': K}


def trajectory():
  """Rows that the teacher reads as they are."""
  rng = np.random.default_rng(0)
  mask = rng.random((B, T)) < 0.4
  mask[:, 0] = mask[3] = False
  tokens_ = rng.integers(0, 61, (B, T)).astype(np.int32)
  zeros = np.zeros((B, T), np.int32)
  return types.Trajectory(
    tokens=tokens_,
    action_mask=mask,
    logprobs=np.zeros((B, T), np.float32),
    turn=zeros,
    anchor=zeros,
    step_reward=zeros.astype(np.float32),
    rewards=np.ones((B, 1), np.float32),
    active=np.ones((B, 1), bool),
    group=np.arange(B, dtype=np.int32),
    episode=np.arange(B, dtype=np.int32),
    part=np.zeros(B, np.int32),
    status=np.zeros(B, np.int32),
    teacher=types.TeacherView(
      tokens_, np.zeros(B, np.int32), np.zeros(B, bool)
    ),
  )


def one_update(
  recipe=AOPD, size=8, *, mesh=None, policy=POLICY, teacher=TEACHER, change=None
):
  """State and metrics after a step of plain descent."""
  mesh = mesh or sharding.make_mesh()
  passes = update_lib.Passes(
    policy, losses.from_config(recipe), teacher=teacher
  )
  optimizer = optax.sgd(0.1)
  params = sharding.shard(policy.init(jax.random.key(0)), mesh)
  theirs = teacher.init(jax.random.key(1))
  theirs = sharding.shard(change(theirs) if change else theirs, mesh)
  state = state_lib.init(jax.tree.map(jnp.copy, params), optimizer, ())
  state = sharding.shard(state, mesh)
  rows = trajectory()
  nothing = np.zeros((B, T), np.float32)
  batch = loop._put(update_lib.microbatches(rows, nothing, size), mesh)
  fixed = passes.fixed(theirs, params, batch, 256)
  update = update_lib.make_update(passes, optimizer, base.sequence_mean)
  head = jnp.copy(passes.unembed_teacher(theirs))
  state, metrics = update(state, batch, fixed, head, 256)
  return jax.tree.map(np.asarray, (state, metrics))


def by_hand(params, theirs):
  """AOPD of the batch with every logit in memory."""
  rows = trajectory()

  def scores(policy, params):
    hidden = policy.apply(params, rows.tokens)
    return jax.nn.log_softmax(hidden @ policy.unembed(params))[:, :-1]

  ours = scores(POLICY, params)
  theirs = jax.lax.stop_gradient(scores(TEACHER, theirs))
  y = jnp.asarray(rows.tokens)[:, 1:, None]
  ours_y, theirs_y = (
    jnp.take_along_axis(x, y, axis=-1)[..., 0] for x in (ours, theirs)
  )
  a = jax.lax.stop_gradient(theirs_y - ours_y)
  top, ids = jax.lax.top_k(theirs, K)
  mine = jnp.take_along_axis(ours, ids, axis=-1)
  fkl = (jnp.exp(top) * (top - mine)).sum(-1) / K
  mask = rows.action_mask[:, 1:]
  values = jnp.where(mask, jnp.where(a <= 0, fkl, -a * ours_y), 0)
  lengths = mask.sum(1).astype(np.float32)
  means = values.sum(1) / np.maximum(lengths, 1)
  return means.sum() / float((lengths > 0).sum())


def test_an_update_with_a_larger_teacher_is_the_gradient_of_the_definition(
  whole,
):
  state, metrics = whole
  params = POLICY.init(jax.random.key(0))
  loss, grads = jax.value_and_grad(by_hand)(
    params, TEACHER.init(jax.random.key(1))
  )
  want = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
  chex.assert_trees_all_close(state.params, want, atol=1e-5)
  np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-5)
  assert metrics['gradient/norm'] > 0.01
  shares = metrics['aopd/gate']
  gaps = metrics['aopd/gap_imitated'], metrics['aopd/gap_reinforced']
  assert 0 < shares < 1 and gaps[0] < 0 < gaps[1]
  mean = shares * gaps[0] + (1 - shares) * gaps[1]
  np.testing.assert_allclose(mean, metrics['aopd/gap'], rtol=1e-4)
  assert 0 < metrics['aopd/teacher_mass'] < 1


@pytest.fixture(scope='module')
def whole():
  """The update on all rows at once, on one device."""
  return one_update()


def test_microbatches_equal_the_batch(whole):
  whole, want = whole
  for size in (4, 3):
    parts, got = one_update(size=size)
    chex.assert_trees_all_close(parts.params, whole.params, atol=1e-6)
    np.testing.assert_allclose(got['loss'], want['loss'], rtol=1e-5)


def test_a_mesh_of_eight_devices_equals_one(whole):
  one, want = whole
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  many, got = one_update(mesh=mesh)
  chex.assert_trees_all_close(many.params, one.params, atol=1e-6)
  np.testing.assert_allclose(got['aopd/gap'], want['aopd/gap'], rtol=1e-4)


@pytest.mark.parametrize('pad', ['teacher', 'policy'])
def test_padded_heads_are_cut_to_the_common_vocabulary(pad):
  """What stands in the padding changes nothing of the update."""
  padded = dict(vocab=64)
  policy, teacher = SMALL, LARGE
  if pad == 'teacher':
    teacher = dataclasses.replace(LARGE, **padded)
  else:
    policy = dataclasses.replace(SMALL, **padded, tie_embeddings=False)
  policy, teacher = policy_lib.build(policy), policy_lib.build(teacher)

  def soil(params):
    if pad == 'policy':
      return params
    return params | {'unembed': params['unembed'].at[:, 61:].add(9.0)}

  plain, want = one_update(policy=policy, teacher=teacher)
  soiled, got = one_update(policy=policy, teacher=teacher, change=soil)
  chex.assert_trees_all_equal(plain.params, soiled.params)
  assert got['loss'] == want['loss'] != 0
  if pad == 'policy':  # no gradient reaches the padding
    before = policy.init(jax.random.key(0))['unembed']
    np.testing.assert_array_equal(plain.params['unembed'][:, 61:],
                                  before[:, 61:])  # fmt: skip


def test_more_candidates_than_tokens_are_all_tokens():
  _, want = one_update(AOPD | {'top_k': 61})
  _, got = one_update(AOPD | {'top_k': 99})
  assert got['loss'] == want['loss']
  np.testing.assert_allclose(got['aopd/teacher_mass'], 1, rtol=1e-5)


def shapes(jaxpr):
  """Shapes of all values of a jaxpr, inner ones included."""
  for equation in jaxpr.eqns:
    for value in equation.outvars:
      yield value.aval.shape
    for parameter in jax.tree.leaves(
      equation.params, is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      inner = getattr(parameter, 'jaxpr', parameter)
      if hasattr(inner, 'eqns'):
        yield from shapes(inner)


def test_neither_pass_holds_all_positions_by_the_vocabulary():
  """Of a whole step on abstract arrays: the largest array is a chunk's."""
  m, b, t, v, chunk = 2, 8, 64, 5000, 32
  policy, teacher = (
    policy_lib.build(dataclasses.replace(config, vocab=v))
    for config in (SMALL, LARGE)
  )
  passes = update_lib.Passes(
    policy, losses.from_config(AOPD), chunk=chunk, teacher=teacher
  )
  optimizer = optax.sgd(0.1)

  def step(params, theirs, batch):
    fixed = passes.fixed(theirs, params, batch, b * t)
    state = state_lib.init(params, optimizer, ())
    update = update_lib.make_update(passes, optimizer, base.sequence_mean)
    head = passes.unembed_teacher(theirs)
    return update(state, batch, fixed, head, b * t)

  def array(dtype, *shape):
    return jax.ShapeDtypeStruct((m, b, *shape), dtype)

  batch = update_lib.Batch(
    tokens=array(jnp.int32, t),
    mask=array(jnp.bool_, t),
    old_logprobs=array(jnp.float32, t),
    advantages=array(jnp.float32, t),
    teacher_tokens=array(jnp.int32, t),
    teacher_shift=array(jnp.int32),
    teacher_mask=array(jnp.bool_),
  )
  key = jax.random.key(0)
  params, theirs = (jax.eval_shape(p.init, key) for p in (policy, teacher))
  closed = jax.make_jaxpr(step)(params, theirs, batch)
  seen = set(shapes(closed.jaxpr))
  assert (chunk, v) in seen  # the walk does see the logits of a chunk
  largest = max(seen, key=math.prod)
  assert math.prod(largest) < b * t * v / 4, largest


# --- from a config --------------------------------------------------------------


@pytest.fixture(scope='module')
def config():
  return aopd_chains.get_config('debug')


@pytest.fixture(scope='module')
def saved(config, tmp_path_factory):
  """A folder with a teacher of another size, and its tokenizer."""
  folder = tmp_path_factory.mktemp('teacher') / 'model'
  tokenizer = tokens.default()
  model = dataclasses.replace(
    config_lib.PRESETS['debug'], hidden=48, vocab=tokenizer.vocab_size
  )
  params = policy_lib.build(model).init(jax.random.key(5))
  weights.save(folder, model, params)
  tokenizer.save(folder)
  return folder


def taught_by(config, path, **train):
  config = config.copy_and_resolve_references()
  config.teacher.init = str(path)
  config.train.update(train)
  config.eval.splits = ()
  return config


def test_a_teacher_is_read_from_its_folder(config, saved):
  setup = build.from_config(taught_by(config, saved).to_dict())
  assert setup.passes.teacher.config.hidden == 48
  assert setup.passes.policy.config.hidden == 32
  _, params = weights.load(saved)
  chex.assert_trees_all_equal(setup.teacher_params, params)


def test_a_workdir_stands_for_the_model_of_its_run(config, saved):
  (saved.parent / 'checkpoints').mkdir(exist_ok=True)
  setup = build.from_config(taught_by(config, saved.parent).to_dict())
  assert setup.passes.teacher.config.hidden == 48


def test_a_run_that_has_not_finished_is_no_teacher(config, tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(FileNotFoundError, match='not finished'):
    build.from_config(taught_by(config, tmp_path).to_dict())


def test_a_teacher_has_to_be_named(config):
  with pytest.raises(ValueError, match='config.teacher.init'):
    build.from_config(taught_by(config, '').to_dict())
  without = config.to_dict()
  del without['teacher']
  with pytest.raises(ValueError, match='config.teacher.init'):
    build.from_config(without)
  with pytest.raises(ValueError, match="'inits'.*'init'"):
    build.from_config({**without, 'teacher': {'inits': ''}})


def test_a_loss_without_a_teacher_reads_no_folder(config):
  config = taught_by(config, 'nowhere')
  config.loss = ml_collections.ConfigDict({'name': 'sft'})
  assert build.from_config(config.to_dict()).teacher_params is None


def rewritten(saved, folder, change):
  """A copy of a tokenizer whose tokenizer.json was changed."""
  tokens.default().save(folder)
  path = folder / 'tokenizer.json'
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))
  for name in ('config.json', 'model.safetensors'):
    (folder / name).write_bytes((saved / name).read_bytes())
  return folder


def swap(content):
  """Two tokens change places."""
  vocab = content['model']['vocab']
  one, other = [token for token, i in vocab.items() if i in (300, 301)]
  vocab[one], vocab[other] = vocab[other], vocab[one]


def reorder(content):
  merges = content['model']['merges']
  merges[7], merges[8] = merges[8], merges[7]


def add(content):
  token = content['added_tokens'][-1] | {'content': '<|new|>', 'id': 1024}
  content['added_tokens'].append(token)


@pytest.mark.parametrize(
  'change, told',
  [
    (swap, r'2 tokens differ, such as .* is id 30\d .* and id 30\d'),
    (reorder, 'merges differ .* from rank 7'),
    (add, "1 tokens differ, such as '<.new.>', which is id 1024 .* no token"),
  ],
)
def test_another_tokenizer_is_refused(change, told, config, saved, tmp_path):
  folder = rewritten(saved, tmp_path, change)
  with pytest.raises(ValueError, match=f'another tokenizer.*{told}'):
    build.from_config(taught_by(config, folder).to_dict())


def test_an_equal_tokenizer_is_accepted(config, saved, tmp_path):
  folder = rewritten(saved, tmp_path, lambda content: None)
  build.from_config(taught_by(config, folder).to_dict())


def test_an_end_of_reply_of_its_own_is_told():
  backend = tokenizers.Tokenizer.from_str(tokens.default()._backend.to_str())
  template = tokens.default()._template_text.replace('<|end|>', '<|pad|>')
  other = tokens.Tokenizer(backend, template=template)
  told = build.vocabularies.differences(other, tokens.default())
  assert len(told) == 1 and told[0].startswith('replies end')


def test_resuming_with_an_external_teacher_is_bit_for_bit(
  config, saved, tmp_path
):
  taught = functools.partial(taught_by, config, saved, record_every=0)

  def model(workdir):
    return safetensors.load_file(workdir / 'model' / 'model.safetensors')

  run.run(taught(steps=4), tmp_path / 'whole')
  loop.run(build.from_config(taught(steps=2).to_dict()), tmp_path / 'cut')
  run.run(taught(steps=4), tmp_path / 'cut')
  want, got = model(tmp_path / 'whole'), model(tmp_path / 'cut')
  for name, array in want.items():
    np.testing.assert_array_equal(array, got[name], err_msg=name)
  lines = (tmp_path / 'cut' / 'metrics.jsonl').read_text().splitlines()
  assert len(lines) == 4


# --- sources --------------------------------------------------------------------


def test_sequence_distillation_imitates_what_the_teacher_samples(config, saved):
  config = taught_by(config, saved)
  config.source = 'teacher_samples'
  config.loss = ml_collections.ConfigDict({'name': 'sft'})
  setup = build.from_config(config.to_dict())
  assert setup.passes.loss.needs == set() and setup.transform is None
  got = setup.source.next(setup.params, 0).trajectory
  again = setup.source.next(None, 0).trajectory  # the student has no part
  np.testing.assert_array_equal(got.tokens, again.tokens)
  # Their log-probabilities are the teacher's.
  teacher, params = build.load_teacher(config.to_dict(), setup.tokenizer)
  scores = jax.nn.log_softmax(
    teacher.apply(params, got.tokens) @ teacher.unembed(params)
  )[:, :-1]
  chosen = jnp.take_along_axis(
    scores, jnp.asarray(got.tokens)[:, 1:, None], axis=-1
  )[..., 0]
  mask = got.action_mask[:, 1:]
  np.testing.assert_allclose(
    np.where(mask, chosen, 0), got.logprobs[:, 1:], atol=1e-4
  )
  assert mask.sum() > B


def test_answers_are_what_the_environment_calls_right():
  config = sft_chains.get_config('debug').to_dict()
  setup = build.from_config({**config, 'source': 'answers'})
  rows = setup.source.next(None, 0)
  assert rows.metrics['reward/success'] == 1
  games, _ = envs.from_config(config['env'])
  batch, tokenizer = rows.trajectory, setup.tokenizer
  for b, episode in enumerate(rows.episodes):
    values = games[episode.task.game].values
    ids = batch.tokens[b][batch.action_mask[b]].tolist()
    assert tokenizer.completion(ids) == ','.join(map(str, values))
    assert ids[-1] == tokenizer.stop_id
