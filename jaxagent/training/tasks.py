"""Which games are played at a step: a function of the seed and the step."""

from collections.abc import Sequence
import functools

import numpy as np

from jaxagent.agents import protocol


def training_tasks(
  games: Sequence,
  *,
  seed: int,
  step: int,
  num_tasks: int,
  group_size: int,
  process: tuple[int, int] = (0, 1),
) -> list[protocol.Task]:
  """`num_tasks` games, each played `group_size` times.

  Games are dealt without replacement: a pass over all of them in a shuffled
  order, then another pass in another order.

  Args:
    games: of the training split, indexable by position.
    seed: of the run.
    step: of the run.
    num_tasks: over all processes.
    group_size: G.
    process: `(index, count)`; each process gets its own whole groups.

  Raises:
    ValueError: the tasks do not divide among the processes.
  """
  index, count = process
  if num_tasks % count:
    raise ValueError(
      f'batch.tasks={num_tasks} does not divide among {count} processes.'
    )
  tasks = []
  for group in range(num_tasks):
    if group % count != index:
      continue
    deal = step * num_tasks + group
    epoch, position = divmod(deal, len(games))
    game = int(_order(len(games), seed, epoch)[position])
    for k in range(group_size):
      tasks.append(
        protocol.Task(
          episode=group * group_size + k,
          group=group,
          seed=_fold(seed, step, group),
          game=game,
        )
      )
  return tasks


@functools.lru_cache(maxsize=2)
def _order(count, seed, epoch):
  """In which games are dealt; a shuffle of many takes milliseconds."""
  return np.random.default_rng((seed, epoch)).permutation(count)


def evaluation_tasks(
  num_games: int, *, num_tasks: int, repeats: int = 1, seed: int = 0
) -> list[protocol.Task]:
  """The first `num_tasks` games of a held-out split, always the same ones."""
  if num_tasks > num_games:
    raise ValueError(
      f'{num_tasks} evaluation tasks were asked for, but the split has'
      f' {num_games} games; lower eval.tasks.'
    )
  return [
    protocol.Task(
      episode=game * repeats + k,
      group=game,
      seed=_fold(seed, game, k),
      game=game,
      training=False,
    )
    for game in range(num_tasks)
    for k in range(repeats)
  ]


def _fold(*numbers: int) -> int:
  return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)
