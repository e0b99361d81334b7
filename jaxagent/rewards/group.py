"""Advantages relative to the other attempts at the same task.

A group is the rows that agree in `(group, part)`. By default statistics run
over trajectories: the rows of one episode are averaged first, so that a long
episode weighs no more than a short one; a row is then compared with them by its
own value. `over='rows'` lets every row count.

A value that was not observed does not exist for the others and comes out as 0.
So does every value of a group of one, and of a group without spread.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jaxagent import masked, types
from jaxagent.rewards import base, diagnostics

_OVER = ('trajectories', 'rows')


def group_normalize(
  *, over: str = 'trajectories', ddof: int = 1, eps: float = 1e-6
) -> types.RewardTransform:
  """The z-score of GRPO (arXiv 2402.03300): `(R - mean) / (std + eps)`.

  Args:
    over: 'trajectories' or 'rows', what a group's statistics count.
    ddof: 1 for the sample standard deviation, 0 for the population's.
    eps: added to the standard deviation.

  Returns:
    A `RewardTransform`, column by column.

  Raises:
    ValueError: for another `over`.
  """
  _check_over(over)

  def fn(rewards):
    moments = _moments(rewards, over, ddof)
    scores = (_observed(rewards) - moments.mean) / (moments.std + eps)
    live = rewards.active & moments.varies
    return rewards.replace(values=jnp.where(live, scores, 0))

  return base.stateless(fn, diagnostics.of_groups)


def leave_one_out(*, over: str = 'trajectories') -> types.RewardTransform:
  """A row's reward minus the mean of the others in its group.

  The baseline of RLOO (arXiv 2402.14740); it does not depend on the row's own
  trajectory, so that the policy gradient stays unbiased.

  Args:
    over: 'trajectories' or 'rows', what the mean counts.

  Returns:
    A `RewardTransform`, column by column.

  Raises:
    ValueError: for another `over`.
  """
  _check_over(over)

  def fn(rewards):
    own, _ = _units(rewards, over)
    moments = _moments(rewards, over, ddof=0)
    others = (moments.total - own) / jnp.maximum(moments.count - 1, 1)
    live = rewards.active & moments.varies
    return rewards.replace(
      values=jnp.where(live, _observed(rewards) - others, 0)
    )

  return base.stateless(fn)


def group_statistics(
  rewards: types.Rewards, *, column: int = 0, passing: float = 0.5
) -> dict[str, Float[Array, '']]:
  """Which groups teach anything: shares for the metrics, by trajectories.

  Args:
    rewards: before normalisation.
    column: the reward that says success.
    passing: a group without spread passed if its reward is above this.

  Returns:
    `live` (some spread), `all_fail` and `all_pass` (none): shares of the groups
    that were observed, which add up to 1, or all 0 where there are none.
  """
  moments = _moments(rewards, 'trajectories', ddof=1)
  segment = masked.labels(rewards.group, rewards.part)
  size = segment.shape[0]

  def per_group(x):
    x = jnp.where(rewards.active[:, column], x[:, column], False)
    return jax.ops.segment_max(x.astype(jnp.int32), segment, size) > 0

  exists = per_group(rewards.active)
  live = per_group(moments.varies)
  passed = per_group(moments.mean > passing) & ~live
  shares = {
    'live': live,
    'all_fail': exists & ~live & ~passed,
    'all_pass': passed,
  }
  return {
    name: masked.mean(share.astype(jnp.float32), exists)
    for name, share in shares.items()
  }


def check_group_sizes(rewards: types.Rewards, *, size: int) -> None:
  """Checks on the host that every task was attempted `size` times.

  Args:
    rewards: concrete arrays; every row counts, observed or not.
    size: episodes per task.

  Raises:
    ValueError: naming the groups of another size.
  """
  pairs = np.unique(
    np.stack([np.asarray(rewards.group), np.asarray(rewards.episode)]), axis=1
  )
  groups, counts = np.unique(pairs[0], return_counts=True)
  wrong = {
    int(g): int(n) for g, n in zip(groups, counts, strict=True) if n != size
  }
  if wrong:
    raise ValueError(
      f'Got groups with other than {size} episodes: {wrong} (group: episodes).'
      ' Repeat every task equally often, give each repetition its own `episode`,'
      ' and keep a group on one batch.'
    )


def _check_over(over):
  if over not in _OVER:
    raise ValueError(f'Got over={over!r}; choose one of {_OVER}.')


def _observed(rewards):
  return jnp.where(rewards.active, rewards.values, 0)


def _units(rewards, over):
  """What a group counts, `[B, R]`: each row's unit, and the row's share of it."""
  weights = rewards.active.astype(rewards.values.dtype)
  if over == 'rows':
    return _observed(rewards), weights
  episode = masked.labels(rewards.group, rewards.part, rewards.episode)
  moments = masked.segment_moments(rewards.values, weights, episode)
  return moments.mean, weights / jnp.maximum(moments.count, 1)


def _moments(rewards, over, ddof):
  segment = masked.labels(rewards.group, rewards.part)
  return masked.segment_moments(*_units(rewards, over), segment, ddof=ddof)
