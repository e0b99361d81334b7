"""The chunked form against the recurrence: values, gradients, no leaks."""

import contextlib
import functools

import jax
from jax import sharding
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.fg2_gdn import api, chunked, decays, triangular

B, T, H, K, V = 2, 150, 2, 16, 32
GATES = ('mild', 'zero', 'five', 'fifty', 'some', 'one')
FORMS = ('head', 'channel', 'asymmetric')
# Leading, middle and trailing padding, an id that comes again, documents of
# one token, borders inside chunks and on a chunk's edge.
IDS = np.zeros((B, T), np.int32)
for first, last, document in [
  *[(2, 21, 1), (21, 22, 2), (25, 40, 2), (40, 64, 1), (64, 140, 5)],
]:
  IDS[0, first:last] = document
IDS[1, :60], IDS[1, 60:63], IDS[1, 63:] = 3, 4, 3


@pytest.fixture(autouse=True, scope='module')
def small_blocks():
  """Chunks of a block are unrolled: half as many compile in half the time."""
  usual, chunked.CHUNKS = chunked.CHUNKS, 2
  yield
  chunked.CHUNKS = usual


def gates(kind, noise):
  """Log decays of one of the kinds the kernels must survive."""
  return {
    'mild': -0.3 * noise,
    'zero': 0.0 * noise,
    'five': -5.0 * noise,
    'fifty': -50.0 * noise,
    'some': np.where(noise < 0.2, -50.0, -0.01 * noise),
    'one': np.where(
      np.arange(noise.shape[1])[None, :, None, None] == 40,
      -1e4,
      -0.01 * noise,
    ),
  }[kind]


def operands(form, gate='mild', *, seed=0, length=T, rows=B, width=V):
  """q, k, v, g, erase, initial_state in float64."""
  rng = np.random.default_rng(seed)

  def unit():
    x = rng.standard_normal((rows, length, H, K))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  beta = rng.random((rows, length, H, K))
  noise = rng.random((rows, length, H, 1 if form == 'head' else K))
  q, k = unit(), unit()
  made = {
    'q': q,
    'k': k if form == 'asymmetric' else np.sqrt(beta) * k,
    'v': rng.standard_normal((rows, length, H, width)),
    'g': gates(gate, noise),
    'initial_state': rng.standard_normal((rows, H, K, width)),
  }
  return made | ({'erase': beta * k} if form == 'asymmetric' else {})


def cast(xs, dtype):
  """`xs` in `dtype`; decays and state not below float32."""
  wide = np.float64 if dtype == np.float64 else np.float32
  return {
    name: jnp.asarray(x, wide if name in ('g', 'initial_state') else dtype)
    for name, x in xs.items()
  }


@functools.partial(jax.jit, static_argnames='implementation')
def outcome(xs, ids, weights, implementation):
  """Outputs, last state, and the gradient of a random sum of both."""

  def loss(xs):
    outputs = api.gated_delta(
      **xs, segment_ids=ids, implementation=implementation
    )
    total = sum(
      jnp.sum(x * w.astype(x.dtype)).astype(xs['g'].dtype)
      for x, w in zip(outputs, weights, strict=True)
    )
    return total, outputs

  (_, outputs), gradient = jax.value_and_grad(loss, has_aux=True)(xs)
  return dict(zip(('o', 'state'), outputs, strict=True)), gradient


def run(xs, implementation, ids=None, dtype=np.float32):
  """`outcome` in `dtype`, as float64."""
  rng = np.random.default_rng(9)
  rows, length, _, width = xs['v'].shape
  weights = (
    rng.standard_normal((rows, length, H, width)).astype(np.float32),
    rng.standard_normal((rows, H, K, width)).astype(np.float32),
  )
  with jax.enable_x64(dtype == np.float64):
    ids = None if ids is None else jnp.asarray(ids)
    found = outcome(cast(xs, dtype), ids, weights, implementation)
    return jax.tree.map(lambda x: np.asarray(x).astype(np.float64), found)


def rounded(xs, dtype):
  return jax.tree.map(
    lambda x: np.asarray(x).astype(np.float64), cast(xs, dtype)
  )


