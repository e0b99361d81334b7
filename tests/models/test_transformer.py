"""The model: padding, packing, cache and batch change nothing."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxagent.models import attention, config, layers, logprobs, transformer
from jaxagent.models import policy as policy_lib

# Llama is qwen2 without biases; parity with transformers covers all three.
FAMILIES = ['tiny_qwen2', 'tiny_qwen3']


def _lively(c):
  """Parameters whose norms and biases are off 1 and 0, so that ignoring one
  shows; by numpy, since compiling the initial draw would be half of a test."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: jnp.asarray(
      rng.normal(len(x.shape) == 1, c.init_std, x.shape), x.dtype
    ),
    transformer.shapes(c),
  )


def _small(name):
  return dataclasses.replace(
    config.PRESETS[name], hidden=32, head_dim=8, intermediate=64, init_std=0.2
  )


def _jitted(policy):
  """Eager dispatch would spend minutes on compiling single operations."""
  return dataclasses.replace(
    policy,
    init=jax.jit(policy.init),
    apply=jax.jit(policy.apply),
    extend=jax.jit(policy.extend),
  )


@pytest.fixture(scope='module', params=FAMILIES)
def model(request):
  policy = _jitted(policy_lib.build(_small(request.param)))
  return policy, _lively(policy.config)


def _tokens(*shape, vocab=512):
  return jax.random.randint(jax.random.key(1), shape, 0, vocab)


def test_a_row_does_not_see_its_batch_or_padding(model):
  policy, params = model
  tokens = _tokens(8, 24)
  together = policy.apply(params, tokens)
  alone = policy.apply(params, tokens[3:4])
  padded = policy.apply(params, jnp.pad(tokens, ((0, 0), (0, 13))))[:, :24]
  chex.assert_trees_all_close(together[3:4], alone, atol=1e-5)
  chex.assert_trees_all_close(together, padded, atol=1e-5)


def test_nothing_is_seen_ahead(model):
  policy, params = model
  tokens = _tokens(1, 24)
  changed = tokens.at[0, 10].add(1) % 512
  a, b = policy.apply(params, tokens), policy.apply(params, changed)
  chex.assert_trees_all_close(a[:, :10], b[:, :10], atol=1e-6)
  assert jnp.abs(a - b)[:, 10:].max(axis=-1).min() > 1e-4


def test_packed_rows_equal_separate_rows(model):
  policy, params = model
  tokens = _tokens(1, 24)
  lengths = (8, 4, 12)
  segments = jnp.repeat(jnp.arange(3), jnp.array(lengths))[None]
  positions = jnp.concatenate([jnp.arange(n) for n in lengths])[None]
  packed = policy.apply(params, tokens, positions, segments)
  start = 0
  for n in lengths:
    row = policy.apply(params, tokens[:, start : start + n])
    chex.assert_trees_all_close(packed[:, start : start + n], row, atol=1e-5)
    start += n


def test_positions_matter_only_by_their_difference(model):
  policy, params = model
  tokens = _tokens(2, 12)
  at = jnp.broadcast_to(jnp.arange(12)[None], tokens.shape)
  plain = policy.apply(params, tokens, at)
  shifted = policy.apply(params, tokens, at + 500)
  stretched = policy.apply(params, tokens, at * 2)
  chex.assert_trees_all_close(plain, shifted, atol=1e-4)
  assert jnp.abs(plain - stretched).max() > 1e-3


def test_extend_in_chunks_equals_apply(model):
  """Slots of different length, chunks of 5, a slot used a second time."""
  policy, params = model
  tokens, lengths = _tokens(3, 20), jnp.array([20, 7, 13])
  want = policy.apply(params, tokens)
  cache = jax.tree.map(
    lambda x: jnp.full_like(x, 3.0), policy.empty_cache(3, 32)
  )
  got = []
  for start in range(0, 20, 5):
    at = jnp.broadcast_to(start + jnp.arange(5)[None], (3, 5))
    hidden, cache = policy.extend(
      params, tokens[:, start : start + 5], at, at < lengths[:, None], cache
    )
    got.append(hidden)
  got = jnp.concatenate(got, axis=1)
  for row, n in enumerate(lengths):
    chex.assert_trees_all_close(got[row, :n], want[row, :n], atol=1e-5)


def test_what_is_not_valid_is_written_nowhere(model):
  policy, params = model
  cache = jax.tree.map(
    lambda x: jax.random.normal(jax.random.key(2), x.shape),
    policy.empty_cache(2, 8),
  )
  at = jnp.array([[2, 3], [7, 8]])  # 8 is past the end
  valid = jnp.array([[True, False], [False, True]])
  _, after = policy.extend(params, _tokens(2, 2), at, valid, cache)
  changed = jax.tree.map(
    lambda a, b: jnp.any(a != b, axis=(1, 3)), cache, after
  )
  want = np.zeros((2, 8), bool)
  want[0, 2] = True
  for layer in jax.tree.leaves(changed):
    np.testing.assert_array_equal(layer, want)


def test_a_cropped_cache_serves_short_rows(model):
  policy, params = model
  cache = policy.empty_cache(2, 32)
  tokens = _tokens(2, 6)
  at = jnp.broadcast_to(jnp.arange(6)[None], (2, 6))
  args = (params, tokens, at, jnp.ones((2, 6), bool))
  hidden, full = policy.extend(*args, cache)
  short_hidden, short = policy.extend(*args, policy.crop(cache, 8))
  chex.assert_trees_all_close(hidden, short_hidden, atol=1e-6)
  chex.assert_trees_all_close(full, policy.paste(cache, short), atol=1e-6)


