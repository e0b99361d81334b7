"""Sums of two small numbers: the shortest task that a language model can miss.

One turn; the reply's last integer is the answer. It is there to see real
weights learn within minutes, not to measure arithmetic.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any

import numpy as np

from jaxagent import registry
from jaxagent.envs import questions

_INTEGER = re.compile(r'-?\d+')


@dataclasses.dataclass(frozen=True)
class Sum:
  """One question: a + b."""

  id: str
  a: int
  b: int
  subject: str = 'sum'

  @property
  def question(self) -> str:
    return f'What is {self.a} + {self.b}?'

  @property
  def answer(self) -> str:
    return str(self.a + self.b)


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


def grade(asked_sum: Sum, asked: str, reply: str) -> questions.Grade:
  """1 where the reply's last integer is the sum, else 0."""
  del asked
  found = [int(number[:9]) for number in _INTEGER.findall(reply)]
  return questions.Grade(float(found[-1:] == [asked_sum.a + asked_sum.b]))


def make(sums: Sums) -> questions.QuestionEnv:
  """Asks the sums, graded by `grade`."""
  return questions.QuestionEnv(sums, grade=grade, instruction='')


def from_config(
  config: Mapping[str, Any],
) -> tuple[Sums, Callable[[], questions.QuestionEnv]]:
  """Opens sums; options: `split`, `largest`, `seed`.

  Raises:
    ValueError: if an option is unknown.
  """
  options = {k: v for k, v in config.items() if k != 'name'}
  for name in options:
    registry.one_of('option of sums', name, ('split', 'largest', 'seed'))
  sums = Sums(**options)
  return sums, functools.partial(make, sums)
