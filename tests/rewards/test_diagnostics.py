"""Participation, domination, efficiencies, and their names in the metrics."""

import jax
import numpy as np
import pytest

from jaxagent import rewards as rewards_lib
from jaxagent.rewards import base, diagnostics, group, quantile

ONE_OF_EIGHT = [1.0] + [0.0] * 7
OUTLIER = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 10]


@pytest.mark.parametrize(
  'values, z_score, want',
  [
    (ONE_OF_EIGHT, False, (0.125, 1.0)),
    (ONE_OF_EIGHT, True, (0.5, 0.4375)),
    (OUTLIER, False, (0.1915, 0.8717)),
    (OUTLIER, True, (0.5, 0.4360)),
  ],
)
def test_domination_and_participation(values, z_score, want, make_columns):
  transform = (
    group.group_normalize()
    if z_score
    else quantile.magnitude_aware_quantile(scale=(0.4,))
  )
  got = jax.jit(transform.metrics)(make_columns(values), transform.init(1))
  assert got['scores/domination'] == pytest.approx(want[0], abs=5e-5)
  assert got['scores/participation'] == pytest.approx(want[1], abs=5e-5)


def test_only_live_columns_of_groups_count(make_columns):
  values = np.asarray([[1, -1], [1, 0], [0, 0], [0, 0], [3, 0], [0, 0]])
  active = np.ones((6, 2), bool)
  active[0, 1] = False  # what is left of this column is zeros
  rewards = make_columns(values, [0, 0, 1, 1, 2, 2], active)
  got = diagnostics.of_groups(rewards)
  assert got['scores/domination'] == pytest.approx((0.5 + 1) / 2)
  assert got['scores/participation'] == pytest.approx((1 + 0.5) / 2)
  none = diagnostics.of_groups(make_columns(values, active=False))
  assert none == {'scores/domination': 0, 'scores/participation': 0}


@pytest.mark.parametrize(
  'spread, want', [((1, 0.1), 0.5990), ((1, 1), 1), ((1, 0), 0.5), ((2,), 1)]
)
def test_projection_efficiency(spread, want):
  got = diagnostics.projection_efficiency(
    np.asarray(spread, np.float32), np.ones((1, len(spread)), bool)
  )
  assert got[0] == pytest.approx(want, abs=5e-5)


@pytest.mark.parametrize(
  'upper, want',
  [
    ((0.5,), 0.6667),
    ((-0.5,), 0.6667),
    ((0.9,), 0.5263),
    ((0,), 1),
    ((0.8, 0.1, 0.1), 0.6),
    ((np.nan,), 1),
  ],
)
def test_correlation_efficiency(upper, want):
  size = 2 if len(upper) == 1 else 3
  matrix = np.eye(size, dtype=np.float32)
  matrix[np.triu_indices(size, 1)] = upper
  matrix.T[np.triu_indices(size, 1)] = upper
  got = diagnostics.correlation_efficiency(matrix, np.ones((1, size), bool))
  assert got[0] == pytest.approx(want, abs=5e-5)


def test_efficiencies_are_of_the_columns_that_a_row_has():
  mask = np.asarray([[True, True, False], [True, False, True], [False] * 3])
  matrix = np.eye(3, dtype=np.float32)
  matrix[0, 1] = matrix[1, 0] = 0.5
  got = diagnostics.correlation_efficiency(matrix, mask)
  np.testing.assert_allclose(got, [2 / 3, 1, 0], rtol=1e-6)
  got = diagnostics.projection_efficiency(np.asarray([1, 1, 0.1], 'f'), mask)
  np.testing.assert_allclose(got, [1, 0.5990, 0], atol=5e-5)


def test_a_sum_says_how_much_of_its_columns_it_keeps(make_columns):
  """GRPO sums raw columns, whose spreads differ."""
  x, y = np.random.default_rng(0).normal(size=(2, 4000))
  rewards = make_columns(np.stack([x, 0.1 * (0.6 * x + 0.8 * y)], axis=1))
  got = base.combine().metrics(rewards, ())
  assert got['summed/eta_proj'] == pytest.approx(0.5990, abs=5e-3)
  assert got['summed/eta_corr'] == pytest.approx(1 / 1.6, abs=2e-2)
  product = got['summed/eta_proj'] * got['summed/eta_corr']
  assert got['summed/eta_eff'] == pytest.approx(product)
  assert got['summed/correlation'][0, 1] == pytest.approx(0.6, abs=2e-2)
  weighted = base.combine((1, 10)).metrics(rewards, ())
  assert weighted['summed/eta_proj'] == pytest.approx(1, abs=5e-3)


def test_a_row_with_one_reward_has_no_sum_to_speak_of(make_columns):
  rng = np.random.default_rng(2)
  values = rng.normal(size=(64, 1)) @ [[1, 1]] + rng.normal(size=(64, 2)) * [
    1,
    4,
  ]
  active = np.asarray([[True, True]] * 64 + [[False, True]] * 64)
  lone = np.stack([np.zeros(64), rng.permutation(values[:, 1])], axis=1)
  got = base.combine().metrics(make_columns(values), ())
  wider = make_columns(np.concatenate([values, lone]), active=active)
  more = base.combine().metrics(wider, ())
  for name in ('summed/eta_corr', 'summed/eta_proj'):
    assert got[name] < 0.95
    assert more[name] == pytest.approx(float(got[name]), rel=5e-3)


def test_the_order_of_methods_in_efficiency(make_columns):
  """What the paper claims of the mechanism, on correlated skewed rewards."""
  rng = np.random.default_rng(1)
  shared = rng.normal(size=(64, 1))
  values = (0.8 * shared + 0.6 * rng.normal(size=(64, 2))) * [1, 0.1]
  values = np.sinh(1.5 * values)
  rewards = make_columns(values, np.repeat(np.arange(8), 8))
  found = {}
  for name in ('group_normalize', 'gdpo', 'quantile', 'rdpo'):
    transform = rewards_lib.from_config({'name': name})
    state = transform.init(2)
    for _ in range(7):
      _, state, found[name] = diagnostics.observe(transform, rewards, state)
  grpo, gdpo, maq, rdpo = found.values()
  assert grpo['summed/eta_proj'] < 0.8 < 0.95 < gdpo['summed/eta_proj']
  assert maq['summed/eta_corr'] < 0.8 < 0.95 < rdpo['summed/eta_corr']
  assert gdpo['scores/participation'] < maq['scores/participation']
  assert gdpo['scores/domination'] > maq['scores/domination']
  assert abs(rdpo['summed/correlation'][0, 1]) < 0.05
  np.testing.assert_allclose(
    rdpo['rewards/correlation'], np.corrcoef(values.T), atol=1e-4
  )


def test_names_of_columns_are_in_the_metrics():
  matrix = np.asarray([[1, 0.5, np.nan], [0.5, 1, 0.25], [np.nan, 0.25, 1]])
  got = diagnostics.named(
    {'a': np.asarray(2.0), 'b': np.asarray([3.0, np.inf, 4]), 'c': matrix},
    ('x', 'y', 'z'),
  )
  assert got == {'a': 2, 'b/x': 3, 'b/z': 4, 'c/x~y': 0.5, 'c/y~z': 0.25}


def test_one_column_has_nothing_to_correlate(make_columns):
  transform = rewards_lib.from_config({'name': 'group_normalize'})
  out, _, found = diagnostics.observe(
    transform, make_columns([1, 0, 0, 1]), transform.init(1)
  )
  assert set(found) == {'scores/domination', 'scores/participation'}
  assert out.values.shape == (4, 1)
