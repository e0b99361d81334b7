"""Short questions whose rewards differ in kind: a mix of tasks for one policy.

  task         rewards of it (all verified by rules)
  sum          correct (0 or 1), length
  instruction  constraints (the share that is met), style
  both         correct, length, style
`length` is 1 up to a number of words and falls beyond it. `style` is a noisy
judge that largely repeats another reward, `length` or `constraints`: how much
is set by `rho`. What a task does not have is not observed. After RDPO's sets
of rewards (arXiv 2605.13641), at the size of a toy; one turn.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
from typing import Any
import zlib

import numpy as np

from jaxagent import registry
from jaxagent.envs import questions

KINDS = ('sum', 'instruction', 'both')
REWARDS = ('correct', 'length', 'constraints', 'style')
# Each is one token of the household tokenizer behind a space.
WORDS = (
  'apple', 'bread', 'egg', 'potato', 'tomato', 'lettuce', 'cup', 'mug', 'plate',
  'bowl', 'pan', 'fork', 'spoon', 'knife', 'kettle', 'book', 'pen', 'pencil',
  'laptop', 'watch', 'phone', 'pillow', 'towel', 'cloth', 'candle', 'vase',
  'box', 'sofa', 'desk', 'bed', 'shelf', 'drawer', 'window', 'mirror', 'glass',
  'basket',
)  # fmt: skip
_FILLERS = ('so', 'then', 'the', 'answer', 'is', 'think', 'this', 'right')

# name -> (how it is asked for, whether the words of a reply meet it)
_CHECKS: Mapping[str, tuple[str, Callable[[Sequence[str], Any], bool]]] = {
  'start': ('start with {}', lambda words, w: list(words[:1]) == [w]),
  'use': ('use {}', lambda words, w: w in words),
  'end': ('end with {}', lambda words, w: list(words[-1:]) == [w]),
  'count': ('{} words', lambda words, n: len(words) == n),
  'avoid': ('no letter {}', lambda words, z: z not in ''.join(words)),
}


@dataclasses.dataclass(frozen=True)
class Game:
  """One question.

  Attributes:
    id: split and position.
    kind: one of `KINDS`.
    question: what is asked.
    answer: a reply with every reward but style at its best.
    checks: (name, argument) of each constraint; () without any.
  """

  id: str
  kind: str
  question: str
  answer: str
  checks: tuple[tuple[str, str | int], ...] = ()

  @property
  def subject(self) -> str:
    """Its kind, as `questions.QuestionEnv` calls it."""
    return self.kind


@dataclasses.dataclass(frozen=True)
class Games(Sequence[Game]):
  """Questions of each kind in turn.

  Sums are of numbers from 1 to `largest`; every fourth is held out of 'train'.
  Instructions are drawn anew for every position, from a seed of the split.

  Attributes:
    split: 'train' or 'test'.
    size: number of questions; sums repeat where there are more of them.
    largest: of the numbers to add.
    kinds: which tasks there are, in turn.
    seed: of what is drawn.

  Raises:
    ValueError: for another split or kind.
  """

  split: str = 'train'
  size: int = 240
  largest: int = 9
  kinds: tuple[str, ...] = KINDS
  seed: int = 0

  def __post_init__(self):
    registry.one_of('split', self.split, ('train', 'test'))
    for kind in self.kinds:
      registry.one_of('kind of task', kind, KINDS)

  @property
  def names(self) -> list[str]:
    return [f'{self.split}/{index}' for index in range(len(self))]

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int) -> Game:
    if not 0 <= index < self.size:
      raise IndexError(index)
    turn, at = divmod(index, len(self.kinds))
    kind, name = self.kinds[at], f'{self.split}/{index}'
    if kind == 'instruction':
      return self._instruction(name, index)
    a, b = self._sums[turn % len(self._sums)]
    asked = f'{a} + {b}?' if kind == 'sum' else f'{a} + {b}? with style'
    return Game(name, kind, asked, str(a + b))

  @functools.cached_property
  def _sums(self) -> list[tuple[int, int]]:
    count = self.largest**2
    order = np.random.default_rng(self.seed).permutation(count)
    held_out = np.arange(count) % 4 == 3
    chosen = order[held_out == (self.split == 'test')]
    pairs = (divmod(int(n), self.largest) for n in chosen)
    return [(a + 1, b + 1) for a, b in pairs]

  def _instruction(self, name: str, index: int) -> Game:
    """Three constraints that the answer was drawn to meet."""
    rng = self._random(0, index)
    words = [str(w) for w in rng.choice(WORDS, rng.integers(3, 6), False)]
    free = sorted(set('abcdeghiklmnoprstuw') - set(''.join(words)))
    values = {
      'start': words[0],
      'use': words[1],
      'end': words[-1],
      'count': len(words),
      'avoid': str(rng.choice(free)),
    }
    chosen = sorted(int(k) for k in rng.choice(len(values), 3, False))
    checks = tuple(list(values.items())[k] for k in chosen)
    asked = ', '.join(_CHECKS[n][0].format(value) for n, value in checks)
    return Game(name, 'instruction', asked, ' '.join(words), checks)

  def demonstrate(self, index: int, seed: int) -> tuple[str]:
    """A reply of a careless writer, to be imitated by a warm start.

    More than half of its sums are right, behind up to six words that say nothing; of the
    words that an instruction asks for it has about two thirds.
    """
    rng, game = self._random(1, index, seed), self[index]
    if game.kind == 'instruction':
      words = [
        w if rng.random() < 0.7 else str(rng.choice(WORDS))
        for w in game.answer.split()
      ]
      words += [str(w) for w in rng.choice(WORDS, rng.integers(0, 3))]
    else:
      total = int(game.answer)
      if rng.random() < 0.5:
        total = int(rng.integers(2, 2 * self.largest + 1))
      words = [str(w) for w in rng.choice(_FILLERS, rng.integers(0, 7))]
      words.append(str(total))
    return (' ' + ' '.join(words),)

  def _random(self, *numbers: int) -> np.random.Generator:
    return np.random.default_rng((self.seed, self.split == 'test', *numbers))


def words_of(reply: str) -> list[str]:
  """The words of a reply, in lower case and without punctuation around."""
  stripped = (w.strip('.,:;!?"\'()') for w in reply.lower().split())
  return [word for word in stripped if word]


def length_score(
  length: int, target: float | int, *, steepness: float | int = 1.0
) -> float:
  """1 up to the target, then `1 - steepness (length / target - 1)^2`, to 0."""
  excess = max(0.0, length / target - 1)
  return min(1.0, max(0.0, 1 - steepness * excess**2))


def judged(partner: float, reply: str, *, rho: float | int) -> float:
  """A style score in [0, 1] that follows another reward.

  A mix of the partner (of its complement, where rho is negative) and a number
  in [0, 1] that the reply alone determines. Where the partner spreads as wide
  as that number, which is uniform, their correlation is rho.

  Args:
    partner: the other reward, in [0, 1].
    reply: any text.
    rho: in [-1, 1].
  """
  noise = zlib.crc32(reply.encode()) / 2**32
  share = abs(rho) / (abs(rho) + math.sqrt(1 - rho**2))
  partner = partner if rho >= 0 else 1 - partner
  return share * partner + (1 - share) * noise


def grade(
  game: Game, reply: str, *, target: float | int = 3.0, rho: float | int = 0.8
) -> dict[str, float]:
  """The rewards that the task has, each in [0, 1]; see the module."""
  words, found = words_of(reply), {}
  if game.kind == 'instruction':
    met = [_CHECKS[name][1](words, value) for name, value in game.checks]
    found['constraints'] = sum(met) / len(met)
  else:
    numbers = [word for word in words if word.isascii() and word.isdigit()]
    found['correct'] = float(numbers[-1:] == [game.answer])
    found['length'] = length_score(len(words), target)
  if game.kind != 'sum':
    partner = found.get('constraints', found.get('length'))
    found['style'] = judged(partner, reply, rho=rho)
  return found


class MixedEnv(questions.QuestionEnv):
  """Asks one question; `options={'game': index}` chooses which.

  The reward is 1 where the sum is right or every constraint met, else 0; the
  components are `info['rewards']`. The episode ends after one step.

  Args:
    games: what to ask; the training split by default.
    target: words up to which a reply is short.
    rho: correlation of style with what it follows.
    scales: factors of rewards by their name, such as {'length': 10}; 1 where
      none is given.

  Raises:
    ValueError: for a scale of no reward, or a rho beyond 1.
  """

  def __init__(
    self,
    games: Sequence[Game] | None = None,
    *,
    target: float | int = 3.0,
    rho: float | int = 0.8,
    scales: Mapping[str, float | int] | None = None,
  ):
    if not -1 <= rho <= 1:
      raise ValueError(f'Got rho={rho}; a correlation is in [-1, 1].')
    self._target, self._rho, self._scales = target, rho, dict(scales or {})
    for name in self._scales:
      registry.one_of('reward to scale', name, REWARDS)
    games = Games() if games is None else games
    super().__init__(games, grade=self._grade_scaled, instruction='')

  def _grade_scaled(self, game, asked, reply):
    del asked
    found = grade(game, reply, target=self._target, rho=self._rho)
    won = found.get('correct', found.get('constraints')) == 1
    rewards = {k: v * self._scales.get(k, 1.0) for k, v in found.items()}
    return questions.Grade(float(won), rewards=rewards)


_OF_GAMES = tuple(field.name for field in dataclasses.fields(Games))
_OF_ENV = ('target', 'rho', 'scales')


def from_config(
  config: Mapping[str, Any],
) -> tuple[Games, Callable[[], MixedEnv]]:
  """Opens questions; options are those of `Games` and `MixedEnv`.

  Raises:
    ValueError: if an option is unknown.
  """
  options = {k: v for k, v in config.items() if k != 'name'}
  for name in options:
    registry.one_of('option of mixed', name, _OF_GAMES + _OF_ENV)
  games = Games(**{k: v for k, v in options.items() if k in _OF_GAMES})
  rest = {k: v for k, v in options.items() if k in _OF_ENV}
  rest['scales'] = dict(rest.get('scales') or {})
  return games, functools.partial(MixedEnv, games, **rest)
