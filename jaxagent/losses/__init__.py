"""Losses as per-token terms that compose; see `base` and `recipes`."""

from collections.abc import Callable
from typing import Any

from jaxagent import registry, types
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
  'opd': recipes.opd,
  'exopd': recipes.exopd,
  'gkd': recipes.gkd,
  'aopd': recipes.aopd,
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
  return registry.build('loss', RECIPES, config, rest=recipes.grpo)
