"""Whole reward transforms: `[B, R]` reward columns to one advantage a row.

`weights` are the user's, one a column, on what is summed. `caps` are pairs
(primary, auxiliary), see `base.cap_auxiliary`.
"""

from collections.abc import Callable
from typing import Any

from jaxagent import registry, types
from jaxagent.rewards import base, group
from jaxagent.rewards import quantile as quantile_lib
from jaxagent.rewards import whitening as whitening_lib

Weights = tuple[float | int, ...] | None
Options = Any  # a mapping (a dict or a ConfigDict), or None


def combine(*, weights: Weights = None) -> types.RewardTransform:
  """The weighted sum of the columns, with no baseline."""
  return base.combine(weights)


def group_normalize(
  *,
  weights: Weights = None,
  caps: base.Caps = (),
  over: str = 'trajectories',
  ddof: int = 1,
  eps: float = 1e-6,
) -> types.RewardTransform:
  """The weighted sum of the columns as a z-score in its group: GRPO."""
  return base.chain(
    *_capped(caps),
    base.combine(weights),
    group.group_normalize(over=over, ddof=ddof, eps=eps),
  )


def leave_one_out(
  *, weights: Weights = None, over: str = 'trajectories'
) -> types.RewardTransform:
  """The weighted sum of the columns against the others in its group: RLOO."""
  return base.chain(base.combine(weights), group.leave_one_out(over=over))


def gdpo(
  *,
  weights: Weights = None,
  caps: base.Caps = (),
  over: str = 'trajectories',
  eps: float = 1e-6,
) -> types.RewardTransform:
  """GDPO (arXiv 2601.05242): z-scores of each column, their sum, batch norm.

  Args:
    weights: of the z-scores.
    caps: see above.
    over: see `group.group_normalize`.
    eps: added to each standard deviation.
  """
  scores = group.group_normalize(over=over, eps=eps)
  return _mixed(caps, weights, eps, scores)


def quantile(
  *,
  weights: Weights = None,
  caps: base.Caps = (),
  quantile: Options = None,
  eps: float = 1e-6,
) -> types.RewardTransform:
  """RDPO without its whitening: magnitude-aware quantiles for z-scores.

  Args:
    weights: of the scores.
    caps: see above.
    quantile: keyword arguments of `quantile.magnitude_aware_quantile`.
    eps: added to the standard deviation of the batch.
  """
  return _mixed(caps, weights, eps, _quantile(quantile))


def whitening(
  *,
  weights: Weights = None,
  caps: base.Caps = (),
  whitening: Options = None,
  over: str = 'trajectories',
  eps: float = 1e-6,
) -> types.RewardTransform:
  """RDPO without its quantiles: GDPO with whitened z-scores.

  Args:
    weights: of the whitened scores.
    caps: see above.
    whitening: keyword arguments of `whitening.mahalanobis_whiten`.
    over: see `group.group_normalize`.
    eps: added to each standard deviation.
  """
  scores = group.group_normalize(over=over, eps=eps)
  return _mixed(caps, weights, eps, scores, _whiten(whitening))


def rdpo(
  *,
  weights: Weights = None,
  caps: base.Caps = (),
  quantile: Options = None,
  whitening: Options = None,
  eps: float = 1e-6,
) -> types.RewardTransform:
  """RDPO (arXiv 2605.13641): quantiles, whitening, sum, batch norm.

  Args:
    weights: of the whitened scores.
    caps: see above.
    quantile: keyword arguments of `quantile.magnitude_aware_quantile`.
    whitening: keyword arguments of `whitening.mahalanobis_whiten`.
    eps: added to the standard deviation of the batch.
  """
  return _mixed(caps, weights, eps, _quantile(quantile), _whiten(whitening))


def _mixed(caps, weights, eps, *scores):
  """What GDPO and its successors share: all but the scores of a column."""
  return base.chain(
    base.drop_nonfinite(),
    *_capped(caps),
    *scores,
    base.combine(weights),
    base.batch_normalize(eps=eps),
  )


def _capped(caps):
  return [base.cap_auxiliary(caps)] if caps else []


def _quantile(options):
  return _part(quantile_lib.magnitude_aware_quantile, options)


def _whiten(options):
  return _part(whitening_lib.mahalanobis_whiten, options)


def _part(factory: Callable, options: Options) -> types.RewardTransform:
  """Calls a factory with options of a config, and names those it lacks."""
  name = factory.__name__
  return registry.build(
    'part of a recipe', {name: factory}, {'name': name, **(options or {})}
  )
