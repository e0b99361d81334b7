"""Whitening: weights by hand, the running covariance, and sets of columns."""

import jax
import numpy as np
import pytest

from jaxagent.rewards import whitening


def matrix(*upper):
  """A correlation matrix from what stands above its diagonal."""
  size = {1: 2, 3: 3}[len(upper)]
  out = np.eye(size, dtype=np.float32)
  out[np.triu_indices(size, 1)] = upper
  return np.asarray(np.triu(out) + np.triu(out, 1).T)


def weights(covariance, **options):
  root = whitening.inverse_root(np.asarray(covariance, np.float32), **options)
  return np.asarray(root).sum(0)


@pytest.mark.parametrize(
  'rho, want',
  [
    (0.5, 0.8165),
    (-0.5, 1.4142),
    (0.9, 0.7255),
    (-0.9, 3.1623),
    (1.0, 0.7071),
    (-1.0, 10.0),
  ],
)
def test_two_columns_of_unit_variance(rho, want):
  np.testing.assert_allclose(weights(matrix(rho)), [want] * 2, atol=1e-4)


@pytest.mark.parametrize(
  'covariance, want',
  [
    (matrix(0.8, 0.1, 0.1), (0.7161, 0.7161, 0.9405)),
    ([[4, 1], [1, 1]], (0.3437, 0.9391)),
    ([[0.25]], (2.0,)),
    ([[4, 1.9], [1.9, 1]], (-0.1765, 1.7452)),
    # An eigenvalue of 0.0087, just below the default floor.
    (matrix(0.8, 0.3, 0.8), (1.4433, -0.6026, 1.4433)),
    (matrix(0.9, -0.9, 0.9), (3.817, -2.366, 3.817)),
  ],
)
def test_weights_by_hand(covariance, want):
  np.testing.assert_allclose(weights(covariance), want, atol=5e-4)


def test_weights_without_a_floor():
  got = weights(matrix(0.8, 0.3, 0.8), floor=1e-6)
  np.testing.assert_allclose(got, [1.5022, -0.6977, 1.5022], atol=5e-4)


def test_a_root_by_hand():
  got = whitening.inverse_root(np.asarray([[4, 1], [1, 1]], np.float32))
  want = [[0.5422, -0.1984], [-0.1984, 1.1375]]
  np.testing.assert_allclose(got, want, atol=5e-5)


@pytest.mark.parametrize('gap', [-0.05, 0.05])
def test_the_wide_column_turns_negative_where_the_card_says(gap):
  """For two columns: where S12 exceeds S22 + sqrt(det S)."""
  cross = np.linspace(0, 1.99, 400)
  excess = cross - (1 + np.sqrt(np.maximum(4 - cross**2, 0)))
  edge = cross[np.argmin(np.abs(excess))]
  got = weights([[4, edge + gap], [edge + gap, 1]], floor=1e-6)
  assert (got[0] < 0) == (gap > 0) and got[1] > 0


@pytest.mark.parametrize('root', ['symmetric', 'cholesky'])
def test_the_root_makes_the_covariance_the_identity(root):
  rng = np.random.default_rng(0)
  for size in (1, 2, 3, 5):
    basis = rng.normal(size=(size, size + 3))
    covariance = (basis @ basis.T / size).astype(np.float32)
    assert (
      np.linalg.eigvalsh(covariance)[0] > 1e-2 * np.trace(covariance) / size
    )
    got = np.asarray(whitening.inverse_root(covariance, root=root))
    np.testing.assert_allclose(
      got @ covariance @ got.T, np.eye(size), atol=2e-4
    )
    if root == 'symmetric':
      np.testing.assert_allclose(got, got.T, atol=1e-5)
    else:
      np.testing.assert_array_equal(got, np.tril(got))


def test_a_covariance_of_constants_is_finite():
  for covariance in (np.zeros((2, 2)), np.diag([1.0, 0.0])):
    got = whitening.inverse_root(covariance.astype(np.float32))
    assert np.isfinite(got).all()


# --- as a transform ----------------------------------------------------------


