"""Agent programs: generators that ask for text and never see a token."""

from collections.abc import Callable, Mapping
import dataclasses
import inspect
from typing import Any

import gymnasium

from jaxagent import registry
from jaxagent.agents import protocol, react, single_turn, skill_library
from jaxagent.agents import skills as skills_lib

# From a name to a function of an environment, a task, and keyword options.
PROGRAMS: Mapping[str, Callable[..., protocol.Program]] = {
  'react': react.react,
  'single_turn': single_turn.single_turn,
}


@dataclasses.dataclass(frozen=True)
class Agent:
  """Makes the program of a task.

  Each program has an environment of its own from `make_env` and closes it at
  the end. `skills` is to be told of training outcomes, and goes into
  checkpoints.
  """

  program: Callable[..., protocol.Program]
  make_env: Callable[[], gymnasium.Env]
  options: Mapping[str, Any]
  skills: skills_lib.Skills

  def __call__(self, task: protocol.Task) -> protocol.Program:
    env = self.make_env()
    try:
      return (
        yield from self.program(env, task, skills=self.skills, **self.options)
      )
    finally:
      env.close()


def from_config(
  config: Mapping[str, Any], make_env: Callable[[], gymnasium.Env]
) -> Agent:
  """Builds an agent from a config section.

  Args:
    config: 'name' of a program in `PROGRAMS` ('react' if absent); its keyword
      options; 'skills', a section with the options of `skills.Skills` and
      'bank', the path of a JSON file (None or absent: the embedded bank).
      Without the section there are no skills.
    make_env: Gives an environment that no other running program uses.

  Raises:
    ValueError: if the program or an option is unknown.
  """
  options = dict(config)
  name = options.pop('name', 'react')
  registry.one_of('agent', name, PROGRAMS)
  section = dict(options.pop('skills', None) or {'mode': 'none'})
  path = section.pop('bank', None)
  bank = skill_library.load(path) if path else skill_library.default()
  _check_options(f'agent {name!r}', options, PROGRAMS[name])
  _check_options('skills', section, skills_lib.Skills)
  return Agent(
    program=PROGRAMS[name],
    make_env=make_env,
    options=options,
    skills=skills_lib.Skills(bank, **section),
  )


def _check_options(what: str, options: Mapping[str, Any], function: Callable):
  known = [
    parameter.name
    for parameter in inspect.signature(function).parameters.values()
    if parameter.kind == parameter.KEYWORD_ONLY and parameter.name != 'skills'
  ]
  for option in options:
    registry.one_of(f'option of {what}', option, known)
