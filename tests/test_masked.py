"""Masked statistics against NumPy on the unmasked part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxagent import masked


def test_mean_is_that_of_the_slice():
  x = np.asarray([[1.0, np.nan, 4.0], [np.inf, 2.0, 9.0]], np.float32)
  mask = np.isfinite(x)
  kept = x[mask]
  np.testing.assert_allclose(masked.mean(x, mask), kept.mean(), rtol=1e-6)


def test_an_empty_mask_gives_zero():
  x, mask = jnp.full((3,), jnp.nan), jnp.zeros((3,), bool)
  assert masked.mean(x, mask) == 0


def test_labels_number_distinct_tuples():
  a = jnp.asarray([7, -2, 7, 7, -2])
  b = jnp.asarray([0, 5, 1, 0, 5])
  got = np.asarray(jax.jit(masked.labels)(a, b))
  pairs = list(zip(np.asarray(a).tolist(), np.asarray(b).tolist(), strict=True))
  same = np.asarray([[p == q for q in pairs] for p in pairs])
  np.testing.assert_array_equal(got[:, None] == got[None, :], same)
  assert set(got.tolist()) == {0, 1, 2}


@pytest.mark.parametrize('ddof', [0, 1])
def test_segment_moments_are_numpys(ddof):
  rng = np.random.default_rng(0)
  values = rng.normal(size=(20, 2)).astype(np.float32)
  present = rng.random((20, 2)) < 0.7
  values[~present] = np.nan
  segment = rng.integers(0, 4, 20)
  got = masked.segment_moments(
    values, present.astype(np.float32), segment.astype(np.int32), ddof=ddof
  )
  for i in range(20):
    for column in range(2):
      inside = (segment == segment[i]) & present[:, column]
      kept = values[inside, column]
      assert len(kept) > 1
      np.testing.assert_allclose(got.count[i, column], len(kept))
      np.testing.assert_allclose(got.mean[i, column], kept.mean(), atol=1e-6)
      np.testing.assert_allclose(
        got.std[i, column], kept.std(ddof=ddof), rtol=1e-5
      )
      assert got.varies[i, column]


def test_rounding_is_no_variation():
  values = jnp.asarray([[0.1], [0.1 + 1e-9], [5.0], [5.000001]])
  segment = jnp.asarray([0, 0, 1, 1])
  got = masked.segment_moments(values, jnp.ones((4, 1)), segment)
  assert not jnp.any(got.varies)


def test_a_segment_without_weight_is_all_zeros():
  values = jnp.full((2, 1), jnp.nan)
  got = masked.segment_moments(
    values, jnp.zeros((2, 1)), jnp.zeros(2, jnp.int32)
  )
  for leaf in jax.tree.leaves(got):
    np.testing.assert_array_equal(leaf, 0)