def scores_like(covariance, rows=64, seed=0):
  """[rows, n] whose sample covariance is exactly `covariance`, mean 0."""
  covariance = np.asarray(covariance)
  x = np.random.default_rng(seed).normal(size=(rows, len(covariance)))
  x -= x.mean(0)
  x @= np.linalg.inv(
    np.linalg.cholesky(np.cov(x.T).reshape(covariance.shape)).T
  )
  values, vectors = np.linalg.eigh(covariance)
  return x @ (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def applied(rewards, steps=1, **options):
  transform = whitening.mahalanobis_whiten(**{'warmup': 0} | options)
  state = transform.init(rewards.values.shape[1])
  apply = jax.jit(transform.apply)
  for _ in range(steps):
    before = state
    out, state = apply(rewards, state)
  return np.asarray(out.values), state, transform.metrics(rewards, before)


def test_whitened_scores_have_the_identity_as_covariance(make_columns):
  rewards = make_columns(scores_like([[4, 1, 0], [1, 1, 0.3], [0, 0.3, 0.5]]))
  got, _, metrics = applied(rewards)
  np.testing.assert_allclose(np.cov(got.T), np.eye(3), atol=1e-4)
  assert metrics['whitening/floored'] == 0
  before = metrics['whitening/correlation']
  assert before[0, 1] == pytest.approx(0.5, abs=1e-3)  # 1 / sqrt(4 1)
  assert before[0, 2] == pytest.approx(0, abs=1e-3)


def test_the_first_batch_is_the_covariance_and_the_rest_is_averaged(
  make_columns,
):
  first, second = np.diag([2.0, 0.5]), np.asarray([[1, 0.4], [0.4, 1]])
  transform = whitening.mahalanobis_whiten(alpha=0.2)
  state = transform.init(2)
  for covariance in (first, second):
    _, state = transform.apply(make_columns(scores_like(covariance)), state)
  assert state.step == 2
  np.testing.assert_allclose(
    state.covariance[0], 0.8 * first + 0.2 * second, atol=1e-5
  )


def test_an_average_from_the_identity(make_columns):
  rewards = make_columns(scores_like(matrix(0.5)))
  _, state, _ = applied(rewards, alpha=0.1, initial='identity')
  np.testing.assert_allclose(
    state.covariance[0], [[1, 0.05], [0.05, 1]], atol=1e-5
  )


@pytest.mark.parametrize('warmup', [0, 1, 5])
def test_warm_up_learns_but_does_not_whiten(warmup, make_columns):
  rewards = make_columns(scores_like([[4, 1], [1, 1]]))
  transform = whitening.mahalanobis_whiten(warmup=warmup)
  state = transform.init(2)
  for step in range(7):
    out, state = transform.apply(rewards, state)
    same = np.allclose(out.values, rewards.values)
    assert same == (step < warmup), step
    np.testing.assert_allclose(state.covariance[0], [[4, 1], [1, 1]], atol=1e-4)


def test_every_row_is_whitened_in_its_own_columns(make_columns):
  rng = np.random.default_rng(1)
  values = scores_like([[4, 1, 0.5], [1, 1, 0.3], [0.5, 0.3, 0.5]])
  active = rng.random(values.shape) < 0.7
  got, state, _ = applied(make_columns(values, active=active), floor=1e-6)
  sigma = np.asarray(state.covariance[0], np.float64)
  for i, mask in enumerate(active):
    own = np.flatnonzero(mask)
    if len(own) == 0:
      continue
    eigenvalues, vectors = np.linalg.eigh(sigma[np.ix_(own, own)])
    root = vectors / np.sqrt(eigenvalues) @ vectors.T
    np.testing.assert_allclose(got[i, own], root @ values[i, own], atol=1e-3)
  np.testing.assert_array_equal(got[~active], 0)


def test_one_active_column_is_divided_by_its_deviation(make_columns):
  values = np.asarray([[1.0, 9], [-1, 9], [2, 9], [-2, 9]])
  got, _, _ = applied(make_columns(values, active=np.asarray([[True, False]])))
  np.testing.assert_allclose(
    got[:, 0], values[:, 0] / values[:, 0].std(ddof=1), rtol=1e-5
  )


def test_covariances_are_of_the_rows_that_have_both(make_columns):
  rng = np.random.default_rng(2)
  values = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 3)) + 5
  active = rng.random((40, 3)) < 0.6
  spoiled = np.where(active, values, np.nan)
  _, state, _ = applied(make_columns(spoiled, active=active))
  for k in range(3):
    for m in range(3):
      both = active[:, k] & active[:, m]
      want = np.cov(values[both, k], values[both, m])[0, 1]
      np.testing.assert_allclose(state.covariance[0, k, m], want, atol=1e-4)


