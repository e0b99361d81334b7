import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxagent import losses, types
from jaxagent.losses import base
from jaxagent.models import config as config_lib
from jaxagent.models import policy as policy_lib
from jaxagent.models import sharding
from jaxagent.training import loop
from jaxagent.training import state as state_lib
from jaxagent.training import update as update_lib

CONFIG = config_lib.ModelConfig(
  family='qwen3',
  vocab=61,
  hidden=32,
  layers=1,
  heads=4,
  kv_heads=2,
  head_dim=8,
  intermediate=64,
  qk_norm=True,
  init_std=0.2,
)
POLICY = policy_lib.build(CONFIG)
B, T, EXTRA = 8, 24, 5


def trajectory(seed=0, *, empty_row=True):
  rng = np.random.default_rng(seed)
  mask = rng.random((B, T)) < 0.4
  mask[:, 0] = False
  if empty_row:
    mask[3] = False
  tokens = rng.integers(0, 61, (B, T)).astype(np.int32)
  shift = rng.integers(1, EXTRA, B).astype(np.int32)
  teacher = rng.integers(0, 61, (B, T + EXTRA)).astype(np.int32)
  for b in range(B):
    teacher[b, shift[b] : shift[b] + T] = tokens[b]
  zeros = np.zeros((B, T), np.int32)
  return types.Trajectory(
    tokens=tokens,
    action_mask=mask,
    logprobs=np.where(mask, -rng.random((B, T)) * 5, 0).astype(np.float32),
    turn=zeros,
    anchor=zeros,
    step_reward=zeros.astype(np.float32),
    rewards=np.ones((B, 1), np.float32),
    active=np.ones((B, 1), bool),
    group=np.arange(B, dtype=np.int32) // 4,
    episode=np.arange(B, dtype=np.int32),
    part=np.zeros(B, np.int32),
    status=np.zeros(B, np.int32),
    teacher=types.TeacherView(teacher, shift, rng.random(B) < 0.7),
  )


ADVANTAGES = np.random.default_rng(5).normal(size=(B, T)).astype(np.float32)


def one_update(
  recipe,
  size,
  *,
  reduce=base.token_mean,
  mesh=None,
  advantages=ADVANTAGES,
  rows=None,
):
  mesh = mesh or sharding.make_mesh()
  loss = losses.from_config(recipe)
  passes = update_lib.Passes(POLICY, loss)
  # Plain descent: Adam would turn rounding into steps of full size.
  optimizer = optax.sgd(0.1)
  params = sharding.shard(POLICY.init(jax.random.key(0)), mesh)
  reference = sharding.shard(POLICY.init(jax.random.key(1)), mesh)
  state = sharding.shard(
    state_lib.init(jax.tree.map(jnp.copy, params), optimizer, ()), mesh
  )
  batch = update_lib.microbatches(rows or trajectory(), advantages, size)
  batch = loop._put(batch, mesh)
  unembedding = jnp.copy(POLICY.unembed(reference))
  fixed = passes.fixed(reference, reference, batch, 256)
  update = update_lib.make_update(passes, optimizer, reduce)
  state, metrics = update(state, batch, fixed, unembedding, 256)
  return jax.tree.map(np.asarray, (state, metrics))


SDAR = {'name': 'sdar', 'weight': 0.5}
FULL = {'name': 'opsd_full', 'divergence': 'jsd', 'kl_weight': 0.1}


@pytest.mark.parametrize('reduce', sorted(base.REDUCERS))
@pytest.mark.parametrize('recipe', [SDAR, FULL], ids=lambda r: r['name'])
def test_microbatches_equal_the_batch(recipe, reduce):
  reduce = base.REDUCERS[reduce]
  whole, want = one_update(recipe, 8, reduce=reduce)
  for size in (1, 4, 3):
    parts, got = one_update(recipe, size, reduce=reduce)
    chex.assert_trees_all_close(parts.params, whole.params, atol=1e-6)
    np.testing.assert_allclose(got['loss'], want['loss'], rtol=1e-5)


@pytest.mark.parametrize(
  'axes',
  [{'data': 8}, {'fsdp': 4, 'tensor': 2}, {'data': 2, 'fsdp': 2, 'tensor': 2}],
  ids=str,
)
def test_a_mesh_of_eight_devices_equals_one(axes):
  one, want = one_update(SDAR, 8)
  many, got = one_update(SDAR, 8, mesh=sharding.make_mesh(**axes))
  chex.assert_trees_all_close(many.params, one.params, atol=1e-6)
  for name in ('loss', 'gradient/norm', 'sdar/gate', 'policy/entropy'):
    np.testing.assert_allclose(got[name], want[name], rtol=1e-4)


