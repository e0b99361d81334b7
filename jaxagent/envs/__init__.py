"""Text worlds, all of them `gymnasium.Env[str, str]`.

Importing this package registers them with gymnasium.
"""

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium

from jaxagent import registry
from jaxagent.envs import arithmetic, base, chains, mixed, questions, reasoning
from jaxagent.envs.alfworld import env as alfworld


def from_config(
  config: Mapping[str, Any],
) -> tuple[base.Source, Callable[[], gymnasium.Env]]:
  """Opens what a configuration names.

  Args:
    config: `name` of the environment and its options; each environment's
      `from_config` lists them.

  Returns:
    The source of games or tasks, and a function that makes an environment
    playing them; `reset(options={'game': index or name})` picks one.

  Raises:
    ValueError: if the name or an option is unknown.
  """
  name = registry.one_of(
    'environment', config.get('name', 'alfworld'), tuple(ENVIRONMENTS)
  )
  return ENVIRONMENTS[name](config)


ENVIRONMENTS: dict[str, Callable] = {
  'alfworld': alfworld.from_config,
  'arithmetic': arithmetic.from_config,
  'chains': chains.from_config,
  'mixed': mixed.from_config,
  'questions': questions.from_config,
  'reasoning': reasoning.from_config,
}

gymnasium.register(
  id='jaxagent/ALFWorld-v0', entry_point='jaxagent.envs.alfworld.env:make'
)
gymnasium.register(
  id='jaxagent/Questions-v0', entry_point='jaxagent.envs.questions:make'
)
gymnasium.register(
  id='jaxagent/Reasoning-v0', entry_point='jaxagent.envs.reasoning:make'
)
