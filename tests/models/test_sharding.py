"""A mesh of devices computes what one device computes."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import optax
import pytest

from jaxagent.models import config, logprobs, sharding, transformer
from jaxagent.models import policy as policy_lib

CONFIG = dataclasses.replace(
  config.PRESETS['tiny_qwen2'],
  layers=1,
  hidden=32,
  head_dim=8,
  intermediate=64,
  tie_embeddings=False,
)


@pytest.fixture(scope='module')
def one_device():
  policy = policy_lib.build(CONFIG)
  params = jax.jit(policy.init)(jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (8, 16), 0, CONFIG.vocab)

  @jax.jit
  def run(params, tokens):
    def loss(params):
      scores = logprobs.score(
        policy.apply(params, tokens),
        policy.unembed(params),
        tokens,
        tokens % 2 == 0,
        budget=128,
        chunk=32,
      )
      return -scores.logprobs.sum() / 60, scores.logprobs

    return jax.grad(loss, has_aux=True)(params)

  return run, params, tokens, run(params, tokens)


@pytest.mark.parametrize(
  'axes',
  [
    {'data': 8},
    {'data': 2, 'fsdp': 2, 'tensor': 2},
  ],
)
def test_scores_and_gradients_equal_one_device(one_device, axes):
  run, params, tokens, want = one_device
  mesh = sharding.make_mesh(**axes)
  placed = sharding.shard(params, mesh)
  got = run(placed, sharding.shard_batch(tokens, mesh))
  assert len(got[0]['norm'].devices()) == 8
  chex.assert_trees_all_close(
    jax.device_get(got), jax.device_get(want), atol=1e-5
  )


def test_parameters_are_split_and_not_copied():
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  shapes = transformer.shapes(CONFIG)
  specs = sharding.specs(shapes, mesh)
  layer = specs['layers'][0]
  assert layer['mlp']['gate'] == PartitionSpec('fsdp', 'tensor')
  assert layer['mlp']['down'] == PartitionSpec('tensor', 'fsdp')
  assert layer['attention']['query_bias'] == PartitionSpec('tensor')
  assert layer['attention_norm'] == PartitionSpec()
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
  placed = sharding.shard(zeros, mesh)
  kernel = placed['layers'][0]['mlp']['gate']
  assert kernel.addressable_shards[0].data.size == kernel.size // 4


def test_optimiser_state_lies_as_its_parameters():
  mesh = sharding.make_mesh(fsdp=4, tensor=2)
  shapes = transformer.shapes(CONFIG)
  state = jax.eval_shape(optax.adamw(1e-3).init, shapes)
  specs = sharding.specs(state, mesh)
  assert specs[0].mu == sharding.specs(shapes, mesh)
  assert specs[0].count == PartitionSpec()


def test_every_matrix_of_every_family_has_a_rule():
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  for name in ('tiny_llama', 'tiny_qwen2', 'tiny_qwen3', 'qwen3-8b'):
    specs = sharding.specs(transformer.shapes(config.PRESETS[name]), mesh)
    shapes = transformer.shapes(config.PRESETS[name])
    for path, shape in jax.tree.leaves_with_path(shapes):
      spec = specs
      for key in path:
        spec = spec[getattr(key, 'key', getattr(key, 'idx', None))]
      assert len(shape.shape) == 1 or spec != PartitionSpec(), path


def test_what_does_not_divide_stays_whole():
  mesh = sharding.make_mesh(tensor=8)
  odd = {'query': jax.ShapeDtypeStruct((32, 12), 'float32')}
  assert sharding.specs(odd, mesh)['query'] == PartitionSpec('fsdp', None)


def test_too_few_devices_and_odd_batches_are_refused():
  with pytest.raises(ValueError, match='needs 16 devices; there are 8'):
    sharding.make_mesh(data=16)
  mesh = sharding.make_mesh(data=8)
  with pytest.raises(ValueError, match='6.*rows do not split 8 ways'):
    sharding.shard_batch({'x': jnp.zeros((6, 2))}, mesh)


@pytest.mark.parametrize('axes', [(1, 4, 2), (8, 1, 1), (2, 1, 4)], ids=str)
def test_each_part_is_the_whole(axes):
  mesh = sharding.make_mesh(**dict(zip(sharding.AXES, axes, strict=True)))
  keys = jax.random.split(jax.random.key(0), 2)
  x = jax.random.normal(keys[0], (8, 3, 4, 5))
  y = jax.random.normal(keys[1], (8, 3, 2, 5))
  ids = jnp.arange(24).reshape(8, 3)
  seen = []

  def rule(x, y, ids):  # two heads of x for each of y
    seen.append(x.shape)
    grouped = x.reshape(*x.shape[:2], y.shape[2], -1, 5) + y[:, :, :, None]
    rows = ids.astype(jnp.float32)[:, :, None, None]
    return grouped.reshape(x.shape) * rows

  want = rule(x, y, ids)

  def loss(x, y):
    return jnp.sum(sharding.each_part(rule, x, y, ids) ** 2)

  plain = jax.grad(loss)(x, y)
  assert set(seen) == {x.shape}
  x, y = jax.device_put((x, y), NamedSharding(mesh, PartitionSpec()))
  with sharding.use(mesh):
    got = jax.jit(lambda x, y: sharding.each_part(rule, x, y, ids))(x, y)
    grad = jax.jit(jax.grad(loss))(x, y)
  ways, tensor = axes[0] * axes[1], axes[2]
  heads = 4 // tensor if 2 % tensor == 0 else 4
  assert seen[-1] == (8 // ways, 3, heads, 5)
  chex.assert_trees_all_close((got, grad), (want, plain), rtol=1e-5)


def test_hidden_states_keep_whole_rows(monkeypatch):
  """Not a part of the width each, which every product would have to sum."""
  policy = policy_lib.build(config.PRESETS['debug'])
  mesh = sharding.make_mesh(fsdp=8)
  params = sharding.shard(policy.init(jax.random.key(0)), mesh)
  rows = NamedSharding(mesh, sharding.BATCH)
  tokens = jax.device_put(jnp.arange(64, dtype=jnp.int32).reshape(8, 8), rows)

  def sums():
    with sharding.use(mesh):
      program = jax.jit(lambda p, x: policy.apply(p, x)).lower(params, tokens)
      return program.compile().as_text().count(' all-reduce(')

  assert sums() <= 1  # the rows of the embedding
  monkeypatch.setattr(sharding, 'by_rows', lambda x: x)
  assert sums() > 4
