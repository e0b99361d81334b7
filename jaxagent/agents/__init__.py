"""Agent programs: generators that ask for text and never see a token."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import gymnasium

from jaxagent.agents import protocol, react, skill_library
from jaxagent.agents import skills as skills_lib

# From a name to a function of an environment, a task, and keyword options.
PROGRAMS: Mapping[str, Callable[..., protocol.Program]] = {
  'react': react.react,
}


@dataclasses.dataclass(frozen=True)
class Agent:
  """Makes the program of a task; `skills` is to be told of outcomes."""

  program: Callable[..., protocol.Program]
  make_env: Callable[[], gymnasium.Env]
  options: Mapping[str, Any]
  skills: skills_lib.Skills | None = None

  def __call__(self, task: protocol.Task) -> protocol.Program:
    env = self.make_env()
    return self.program(env, task, skills=self.skills, **self.options)


def from_config(
  config: Mapping[str, Any], make_env: Callable[[], gymnasium.Env]
) -> Agent:
  """Builds an agent from a config section.

  Args:
    config: 'name' of a program in `PROGRAMS`; its keyword options; 'skills', a
      section with the options of `skills.Skills` and 'bank', the path of a JSON
      file (None or absent: the embedded bank).
    make_env: Gives an environment that no other running program uses.

  Raises:
    ValueError: if the program or an option is unknown.
  """
  options = {name: value for name, value in config.items()}
  name = options.pop('name', 'react')
  if name not in PROGRAMS:
    raise ValueError(f'Agent {name!r}; known are {sorted(PROGRAMS)}.')
  section = dict(options.pop('skills', None) or {'mode': 'none'})
  path = section.pop('bank', None)
  bank = skill_library.load(path) if path else skill_library.default()
  return Agent(
    program=PROGRAMS[name],
    make_env=make_env,
    options=options,
    skills=skills_lib.Skills(bank, **section),
  )
