"""Measures speed; every figure names the machine that it was taken on.

  python -m experiments.bench envs
  python -m experiments.bench envs --games=DIR --split=valid_seen \
    --engine-python=PYTHON --out=envs.json
  python -m experiments.bench kernels --peers=scan --lengths=1024,4096
  python -m experiments.bench sparse --lengths=1024,4096
  python -m experiments.bench transforms

`envs` plays ALFWorld games, each to the end of its walkthrough and on with
random admissible commands. With an interpreter that has the original engine
(`pip install 'jaxagent[alfworld]'`, possibly in an environment of its own) it
plays the same games and commands there too, taking turns game by game, so that
whatever else the machine does slows both.

`kernels` times the gated delta rules on one core; see `bench_kernels`.
`sparse` times block-sparse against dense attention on one; see `bench_sparse`.
`transforms` times reward transforms and distillation against the update; see
`bench_transforms`.
These keep finished rows, and their tables, in experiments/results.
"""

import argparse
from collections.abc import Callable, Sequence
import json
import os
import pathlib
import platform
import random
import time
from typing import Any

from experiments import (
  bench_kernels,
  bench_sparse,
  bench_tables,
  bench_transforms,
)
from jaxagent.envs.alfworld import data, engine, world
from jaxagent.envs.alfworld import env as env_lib
from jaxagent.envs.alfworld import game as game_lib


def add_env_arguments(parser: argparse.ArgumentParser):
  """The options of `envs`."""
  parser.add_argument(
    '--games', help='folder of the official download; default: generated games'
  )
  parser.add_argument('--split', default='train')
  parser.add_argument('--count', type=int, default=10, help='games to play')
  parser.add_argument('--steps', type=int, default=50, help='steps a game')
  parser.add_argument(
    '--repeats', type=int, default=20, help='times ours plays'
  )
  parser.add_argument('--engine-python', help='interpreter with the engine')


def envs(options: argparse.Namespace) -> dict[str, Any]:
  """Steps a second of the simulator, and of the engine where there is one."""
  if options.engine_python and not options.games:
    raise SystemExit(
      'The engine plays official games only: give --games=DIR, the folder that'
      ' has json_2.1.1.'
    )
  if options.games:
    files = data.find(options.games, split=options.split)
    chosen = random.Random(0).sample(files, min(options.count, len(files)))
    read = data.read_official
  else:
    source = env_lib.open_games(split=options.split)
    chosen, read = range(options.count), source.__getitem__
  original = None
  if options.engine_python:
    original = engine.Engine(python=options.engine_python, time_limit=600.0)
    original.open(chosen[0])  # starting the process is not part of playing
  ours, theirs = Clock(), Clock()
  for number, item in enumerate(chosen):
    commands = _commands(read(item), options.steps, seed=number)
    for _ in range(options.repeats):
      seen = _play(ours, lambda item=item: world.World(read(item)), commands)
    if original is not None:
      shown = _play(theirs, lambda item=item: original.open(item), commands)
      if seen != shown:
        raise AssertionError(f'{item}: the simulator and the engine disagree.')
  result = {'games': len(chosen), 'simulator': ours.figures()}
  if original is not None:
    original.close()
    result['engine'] = theirs.figures()
    result['ratio'] = {
      name: result['simulator'][name] / result['engine'][name]
      for name in result['engine']
      if name.endswith('per_second')
    }
  return result


class Clock:
  """Time spent on starting games and on stepping, and how many of each."""

  def __init__(self):
    self.starts = self.steps = 0
    self.start_seconds = self.step_seconds = 0.0

  def figures(self) -> dict[str, float]:
    """Steps a second with and without starting the games, and the rest."""
    return {
      'episodes': self.starts,
      'steps': self.steps,
      'steps_per_second': self.steps / (self.start_seconds + self.step_seconds),
      'steps_without_start_per_second': self.steps / self.step_seconds,
      'milliseconds_a_start': 1e3 * self.start_seconds / self.starts,
      'milliseconds_a_step': 1e3 * self.step_seconds / self.steps,
    }


def _commands(game: game_lib.Game, steps: int, *, seed: int) -> list[str]:
  """A walkthrough, then random admissible commands."""
  rng, player = random.Random(seed), world.World(game)
  commands = list(game.walkthrough or ())[:steps]
  for command in commands:
    player.step(command)
  while len(commands) < steps:
    commands.append(rng.choice(player.admissible))
    player.step(commands[-1])
  return commands


def _play(
  clock: Clock, start: Callable[[], Any], commands: Sequence[str]
) -> list[tuple[str, tuple[str, ...], bool]]:
  """Plays a game from reading its file on; returns all that was seen."""
  begin = time.perf_counter()
  player = start()
  player.reset()
  ready = time.perf_counter()
  seen = [
    (player.step(command), player.admissible, player.won)
    for command in commands
  ]
  clock.step_seconds += time.perf_counter() - ready
  clock.start_seconds += ready - begin
  clock.starts += 1
  clock.steps += len(commands)
  return seen


def machine() -> dict[str, Any]:
  """What the figures were taken on."""
  return {
    'processor': platform.processor() or platform.machine(),
    'cores': os.cpu_count(),
    'python': platform.python_version(),
    'system': platform.platform(),
  }


def _json(result: dict[str, Any]) -> str:
  return json.dumps(result, indent=2)


def _tables(result: dict[str, Any]) -> str:
  return bench_tables.tables(result['rows'])


# name -> (adds options, measures, where it writes by itself, shows the result)
COMMANDS = {
  'envs': (add_env_arguments, envs, None, _json),
  'kernels': (
    bench_kernels.add_arguments,
    bench_kernels.kernels,
    bench_kernels.RESULTS,
    _tables,
  ),
  'sparse': (
    bench_sparse.add_arguments,
    bench_sparse.sparse,
    bench_sparse.RESULTS,
    bench_sparse.table,
  ),
  'transforms': (
    bench_transforms.add_arguments,
    bench_transforms.transforms,
    bench_transforms.RESULTS,
    bench_transforms.table,
  ),
}


def main(arguments: Sequence[str] | None = None):
  """Runs one sub-command, prints its figures and writes them where asked."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest='command', required=True)
  for name, (add_arguments, function, *_) in COMMANDS.items():
    command = commands.add_parser(name, help=function.__doc__.splitlines()[0])
    add_arguments(command)
    command.add_argument('--out', type=pathlib.Path, help='JSON file to write')
  options = parser.parse_args(arguments)
  _, function, written, show = COMMANDS[options.command]
  result = {'machine': machine(), **function(options)}
  shown = show(result)
  print(shown)
  if written:
    table = (options.out or written).with_suffix('.md')
    table.write_text(f'# `bench {options.command}`\n\n{shown}\n')
  elif options.out:
    options.out.write_text(_json(result) + '\n')


if __name__ == '__main__':
  main()
