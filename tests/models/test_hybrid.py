"""Hybrid models: a memory in place of a cache changes nothing but the cost."""

import dataclasses
import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxagent.models import (
  config,
  config_json,
  gated_delta,
  layers,
  logprobs,
  sharding,
  transformer,
  weights,
)
from jaxagent.models import policy as policy_lib

SMALL = dataclasses.replace(
  config.PRESETS['tiny_hybrid'],
  vocab=101,
  hidden=32,
  head_dim=8,
  intermediate=48,
  init_std=0.2,
  gated_delta=config.GatedDelta(
    heads=4, key_heads=2, key_dim=8, value_dim=8, gate_rank=4
  ),
  sparse_attention=config.SparseAttention(budget=2, block_size=4),
)
THREE_TO_ONE = ('gated_delta',) * 3 + ('attention',)


def _model(kinds=THREE_TO_ONE, **fields):
  memory = dataclasses.replace(SMALL.gated_delta, **fields)
  return dataclasses.replace(SMALL, layers=kinds, gated_delta=memory)


MODELS = {
  'hybrid': _model(),
  'gdn': _model(('gated_delta',), variant='gdn', gate='silu'),
  'kda': _model(('gated_delta',), variant='kda', beta_rank=3),
  'fg2': _model(('gated_delta',), variant='fg2', allow_neg_eigval=True),
  'sparse': _model(('sparse_attention',)),
  'wide values': _model(('gated_delta',), value_dim=12, conv_width=3),
}


def _lively(c):
  """Norms off one, decays spread, and drawn by numpy, which is quick."""
  rng = np.random.default_rng(1)

  def draw(path, x):
    name = path[-1].key
    scale = 0.5 if name.endswith(('conv', 'bias')) else c.init_std
    mean = float(name.endswith('norm'))
    return jnp.asarray(rng.normal(mean, scale, x.shape), x.dtype)

  return jax.tree.map_with_path(draw, transformer.shapes(c))


@pytest.fixture(scope='module', params=MODELS)
def model(request):
  policy = policy_lib.build(MODELS[request.param])
  policy = dataclasses.replace(
    policy, apply=jax.jit(policy.apply), extend=jax.jit(policy.extend)
  )
  return policy, _lively(policy.config)


def _close(policy, got, want):
  """Rounding grows from layer to layer."""
  atol = 1e-4 if len(policy.config.kinds) > 1 else 1e-5
  chex.assert_trees_all_close(got, want, atol=atol)


def _tokens(*shape):
  return jax.random.randint(jax.random.key(1), shape, 0, 101)


# --- a row is a row -----------------------------------------------------------


def test_extend_equals_apply(model):
  """Chunks of 6, then single tokens; slots of different length and a dirty
  cache, since position 0 begins anew."""
  policy, params = model
  tokens, lengths = _tokens(3, 24), np.array([24, 7, 13])
  want = policy.apply(params, tokens)
  cache = jax.tree.map(
    lambda x: jnp.full_like(x, 3.0), policy.empty_cache(3, 32)
  )
  got, start = [], 0
  while start < 24:
    size = 6 if start < 18 else 1
    at = jnp.broadcast_to(start + jnp.arange(size)[None], (3, size))
    hidden, cache = policy.extend(
      params,
      tokens[:, start : start + size],
      at,
      at < jnp.asarray(lengths)[:, None],
      cache,
    )
    got.append(hidden)
    start += size
  got = jnp.concatenate(got, axis=1)
  for row, n in enumerate(lengths):
    _close(policy, got[row, :n], want[row, :n])


def test_packed_rows_equal_separate_rows(model):
  """Also where a document is shorter than the convolution."""
  policy, params = model
  tokens = _tokens(1, 24)
  lengths = (8, 2, 14)
  ends = np.cumsum(lengths)
  segments = jnp.repeat(jnp.array([0, 2, 1]), jnp.array(lengths))[None]
  positions = jnp.concatenate([jnp.arange(n) for n in lengths])[None]
  packed = policy.apply(params, tokens, positions, segments)
  separate = np.zeros((3, 24), np.int32)
  for row, (n, end) in enumerate(zip(lengths, ends, strict=True)):
    separate[row, :n] = tokens[0, end - n : end]
  want = policy.apply(params, jnp.asarray(separate))
  for row, (n, end) in enumerate(zip(lengths, ends, strict=True)):
    _close(policy, packed[0, end - n : end], want[row, :n])


