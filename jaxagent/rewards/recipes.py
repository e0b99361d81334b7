"""Whole reward transforms: `[B, R]` reward columns to one advantage a row."""

from jaxagent import types
from jaxagent.rewards import base, group

Weights = tuple[float | int, ...] | None


def combine(*, weights: Weights = None) -> types.RewardTransform:
  """The weighted sum of the columns, with no baseline."""
  return base.combine(weights)


def group_normalize(
  *,
  weights: Weights = None,
  over: str = 'trajectories',
  ddof: int = 1,
  eps: float = 1e-6,
) -> types.RewardTransform:
  """The weighted sum of the columns as a z-score in its group: GRPO."""
  return base.chain(
    base.combine(weights),
    group.group_normalize(over=over, ddof=ddof, eps=eps),
  )


def leave_one_out(
  *, weights: Weights = None, over: str = 'trajectories'
) -> types.RewardTransform:
  """The weighted sum of the columns against the others in its group: RLOO."""
  return base.chain(base.combine(weights), group.leave_one_out(over=over))
