"""Magnitude-aware quantiles (MAQ), the first half of RDPO (arXiv 2605.13641).

Inside a group, with the rewards of one column sorted, r_1 <= ... <= r_G:
  gap_j = log(1 + (r_{j+1} - r_j) / (beta sigma))                          (1)
  u_1   = delta,  u_j = delta + (1 - 2 delta) sum_{l<j} gap_l / sum gap
  A_j   = Phi^{-1}(u_j)                                                    (2)
with sigma the inter-quartile range of the column over the whole batch. The ends
delta are not in the paper: without them the scores would be infinite.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxagent import masked, registry, types
from jaxagent.rewards import base, diagnostics

_NEGLIGIBLE = 1e-6  # a range below this share of the values is rounding

_ENDS = {
  'hazen': lambda count: 1 / (2 * count),
  'weibull': lambda count: 1 / (count + 1),
}


def magnitude_aware_quantile(
  *,
  beta: float | int = 1.0,
  ends: str = 'hazen',
  scale: tuple[float | int, ...] | None = None,
  center_group: bool = False,
) -> types.RewardTransform:
  """Bounded normal scores that keep the order and dampen the distances.

  A group is the rows that agree in `(group, part)`; each column of it is mapped
  by itself, over the rows that have it, every row counting once. The lowest
  gets Phi^{-1}(delta), the highest its opposite, equal rewards equal scores.
  Scores of a group need not sum to 0: with one success among eight, seven rows
  get the lowest score. What was not observed is 0; so is a group of one, and a
  group whose rewards are all equal (up to rounding, as in `masked`).

  Rewards are to be finite where active, see `base.drop_nonfinite`. The scores
  have no gradient to speak of: rewards are data.

  Args:
    beta: how far distances are dampened. At `inf` u is linear in the reward;
      at 0 only the order counts, which without ties gives rank-normal scores.
    ends: delta for a group of G: 'hazen' is 1/(2G), so that rewards at equal
      distances get Hazen's plotting positions; 'weibull' is 1/(G+1).
    scale: sigma of each column; None measures the inter-quartile range over
      all rows of the batch that have the column, or where that is 0 the
      standard deviation, or where that is 0 takes 1.
    center_group: subtract the mean score of the group (not in the paper).

  Returns:
    A `RewardTransform`, column by column.

  Raises:
    ValueError: for a negative `beta` or another `ends`; by `init` and `apply`
      when `scale` does not fit the columns.
  """
  registry.one_of('ends of a quantile', ends, _ENDS)
  if not beta >= 0:
    raise ValueError(f'Got beta={beta}; it is from 0 (ranks) to inf (linear).')

  def init(num_rewards):
    if scale is not None and len(scale) != num_rewards:
      raise ValueError(
        f'magnitude_aware_quantile got {len(scale)} scales {scale} for'
        f' {num_rewards} reward columns; give one per column, or None.'
      )
    return ()

  def fn(rewards):
    init(rewards.values.shape[1])
    segment = masked.labels(rewards.group, rewards.part)
    values = jnp.where(rewards.active, rewards.values, 0)
    if scale is None:
      sigma = column_scale(rewards)
    else:
      sigma = jnp.asarray(scale, values.dtype)
    weights = rewards.active.astype(values.dtype)
    moments = masked.segment_moments(values, weights, segment)
    share = jax.vmap(_share, (1, 1, None, 0, None), 1)(
      values, rewards.active, segment, sigma, beta
    )
    delta = _ENDS[ends](jnp.maximum(moments.count, 1))
    scores = jax.scipy.special.ndtri(delta + (1 - 2 * delta) * share)
    live = rewards.active & moments.varies
    scores = jnp.where(live, scores, 0)
    if center_group:
      centre = masked.segment_moments(scores, weights, segment).mean
      scores = jnp.where(live, scores - centre, 0)
    return rewards.replace(values=scores)

  scored = base.stateless(fn, diagnostics.of_groups)
  return types.RewardTransform(init, scored.apply, scored.metrics)


def column_scale(rewards: types.Rewards) -> Float[Array, 'R']:
  """sigma of each column: its inter-quartile range, or std, or 1.

  Over all rows that have the column. A range that is 0, or rounding beside the
  size of the values, is passed over for the next measure.
  """
  values = jnp.where(rewards.active, rewards.values, 0)
  high = masked.quantile(values, rewards.active, 0.75)
  spread = high - masked.quantile(values, rewards.active, 0.25)
  moments = masked.pair_moments(values, rewards.active)
  std = jnp.sqrt(jnp.diagonal(moments.variance))
  tiny = _NEGLIGIBLE * jnp.max(jnp.abs(values), axis=0)
  std = jnp.where(std > tiny, std, 1)
  return jnp.where(spread > tiny, spread, std)


def _share(values, active, segment, sigma, beta):
  """The share of its group's gaps that lies below each row, f[B]."""
  order = jnp.lexsort((values, ~active, segment))
  value, seen, group = values[order], active[order], segment[order]
  follows = (group[1:] == group[:-1]) & seen[1:] & seen[:-1]
  follows = jnp.concatenate([jnp.zeros(1, bool), follows])
  distance = jnp.where(follows, value - jnp.roll(value, 1), 0)
  if beta == 0:
    gap = (distance > 0).astype(values.dtype)
  elif math.isinf(beta):
    gap = distance
  else:
    gap = jnp.log1p(distance / (beta * sigma))
  below = _running_sum(gap, follows)
  # The last of a group has them all, so that its share is 1 to the bit.
  total = jax.ops.segment_max(below, group, values.shape[0])[group]
  share = below / jnp.where(total > 0, total, 1)
  return jnp.zeros_like(values).at[order].set(share)


def _running_sum(x, follows):
  """Inclusive sums that start anew wherever `follows` is False."""

  def compose(earlier, later):
    sums = later[1] + jnp.where(later[0], earlier[1], 0)
    return earlier[0] & later[0], sums

  return jax.lax.associative_scan(compose, (follows, x))[1]