def test_nothing_is_seen_ahead_and_all_behind(model):
  policy, params = model
  tokens = jnp.broadcast_to(_tokens(1, 24), (3, 24))
  tokens = tokens.at[1, 10].add(1) % 101
  a, b, _ = policy.apply(params, tokens)
  _close(policy, a[:10], b[:10])
  # Sparse attention surely sees its own block, which ends at 12.
  stop = 12 if 'sparse_attention' in policy.config.kinds else 24
  assert jnp.abs(a - b)[10:stop].max(axis=-1).min() > 1e-5


def test_an_idle_slot_keeps_its_state(model):
  """Bit for bit, and a prefix of valid tokens is all that enters."""
  policy, params = model
  cache = jax.tree.map(
    lambda x: jax.random.normal(jax.random.key(2), x.shape, x.dtype),
    policy.empty_cache(3, 32),
  )
  tokens = _tokens(3, 6)
  at = jnp.array([[0], [4], [7]]) + jnp.arange(6)[None]
  valid = jnp.arange(6)[None] < jnp.array([[0], [1], [6]])
  _, after = policy.extend(params, tokens, at, valid, cache)
  alone = policy.extend(params, tokens[:, :1], at[:, :1], valid[:, :1], cache)
  leaves = (jax.tree.leaves(x) for x in (cache, after, alone[1]))
  for old, new, one in zip(*leaves, strict=True):
    np.testing.assert_array_equal(old[0], new[0])
    assert not np.array_equal(old[1], new[1])
    _close(policy, new[1], one[1])


def test_cropping_serves_short_rows_and_leaves_memories_alone(model):
  policy, params = model
  cache = policy.empty_cache(3, 32)
  tokens = _tokens(3, 6)
  at = jnp.broadcast_to(jnp.arange(6)[None], (3, 6))
  args = (params, tokens, at, jnp.ones((3, 6), bool))
  hidden, full = policy.extend(*args, cache)
  cropped = policy.crop(cache, 10)
  for kind, old, new in zip(policy.config.kinds, cache, cropped, strict=True):
    assert (old is new) == (kind == 'gated_delta')
  short_hidden, short = policy.extend(*args, cropped)
  _close(policy, hidden, short_hidden)
  chex.assert_trees_all_close(full, policy.paste(cache, short), atol=1e-5)


# --- the layer, against its definition -----------------------------------------


def _by_hand(c, p, x):
  """A row [T, D] token by token in float64, from the formulas of the card."""
  d, silu = c.gated_delta, lambda y: y / (1 + np.exp(-y))
  sigmoid = lambda y: 1 / (1 + np.exp(-y))  # noqa: E731
  p = {k: np.asarray(v, np.float64) for k, v in p.items()}

  def matrix(name):
    if name in p:
      return p[name]
    return p[f'{name}_down'] @ p[f'{name}_up']

  def mixed(name, t):
    kernel = p[f'{name}_conv']
    back = [(kernel[-1 - i], x[t - i]) for i in range(len(kernel)) if t >= i]
    return silu(sum(w * (y @ p[name]) for w, y in back))

  def unit(y):
    return y / np.sqrt((y * y).sum(-1, keepdims=True) + 1e-6)

  state, out = np.zeros((d.heads, d.key_dim, d.value_dim)), []
  group = d.heads // d.key_heads
  for t in range(len(x)):
    q, k = (
      unit(mixed(n, t).reshape(d.key_heads, -1)).repeat(group, 0)
      for n in ('query', 'key')
    )
    v = mixed('value', t).reshape(d.heads, -1)
    names = ['beta'] * 2
    if d.variant == 'fg2_plus':
      names = ['key_beta', 'value_beta']
    top = 2 if d.allow_neg_eigval else 1
    b_k, b_v = (
      top * sigmoid(x[t] @ matrix(n)).reshape(d.heads, -1) for n in names
    )
    step = np.log1p(np.exp(x[t] @ matrix('decay') + p['decay_bias']))
    g = -np.exp(p['decay_rate'])[:, None] * step.reshape(d.heads, -1)
    state = np.exp(g)[..., None] * state
    erase = np.sqrt(b_k) * k
    new = np.sqrt(b_v) * v - np.einsum('hkv,hk->hv', state, erase)
    state = state + erase[..., None] * new[:, None]
    o = np.einsum('hkv,hk->hv', state, q) * d.key_dim**-0.5
    o = o / np.sqrt((o * o).mean(-1, keepdims=True) + c.norm_eps) * p['norm']
    gate = (silu if d.gate == 'silu' else sigmoid)(x[t] @ matrix('gate'))
    out.append((o.reshape(-1) * gate) @ p['output'])
  return np.stack(out)


