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


@pytest.mark.parametrize('q', [0.0, 0.25, 0.5, 0.77, 1.0])
def test_quantile_is_numpys(q):
  rng = np.random.default_rng(1)
  values = rng.normal(size=(20, 3)).astype(np.float32)
  mask = rng.random((20, 3)) < 0.6
  mask[:, 2] = False
  got = masked.quantile(np.where(mask, values, np.nan), mask, q)
  want = [np.quantile(values[mask[:, k], k], q) for k in range(2)]
  np.testing.assert_allclose(got, [*want, 0], rtol=1e-5)


@pytest.mark.parametrize('ddof', [0, 1])
def test_pair_moments_are_numpys(ddof):
  rng = np.random.default_rng(2)
  values = (rng.normal(size=(30, 3)) + [0, 100, -1]).astype(np.float32)
  mask = rng.random((30, 3)) < 0.7
  got = masked.pair_moments(np.where(mask, values, np.nan), mask, ddof=ddof)
  rho = masked.correlation(np.where(mask, values, np.nan), mask)
  for k in range(3):
    for m in range(3):
      both = mask[:, k] & mask[:, m]
      x, y = values[both, k].astype(float), values[both, m].astype(float)
      assert got.count[k, m] == both.sum()
      covariance = np.cov(x, y, ddof=ddof)
      np.testing.assert_allclose(
        got.covariance[k, m], covariance[0, 1], atol=1e-4
      )
      np.testing.assert_allclose(
        got.variance[k, m], covariance[0, 0], rtol=1e-4
      )
      np.testing.assert_allclose(rho[k, m], np.corrcoef(x, y)[0, 1], atol=1e-4)


def test_a_correlation_that_is_not_defined_is_nan():
  values = jnp.asarray([[1.0, 0.1, 5], [2, 0.1, 6], [3, 0.1, 7]])
  mask = jnp.asarray([[True, True, False]] * 2 + [[True, True, True]])
  got = np.isnan(masked.correlation(values, mask))
  want = np.ones((3, 3), bool)
  want[0, 0] = False
  np.testing.assert_array_equal(got, want)


def test_a_column_may_be_constant_where_another_is_observed():
  rng = np.random.default_rng(3)
  for constant in rng.normal(size=8):
    values = rng.normal(size=(40, 2)).astype(np.float32)
    values[20:, 0] = constant
    mask = np.ones((40, 2), bool)
    mask[:20, 1] = False
    got = masked.correlation(values, mask)
    assert np.isnan(got[0, 1]) and np.isnan(got[1, 0])
    np.testing.assert_allclose(np.diagonal(got), 1, rtol=1e-5)
