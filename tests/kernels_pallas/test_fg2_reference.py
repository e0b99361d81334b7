"""The definition against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import fg2_gdn
from kernels_pallas.fg2_gdn import api, reference

K = np.array([[0.6, 0.8], [1, 0], [0.8, -0.6]])
Q = np.array([[1, 0], [0.6, 0.8], [0, 1]])
V = np.array([[1, 2], [3, -1], [-2, 0.5]])
DECAY = np.array([[0.5, 0.9], [1, 0.8], [0.25, 1]])
BETA_K = np.array([[0.25, 1], [0.64, 0.36], [0.81, 0.49]])
BETA_V = np.array([[1, 0.25], [0.49, 0.81], [0.36, 1]])

# variant -> outputs of the three tokens, last state
VECTORS = {
  'gdn': (
    [[0.15, 0.3], [1.3444, 0.0008], [1.199293, -0.22387]],
    [[-1.03889, 0.298827], [1.199293, -0.22387]],
  ),
  'kda': (
    [[0.15, 0.3], [1.3124, -0.0632], [1.277217, -0.068022]],
    [[-0.996122, 0.384363], [1.277217, -0.068022]],
  ),
  'fg2': (
    [[0.15, 0.6], [1.4404, 0.8656], [1.168786, 0.88725]],
    [[-0.961562, 0.607286], [1.168786, 0.88725]],
  ),
  'fg2_plus': (
    [[0.3, 0.3], [1.5848, 0.1448], [1.166277, 0.270837]],
    [[-0.455189, 0.479851], [1.166277, 0.270837]],
  ),
  'gdn2': (
    [[0.6, 0.3], [1.5236, -0.1652], [1.122983, -0.104682]],
    [[-0.222478, 0.390743], [1.122983, -0.104682]],
  ),
}


def row(x):
  return jnp.asarray(x, jnp.float32)[None, :, None, :]


def call(name, **keywords):
  """One variant on the operands above."""
  g, beta_k, beta_v = np.log(DECAY), BETA_K, BETA_V
  gates = {
    'gdn': (g[:, :1], beta_k[:, :1]),
    'kda': (g, beta_k[:, :1]),
    'fg2': (g, beta_k),
    'fg2_plus': (g, beta_k, beta_v),
    'gdn2': (g, beta_k, beta_v),
  }[name]
  function = getattr(fg2_gdn, name)
  return function(*map(row, (Q, K, V, *gates)), scale=1.0, **keywords)


@pytest.mark.parametrize(
  'name, implementation',
  [(name, 'recurrent') for name in VECTORS]
  + [(name, 'chunk') for name in ('gdn', 'fg2_plus', 'gdn2')],
)
def test_three_tokens_by_hand(name, implementation):
  o, state = call(name, implementation=implementation)
  wanted_o, wanted_state = VECTORS[name]
  np.testing.assert_allclose(o[0, :, 0], wanted_o, atol=1e-6)
  np.testing.assert_allclose(state[0, 0], wanted_state, atol=1e-6)


def test_fg2_plus_is_not_gdn2():
  plus, _ = call('fg2_plus', implementation='recurrent')
  gdn2, _ = call('gdn2', implementation='recurrent')
  assert np.abs(np.asarray(plus - gdn2)).max() > 0.1


def test_one_step_is_the_matrix_form():
  rng = np.random.default_rng(0)
  q, a, c, u = rng.standard_normal((4, 3)).astype(np.float32)
  g = -rng.random(3).astype(np.float32)
  state = rng.standard_normal((3, 3)).astype(np.float32)
  o, new = reference.gated_delta_step(
    *(x[None] for x in (q, a, c, u, g)), state[None]
  )
  wanted = (np.eye(3) - np.outer(c, a)) @ np.diag(np.exp(g)) @ state
  wanted += np.outer(c, u)
  np.testing.assert_allclose(new[0], wanted, atol=1e-6)
  np.testing.assert_allclose(o[0], wanted.T @ q, atol=1e-6)


def test_a_step_with_beta_up_to_two_never_grows_the_state():
  rng = np.random.default_rng(1)
  k = rng.standard_normal((50, 8)).astype(np.float32)
  k /= np.linalg.norm(k, axis=-1, keepdims=True)
  r = np.sqrt(rng.random((50, 8)) * 2).astype(np.float32)
  state = np.broadcast_to(np.eye(8, dtype=np.float32), (50, 8, 8))
  zero = np.zeros((50, 8), np.float32)
  _, step = reference.gated_delta_step(zero, None, r * k, zero, zero, state)
  norms = np.linalg.norm(np.asarray(step), 2, axis=(1, 2))
  assert norms.max() <= 1 + 1e-5


def test_float64_stays_float64():
  with jax.enable_x64(True):
    args = [np.asarray(x, np.float64)[None, :, None] for x in (Q, K, V)]
    o, state = fg2_gdn.gated_delta(
      *args,
      np.log(DECAY)[None, :, None],
      implementation='recurrent',
    )
    assert o.dtype == state.dtype == jnp.float64


@pytest.mark.parametrize(
  'ids, runs',
  [
    ([5, 5, 0, 5, 7, 7], [0, 0, 0, 0, 1, 1]),
    ([0, 0, 3, 4, 0, 4], [0, 0, 0, 1, 1, 1]),
    ([1, 2, 1, 1, 0, 0], [0, 1, 2, 2, 2, 2]),
    ([0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]),
  ],
)
def test_padding_joins_the_document_on_its_left(ids, runs):
  got = api.runs_of(jnp.asarray([ids], jnp.int32))
  np.testing.assert_array_equal(got[0], runs)


def test_a_new_document_starts_from_nothing():
  ids = jnp.asarray([[1, 2, 2]], jnp.int32)
  o, state = call('fg2', implementation='recurrent', segment_ids=ids)
  tail = [row(x[1:]) for x in (Q, K, V, np.log(DECAY), BETA_K)]
  alone, last = fg2_gdn.fg2(*tail, scale=1.0, implementation='recurrent')
  np.testing.assert_allclose(o[:, 1:], alone, atol=1e-6)
  np.testing.assert_allclose(state, last, atol=1e-6)
