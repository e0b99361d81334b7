"""Statistics under a mask, over a batch or inside the segments of a batch.

What a mask or a zero weight hides never reaches the arithmetic, so that NaN and
infinity may stand there. Letters: `N` elements, `R` columns.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxagent import types

_RELATIVE_ZERO = 1e-6  # a spread below this share of the values is rounding


class PairMoments(NamedTuple):
  """Moments of columns two by two, each over the rows that have both."""

  count: Int[Array, 'R R']  # rows that have both
  covariance: Float[Array, 'R R']
  variance: Float[Array, 'R R']  # [k, l]: of column k, in the rows that have l


class Moments(NamedTuple):
  """What each element's segment looks like, given back to every element."""

  count: Float[Array, 'N R']  # sum of weights
  total: Float[Array, 'N R']  # weighted sum
  mean: Float[Array, 'N R']
  std: Float[Array, 'N R']
  # False where all values are equal, up to rounding, or there is only one.
  varies: Bool[Array, 'N R']


def mean(
  x: Float[types.Array, '...'], mask: Bool[types.Array, '...']
) -> Float[types.Array, '']:
  """Mean of the unmasked elements; 0 where there are none."""
  total = jnp.sum(jnp.where(mask, x, 0))
  return total / jnp.maximum(jnp.sum(mask, dtype=total.dtype), 1)


def quantile(
  values: Float[types.Array, 'N R'], mask: Bool[types.Array, 'N R'], q: float
) -> Float[types.Array, 'R']:
  """The q-quantile of the unmasked part of each column; 0 where it is empty.

  Between two order statistics it is interpolated linearly, as by default in
  NumPy.

  Args:
    values: any float, also non-finite where masked.
    mask: what counts.
    q: in [0, 1].
  """
  ordered = jnp.sort(jnp.where(mask, values, jnp.inf), axis=0)
  last = jnp.maximum(jnp.sum(mask, axis=0, dtype=jnp.int32) - 1, 0)
  position = q * last.astype(ordered.dtype)
  low = jnp.floor(position).astype(jnp.int32)

  def at(index):
    taken = jnp.take_along_axis(ordered, index[None], axis=0)[0]
    return jnp.where(jnp.any(mask, axis=0), taken, 0)

  below, above = at(low), at(jnp.minimum(low + 1, last))
  return below + (above - below) * (position - low.astype(ordered.dtype))


def pair_moments(
  values: Float[types.Array, 'N R'],
  mask: Bool[types.Array, 'N R'],
  *,
  ddof: int = 1,
) -> PairMoments:
  """Covariances of columns that are not observed in the same rows.

  Every pair of columns is centred and counted over the rows that have both, so
  that the matrix need not be positive semidefinite where rows lack columns.

  Args:
    values: any float, also non-finite where masked.
    mask: which values were observed.
    ddof: taken off the count in the divisor.

  Returns:
    `PairMoments`; 0 for a pair that no row has.
  """
  present = mask.astype(values.dtype)
  # The result does not change with the origin, but its rounding does.
  values = _centred(values, mask)

  def dot(x, y):
    return jnp.matmul(x.T, y, precision=jax.lax.Precision.HIGHEST)

  count, total = dot(present, present), dot(values, present)
  some = jnp.maximum(count, 1)
  divisor = jnp.maximum(count - ddof, 1)
  products = dot(values, values) - total * total.T / some
  squares = dot(jnp.square(values), present) - jnp.square(total) / some
  return PairMoments(
    count=count.astype(jnp.int32),
    covariance=products / divisor,
    variance=jnp.maximum(squares, 0) / divisor,
  )


def correlation(
  values: Float[types.Array, 'N R'], mask: Bool[types.Array, 'N R']
) -> Float[types.Array, 'R R']:
  """Pearson's correlation of each pair of columns in the rows that have both.

  NaN where it is not defined: a pair has fewer than two rows, or one of its
  columns does not vary in them.
  """
  values = _centred(values, mask)
  moments = pair_moments(values, mask)
  scale = jnp.sqrt(moments.variance * moments.variance.T)
  # A column that is constant in the rows of a pair alone has the rounding of a
  # difference of squares as its variance.
  largest = jnp.max(jnp.square(values), axis=0, initial=0)
  rounding = _RELATIVE_ZERO * largest[:, None]
  varies = (moments.variance > rounding) & (moments.variance > rounding).T
  varies &= moments.count > 1
  rho = moments.covariance / jnp.where(varies, scale, 1)
  return jnp.where(varies, jnp.clip(rho, -1, 1), jnp.nan)


def _centred(values, mask):
  """Columns less their means, and 0 where masked."""
  values = jnp.where(mask, values, 0)
  count = jnp.sum(mask, axis=0, dtype=values.dtype)
  centre = jnp.sum(values, axis=0) / jnp.maximum(count, 1)
  return jnp.where(mask, values - centre[None], 0)


def labels(*keys: Int[types.Array, 'N']) -> Int[types.Array, 'N']:
  """Numbers the distinct tuples of `keys` from 0; works under `jit`.

  Args:
    *keys: integers of any size and sign; elements belong together where they
      agree in every key.

  Returns:
    A label in `[0, N)` per element, for `segment_*` with N segments.
  """
  order = jnp.lexsort(keys)
  starts = jnp.zeros(order.shape, bool)
  for key in keys:
    ranked = jnp.asarray(key)[order]
    starts = starts.at[1:].set(starts[1:] | (ranked[1:] != ranked[:-1]))
  return jnp.zeros_like(order).at[order].set(jnp.cumsum(starts))


def segment_moments(
  values: Float[types.Array, 'N R'],
  weights: Float[types.Array, 'N R'],
  segment: Int[types.Array, 'N'],
  *,
  ddof: int = 1,
) -> Moments:
  """Weighted moments inside each segment, as seen by each element.

  Args:
    values: any float, also non-finite where the weight is 0.
    weights: non-negative; an element of weight 0 does not exist.
    segment: labels in `[0, N)`, see `labels`.
    ddof: taken off the count in the variance, 1 for the sample variance.

  Returns:
    `Moments`; of a segment without weight all zeros.
  """
  size = values.shape[0]
  present = weights > 0
  values = jnp.where(present, values, 0)

  def total(x):
    return jax.ops.segment_sum(x, segment, size)[segment]

  def extreme(reduce, fill):
    return reduce(jnp.where(present, values, fill), segment, size)[segment]

  count, summed = total(weights), total(weights * values)
  average = summed / jnp.where(count > 0, count, 1)
  squares = total(weights * jnp.square(values - average))
  high = extreme(jax.ops.segment_max, -jnp.inf)
  low = extreme(jax.ops.segment_min, jnp.inf)
  magnitude = jnp.maximum(jnp.abs(high), jnp.abs(low))
  return Moments(
    count=count,
    total=summed,
    mean=average,
    std=jnp.sqrt(squares / jnp.maximum(count - ddof, 1)),
    varies=high - low > _RELATIVE_ZERO * magnitude,
  )
