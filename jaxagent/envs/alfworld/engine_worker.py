"""Plays games in the TextWorld engine: requests on stdin, answers on stdout.

Run by `engine.Engine` with an interpreter that has alfworld and textworld, and
perhaps not this project, of which nothing is imported. A request is a line of
JSON, {"load": path} or {"step": command}; so is an answer.
"""

import json
import os
import sys


def _open(path):
  """An engine that has the game loaded and speaks of 'drawer 2'."""
  from alfworld.agents.utils import misc
  import textworld
  from textworld.envs.pddl import pddl

  engine = pddl.PddlEnv(
    textworld.EnvInfos(won=True, admissible_commands=True, facts=False)
  )
  engine.load(path)
  names = misc.Demangler(game_infos=engine._entity_infos, shuffle=False)
  for info in engine._entity_infos.values():
    info.name = names.demangle_alfred_name(info.id)
  return engine


def _answer(state):
  return {
    'observation': state.feedback,
    'admissible': list(state['admissible_commands']),
    'won': bool(state['won']),
  }


def main():
  """Answers requests until stdin ends."""
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # whatever the engine prints must not mix with answers
  engine = None
  for line in sys.stdin:
    request = json.loads(line)
    try:
      if 'load' in request:
        engine = _open(request['load'])
        answer = _answer(engine.reset())
      else:
        answer = _answer(engine.step(request['step'])[0])
    except ImportError as error:
      answer = {'missing': str(error)}
    except Exception as error:  # the parent reports it and decides
      answer = {'error': f'{type(error).__name__}: {error}'}
    answers.write(json.dumps(answer) + '\n')
    answers.flush()


if __name__ == '__main__':
  main()
