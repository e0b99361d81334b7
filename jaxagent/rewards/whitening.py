"""Mahalanobis whitening, the second half of RDPO (arXiv 2605.13641).

  Sigma_t  = (1 - alpha) Sigma_{t-1} + alpha Sigma_batch                   (4)
  W        = Sigma_S^{-1/2} A_S                                            (3)
with A the scores of a row, S the columns that the row has, Sigma_S the rows and
columns S of the running covariance, and the symmetric root U L^{-1/2} U^T.
Summed afterwards, column k of A has the weight (1^T Sigma_S^{-1/2})_k.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from jaxagent import masked, registry, types

MAX_COLUMNS = 10  # every subset of the columns gets its root
_TINY = 1e-12  # an eigenvalue of a covariance of nothing but constants
_ROOTS = ('symmetric', 'cholesky')
_SCOPES = ('global', 'active_set')
_INITIALS = ('batch', 'identity')
_EXACT = jax.lax.Precision.HIGHEST


class WhitenState(NamedTuple):
  """What is carried from step to step; `C` is 1, or 2^R for a scope by set."""

  step: Int[types.Array, '']  # applications so far
  covariance: Float[types.Array, 'C R R']
  # Whether a batch has set the entry yet.
  seen: Bool[types.Array, 'C R R']


def mahalanobis_whiten(
  *,
  alpha: float | int = 0.1,
  warmup: int = 5,
  floor: float | int = 1e-2,
  initial: str = 'batch',
  guard_sign: bool = False,
  shrinkage: float | int = 0.0,
  skip_tied_groups: bool = False,
  scope: str = 'global',
  root: str = 'symmetric',
) -> types.RewardTransform:
  """Decorrelates the columns that a row has, by a running covariance.

  The covariance is updated first and used then. The batch's is the centred
  sample covariance over the rows that have both columns of a pair; the scores
  themselves are not centred. An entry whose pair has fewer than two such rows
  in a batch stays as it was. For the first `warmup` applications scores pass
  unchanged while the covariance is learned.

  Nothing bounds a weight (see above) from below: of two strongly correlated
  columns with unequal variances the wider one can get a negative weight, so
  that more of that reward lowers the sum. `whitening/min_weight` is logged, and
  as `whitening/correlation` that of the scores as they come.

  Args:
    alpha: weight of the new batch, in (0, 1].
    warmup: applications before the first that whitens.
    floor: smallest eigenvalue, as a share of the mean variance in S. It also
      makes positive what was assembled from different rows and is indefinite.
    initial: 'batch' sets an entry to its first batch's; 'identity' starts the
      average from the identity.
    guard_sign: shrink Sigma_S towards its diagonal, in steps of 1/32, until no
      weight is negative (not in the paper).
    shrinkage: share of the diagonal that is always mixed in (not in the paper).
    skip_tied_groups: leave columns without spread in a group out of the
      covariance, where they count as zeros and so make rare rewards louder.
    scope: 'global' has one covariance for all rows; 'active_set' has one for
      each set of active columns.
    root: 'symmetric', or 'cholesky' for the inverse of the triangular factor,
      which depends on the order of the columns.

  Returns:
    A `RewardTransform` whose state is a `WhitenState`.

  Raises:
    ValueError: for an unknown option; by `init` for more than `MAX_COLUMNS`
      columns, since there is a root for each of their subsets.
  """
  registry.one_of('initial covariance', initial, _INITIALS)
  registry.one_of('scope of the covariance', scope, _SCOPES)
  registry.one_of('root of the covariance', root, _ROOTS)
  if not (0 < alpha <= 1 and 0 <= shrinkage <= 1 and floor > 0):
    raise ValueError(
      f'Got alpha={alpha}, shrinkage={shrinkage}, floor={floor}; wanted alpha'
      ' in (0, 1], shrinkage in [0, 1] and a positive floor.'
    )

  def init(num_rewards):
    if num_rewards > MAX_COLUMNS:
      raise ValueError(
        f'mahalanobis_whiten got {num_rewards} reward columns; it takes at most'
        f' {MAX_COLUMNS}. Combine some before.'
      )
    sets = 2**num_rewards if scope == 'active_set' else 1
    shape = (sets, num_rewards, num_rewards)
    return WhitenState(
      step=jnp.zeros((), jnp.int32),
      covariance=jnp.broadcast_to(jnp.eye(num_rewards), shape),
      seen=jnp.full(shape, initial == 'identity'),
    )

  def roots(state):
    steps = np.linspace(0, 1, 33) if guard_sign else np.zeros(1)
    shares = 1 - (1 - shrinkage) * (1 - steps)
    return _roots(state.covariance, shares, floor, root)

  def apply(rewards, state):
    state = _update(state, rewards, alpha, skip_tied_groups)
    values = jnp.where(rewards.active, rewards.values, 0)
    found = roots(state).matrix[_set_of(rewards.active)]
    whitened = jnp.einsum('bij,bj->bi', found, values, precision=_EXACT)
    values = jnp.where(state.step > warmup, whitened, values)
    return rewards.replace(values=values), state

  def metrics(rewards, state):
    state = _update(state, rewards, alpha, skip_tied_groups)
    found = _metrics(roots(state), rewards.active)
    before = masked.correlation(rewards.values, rewards.active)
    return found | {'whitening/correlation': before}

  return types.RewardTransform(init, apply, metrics)


def inverse_root(
  covariance: Float[types.Array, 'R R'],
  *,
  floor: float | int = 1e-2,
  root: str = 'symmetric',
) -> Float[Array, 'R R']:
  """Sigma^{-1/2} with floored eigenvalues; its columns' sums are weights.

  Args:
    covariance: symmetric, or nearly.
    floor: smallest eigenvalue, as a share of the mean of the diagonal.
    root: 'symmetric' or 'cholesky'.
  """
  size = covariance.shape[0]
  matrix, _ = _inverse_root(covariance, jnp.ones(size, bool), floor, root)
  return matrix


class _Roots(NamedTuple):
  """For each of the 2^R sets of columns."""

  matrix: Float[Array, 'S R R']  # 0 outside the set
  weights: Float[Array, 'S R']
  floored: Bool[Array, 'S']
  shrunk: Float[Array, 'S']  # share of the diagonal


def _update(state, rewards, alpha, skip_tied_groups):
  """The state after this batch, Eq. 4."""
  mask = rewards.active
  if skip_tied_groups:
    segment = masked.labels(rewards.group, rewards.part)
    weights = mask.astype(rewards.values.dtype)
    mask &= masked.segment_moments(rewards.values, weights, segment).varies
  sets = state.covariance.shape[0]
  member = jnp.ones((1, mask.shape[0]), bool)
  if sets > 1:
    member = jnp.arange(sets)[:, None] == _set_of(rewards.active)[None]
  batch = jax.vmap(masked.pair_moments, (None, 0))(
    rewards.values, member[:, :, None] & mask[None]
  )
  old = state.covariance
  average = (1 - alpha) * old + alpha * batch.covariance
  fresh = jnp.where(state.seen, average, batch.covariance)
  enough = batch.count >= 2
  return WhitenState(
    step=state.step + 1,
    covariance=jnp.where(enough, fresh, old),
    seen=state.seen | enough,
  )


def _roots(covariance, shares, floor, root) -> _Roots:
  """Roots of all sets, each with the least of `shares` that is good enough."""
  sets = _subsets(covariance.shape[1])
  covariance = jnp.broadcast_to(
    covariance, (len(sets), *covariance.shape[1:])
  ).astype(jnp.float32)

  def of(share, covariance, subset):
    diagonal = covariance * jnp.eye(subset.shape[0])
    mixed = (1 - share) * covariance + share * diagonal
    matrix, floored = _inverse_root(mixed, subset, floor, root)
    return _Roots(matrix, jnp.sum(matrix, axis=0), floored, share)

  each_set = jax.vmap(of, (None, 0, 0))
  found = jax.vmap(each_set, (0, None, None))(
    jnp.asarray(shares, jnp.float32), covariance, jnp.asarray(sets)
  )
  # On the diagonal every weight is positive: the last share always is good.
  good = jnp.all(found.weights >= 0, axis=2).at[-1].set(True)
  first = jnp.argmax(good, axis=0)
  return jax.tree.map(lambda x: x[first, jnp.arange(len(sets))], found)


def _inverse_root(covariance, subset, floor, root):
  """The root inside a subset, 0 outside, and whether the floor was needed."""
  inside = subset[:, None] & subset[None, :]
  part = jnp.where(inside, (covariance + covariance.T) / 2, 0)
  size = jnp.sum(subset, dtype=part.dtype)
  variance = jnp.trace(part) / jnp.maximum(size, 1)
  # What is outside gets the mean variance, so that it is never floored.
  outside = jnp.diag(jnp.where(subset, 0, jnp.maximum(variance, _TINY)))
  eigenvalues, vectors = jnp.linalg.eigh(part + outside)
  least = jnp.maximum(floor * variance, _TINY)
  floored = jnp.maximum(eigenvalues, least)
  power = -0.5 if root == 'symmetric' else 1.0
  matrix = jnp.matmul(
    vectors * floored[None] ** power, vectors.T, precision=_EXACT
  )
  if root == 'cholesky':
    matrix = jax.scipy.linalg.solve_triangular(
      jnp.linalg.cholesky(matrix), jnp.eye(subset.shape[0]), lower=True
    )
  return jnp.where(inside, matrix, 0), jnp.any(eigenvalues < least)


def _subsets(columns: int) -> np.ndarray:
  """bool[2^R, R]: set s has column k where bit k of s is set."""
  return (np.arange(2**columns)[:, None] >> np.arange(columns)) % 2 == 1


def _set_of(active):
  """The number of each row's set of active columns, i32[B]."""
  bits = jnp.asarray(2 ** np.arange(active.shape[1]), jnp.int32)
  return jnp.sum(jnp.where(active, bits[None], 0), axis=1)


def _metrics(roots, active):
  """Extremes and shares over the rows with any active column."""
  number = _set_of(active)
  weights = jnp.where(active, roots.weights[number], jnp.inf)
  least = jnp.min(weights, axis=1, initial=jnp.inf)
  exists = jnp.any(active, axis=1)
  lowest = jnp.min(jnp.where(exists, least, jnp.inf), initial=jnp.inf)

  def share(x):
    return masked.mean(x.astype(jnp.float32), exists)

  return {
    'whitening/min_weight': jnp.where(jnp.any(exists), lowest, 0),
    'whitening/negative': share(least < 0),
    'whitening/floored': share(roots.floored[number]),
    'whitening/shrunk': share(roots.shrunk[number]),
  }