def test_what_a_batch_does_not_show_stays_as_it_was(make_columns):
  transform = whitening.mahalanobis_whiten(alpha=0.5)
  values = scores_like([[4, 1], [1, 1]], rows=8)
  _, state = transform.apply(make_columns(values), transform.init(2))
  apart = np.zeros((8, 2), bool)
  apart[:4, 0], apart[7, 1] = True, True  # the second column once
  _, after = transform.apply(make_columns(values, active=apart), state)
  np.testing.assert_array_equal(
    np.asarray(after.covariance != state.covariance)[0],
    [[True, False], [False, False]],
  )
  never, _ = transform.apply(
    make_columns(values, active=False), transform.init(2)
  )
  np.testing.assert_array_equal(never.values, 0)


def test_a_column_never_seen_keeps_the_prior(make_columns):
  _, state, _ = applied(
    make_columns(scores_like([[4, 1], [1, 1]]), active=[[True, False]]), steps=3
  )
  np.testing.assert_array_equal(state.covariance[0, 1], [0, 1])
  np.testing.assert_array_equal(state.seen[0], [[True, False], [False, False]])


@pytest.mark.parametrize('rho, want', [(1.0, 0.7071), (-1.0, 10.0)])
def test_the_same_reward_twice(rho, want, make_columns):
  x = scores_like([[1.0]])
  got, _, metrics = applied(make_columns(np.concatenate([x, rho * x], 1)))
  assert metrics['whitening/floored'] == 1
  assert metrics['whitening/min_weight'] == pytest.approx(want, abs=2e-3)
  np.testing.assert_allclose(
    got.sum(1), (x[:, 0] + rho * x[:, 0]) * 0.7071, atol=1e-3
  )


def test_a_constant_column_gives_nothing(make_columns):
  values = np.concatenate([scores_like([[1.0]]), np.zeros((64, 1))], 1)
  got, _, _ = applied(make_columns(values))
  assert np.isfinite(got).all() and np.all(got[:, 1] == 0)
  np.testing.assert_array_equal(applied(make_columns(0 * values))[0], 0)


@pytest.mark.parametrize(
  'covariance', [[[4, 1.9], [1.9, 1]], matrix(0.8, 0.3, 0.8)]
)
def test_the_guard_leaves_no_negative_weight(covariance, make_columns):
  rewards = make_columns(scores_like(covariance))
  _, _, literal = applied(rewards)
  _, _, guarded = applied(rewards, guard_sign=True)
  assert literal['whitening/min_weight'] < 0
  assert literal['whitening/negative'] == 1
  assert guarded['whitening/min_weight'] >= 0
  assert guarded['whitening/negative'] == 0
  share = float(guarded['whitening/shrunk'])
  assert 0 < share < 1
  # No smaller step would have done.
  for steps, negative in ((0, False), (1, True)):
    mixed = share - steps / 32
    sigma = (1 - mixed) * np.asarray(covariance) + mixed * np.diag(
      np.diag(covariance)
    )
    assert (weights(sigma).min() < 0) == negative


def test_the_guard_changes_nothing_that_is_right(make_columns):
  rewards = make_columns(scores_like([[4, 1], [1, 1]]))
  got = [applied(rewards, guard_sign=guard)[0] for guard in (False, True)]
  np.testing.assert_allclose(*got, atol=1e-6)


