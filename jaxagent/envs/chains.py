"""Chains of modular arithmetic, answered with every step written out.

  14 - 4 + 3 - 7 (mod 11)   asks for   10,2;6

the value after each operation. What stands between two values is free,
';' or ',', so that two writers who agree on the numbers may differ in a token
that never counts: the one that a policy has not seen is an exploration black
hole (arXiv 2605.06387). One turn.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any
import zlib

import numpy as np

from jaxagent import registry
from jaxagent.envs import questions

# kind -> the operations of its chains
KINDS: Mapping[str, str] = {'sum': '+-', 'product': '*'}
SPLITS = ('train', 'test')
COMMON, RARE = ',;'
_INTEGER = re.compile(r'-?\d+')


@dataclasses.dataclass(frozen=True)
class Chain:
  """One question.

  Attributes:
    id: split and position.
    subject: one of `KINDS`.
    question: what is asked.
    values: what is right after each step.
  """

  id: str
  subject: str
  question: str
  values: tuple[int, ...]

  @property
  def answer(self) -> str:
    """A reply with all values."""
    return COMMON.join(map(str, self.values))


@dataclasses.dataclass(frozen=True)
class Chains(Sequence[Chain]):
  """Chains of some kinds in turn, drawn from a seed and the position.

  A quarter of all questions is held out, by a hash of the question: the splits
  'train' and 'test' share none. 'train_sum' and the like have one kind.

  Attributes:
    split: 'train' or 'test', with or without a kind.
    size: number of questions.
    steps: operations of a chain.
    modulus: numbers are 0 to `modulus - 1`.
    rare: how often a demonstration writes ';' between two steps.
    seed: of what is drawn.

  Raises:
    ValueError: for another split or kind, or sizes that leave nothing to ask.
  """

  split: str = 'train'
  size: int = 20_000
  steps: int = 4
  modulus: int = 11
  rare: float | int = 0.0
  seed: int = 0

  def __post_init__(self):
    choices = [*SPLITS, *(f'{s}_{kind}' for s in SPLITS for kind in KINDS)]
    registry.one_of('split of chains', self.split, choices)
    if self.size < 1 or self.steps < 1 or self.modulus < 2:
      raise ValueError(
        f'Got size={self.size}, steps={self.steps}, modulus={self.modulus};'
        ' chains need size >= 1, steps >= 1 and modulus >= 2.'
      )
    if not 0 <= self.rare <= 1:
      raise ValueError(f'Got rare={self.rare}; a share is in [0, 1].')

  @property
  def kinds(self) -> tuple[str, ...]:
    """Which there are, in turn."""
    _, _, kind = self.split.partition('_')
    return (kind,) if kind else tuple(KINDS)

  @property
  def names(self) -> list[str]:
    return [f'{self.split}/{index}' for index in range(len(self))]

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int) -> Chain:
    if not 0 <= index < self.size:
      raise IndexError(index)
    kind = self.kinds[index % len(self.kinds)]
    held_out = self.split.startswith('test')
    rng = self._random(0, index)
    while True:
      question, values = self._draw(rng, KINDS[kind])
      if (zlib.crc32(question.encode()) % 4 == 3) == held_out:
        return Chain(f'{self.split}/{index}', kind, question, values)

  def _draw(self, rng, operations):
    value = int(rng.integers(1, self.modulus))
    asked, values = [str(value)], []
    for _ in range(self.steps):
      operation = operations[rng.integers(len(operations))]
      number = int(rng.integers(2, 10))
      value = _apply(value, operation, number) % self.modulus
      asked += [operation, str(number)]
      values.append(value)
    return f'{" ".join(asked)} (mod {self.modulus})', tuple(values)

  def demonstrate(self, index: int, seed: int) -> tuple[str]:
    """The right steps, with `rare` of the separators ';'."""
    rng = self._random(1, index, seed)
    values = self[index].values
    marks = [RARE if rng.random() < self.rare else COMMON for _ in values[1:]]
    text = ''.join(
      f'{v}{mark}' for v, mark in zip(values, [*marks, ''], strict=True)
    )
    return (text,)

  def _random(self, *numbers: int) -> np.random.Generator:
    kind = zlib.crc32(self.split.encode())
    return np.random.default_rng((self.seed, kind, *numbers))


def _apply(value, operation, number):
  match operation:
    case '+':
      return value + number
    case '-':
      return value - number
    case _:
      return value * number


def rare_share(reply: str) -> float | None:
  """How many of a reply's separators are ';'; None without any."""
  rare, common = reply.count(RARE), reply.count(COMMON)
  return rare / (rare + common) if rare + common else None


def grade(chain: Chain, asked: str, reply: str) -> questions.Grade:
  """1 where the reply's last integer is the last value, else 0.

  Further rewards: 'steps', the share of values that stand where they should,
  and 'rare', see `rare_share`.
  """
  del asked
  found = [int(number[:9]) for number in _INTEGER.findall(reply)]
  found_here = found + [None] * len(chain.values)
  right = [a == b for a, b in zip(chain.values, found_here, strict=False)]
  rewards = {'steps': sum(right) / len(right)}
  share = rare_share(reply)
  if share is not None:
    rewards['rare'] = share
  won = found[-1:] == [chain.values[-1]]
  return questions.Grade(float(won), rewards=rewards)


_OPTIONS = tuple(field.name for field in dataclasses.fields(Chains))


def make(chains: Chains) -> questions.QuestionEnv:
  """Asks the chains, graded by `grade`."""
  return questions.QuestionEnv(chains, grade=grade, instruction='')


def from_config(
  config: Mapping[str, Any],
) -> tuple[Chains, Callable[[], questions.QuestionEnv]]:
  """Opens chains; options are those of `Chains`.

  Raises:
    ValueError: if an option is unknown.
  """
  options = {k: v for k, v in config.items() if k != 'name'}
  for name in options:
    registry.one_of('option of chains', name, _OPTIONS)
  chains = Chains(**options)
  return chains, functools.partial(make, chains)
