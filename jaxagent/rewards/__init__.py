"""Rewards to advantages, as parts that compose; see `base` and `credit`."""

from collections.abc import Callable
import difflib
import inspect
from typing import Any

from jaxagent import types
from jaxagent.rewards import credit, recipes

RECIPES: dict[str, Callable[..., types.RewardTransform]] = {
  'combine': recipes.combine,
  'group_normalize': recipes.group_normalize,
  'leave_one_out': recipes.leave_one_out,
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
  return _build('reward transform', RECIPES, config)


def advantages_from_config(config: Any) -> credit.Estimator:
  """Builds the advantage estimator that a config names, from `ADVANTAGES`."""
  return _build('advantage estimator', ADVANTAGES, config)


def _build(kind, recipes_by_name, config):
  arguments = dict(config)
  name = arguments.pop('name', None)
  _check(kind, name, recipes_by_name)
  accepted = inspect.signature(recipes_by_name[name]).parameters
  for argument in arguments:
    _check(f'argument of {kind} {name!r}', argument, accepted)
  return recipes_by_name[name](**arguments)


def _check(what, name, known):
  if name not in known:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f'Did you mean {close[0]!r}? ' if close else ''
    raise ValueError(
      f'Got {name!r}, which is no {what}. {hint}Known: {sorted(known)}.'
    )