def test_the_update_is_the_gradient_of_the_loss():
  state, metrics = one_update({'name': 'sft'}, 4)
  rows = trajectory()
  params = POLICY.init(jax.random.key(0))

  def nll(params):
    logits = POLICY.apply(params, rows.tokens) @ POLICY.unembed(params)
    scores = jax.nn.log_softmax(logits[:, :-1])
    chosen = jnp.take_along_axis(
      scores, jnp.asarray(rows.tokens)[:, 1:, None], -1
    )[..., 0]
    mask = rows.action_mask[:, 1:]
    return -jnp.sum(jnp.where(mask, chosen, 0)) / float(mask.sum())

  loss, grads = jax.value_and_grad(nll)(params)
  want = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
  chex.assert_trees_all_close(state.params, want, atol=1e-5)
  np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-5)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted():
  bad = np.full((B, T), np.float32(1e38))
  state, metrics = one_update(
    {'name': 'grpo', 'dual_clip': None}, 4, advantages=bad
  )
  chex.assert_trees_all_equal(state.params, POLICY.init(jax.random.key(0)))
  assert metrics['gradient/skipped'] == 1 and state.step == 1
  _, fine = one_update({'name': 'grpo'}, 4)
  assert fine['gradient/skipped'] == 0


def test_only_the_passes_that_are_needed_run():
  def fixed(recipe):
    passes = update_lib.Passes(POLICY, losses.from_config(recipe))
    batch = update_lib.microbatches(trajectory(), ADVANTAGES, 4)
    params = POLICY.init(jax.random.key(0))
    out = passes.fixed(params, params, batch, 256)
    return {name for name, x in out._asdict().items() if x is not None}

  assert fixed({'name': 'grpo', 'kl_weight': 0}) == set()
  assert fixed({'name': 'grpo'}) == {'ref_logprobs'}
  assert fixed(SDAR) == {'ref_logprobs', 'teacher_logprobs'}
  assert fixed({**FULL, 'kl_weight': 0}) == {'teacher_hidden'}
  assert fixed({'name': 'aopd'}) == {'teacher_hidden'}


def test_the_teacher_is_scored_alike_alone_and_beside_the_policy():
  """What OPD reads from the pass before, AOPD reads in the update."""
  batch = update_lib.microbatches(trajectory(), ADVANTAGES, 4)
  ours, theirs = (POLICY.init(jax.random.key(i)) for i in range(2))

  def read(name):
    passes = update_lib.Passes(POLICY, losses.from_config({'name': name}))
    fixed = passes.fixed(theirs, ours, batch, 256)
    first = jax.tree.map(lambda x: x[0], (batch, fixed))
    head = POLICY.unembed(theirs)
    return passes.inputs(ours, *first, jnp.asarray(0), 256, head)

  alone, beside = read('opd'), read('aopd')
  assert alone.candidates is None and beside.candidates is not None
  np.testing.assert_allclose(
    beside.teacher_logprobs, alone.teacher_logprobs, atol=1e-5
  )
  assert np.abs(alone.teacher_logprobs - alone.logprobs).max() > 0.1


def test_the_teacher_is_aligned():
  """With the same text before it, the teacher is the student."""
  rows = trajectory()
  same = types.TeacherView(
    np.pad(rows.tokens, [(0, 0), (0, EXTRA)]),
    np.zeros(B, np.int32),
    np.ones(B, bool),
  )
  rows = rows.replace(teacher=same)
  passes = update_lib.Passes(POLICY, losses.from_config(SDAR))
  params = POLICY.init(jax.random.key(0))
  batch = update_lib.microbatches(rows, ADVANTAGES, 4)
  fixed = passes.fixed(params, params, batch, 256)
  np.testing.assert_allclose(
    fixed.teacher_logprobs, fixed.ref_logprobs, atol=1e-5
  )
  assert np.abs(fixed.ref_logprobs).sum() > 1
  # Shifted by a prefix that the model does see, it differs.
  batch = update_lib.microbatches(trajectory(), ADVANTAGES, 4)
  moved = passes.fixed(params, params, batch, 256).teacher_logprobs
  assert np.abs(np.asarray(moved - fixed.ref_logprobs)).max() > 0.01


def test_masked_tokens_do_not_matter():
  rows = trajectory()
  noise = np.random.default_rng(9).normal(size=(B, T)).astype(np.float32)
  mask = rows.action_mask
  noisy = rows.replace(logprobs=np.where(mask, rows.logprobs, noise))
  state, metrics = one_update(SDAR, 4)
  other, also = one_update(
    SDAR, 4, rows=noisy, advantages=np.where(mask, ADVANTAGES, np.nan)
  )
  chex.assert_trees_all_equal(state.params, other.params)
  assert metrics['loss'] == also['loss']