def assert_near(got, wanted, *, values, gradients, relative=True, norm=np.max):
  """Errors, of the largest entry of each array unless not `relative`."""
  for part, limit in zip(range(2), (values, gradients), strict=True):
    for name, x in wanted[part].items():
      error = norm(np.abs(got[part][name] - x))
      size = norm(np.abs(x)) if relative or part else 1.0
      assert error <= limit * size, (name, error, size)


def test_is_the_recurrence_in_float64():
  for form in FORMS:
    xs = operands(form)
    got, wanted = (
      run(xs, name, IDS, np.float64) for name in ('chunk', 'recurrent')
    )
    assert_near(got, wanted, values=1e-12, gradients=1e-10, relative=False)


@pytest.mark.parametrize('form', FORMS)
def test_float32_holds_for_decays_of_any_size(form):
  for gate in GATES:
    xs = operands(form, gate)
    wanted = run(rounded(xs, np.float32), 'recurrent', None, np.float64)
    got = run(xs, 'chunk')
    assert_near(got, wanted, values=2e-5, gradients=1e-4)


def test_bfloat16_operands():
  xs = operands('channel')
  wanted = run(rounded(xs, jnp.bfloat16), 'recurrent', IDS, np.float64)
  got = run(xs, 'chunk', IDS, jnp.bfloat16)
  assert_near(got, wanted, values=1e-2, gradients=3e-2, norm=np.linalg.norm)


@pytest.mark.parametrize('form', ['head', 'channel'])
def test_the_same_token_again_and_again(form):
  xs = operands(form, 'zero')
  token = xs['k'][:, :1]
  token = (
    token * np.sqrt(0.9999) / np.linalg.norm(token, axis=-1, keepdims=True)
  )
  xs['k'] = np.repeat(token, T, axis=1)
  wanted = run(xs, 'recurrent', None, np.float64)
  got = run(xs, 'chunk')
  assert_near(got, wanted, values=2e-5, gradients=1e-4)


@pytest.mark.parametrize('gate', ['mild', 'some'])
@pytest.mark.parametrize('form', ['head', 'channel'])
def test_a_document_does_not_feel_another(form, gate):
  """Bit for bit, whatever the other document's decays are."""
  xs, other = operands(form), operands(form, gate, seed=1)
  changed = (IDS == 5)[:, :, None, None]
  mixed = {
    name: np.where(changed, other[name], x)
    for name, x in xs.items()
    if name != 'initial_state'
  }
  mixed['initial_state'] = xs['initial_state']
  before, after = (run(x, 'chunk', IDS) for x in (xs, mixed))
  assert np.abs(before[0]['o'] - after[0]['o']).max() > 0.1
  for part in (0, 1):
    for name, x in before[part].items():
      if x.shape[:2] == (B, T):
        y = np.where(changed, x, after[part][name])
        np.testing.assert_array_equal(x, y, err_msg=name)
  np.testing.assert_array_equal(
    before[1]['initial_state'], after[1]['initial_state']
  )


def test_packed_documents_are_the_documents_alone():
  xs = operands('channel')
  packed, _ = run(xs, 'chunk', IDS)
  np.testing.assert_array_equal(packed['o'][IDS == 0], 0)
  alone = {
    name: np.roll(x[:1], -64, axis=1)
    for name, x in xs.items()
    if name != 'initial_state'
  }
  alone['initial_state'] = np.zeros((1, H, K, V))
  ids = np.zeros((1, T), np.int32)
  ids[:, :76] = 1
  single, _ = run(alone, 'chunk', ids)
  np.testing.assert_allclose(
    single['o'][0, :76], packed['o'][0, 64:140], atol=1e-5
  )
  np.testing.assert_allclose(single['state'][0], packed['state'][0], atol=1e-5)


def test_a_row_may_be_split_anywhere():
  length = 40
  xs = operands('channel', length=length, rows=1)
  state = xs.pop('initial_state').astype(np.float32)

  @jax.jit
  def part(xs, state, ids):
    return api.gated_delta(
      **xs, initial_state=state, segment_ids=ids, implementation='chunk'
    )

  xs = cast(xs, np.float32)
  places = np.arange(length)[None]
  whole, last = part(xs, state, np.ones((1, length), np.int32))
  for split in range(1, length):
    left, middle = part(xs, state, (places < split).astype(np.int32))
    rolled = jax.tree.map(lambda x: np.roll(x, -split, 1), xs)  # noqa: B023
    ids = (places < length - split).astype(np.int32)
    right, end = part(rolled, middle, ids)
    got = np.concatenate([left[:, :split], right[:, : length - split]], 1)
    np.testing.assert_allclose(got, whole, atol=1e-5)
    np.testing.assert_allclose(end, last, atol=1e-5)


