"""Losses as per-token terms that compose; see `base` and `recipes`."""

from collections.abc import Callable
import difflib
import inspect
from typing import Any

from jaxagent import types
from jaxagent.losses import recipes

RECIPES: dict[str, Callable[..., types.LossTerm]] = {
  'grpo': recipes.grpo,
  'gigpo': recipes.grpo,  # the advantage differs
  'skill_grpo': recipes.grpo,  # the prompt differs
  'sft': recipes.sft,
  'sdar': recipes.sdar,
  'opsd_paper': recipes.opsd_paper,
  'grpo_opsd_paper': recipes.grpo_opsd_paper,
  'opsd_code': recipes.opsd_code,
  'grpo_opsd_code': recipes.grpo_opsd_code,
  'opsd_pg': recipes.opsd_pg,
  'grpo_opsd_pg': recipes.grpo_opsd_pg,
  'opsd_full': recipes.opsd_full,
  'skill_sd': recipes.skill_sd,
  'rlsd': recipes.rlsd,
}


def from_config(config: Any) -> types.LossTerm:
  """Builds the loss that a config names.

  Args:
    config: a mapping (a dict or a ConfigDict) with `name`, a key of `RECIPES`,
      and any keyword argument of that recipe.

  Returns:
    The loss.

  Raises:
    ValueError: for an unknown name or argument.
  """
  arguments = dict(config)
  name = arguments.pop('name', None)
  _check('loss', name, RECIPES)
  accepted = _parameters(RECIPES[name])
  for argument in arguments:
    _check(f'argument of loss {name!r}', argument, accepted)
  return RECIPES[name](**arguments)


def _parameters(recipe):
  parameters = inspect.signature(recipe).parameters.values()
  names = [p.name for p in parameters if p.kind != p.VAR_KEYWORD]
  if len(names) < len(parameters):  # **policy
    names += inspect.signature(recipes.grpo).parameters
  return names


def _check(what, name, known):
  if name not in known:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f'Did you mean {close[0]!r}? ' if close else ''
    raise ValueError(
      f'Got {name!r}, which is no {what}. {hint}Known: {sorted(known)}.'
    )
