"""Rewards to advantages, as parts that compose; see `base` and `credit`."""

from collections.abc import Callable
from typing import Any

from jaxagent import registry, types
from jaxagent.rewards import credit, recipes

RECIPES: dict[str, Callable[..., types.RewardTransform]] = {
  'combine': recipes.combine,
  'group_normalize': recipes.group_normalize,
  'leave_one_out': recipes.leave_one_out,
  'gdpo': recipes.gdpo,
  'quantile': recipes.quantile,
  'whitening': recipes.whitening,
  'rdpo': recipes.rdpo,
}

ADVANTAGES: dict[str, Callable[..., credit.Estimator]] = {
  'episode': credit.episode_advantages,
  'gigpo': credit.gigpo,
}


def from_config(config: Any) -> types.RewardTransform:
  """Builds the reward transform that a config names.

  Args:
    config: a mapping (a dict or a ConfigDict) with `name`, a key of `RECIPES`,
      and any keyword argument of that recipe.

  Returns:
    The transform, from any number of reward columns to one.

  Raises:
    ValueError: for an unknown name or argument.
  """
  return registry.build('reward transform', RECIPES, config)


def advantages_from_config(config: Any) -> credit.Estimator:
  """Builds the advantage estimator that a config names, from `ADVANTAGES`."""
  return registry.build('advantage estimator', ADVANTAGES, config)
