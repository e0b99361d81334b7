"""Success on fixed tasks, with intervals."""

import collections
from collections.abc import Callable, Sequence
import dataclasses

import jax
import numpy as np

from jaxagent import types
from jaxagent.agents import protocol
from jaxagent.rollouts import collect
from jaxagent.rollouts import host as host_lib
from jaxagent.training import metrics as metrics_lib


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Plays fixed tasks of one split and counts how many end in success.

  Attributes:
    name: of the split, and of what is different about it.
    rollout: plays tasks; its sampling may differ from training's.
    tasks: always the same.
    key: always the same.
    reward: the name of the reward that is 1 on success.
  """

  name: str
  rollout: collect.Rollout
  tasks: Sequence[protocol.Task]
  key: jax.Array
  reward: str = 'success'

  def __call__(
    self, params, on_episode: Callable | None = None
  ) -> tuple[dict, list[host_lib.Episode]]:
    """The summary (see `summarize`) and the episodes behind it."""
    episodes, _ = self.rollout(params, self.key, self.tasks, on_episode)
    return summarize(episodes, self.reward), episodes


def summarize(
  episodes: Sequence[host_lib.Episode], reward: str = 'success'
) -> dict:
  """Mean success with a 95 % Wilson interval, over all and by task type.

  Episodes in which the environment failed are left out and counted.

  Returns:
    `success`, `low`, `high`, `n`, `rewards` (the mean of each over those that
    have it), `env_errors`, mean `turns`, and `by_type` with the same first
    five for each task type. Where tasks are repeated, also `k`, the episodes
    of a task, and `pass_at_k`, the share of tasks that one of them solves; a
    task that lacks one is left out.
  """
  kept = [e for e in episodes if e.outcome.status != types.Status.ENV_ERROR]
  kinds = sorted({str(e.outcome.info.get('task_type', '')) for e in kept})
  by_type = {
    kind: _summary(
      [e for e in kept if e.outcome.info.get('task_type', '') == kind], reward
    )
    for kind in kinds
    if kind
  }
  turns = [sum(len(row.turns) for row in e.rows) for e in kept]
  return _summary(kept, reward) | {
    **_pass_at_k(kept, reward),
    'env_errors': len(episodes) - len(kept),
    'turns': float(np.mean(turns)) if turns else 0.0,
    'by_type': by_type,
  }


def _pass_at_k(episodes, reward):
  """Nothing where no task is repeated."""
  of_task = collections.defaultdict(list)
  for e in episodes:
    of_task[e.task.group].append(_won(e, reward))
  k = max(map(len, of_task.values()), default=1)
  if k == 1:
    return {}
  whole = [any(wins) for wins in of_task.values() if len(wins) == k]
  return {'k': k, 'pass_at_k': float(np.mean(whole))}


def _won(episode, reward):
  return episode.outcome.rewards.get(reward, 0.0) > 0.5


def _summary(episodes, reward):
  wins = sum(_won(e, reward) for e in episodes)
  interval = metrics_lib.proportion_interval(wins, len(episodes))
  rewards = [e.outcome.rewards for e in episodes]
  names = sorted({name for found in rewards for name in found})
  return {
    'success': interval.mean,
    'low': interval.low,
    'high': interval.high,
    'n': interval.n,
    'rewards': {
      name: float(np.mean([r[name] for r in rewards if name in r]))
      for name in names
    },
  }