def test_shrinkage_mixes_the_diagonal_in(make_columns):
  rewards = make_columns(scores_like([[4, 1.6], [1.6, 1]]))
  got, _, _ = applied(rewards, shrinkage=0.5)
  want, _, _ = applied(rewards, shrinkage=1.0)
  half = whitening.inverse_root(np.asarray([[4, 0.8], [0.8, 1]], np.float32))
  np.testing.assert_allclose(got, rewards.values @ np.asarray(half), atol=1e-4)
  alone = np.asarray(rewards.values) / [2, 1]
  np.testing.assert_allclose(want, alone, atol=1e-4)


def test_cholesky_gives_the_first_column_no_credit_of_the_second(make_columns):
  rewards = make_columns(scores_like([[4, 1.6], [1.6, 1]]))
  got, _, _ = applied(rewards, root='cholesky')
  np.testing.assert_allclose(got[:, 0], rewards.values[:, 0] / 2, atol=1e-4)
  np.testing.assert_allclose(np.cov(got.T), np.eye(2), atol=1e-4)


def test_a_covariance_for_each_set_of_columns(make_columns):
  first = scores_like([[4, 1], [1, 1]], rows=16)
  second = scores_like([[0.25]], rows=16, seed=1)
  values = np.concatenate([first, np.pad(second, ((0, 0), (0, 1)))])
  active = np.asarray([[True, True]] * 16 + [[True, False]] * 16)
  got, state, _ = applied(
    make_columns(values, active=active), scope='active_set'
  )
  np.testing.assert_allclose(state.covariance[3], [[4, 1], [1, 1]], atol=1e-4)
  np.testing.assert_allclose(state.covariance[1, 0, 0], 0.25, atol=1e-5)
  np.testing.assert_array_equal(state.covariance[2], np.eye(2))
  np.testing.assert_allclose(got[16:, 0], second[:, 0] * 2, atol=1e-4)
  np.testing.assert_allclose(np.cov(got[:16].T), np.eye(2), atol=1e-4)


def test_groups_without_spread_make_a_column_louder_unless_skipped(
  make_columns,
):
  live = np.asarray([1.0, -1, 1, -1])
  values = np.concatenate([live, np.zeros(12)])
  rewards = make_columns(values, group=np.repeat(np.arange(4), 4))
  literal = applied(rewards)[1].covariance[0, 0, 0]
  skipped = applied(rewards, skip_tied_groups=True)[1].covariance[0, 0, 0]
  np.testing.assert_allclose(literal, np.var(values, ddof=1), rtol=1e-5)
  np.testing.assert_allclose(skipped, np.var(live, ddof=1), rtol=1e-5)


def test_metrics_are_of_the_rows_that_exist(make_columns):
  values = scores_like([[4, 1.9], [1.9, 1]], rows=8)
  active = np.asarray(
    [[True, True]] * 4 + [[True, False]] * 2 + [[False] * 2] * 2
  )
  _, state, metrics = applied(make_columns(values, active=active), floor=1e-4)
  negative = weights(state.covariance[0], floor=1e-4).min()
  assert metrics['whitening/min_weight'] == pytest.approx(negative, rel=1e-3)
  share = 4 / 6 if negative < 0 else 0
  assert metrics['whitening/negative'] == pytest.approx(share)
  _, _, metrics = applied(make_columns(values, active=False))
  assert np.isnan(metrics.pop('whitening/correlation')).all()
  assert all(np.isfinite(x) for x in metrics.values())


@pytest.mark.parametrize(
  'options, told',
  [
    ({'alpha': 0.0}, 'alpha'),
    ({'floor': 0.0}, 'floor'),
    ({'shrinkage': 1.5}, 'shrinkage'),
    ({'initial': 'batches'}, "mean 'batch'"),
    ({'scope': 'task'}, 'active_set'),
    ({'root': 'zca'}, 'symmetric'),
  ],
)
def test_options_are_checked(options, told):
  with pytest.raises(ValueError, match=told):
    whitening.mahalanobis_whiten(**options)


def test_too_many_columns_are_refused():
  transform = whitening.mahalanobis_whiten()
  assert transform.init(whitening.MAX_COLUMNS).step == 0
  with pytest.raises(ValueError, match='Combine some'):
    transform.init(whitening.MAX_COLUMNS + 1)
  np.testing.assert_array_equal(transform.init(2).covariance[0], np.eye(2))