@pytest.mark.parametrize('name', [n for n in MODELS if n != 'sparse'])
def test_the_layer_is_its_formulas(name):
  c = MODELS[name]
  params = _lively(c)['layers'][0]['gated_delta']
  x = np.random.default_rng(0).normal(size=(9, c.hidden))
  rows = layers.Rows(None, None, None)
  whole = jax.jit(lambda x: gated_delta.whole(c, params, x, rows))
  got = whole(jnp.asarray(x[None], jnp.float32))
  np.testing.assert_allclose(got[0], _by_hand(c, params, x), atol=2e-5)


def test_learning_rates_have_slopes_for_any_logit():
  """sqrt(sigmoid(x)) has none below -100."""
  c = MODELS['kda']
  params = _lively(c)['layers'][0]['gated_delta']

  def loss(shift):
    x = jnp.ones((1, 4, c.hidden))
    moved = params | {'beta_up': params['beta_up'] * 0 + shift}
    rows = layers.Rows(None, None, None)
    return gated_delta.whole(c, moved, x, rows).sum()

  slope = jax.jit(jax.grad(loss))
  for shift in (-104.0, -30.0, 0.0, 30.0):
    assert np.isfinite(slope(shift)), shift


# --- training -------------------------------------------------------------------


def test_scan_and_remat_change_only_speed():
  """The scan is over the pattern of the layers."""
  c = _model(('gated_delta', 'attention') * 2)
  params, tokens = _lively(c), _tokens(2, 12)

  def gradient(**kwargs):
    policy = policy_lib.build(c, **kwargs)
    loss = lambda p: jnp.mean(jnp.sin(policy.apply(p, tokens)))  # noqa: E731
    return jax.jit(jax.grad(loss))(params)

  want = gradient()
  for kwargs in ({'scan': True}, {'remat': True}):
    chex.assert_trees_all_close(gradient(**kwargs), want, atol=2e-5)


@pytest.fixture(scope='module')
def scored():
  c = dataclasses.replace(
    _model(('gated_delta', 'attention')), tie_embeddings=False
  )
  policy = policy_lib.build(c)

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

  params, tokens = _lively(c), _tokens(8, 16)
  return run, params, tokens, run(params, tokens)


def test_a_mesh_computes_what_one_device_computes(scored):
  run, params, tokens, want = scored
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  placed = sharding.shard(params, mesh)
  got = run(placed, sharding.shard_batch(tokens, mesh))
  assert len(got[0]['norm'].devices()) == 8
  chex.assert_trees_all_close(
    jax.device_get(got), jax.device_get(want), atol=2e-5
  )


@pytest.mark.parametrize('name', ['hybrid-1.3b', 'qwen3-next-80b-a3b'])
def test_every_matrix_is_split(name):
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  shapes = transformer.shapes(config.PRESETS[name])
  for path, x in jax.tree.leaves_with_path(shapes):
    split = any(sharding.spec(path, x.shape, mesh))
    assert split or len(x.shape) == 1 or 1 in x.shape, path


