"""Magnitude-aware quantiles: numbers by hand, identities, and ties."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxagent.rewards import quantile

HAZEN_8 = np.asarray([-1.5341, -0.8871, -0.4888, -0.1573])
HAZEN_8 = np.concatenate([HAZEN_8, -HAZEN_8[::-1]])


def scores(rewards, **options):
  transform = quantile.magnitude_aware_quantile(**options)
  out, _ = jax.jit(transform.apply)(
    rewards, transform.init(rewards.values.shape[1])
  )
  return np.asarray(out.values)


@pytest.fixture(scope='session')
def of(make_columns):
  """`of(values, **options)`: scores of one group of one column."""
  return lambda values, **options: scores(make_columns(values), **options)[:, 0]


@pytest.mark.parametrize(
  'size, bound', [(4, 1.150349), (8, 1.534121), (16, 1.862732)]
)
def test_the_ends_are_bounds(size, bound, of):
  got = of(np.random.default_rng(0).normal(size=size))
  np.testing.assert_allclose([got.min(), got.max()], [-bound, bound], atol=2e-6)


def test_the_ends_of_weibull(of):
  got = of([1, 5, 2, 3], ends='weibull')
  assert got.max() == pytest.approx(stats.norm.ppf(4 / 5), abs=1e-6)


def test_equal_distances_get_hazens_ranks(of):
  np.testing.assert_allclose(of(np.linspace(0, 3, 8)), HAZEN_8, atol=5e-5)


@pytest.mark.parametrize('wins', [1, 4, 7])
def test_two_values(wins, of):
  """Not centred: where few succeed the group as a whole is pushed down."""
  got = of([1.0] * wins + [0.0] * (8 - wins))
  want = [1.534121] * wins + [-1.534121] * (8 - wins)
  np.testing.assert_allclose(got, want, atol=2e-6)
  mean = {1: -1.150590, 4: 0, 7: 1.150590}[wins]
  assert got.mean() == pytest.approx(mean, abs=2e-6)


def test_an_outlier_leaves_the_others_apart(of):
  got = of([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 10], scale=(0.4,))
  want = [-1.5341, -1.2507, -1.0426, -0.8721, -0.7237, -0.5898, -0.4658, 1.5341]
  np.testing.assert_allclose(got, want, atol=5e-5)


@pytest.mark.parametrize(
  'beta, inner',
  [
    (1, (-0.7486, -0.2213)),
    (0.1, (-0.5752, 0.0200)),
    (10, (-0.8278, -0.3591)),
    (math.inf, (-0.8416, -0.3853)),
    (0, tuple(stats.norm.ppf([0.375, 0.625]))),
  ],
)
def test_beta_goes_from_ranks_to_distances(beta, inner, of):
  got = of([0, 0.1, 0.3, 1], scale=(0.4,), beta=beta)
  np.testing.assert_allclose(got, [-1.1503, *inner, 1.1503], atol=5e-5)


@pytest.mark.parametrize('limit, near', [(0, 1e-30), (math.inf, 1e5)])
def test_the_ends_of_beta_are_limits(limit, near, of):
  values = np.random.default_rng(1).normal(size=8)
  got = [of(values, beta=b, scale=(1.0,)) for b in (limit, near)]
  np.testing.assert_allclose(*got, atol=0.05 if limit == 0 else 1e-4)


def test_infinite_beta_is_the_linear_cdf(of):
  values = np.random.default_rng(2).gamma(1, size=8)
  share = (values - values.min()) / np.ptp(values)
  want = stats.norm.ppf(1 / 16 + (1 - 1 / 8) * share)
  np.testing.assert_allclose(of(values, beta=math.inf), want, atol=1e-5)


def test_scores_go_back_to_their_rows(of):
  got = of([1, 0, 0.3, 0.1], scale=(0.4,))
  np.testing.assert_allclose(
    got, [1.1503, -1.1503, -0.2213, -0.7486], atol=5e-5
  )


def test_ties_share_a_score(of):
  got = of([0, 0, 0.5, 1], scale=(0.5,))
  np.testing.assert_allclose(got, [-1.1503, -1.1503, 0, 1.1503], atol=5e-5)
  assert got[0] == got[1]


def test_invariances(of):
  rng = np.random.default_rng(3)
  values = rng.normal(size=8)
  got = of(values, scale=(0.7,))
  np.testing.assert_allclose(
    of(2.5 * values + 1, scale=(2.5 * 0.7,)), got, atol=1e-5
  )
  np.testing.assert_allclose(of(-values, scale=(0.7,)), -got, atol=1e-5)
  order = rng.permutation(8)
  np.testing.assert_allclose(of(values[order], scale=(0.7,)), got[order])
  # With the range of the batch the map does not see the scale by itself.
  np.testing.assert_allclose(of(3 * values - 2), of(values), atol=1e-5)


@pytest.mark.parametrize('value', [0.0, 0.1, -7.0, 1e6])
def test_all_tied_is_zero(value, of):
  np.testing.assert_array_equal(of([value] * 8), 0)


def test_rounding_is_a_tie(of):
  np.testing.assert_array_equal(of([0.3, 0.1 + 0.2, 0.3 - 1e-9]), 0)


def test_a_group_of_one_is_zero(make_columns):
  got = scores(make_columns([5.0, 1, 2], group=[0, 1, 1]))
  np.testing.assert_allclose(got[:, 0], [0, -0.67449, 0.67449], atol=1e-5)


def test_groups_of_any_size_by_themselves(make_columns):
  """A batch of groups is its groups one by one, wherever their rows stand."""
  rng = np.random.default_rng(4)
  group = np.repeat([7, -3, 0, 12], [8, 3, 5, 1])
  values = rng.normal(size=(17, 2)).round(1)
  active = rng.random((17, 2)) < 0.8
  order = rng.permutation(17)
  group, values, active = group[order], values[order], active[order]
  got = scores(make_columns(values, group, active), scale=(0.5, 2.0))
  for g in np.unique(group):
    for k in range(2):
      rows = (group == g) & active[:, k]
      alone = scores(make_columns(values[rows, k]), scale=((0.5, 2.0)[k],))
      np.testing.assert_allclose(got[rows, k], alone[:, 0], atol=1e-6)
  np.testing.assert_array_equal(got[~active], 0)


def test_parts_are_groups_of_their_own(make_columns):
  got = scores(make_columns([0, 1, 5, 9], part=[0, 0, 1, 1]))[:, 0]
  np.testing.assert_allclose(got, [-0.67449, 0.67449] * 2, atol=1e-5)


def test_what_is_masked_may_be_anything(make_columns):
  values = np.asarray([0.2, np.nan, 0.7, np.inf, 0.4])
  seen = np.isfinite(values)
  got = scores(make_columns(values, active=seen[:, None]))[:, 0]
  np.testing.assert_allclose(
    got[seen], scores(make_columns(values[seen]))[:, 0]
  )
  np.testing.assert_array_equal(got[~seen], 0)


def test_centred_groups(make_columns):
  values = [1, 0, 0, 0, 3, 4, 9, 5]
  group = [0] * 4 + [1] * 4
  plain = scores(make_columns(values, group))[:, 0].reshape(2, 4)
  got = scores(make_columns(values, group), center_group=True)[:, 0]
  want = plain - plain.mean(1, keepdims=True)
  np.testing.assert_allclose(got.reshape(2, 4), want, atol=1e-6)
  assert abs(plain.mean()) > 0.1


@pytest.mark.parametrize(
  'values, want',
  [
    ([1.0, 2, 3, 4, 6], 2.0),  # the range between 2 and 4
    ([0.0] * 7 + [1], np.std([0.0] * 7 + [1], ddof=1)),  # no range
    ([0.3] * 8, 1),  # no spread at all
    ([0.9, 0.2, 0.8, 0.1], 0.65),
  ],
)
def test_the_scale_and_what_stands_in_for_it(values, want, make_columns):
  padded = make_columns(
    [*values, 100.0], active=np.asarray([[True]] * len(values) + [[False]])
  )
  got = quantile.column_scale(padded)
  np.testing.assert_allclose(got, [want], rtol=1e-6)


def test_the_scale_is_of_the_whole_batch(make_columns):
  """The same group gets other scores beside a group that spreads wider."""
  small = [0, 0.1, 0.3, 1]
  wide = [0, 50, 100, 200]
  group = [0] * 4 + [1] * 4
  got = scores(make_columns(small + wide, group))[:4, 0]
  iqr = np.subtract(*np.percentile(small + wide, [75, 25]))
  want = scores(make_columns(small), scale=(float(iqr),))[:, 0]
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert np.abs(got - scores(make_columns(small))[:, 0]).max() > 0.02


def test_options_are_checked(make_columns):
  make = quantile.magnitude_aware_quantile
  with pytest.raises(ValueError, match="mean 'hazen'"):
    make(ends='hasen')
  for beta in (-1.0, math.nan):
    with pytest.raises(ValueError, match='beta'):
      make(beta=beta)
  with pytest.raises(ValueError, match='2 scales'):
    make(scale=(1.0, 2.0)).init(3)
  with pytest.raises(ValueError, match='2 scales'):
    make(scale=(1.0, 2.0)).apply(make_columns([1, 2]), ())


def test_no_row_at_all_is_no_trouble(make_columns):
  got = scores(make_columns(np.ones((4, 2)), active=False))
  np.testing.assert_array_equal(got, 0)
  assert jnp.all(
    quantile.column_scale(make_columns(np.ones((4, 2)), active=False)) == 1
  )
