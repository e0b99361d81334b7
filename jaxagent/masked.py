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