def _copying(key, rows=16, length=24):
  """Rows that say the same thing twice: the second half can be known."""
  half = jax.random.randint(key, (rows, length // 2), 1, 17)
  return jnp.concatenate([half, half], axis=1)


@pytest.mark.slow
def test_a_hybrid_learns_as_attention_does():
  ends = {}
  for kinds in (('attention',) * 4, THREE_TO_ONE):
    c = dataclasses.replace(SMALL, layers=kinds, hidden=64, init_std=0.05)
    policy = policy_lib.build(c)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(state, key, policy=policy, optimizer=optimizer):
      def loss(params):
        tokens = _copying(key)
        hidden = policy.apply(params, tokens[:, :-1])
        logits = hidden[:, 11:] @ policy.unembed(params)
        return optax.softmax_cross_entropy_with_integer_labels(
          logits, tokens[:, 12:]
        ).mean()

      params, moments = state
      value, slope = jax.value_and_grad(loss)(params)
      with jax.numpy_dtype_promotion('standard'):  # optax: floats to counts
        update, moments = optimizer.update(slope, moments)
      return (optax.apply_updates(params, update), moments), value

    params = jax.jit(policy.init)(jax.random.key(0))
    state, losses = (params, optimizer.init(params)), []
    for i in range(400):
      state, value = step(state, jax.random.key(i))
      losses.append(float(value))
    ends[kinds] = np.mean(losses[-10:])
  # A guess among the tokens costs log(16) = 2.8.
  assert max(ends.values()) < 1.4, ends


# --- config and files -------------------------------------------------------------


def test_a_fresh_model_has_the_stated_decays():
  c = config.PRESETS['tiny_hybrid']
  params = jax.jit(policy_lib.build(c).init)(jax.random.key(0))
  seen = set()
  for layer in params['layers'][:3]:
    mixer = layer['gated_delta']
    rate, step = (
      jnp.exp(mixer['decay_rate']),
      jax.nn.softplus(mixer['decay_bias']),
    )
    assert rate.min() >= 1 and rate.max() <= 16
    assert 0.0009 < step.min() < 0.003 and 0.03 < step.max() < 0.101
    assert (mixer['norm'] == 1).all()
    assert 0.4 < jnp.abs(mixer['key_conv']).max() <= 0.5
    seen |= {float(rate[0]), float(step[0])}
  assert len(seen) == 6


def test_decays_stay_wide_in_a_narrow_model():
  c = dataclasses.replace(
    MODELS['hybrid'], dtype='bfloat16', param_dtype='bfloat16'
  )
  params = _lively(c)
  wide = {
    path[-1].key
    for path, x in jax.tree.leaves_with_path(params)
    if x.dtype == jnp.float32
  }
  assert wide == set(gated_delta.WIDE)
  policy = policy_lib.build(c)
  cache = policy.empty_cache(2, 16)
  assert cache[0].memory.dtype == jnp.float32
  at = jnp.broadcast_to(jnp.arange(16)[None], (2, 16))
  tokens = _tokens(2, 16)
  hidden, after = jax.jit(policy.extend)(params, tokens, at, at >= 0, cache)
  assert hidden.dtype == jnp.bfloat16
  assert jax.tree.map(jnp.dtype, cache) == jax.tree.map(jnp.dtype, after)
  f32 = policy_lib.build(MODELS['hybrid'])
  want = jax.jit(f32.apply)(
    jax.tree.map(lambda x: x.astype(jnp.float32), params), tokens
  )
  assert jnp.abs(hidden.astype(jnp.float32) - want).mean() < 0.05


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_saved_hybrids_load_bit_for_bit(tmp_path, dtype):
  c = dataclasses.replace(
    MODELS['hybrid'],
    experts=config.Experts(count=3, active=2, intermediate=8, shared=8),
    rope_scaling=config.RopeScaling(8.0, 1.0, 4.0, 64),
    attention_gate=True,
    dtype=dtype,
    param_dtype=dtype,
  )
  params = _lively(c)
  weights.save(tmp_path, c, params, shard_bytes=20_000)
  assert len(list(tmp_path.glob('*.safetensors'))) > 1
  fields = json.loads((tmp_path / 'config.json').read_text())
  assert fields['model_type'] == 'jaxagent_hybrid'
  again, loaded = weights.load(tmp_path)
  assert again == c
  chex.assert_trees_all_equal_dtypes(loaded, params)
  for x, y in zip(
    jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True
  ):
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_an_unknown_field_of_our_own_file_is_refused():
  fields = config_json.to_hugging_face(MODELS['hybrid'])
  with pytest.raises(ValueError, match='layrs'):
    config_json.from_hugging_face(fields | {'layrs': 3})


@pytest.mark.parametrize(
  'change, told',
  [
    ({'layers': ('attention', 'mamba')}, 'mamba'),
    ({'layers': ()}, 'give a number'),
    ({'gated_delta': None}, 'at least its heads'),
    (
      {'layers': ('sparse_attention',), 'sparse_attention': None},
      'at least its budget',
    ),
    ({'sparse_attention': {'budget': 0}}, 'at least 1'),
    ({'family': 'qwen3'}, "family='hybrid'"),
    ({'gated_delta': {'heads': 3, 'key_heads': 2}}, 'no multiple'),
    ({'gated_delta': {'heads': 2, 'variant': 'gnd'}}, 'gnd'),
    ({'gated_delta': {'heads': 2, 'gate': 'relu'}}, 'relu'),
    (
      {'gated_delta': {'heads': 2, 'variant': 'fg2', 'value_dim': 64}},
      'equally wide',
    ),
    (
      {'experts': dict(count=2, active=3, intermediate=4, shared=4)},
      'active=3',
    ),
  ],
)
def test_impossible_layers_are_refused(change, told):
  with pytest.raises(ValueError, match=told):
    dataclasses.replace(SMALL, **change)


def test_a_pattern_of_attention_is_its_number():
  c = dataclasses.replace(config.PRESETS['debug'], layers=['attention'] * 2)
  assert c == config.PRESETS['debug'] and not c.recurrent
  assert MODELS['hybrid'].recurrent and MODELS['hybrid'].kinds == THREE_TO_ONE


def test_the_presets_have_their_stated_sizes():
  def count(name):
    shapes = transformer.shapes(config.PRESETS[name])
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))

  assert 1.2e9 < count('hybrid-1.3b') < 1.4e9
  assert 79e9 < count('qwen3-next-80b-a3b') < 81e9
