"""The public ops: how variants relate, decoding, choices and refusals."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from kernels_pallas import dispatch, fg2_gdn
from kernels_pallas.fg2_gdn import api, specs

B, T, H, K = 1, 12, 2, 8


def normal(*shape, seed=0):
  rng = np.random.default_rng((seed, *shape))
  return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def operands():
  """q, k, v, g of a channel."""
  q, k = (normal(B, T, H, K, seed=s) for s in (1, 2))
  q, k = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
  return q, k, normal(B, T, H, K, seed=3), -jnp.abs(normal(B, T, H, K, seed=4))


def beta(width=K, seed=5):
  return jax.nn.sigmoid(normal(B, T, H, width, seed=seed))


@pytest.fixture
def no_annotations():
  """Without the runtime checks of annotations, as a user runs it."""
  jaxtyping.config.update('jaxtyping_disable', True)
  yield
  jaxtyping.config.update('jaxtyping_disable', False)


def test_scalars_bring_back_the_older_rules():
  q, k, v, g = operands()
  one = beta(1)
  wide = jnp.broadcast_to(one, k.shape)
  run = functools.partial(dict, implementation='recurrent')
  kda = fg2_gdn.kda(q, k, v, g, one, **run())
  for other in (
    fg2_gdn.fg2(q, k, v, g, wide, **run()),
    fg2_gdn.fg2_plus(q, k, v, g, wide, wide, **run()),
    fg2_gdn.fg2_gdn(q, k, v, g, one, one, **run()),
    fg2_gdn.gdn2(q, k, v, g, wide, wide, **run()),
  ):
    for x, y in zip(kda, other, strict=True):
      np.testing.assert_allclose(x, y, atol=1e-6)
  head = g[..., :1]
  gdn = fg2_gdn.gdn(q, k, v, head, one, **run())
  spread = fg2_gdn.kda(q, k, v, jnp.broadcast_to(head, k.shape), one, **run())
  for x, y in zip(gdn, spread, strict=True):
    np.testing.assert_allclose(x, y, atol=1e-6)


def test_the_sides_of_fg2_plus_are_not_to_be_swapped():
  q, k, v, g = operands()
  left, right = beta(seed=6), beta(seed=7)
  x, _ = fg2_gdn.fg2_plus(q, k, v, g, left, right, implementation='recurrent')
  y, _ = fg2_gdn.fg2_plus(q, k, v, g, right, left, implementation='recurrent')
  assert np.abs(np.asarray(x - y)).max() > 1e-2


@pytest.mark.parametrize('asymmetric', [False, True])
def test_decoding_gives_what_prefill_gives(asymmetric):
  q, k, v, g = operands()
  erase = beta() * k if asymmetric else None
  whole, last = fg2_gdn.gated_delta(
    q, k, v, g, erase=erase, implementation='chunk'
  )
  state = jnp.zeros((B, H, K, K))
  for t in range(T):
    o, state = fg2_gdn.fg2_gdn_step(
      *(x[:, t] for x in (q, k, v, g)),
      state,
      erase=None if erase is None else erase[:, t],
    )
    np.testing.assert_allclose(o, whole[:, t], atol=1e-5)
  np.testing.assert_allclose(state, last, atol=1e-5)


@pytest.mark.parametrize('chunk_size', [16, 128])
def test_any_length_and_chunk_size(chunk_size):
  q, k, v, g = operands()
  wanted = fg2_gdn.gated_delta(q, k, v, g, implementation='recurrent')
  got = fg2_gdn.gated_delta(
    q, k, v, g, chunk_size=chunk_size, implementation='chunk'
  )
  for x, y in zip(got, wanted, strict=True):
    assert x.shape == y.shape
    np.testing.assert_allclose(x, y, atol=2e-5)


def test_logits_of_beta_at_the_ends_have_gradients():
  """A layer passes r = exp(-softplus(-x) / 2), finite where sqrt is not."""
  logits = np.array([-200.0, -104.0, 0.0, 20.0] * 2)
  rng = np.random.default_rng(0)
  q, k, v = (rng.standard_normal((1, 8, 1, K)) for _ in range(3))
  q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
  g = -0.1 * rng.random((1, 8, 1, K))

  def loss(x, q, k, v, g, implementation):
    r = jnp.exp(-jax.nn.softplus(-x) / 2)[None, :, None, None]
    o, _ = fg2_gdn.fg2_gdn_prescaled(
      q, r * k, r * v, g, implementation=implementation
    )
    return jnp.sum(o**2)

  args = (logits, q, k, v, g)
  with jax.enable_x64(True):
    wanted = jax.grad(loss)(*map(jnp.asarray, args), 'recurrent')
  narrow = [jnp.asarray(x, jnp.float32) for x in args]
  got = np.asarray(jax.grad(loss)(*narrow, 'chunk'))
  assert np.isfinite(got).all()
  inside = logits >= 0
  size = np.abs(wanted[inside]).max()
  np.testing.assert_allclose(
    got[inside], wanted[inside], atol=1e-5 * size, rtol=1e-5
  )


def test_beta_itself_at_zero_has_a_gradient():
  q, k, v, g = operands()

  def loss(b):
    o, _ = fg2_gdn.fg2(q, k, v, g, b, implementation='recurrent')
    return jnp.sum(o)

  assert np.isfinite(jax.grad(loss)(jnp.zeros_like(k))).all()


def test_outputs_keep_the_dtype_of_values_and_the_state_is_float32():
  q, k, v, g = operands()
  q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
  for implementation in ('recurrent', 'chunk'):
    o, state = fg2_gdn.gated_delta(q, k, v, g, implementation=implementation)
    assert (o.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)


def test_scale_is_one_over_the_root_of_the_width():
  q, k, v, g = operands()
  o, _ = fg2_gdn.gated_delta(q, k, v, g, implementation='recurrent')
  twice, _ = fg2_gdn.gated_delta(
    q, k, v, g, scale=2 * K**-0.5, implementation='recurrent'
  )
  np.testing.assert_allclose(twice, 2 * o, rtol=1e-6)


@pytest.mark.parametrize(
  'change, told',
  [
    (dict(q=normal(B, T, K)), 'wanted [B, T, H, K]'),
    (dict(k=normal(B, T, H, K + 1)), 'Got k of shape'),
    (dict(v=normal(B, T + 1, H, K)), 'Got v of shape'),
    (dict(g=normal(B, T, H)), 'g[..., None]'),
    (dict(erase=normal(B, T, H, 1)), 'Got erase of shape'),
    (dict(initial_state=normal(B, H, K, K + 1)), 'Got the state of shape'),
    (dict(segment_ids=jnp.ones((B, T + 1), jnp.int32)), 'Got segment_ids'),
    (dict(chunk_size=48), 'wanted one of (16, 32, 64, 128)'),
    (dict(implementation='triton'), "Got implementation='triton'"),
  ],
)
def test_bad_operands_are_told(change, told, no_annotations):
  q, k, v, g = operands()
  keywords = dict(q=q, k=k, v=v, g=g) | change
  with pytest.raises(ValueError) as error:
    fg2_gdn.gated_delta(**keywords)
  assert told in str(error.value)


def test_bad_dtypes_and_widths_are_told(no_annotations):
  q, k, v, g = operands()
  with pytest.raises(TypeError, match='Got g of bfloat16'):
    fg2_gdn.gated_delta(q, k, v, g.astype(jnp.bfloat16))
  with pytest.raises(TypeError, match='Got segment_ids of float32'):
    fg2_gdn.gated_delta(q, k, v, g, segment_ids=jnp.ones((B, T)))
  with pytest.raises(ValueError, match='Use fg2_plus'):
    fg2_gdn.fg2(q, k, normal(B, T, H, 4), g, beta())
  with pytest.raises(ValueError, match='Got beta of shape'):
    fg2_gdn.kda(q, k, v, g, beta())
  with pytest.raises(ValueError, match='Got g of shape'):
    fg2_gdn.gdn(q, k, v, g, beta(1))
  with pytest.raises(ValueError, match='Got the state of shape'):
    fg2_gdn.fg2_gdn_step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], normal(B, H, 2, 2))


@pytest.mark.parametrize('wrap', [lambda f: f, jax.jit])
def test_growth_is_refused_when_asked(wrap, monkeypatch):
  q, k, v, g = operands()
  run = wrap(lambda g: fg2_gdn.gated_delta(q, k, v, g, implementation='chunk'))
  monkeypatch.setenv(specs.CHECK_VARIABLE, '1')
  jax.block_until_ready(run(g))
  with pytest.raises(Exception, match='wanted log decays <= 0'):
    jax.block_until_ready(run(g.at[0, 3].set(0.5)))
    jax.effects_barrier()


def refuses(*args, **kwargs):
  raise NotImplementedError('needs another machine')


def doubles(x):
  return 2 * x


TABLE = {
  'fast': refuses,
  'missing': lambda x: __import__('no_such'),
  'slow': doubles,
}


def test_the_first_that_can_run_runs():
  names = ('fast', 'missing', 'slow')
  assert dispatch.call(TABLE, None, 3, automatic=names) == 6
  chosen = dispatch.choice(TABLE, None, jnp.ones(2), automatic=names)
  assert chosen.name == 'slow'
  assert 'needs another machine' in chosen.why and 'no_such' in chosen.why
  assert [name for name, _ in chosen.refused] == ['fast', 'missing']


def test_every_reason_is_given_when_nothing_can_run():
  with pytest.raises(NotImplementedError) as error:
    dispatch.call(TABLE, None, 3, automatic=('fast', 'missing'))
  assert 'needs another machine' in str(error.value)
  assert 'no_such' in str(error.value)


def test_an_explicit_choice_never_falls_back():
  with pytest.raises(NotImplementedError, match='needs another machine'):
    dispatch.call(TABLE, 'fast', 3, automatic=('slow',))


def test_an_error_is_not_a_refusal():
  def broken(x):
    raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    dispatch.call(
      {'broken': broken, 'slow': doubles}, None, 3, automatic=('broken', 'slow')
    )


def test_the_choice_on_a_cpu_is_the_chunked_form():
  shape = jax.ShapeDtypeStruct
  q = shape((1, 64, 2, 16), jnp.float32)
  chosen = api.choice(q, q, q, q, segment_ids=shape((1, 64), jnp.int32))
  assert chosen.name == 'chunk' and 'cpu' in chosen.why
  asked = api.choice(q, q, q, q, implementation='recurrent')
  assert asked.name == 'recurrent' and 'asked for' in asked.why
  assert api.automatic('tpu')[0] == 'pallas'
  assert api.automatic('gpu')[-1] == 'chunk'
