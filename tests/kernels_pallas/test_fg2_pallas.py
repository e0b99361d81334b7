"""The TPU kernels against the definition, in interpret mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import testing
from kernels_pallas.fg2_gdn import api, pallas, reference

ROWS, LENGTH, HEADS, WIDTH = 1, 75, 2, 32


def problem(*, seed=0, length=LENGTH, width=WIDTH, asymmetric=False):
  """Operands in float64, by name; `k` already scaled, `do` and `ds` too."""
  random = np.random.default_rng(seed)

  def normal(*shape):
    return random.standard_normal(shape)

  shape = (ROWS, length, HEADS, width)
  q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (
    normal(*shape), normal(*shape)
  ))  # fmt: skip
  beta = 1 / (1 + np.exp(-2 * normal(*shape)))
  return {
    'q': q,
    'k': (1 if asymmetric else np.sqrt(beta)) * k,
    'v': beta * normal(*shape),
    'g': -5 * random.uniform(size=shape) ** 4,
    'erase': beta * k if asymmetric else None,
    'initial_state': normal(ROWS, HEADS, width, width),
    'do': normal(*shape),
    'ds': normal(ROWS, HEADS, width, width),
    'segment_ids': np.full((ROWS, length), 7, np.int32),
  }


# Compiled for a few small runs: optimising would take longer than it saves.
@functools.partial(
  jax.jit,
  static_argnames=('implementation', 'chunk_size'),
  compiler_options={'xla_backend_optimization_level': 0},
)
def evaluate(operands, do, ds, segment_ids, *, implementation, chunk_size):
  """`o`, the final state and the gradient of every operand, by name."""

  def run(operands):
    q, k, v, g = (operands[name] for name in 'qkvg')
    return api.gated_delta(
      *(q, k, v, g),
      erase=operands['erase'],
      initial_state=operands['initial_state'],
      segment_ids=segment_ids,
      chunk_size=chunk_size,
      implementation=implementation,
    )

  (o, state), pull = jax.vjp(run, operands)
  (gradients,) = pull((do.astype(o.dtype), ds.astype(state.dtype)))
  return {'o': o, 'state': state, **gradients}


def solve(p, implementation, dtype='float32', chunk_size=32):
  """`evaluate` on operands cast to `dtype`, gates and states to float32."""
  wide = 'float64' if dtype == 'float64' else 'float32'
  p = jax.tree.map(np.asarray, p)
  ids = p.pop('segment_ids')
  p = {
    key: x
    if x is None
    else jnp.asarray(x, wide if key in ('g', 'initial_state', 'ds') else dtype)
    for key, x in p.items()
  }
  do, ds = p.pop('do'), p.pop('ds')
  out = evaluate(
    *(p, do, ds, ids), implementation=implementation, chunk_size=chunk_size
  )
  return {k: np.asarray(x, np.float64) for k, x in out.items() if x is not None}


def truth(p):
  with jax.enable_x64(True):
    return solve(p, 'recurrent', 'float64')


def errors(got, wanted):
  """Largest error over largest value, by name."""
  assert got.keys() == wanted.keys()
  return {
    name: np.abs(got[name] - wanted[name]).max() / np.abs(wanted[name]).max()
    for name in wanted
  }


def assert_close(p, **keywords):
  """Values within 2e-5 and gradients within 1e-4 of the largest."""
  got = solve(p, 'pallas_interpret', **keywords)
  for name, error in errors(got, truth(p)).items():
    assert error < (2e-5 if name in ('o', 'state') else 1e-4), name
  return got


def test_values_and_gradients():
  assert_close(problem())


def test_asymmetric():
  assert_close(problem(seed=1, asymmetric=True, length=40), chunk_size=16)


def segmented():
  """Documents that begin in the middle of chunks, an id that comes again."""
  p = problem(seed=2)
  ids = np.repeat([3, 0, 9, 3, 5, 0], [20, 3, 6, 30, 10, 6])
  return {**p, 'segment_ids': ids[None].astype(np.int32)}


def test_segments():
  assert_close(segmented())


def test_a_document_does_not_feel_its_neighbours():
  p = segmented()
  other = problem(seed=3)
  inside = (np.arange(LENGTH) >= 23) & (np.arange(LENGTH) < 29)
  changed = {
    name: np.where(inside[None, :, None, None], other[name], p[name])
    for name in ('q', 'k', 'v', 'g', 'do')
  }
  before = solve(p, 'pallas_interpret')
  after = solve({**p, **changed}, 'pallas_interpret')
  for name in ('o', 'q', 'k', 'v', 'g'):
    np.testing.assert_array_equal(
      before[name][:, ~inside], after[name][:, ~inside]
    )
    assert not np.array_equal(before[name][:, inside], after[name][:, inside])
  for name in ('state', 'initial_state'):
    np.testing.assert_array_equal(before[name], after[name])


def decay_of(kind):
  p = problem(seed=4)
  g = -0.01 * np.random.default_rng(4).uniform(size=p['g'].shape)
  if kind == 'none':
    g = 0 * g
  elif kind == 'uniform to -50':
    g = 5000 * g
  elif kind == 'a fifth at -50':
    g = np.where(np.random.default_rng(5).uniform(size=g.shape) < 0.2, -50, g)
  else:
    g[:, 37] = -1e4
  return {**p, 'g': g}


@pytest.mark.parametrize(
  'kind', ['none', 'uniform to -50', 'a fifth at -50', 'one token at -1e4']
)
def test_strong_decay(kind):
  p = decay_of(kind)
  got, wanted = solve(p, 'pallas_interpret'), truth(p)
  # Under the clamp at -30 nothing flows to g, and next to nothing should.
  flows = p['g'] > -30
  for x in (got, wanted):
    assert all(np.isfinite(y).all() for y in x.values())
    x['g'] = np.where(flows, x['g'], 0)
  for name, error in errors(got, wanted).items():
    assert error < (2e-5 if name in ('o', 'state') else 1e-4), name


def test_repeated_keys():
  p = problem(seed=6)
  k = p['k'][:, :1] / np.linalg.norm(p['k'][:, :1], axis=-1, keepdims=True)
  k = np.broadcast_to(k, p['k'].shape)
  assert_close({**p, 'k': 0.99999 * k, 'g': np.zeros_like(p['g'])})


@pytest.mark.slow
@pytest.mark.parametrize('chunk_size', [64, 128])
def test_repeated_keys_in_long_chunks(chunk_size):
  p = problem(seed=6, length=150)
  k = p['k'][:, :1] / np.linalg.norm(p['k'][:, :1], axis=-1, keepdims=True)
  k = np.broadcast_to(k, p['k'].shape)
  p = {**p, 'k': 0.99999 * k, 'g': np.zeros_like(p['g'])}
  assert_close(p, chunk_size=chunk_size)


def test_bfloat16():
  p = problem(seed=7)
  p = {
    key: x
    if x is None or key in ('g', 'initial_state', 'ds', 'segment_ids')
    else np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
    for key, x in p.items()
  }
  got, wanted = solve(p, 'pallas_interpret', 'bfloat16'), truth(p)
  for name, value in got.items():
    error = np.linalg.norm(value - wanted[name])
    error /= np.linalg.norm(wanted[name])
    assert error < (1e-2 if name in ('o', 'state') else 3e-2), name


def test_a_decay_a_head():
  p = problem(seed=8)
  assert_close({**p, 'g': p['g'][..., :1]})


def test_maps_over_a_batch():
  first, second = problem(seed=9, length=16), problem(seed=10, length=16)

  def run(q, k, v, g, state):
    return pallas.gated_delta_pallas(
      *(q, None, k, v, g, state, None), chunk_size=16, interpret=True
    )

  names = ('q', 'k', 'v', 'g', 'initial_state')
  both = [
    jnp.asarray(np.stack([first[n], second[n]]), jnp.float32) for n in names
  ]
  o, state = jax.jit(jax.vmap(run))(*both)
  for i in range(2):
    for x, y in zip((o, state), run(*(x[i] for x in both)), strict=True):
      np.testing.assert_allclose(x[i], y, atol=1e-6)


def test_shards_over_rows_and_heads():
  P = jax.sharding.PartitionSpec
  mesh = jax.make_mesh(
    (2, 2),
    ('rows', 'heads'),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )
  random = np.random.default_rng(11)

  def normal(*shape):
    return jnp.asarray(random.standard_normal(shape) / 6, jnp.float32)

  operands = [normal(2, 16, 2, 16) for _ in range(3)]
  operands += [-jnp.abs(normal(2, 16, 2, 16)), normal(2, 2, 16, 16)]

  def run(q, k, v, g, state):
    return pallas.gated_delta_pallas(
      *(q, None, k, v, g, state, None), chunk_size=16, interpret=True
    )

  tokens, states = P('rows', None, 'heads'), P('rows', 'heads')
  # Interpreted kernels lose track of what varies over the mesh.
  sharded = jax.shard_map(
    run,
    mesh=mesh,
    in_specs=(tokens,) * 4 + (states,),
    out_specs=(tokens, states),
    check_vma=False,
  )
  for x, y in zip(jax.jit(sharded)(*operands), run(*operands), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-6)


def strict_run(interpret):
  p = problem(seed=12, length=32, asymmetric=True)
  runs = np.repeat([0, 1, 2], [5, 17, 10])[None].astype(np.int32)
  names = ('q', 'erase', 'k', 'v', 'g', 'initial_state')
  operands = [jnp.asarray(p[name], jnp.float32) for name in names]
  cotangents = tuple(jnp.asarray(p[name], jnp.float32) for name in ('do', 'ds'))

  def run(function):
    out, pull = jax.vjp(function, *operands)
    return out, pull(cotangents)

  got = testing.run_strict(
    run,
    lambda *x: pallas.gated_delta_pallas(
      *x, jnp.asarray(runs), chunk_size=16, interpret=interpret
    ),
  )
  wanted = run(
    lambda *x: reference.gated_delta_recurrent(*x, jnp.asarray(runs))
  )
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-4 * float(np.abs(y).max()))


def test_strict_interpreter():
  strict_run(testing.STRICT)


@pytest.mark.slow
def test_two_cores():
  strict_run(testing.TWO_CORES)


def test_float64_is_refused():
  with jax.enable_x64(True):
    p = problem(length=16)
    with pytest.raises(NotImplementedError, match='float64'):
      pallas.gated_delta_pallas(
        *(p['q'], None, p['k'], p['v'], p['g'], p['initial_state'], None),
        chunk_size=16,
      )


def test_ragged_length_is_refused():
  p = problem(length=17)
  operands = [
    jnp.asarray(p[name], jnp.float32)
    for name in ('q', 'k', 'v', 'g', 'initial_state')
  ]
  q, k, v, g, state = operands
  with pytest.raises(ValueError, match='multiple of chunk_size=16'):
    pallas.gated_delta_pallas(q, None, k, v, g, state, None, chunk_size=16)


def test_lowers_for_tpu():
  x = jax.ShapeDtypeStruct((1, 32, 2, 128), jnp.bfloat16)
  g = jax.ShapeDtypeStruct((1, 32, 2, 128), jnp.float32)
  state = jax.ShapeDtypeStruct((1, 2, 128, 128), jnp.float32)

  def loss(q, c, u, g, state):
    o, state = pallas.gated_delta_pallas(
      *(q, None, c, u, g, state, None), chunk_size=16
    )
    return jnp.sum(o.astype(jnp.float32)) + jnp.sum(state)

  text = testing.lowered(
    jax.grad(loss, argnums=(0, 1, 2, 3, 4)), x, x, x, g, state
  )
  assert text.count('@tpu_custom_call') == 2
