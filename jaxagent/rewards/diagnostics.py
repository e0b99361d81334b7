"""What to look at in rewards of several components (arXiv 2605.13641).

  domination     max_j p_j,          p_j = |A_j| / sum |A| inside a group
  participation  1 / (G sum_j p_j^2)
  eta_proj       (1^T w)^2 / (n |w|^2),        w the spread of what is summed
  eta_corr       n / (1^T |C| 1),              C the correlation of what is
  eta_eff        eta_proj eta_corr             summed
All are 1 at best, domination 1 / G. Letters: `R` columns, n those of them that
a row has, G rows of a group that have the column.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from jaxagent import masked, types


def observe(
  transform: types.RewardTransform, rewards: types.Rewards, state
) -> tuple[types.Rewards, object, dict[str, Array]]:
  """One application of a transform, and what to log of it.

  Args:
    transform: any.
    rewards: before it.
    state: before it.

  Returns:
    `(rewards, state, metrics)`; beside the transform's own metrics there is
    `rewards/correlation` f[R, R] of what came in, where that has two columns.
  """
  found = {}
  if rewards.values.shape[1] > 1:
    seen = rewards.active & jnp.isfinite(rewards.values)
    found['rewards/correlation'] = masked.correlation(rewards.values, seen)
  found |= transform.metrics(rewards, state)
  return *transform.apply(rewards, state), found


def named(
  metrics: Mapping[str, types.Array], names: Sequence[str]
) -> dict[str, float]:
  """Metrics as scalars, with the names of reward columns where they have some.

  Args:
    metrics: scalars, f[R], or symmetric f[R, R], of which the part above the
      diagonal is kept. What is not finite is left out.
    names: of the R columns.

  Returns:
    Names such as `weight/length` and `rewards/correlation/length~style`.
  """
  found = {}
  for key, value in metrics.items():
    value = np.asarray(value)
    for at in np.ndindex(value.shape):
      if at == tuple(sorted(set(at))) and np.isfinite(value[at]):
        tail = '~'.join(names[i] for i in at)
        found[f'{key}/{tail}' if tail else key] = float(value[at])
  return found


def of_groups(rewards: types.Rewards) -> dict[str, Float[Array, '']]:
  """`scores/participation` and `scores/domination` of normalised rewards.

  Means over the columns of all groups that have any score other than 0; both
  are 0 where there are none.
  """
  segment = masked.labels(rewards.group, rewards.part)
  size = segment.shape[0]
  scores = jnp.abs(jnp.where(rewards.active, rewards.values, 0))

  def total(x):
    return jax.ops.segment_sum(x, segment, size)

  summed, squares = total(scores), total(jnp.square(scores))
  count = total(rewards.active.astype(scores.dtype))
  most = jax.ops.segment_max(scores, segment, size)
  live = summed > 0
  shares = {
    'participation': jnp.square(summed) / jnp.where(live, count * squares, 1),
    'domination': most / jnp.where(live, summed, 1),
  }
  return {f'scores/{k}': masked.mean(v, live) for k, v in shares.items()}


def projection_efficiency(
  spread: Float[types.Array, 'R'], mask: Bool[types.Array, 'B R']
) -> Float[Array, 'B']:
  """eta_proj of each row's columns: 1 where they have the same spread."""
  w = jnp.where(mask, spread[None], 0)
  count = jnp.sum(mask, axis=1, dtype=w.dtype)
  squares = count * jnp.sum(jnp.square(w), axis=1)
  return jnp.square(jnp.sum(w, axis=1)) / jnp.where(squares > 0, squares, 1)


def correlation_efficiency(
  correlation: Float[types.Array, 'R R'], mask: Bool[types.Array, 'B R']
) -> Float[Array, 'B']:
  """eta_corr of each row's columns: 1 where none are correlated.

  A correlation that is not defined (NaN) counts as 0 between two columns, and
  as 1 of a column with itself.
  """
  size = correlation.shape[0]
  known = jnp.where(jnp.isfinite(correlation), jnp.abs(correlation), 0)
  known = jnp.where(jnp.eye(size, dtype=bool), 1, known)
  m = mask.astype(known.dtype)
  total = jnp.einsum('bi,ij,bj->b', m, known, m, precision='highest')
  return jnp.sum(m, axis=1) / jnp.maximum(total, 1)


def of_sum(rewards: types.Rewards) -> dict[str, Array]:
  """What a sum of columns makes of them; nothing where there is one column.

  Args:
    rewards: the columns as they are added, with their weights.

  Returns:
    `summed/correlation` f[R, R], and the means of `summed/eta_proj`,
    `eta_corr` and `eta_eff` over the rows with two active columns or more, of
    this batch's spreads and correlations.
  """
  if rewards.values.shape[1] < 2:
    return {}
  moments = masked.pair_moments(rewards.values, rewards.active)
  correlation = masked.correlation(rewards.values, rewards.active)
  spread = jnp.sqrt(jnp.diagonal(moments.variance))
  several = jnp.sum(rewards.active, axis=1) > 1
  proj = projection_efficiency(spread, rewards.active)
  corr = correlation_efficiency(correlation, rewards.active)
  return {
    'summed/correlation': correlation,
    'summed/eta_proj': masked.mean(proj, several),
    'summed/eta_corr': masked.mean(corr, several),
    'summed/eta_eff': masked.mean(proj * corr, several),
  }
