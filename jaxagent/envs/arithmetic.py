"""Sums of two small numbers: the shortest task that a language model can miss.

One turn; the reply's last integer is the answer. It is there to see real
weights learn within minutes, not to measure arithmetic.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any

import gymnasium
import numpy as np

from jaxagent import registry
from jaxagent.envs import base

_INTEGER = re.compile(r'-?\d+')


@dataclasses.dataclass(frozen=True)
class Sum:
  """One question: a + b."""

  id: str
  a: int
  b: int


@dataclasses.dataclass(frozen=True)
class Sums(Sequence[Sum]):
  """All sums of numbers from 1 to `largest`, shuffled and split.

  Every fourth sum is held out: the splits 'train' and 'test' share none.

  Raises:
    ValueError: another split.
  """

  split: str = 'train'
  largest: int = 9
  seed: int = 0

  def __post_init__(self):
    if self.split not in ('train', 'test'):
      raise ValueError(f"Split {self.split!r}; sums have 'train' and 'test'.")

  def _pairs(self) -> np.ndarray:
    count = self.largest**2
    order = np.random.default_rng(self.seed).permutation(count)
    held_out = np.arange(count) % 4 == 3
    return order[held_out == (self.split == 'test')]

  @property
  def names(self) -> list[str]:
    return [f'{self.split}/{index}' for index in range(len(self))]

  def __len__(self) -> int:
    return len(self._pairs())

  def __getitem__(self, index: int) -> Sum:
    a, b = divmod(int(self._pairs()[index]), self.largest)
    return Sum(f'{self.split}/{index}', a + 1, b + 1)


class ArithmeticEnv(gymnasium.Env[str, str]):
  """Asks for one sum; `options={'game': index}` chooses which.

  Reward 1 where the last integer of the answer is the sum, else 0; the episode
  ends after one step.
  """

  metadata: dict[str, Any] = {'render_modes': []}

  def __init__(self, sums: Sequence[Sum] | None = None):
    self._sums = Sums() if sums is None else sums
    self._sum = self._sums[0]
    self.observation_space = base.text_space(256)
    self.action_space = base.text_space(4096)

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    game = (options or {}).get('game')
    if game is None:
      game = self.np_random.integers(len(self._sums))
    self._sum = self._sums[int(game)]
    question = f'What is {self._sum.a} + {self._sum.b}?'
    return question, {
      'task': question,
      'task_type': 'sum',
      'game': self._sum.id,
      'answer': str(self._sum.a + self._sum.b),
    }

  def step(self, action: str):
    found = _INTEGER.findall(action)
    right = bool(found) and int(found[-1]) == self._sum.a + self._sum.b
    return 'Right.' if right else 'Wrong.', float(right), True, False, {}


def from_config(
  config: Mapping[str, Any],
) -> tuple[Sums, Callable[[], ArithmeticEnv]]:
  """Opens sums; options: `split`, `largest`, `seed`.

  Raises:
    ValueError: if an option is unknown.
  """
  options = {k: v for k, v in config.items() if k != 'name'}
  for name in options:
    registry.one_of('option of sums', name, ('split', 'largest', 'seed'))
  sums = Sums(**options)
  return sums, functools.partial(ArithmeticEnv, sums)
