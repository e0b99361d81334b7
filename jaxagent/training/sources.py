"""Where rows come from: episodes of the policy, or demonstrations.

A source is `next(params, step) -> Rows`. The training loop knows nothing else
about it, so that a warm start and reinforcement learning are one loop.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from jaxagent import types
from jaxagent.agents import protocol
from jaxagent.rollouts import assemble, collect, demonstrations
from jaxagent.rollouts import host as host_lib


@dataclasses.dataclass(frozen=True)
class Rows:
  """What one step trains on, and what to say about it."""

  trajectory: types.Trajectory
  episodes: Sequence[host_lib.Episode]
  metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Source:
  """`next(params, step)` gives rows; `state` is JSON, saved and restored."""

  next: Callable[[Any, int], Rows]
  state: Callable[[], dict] = dict
  restore: Callable[[dict], None] = lambda state: None


@dataclasses.dataclass(frozen=True)
class Layout:
  """Static shapes of a batch; few, so that few programs are compiled.

  Attributes:
    lengths: ascending choices of T.
    teacher_extra: tokens that privileged text may add to a row.
    multiple: the number of rows is padded to a multiple of this.
    reward_names: the R columns.
    teacher: whether rows carry the teacher's view.
  """

  lengths: tuple[int, ...]
  teacher_extra: int
  multiple: int
  reward_names: tuple[str, ...]
  teacher: bool

  def assemble(self, episodes) -> types.Trajectory:
    """Rows as arrays in the smallest shapes that all processes share."""
    rows = [row for episode in episodes for row in episode.rows]
    longest = max((len(row.ids) for row in rows), default=1)
    seen = max((len(assemble.teacher_ids(row)) for row in rows), default=1)
    count, longest, seen = _agree(len(rows), longest, seen)
    teacher_length = None
    if self.teacher:
      sizes = [length + self.teacher_extra for length in self.lengths]
      teacher_length = assemble.bucket(seen, sizes)
    return assemble.assemble(
      episodes,
      reward_names=self.reward_names,
      length=assemble.bucket(longest, self.lengths),
      rows=assemble.round_up(count, self.multiple),
      teacher_length=teacher_length,
    )


def from_rollouts(
  rollout: collect.Rollout,
  tasks: Callable[[int], Sequence[protocol.Task]],
  layout: Layout,
  *,
  key: jax.Array,
  state: Callable[[], dict] = dict,
  restore: Callable[[dict], None] = lambda state: None,
  learn: Callable[[Sequence[host_lib.Episode]], None] = lambda episodes: None,
) -> Source:
  """Rows that the policy itself generates.

  Args:
    rollout: plays tasks.
    tasks: the tasks of a step.
    layout: shapes.
    key: folded with the step; sampling keys come from it.
    state: of what programs keep between steps, such as a skill bank.
    restore: sets that state.
    learn: shows the finished episodes to what programs keep.
  """

  def next_rows(params, step):
    episodes, metrics = rollout(
      params, jax.random.fold_in(key, step), tasks(step)
    )
    learn(episodes)
    metrics = {f'rollout/{name}': v for name, v in metrics.items()}
    return Rows(
      layout.assemble(episodes), episodes, metrics | episode_metrics(episodes)
    )

  return Source(next_rows, state, restore)


def from_demonstrations(
  tasks: Callable[[int], Sequence[protocol.Task]],
  make_program: Callable[[protocol.Task], protocol.Program],
  make_replies: Callable[[protocol.Task], Sequence[str]],
  layout: Layout,
  *,
  tokenizer,
) -> Source:
  """Rows in which an expert wrote the replies."""

  def next_rows(params, step):
    del params
    episodes = [
      demonstrations.demonstrate(
        task,
        make_program(task),
        make_replies(task),
        tokenizer=tokenizer,
        max_length=layout.lengths[-1],
      )
      for task in tasks(step)
    ]
    return Rows(layout.assemble(episodes), episodes, episode_metrics(episodes))

  return Source(next_rows)


def episode_metrics(
  episodes: Sequence[host_lib.Episode],
) -> dict[str, float]:
  """Means of rewards and sizes over episodes, and shares of how they ended.

  The mean of a reward is over the episodes that have it, and those that have
  none at all because they were cut or failed: there it is 0.
  """
  n = max(len(episodes), 1)
  names = sorted({name for e in episodes for name in e.outcome.rewards})
  rewards = [e.outcome.rewards for e in episodes]
  metrics = {
    f'reward/{name}': float(
      np.mean([r.get(name, 0.0) for r in rewards if name in r or not r])
    )
    for name in names
  }
  for status in types.Status:
    share = sum(e.outcome.status == status for e in episodes) / n
    metrics[f'status/{status.name.lower()}'] = share
  rows = [row for e in episodes for row in e.rows]
  metrics['episode/rows'] = len(rows) / n
  metrics['episode/turns'] = sum(len(row.turns) for row in rows) / n
  metrics['episode/tokens'] = sum(len(row.ids) for row in rows) / n
  metrics['episode/actions'] = sum(sum(row.mask) for row in rows) / n
  return metrics


def _agree(*sizes: int) -> tuple[int, ...]:
  """The largest of each size over all processes."""
  if jax.process_count() == 1:
    return sizes
  gathered = multihost_utils.process_allgather(np.asarray(sizes, np.int32))
  return tuple(int(size) for size in gathered.max(0))