@pytest.mark.parametrize('kind', [{'scan': True}, {'remat': True}])
def test_scan_and_remat_change_only_speed(kind):
  policy = _jitted(policy_lib.build(_small('tiny_qwen2')))
  params = _lively(policy.config)
  tokens = _tokens(2, 12)

  def gradient(policy):
    loss = lambda p: jnp.mean(jnp.sin(policy.apply(p, tokens)))  # noqa: E731
    return jax.jit(jax.grad(loss))(params)

  got = gradient(policy_lib.build(policy.config, **kind))
  chex.assert_trees_all_close(got, gradient(policy), atol=1e-6)


def test_build_gives_one_object_per_config():
  c = config.PRESETS['debug']
  assert policy_lib.build(c) is policy_lib.build(dataclasses.replace(c))


@pytest.mark.parametrize('name', ['tiny_llama', 'debug'])
def test_a_fresh_model_knows_nothing(name):
  c = config.PRESETS[name]
  policy = _jitted(policy_lib.build(c))
  params = policy.init(jax.random.key(0))
  tokens = _tokens(4, 64)
  scores = logprobs.score(
    policy.apply(params, tokens),
    policy.unembed(params),
    tokens,
    jnp.ones(tokens.shape, bool),
    budget=256,
  )
  loss = -jnp.sum(scores.logprobs) / (4 * 63)
  # Hidden states have unit size, so that logits are N(0, hidden * init_std^2),
  # which costs half their variance above a uniform guess.
  guess = math.log(512) + c.hidden * c.init_std**2 / 2
  assert abs(loss - guess) < 0.05 * math.log(512)


def test_initial_parameters_have_the_stated_spread():
  c = config.PRESETS['tiny_qwen2']
  params = jax.jit(policy_lib.build(c).init)(jax.random.key(0))
  seen = set()
  for path, x in jax.tree.leaves_with_path(params):
    leaf = path[-1].key
    if leaf.endswith('norm'):
      assert (x == 1).all(), path
    elif leaf.endswith('bias'):
      assert (x == 0).all(), path
    else:
      assert abs(x.std() / c.init_std - 1) < 0.03, path
      assert abs(x.mean()) < 0.02 * c.init_std * 5, path
      seen.add(float(x[0, 0]))
  assert len(seen) == 1 + 7 * c.layers  # no two matrices from one key


def test_half_precision_stays_close_and_keeps_its_types():
  c = config.PRESETS['debug']
  wide = _jitted(policy_lib.build(c))
  half = _jitted(policy_lib.build(dataclasses.replace(c, dtype='bfloat16')))
  params = _lively(c)
  tokens = _tokens(2, 16)
  a, b = wide.apply(params, tokens), half.apply(params, tokens)
  assert b.dtype == jnp.bfloat16
  assert jnp.abs(a - b.astype(jnp.float32)).mean() < 0.02
  assert logprobs.logits(b[0], half.unembed(params)).dtype == jnp.float32
  cache = half.empty_cache(2, 32)
  at = jnp.broadcast_to(jnp.arange(16)[None], (2, 16))
  hidden, after = half.extend(params, tokens, at, at >= 0, cache)
  assert hidden.dtype == jnp.bfloat16
  assert jax.tree.map(jnp.dtype, cache) == jax.tree.map(jnp.dtype, after)
  loss = lambda p: half.apply(p, tokens).astype('float32').sum()  # noqa: E731
  gradient = jax.eval_shape(jax.grad(loss), params)
  assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype('float32')}


def test_longer_than_the_context_is_refused():
  c = dataclasses.replace(config.PRESETS['debug'], max_positions=16)
  policy = policy_lib.build(c)
  params = transformer.shapes(c)
  with pytest.raises(ValueError, match='max_positions=16'):
    policy.apply(params, _tokens(1, 17))
  with pytest.raises(ValueError, match='max_positions=16'):
    policy.empty_cache(1, 17)


def test_llama3_frequencies_by_hand():
  """Fast pairs untouched, slow ones divided by the factor, between blended."""
  scaling = config.RopeScaling(8.0, 1.0, 4.0, 64)
  c = dataclasses.replace(
    config.PRESETS['tiny_llama'], head_dim=8, rope_scaling=scaling
  )
  turn = layers.rotation(c, jnp.array([[1]]))
  angle = np.arctan2(turn.sin, turn.cos)[0, 0, 0]
  plain = 1e4 ** (-np.arange(4) / 4)  # 1, 0.1, 0.01, 0.001
  turns = 64 * plain / (2 * np.pi)  # 10.19, 1.019, 0.10, 0.01
  blend = (turns[1] - 1) / 3
  want = [1, 0.1 * (blend + (1 - blend) / 8), 0.01 / 8, 0.001 / 8]
  np.testing.assert_allclose(angle, want, rtol=1e-4)


def test_attention_of_two_tokens_by_hand():
  """Two query heads share a key head; scores are scaled by sqrt(2)."""
  query = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]])  # B T H K = 1 1 2 2
  keys = jnp.array([[[[2.0, 0.0], [0.0, 0.0]]]])  # B G M K = 1 1 2 2
  values = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]])
  out = attention.attend(query, keys, values, jnp.ones((1, 1, 2), bool))
  weight = math.exp(2**0.5) / (math.exp(2**0.5) + 1)
  want = [weight, 1 - weight, 0.5, 0.5]
  np.testing.assert_allclose(out[0, 0], want, rtol=1e-6)