def test_vmap_is_a_loop_and_joins_the_rows():
  """Also where only one of two mapped parts has decays that are too large."""
  parts = [cast(operands('channel', gate), np.float32) for gate in GATES[:4:3]]
  both = jax.tree.map(lambda *x: jnp.stack(x), *parts)

  def gradient(xs):
    def loss(xs):
      o, state = api.gated_delta(**xs, implementation='chunk')
      return jnp.sum(o**2) + jnp.sum(state**2)

    return jax.grad(loss)(xs)

  mapped = jax.jit(jax.vmap(gradient))(both)
  alone = jax.jit(gradient)
  for i, part in enumerate(parts):
    wanted = alone(part)
    for name, x in wanted.items():
      np.testing.assert_allclose(
        mapped[name][i], x, atol=1e-4 * np.abs(x).max(), err_msg=name
      )


def test_rows_and_heads_shard():
  mesh = jax.make_mesh(
    (4, 2),
    ('rows', 'heads'),
    axis_types=(sharding.AxisType.Auto, sharding.AxisType.Auto),
  )
  xs = cast(operands('channel', rows=4, length=40), np.float32)
  ids = jnp.asarray(np.r_['0,2', [[1] * 25 + [2] * 15] * 4], jnp.int32)
  spec = sharding.PartitionSpec('rows', None, 'heads')
  specs = dict.fromkeys(xs, spec) | {
    'initial_state': sharding.PartitionSpec('rows', 'heads')
  }

  def call(xs, ids):
    return api.gated_delta(**xs, segment_ids=ids, implementation='chunk')

  def loss(xs, ids, call):
    o, state = call(xs, ids)
    return jnp.sum(o**2) + jnp.sum(state**2)

  mapped = jax.shard_map(
    call,
    mesh=mesh,
    in_specs=(specs, sharding.PartitionSpec('rows')),
    out_specs=(spec, specs['initial_state']),
  )
  wanted, got = (
    jax.jit(jax.value_and_grad(functools.partial(loss, call=f)))(xs, ids)
    for f in (call, mapped)
  )
  for x, y in zip(*map(jax.tree.leaves, (wanted, got)), strict=True):
    np.testing.assert_allclose(x, y, atol=2e-5 * np.abs(x).max())


def skip_the_merge(lower):
  """The inverse of the blocks on the diagonal alone."""
  size = lower.shape[-1]
  leaf = np.arange(size) // triangular.LEAF
  inside = (leaf[:, None] == leaf[None, :])[None, None]
  return jnp.linalg.inv(jnp.where(inside, lower, 0) + jnp.eye(size)[None, None])


@pytest.mark.slow
@pytest.mark.parametrize(
  'module, name, mutant, gate',
  [
    (decays, 'LIMIT', decays.LIMIT, 'mild'),
    (decays, '_sums', lambda spans, g: jnp.zeros_like(g), 'mild'),
    (triangular, 'unit_inverse', skip_the_merge, 'mild'),
    (decays, 'is_moderate', lambda g: jnp.asarray(True), 'fifty'),
    (decays, 'sum_later', lambda z, total, masks: z, 'mild'),
    (decays, '_AFTER', decays._FROM, 'some'),
  ],
)
def test_a_mutant_is_found(module, name, mutant, gate, monkeypatch):
  xs = operands('channel', gate, length=32, rows=1)
  wanted = run(xs, 'recurrent', None, np.float64)
  monkeypatch.setattr(module, name, mutant)
  with jax.disable_jit():
    got = run(xs, 'chunk')
  found = name != 'LIMIT'  # the one row that changes nothing
  with pytest.raises(AssertionError) if found else contextlib.nullcontext():
    assert_near(got, wanted, values=2e-5, gradients=1e-4)
