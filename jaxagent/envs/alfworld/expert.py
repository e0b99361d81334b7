"""A scripted player who reads what is on the screen, and nothing else.

It plays generated games and the plain goals of the original ones (not sliced
things). It knows how to open, take and put; where things are it reads from a
skill text in the opening, in the form 'find apple in fridge.', and otherwise finds
out by going round the room from a place drawn at random. So its demonstrations
teach how to read a skill, and no more about a house than was shown.
"""

from collections.abc import Callable, Generator, Mapping
import dataclasses
import re
from typing import Literal

import numpy as np

from jaxagent.envs.alfworld import game as game_lib
from jaxagent.envs.alfworld import world as world_lib

_PLACE = re.compile(r'\b([a-z]+) (\d+)\b')
_HINT = re.compile(r'\bfind ([a-z]+) in ([a-z]+)\b')
_GOAL = re.compile(r'(?:goal|task is to): *([a-z ]+)', re.IGNORECASE)
_FILLERS = frozenset(
  [
    'a',
    'an',
    'and',
    'at',
    'chill',
    'clean',
    'cold',
    'cool',
    'cooled',
    'cooling',
    'examine',
    'find',
    'heat',
    'heated',
    'hot',
    'in',
    'it',
    'look',
    'move',
    'on',
    'put',
    'rinse',
    'some',
    'the',
    'them',
    'to',
    'two',
    'under',
    'warm',
    'wash',
    'with',
  ]
)
# Words of a goal that ask for a verb, and where the verb is done.
_WORDS = {
  'heat': {'hot', 'heat', 'heated', 'warm'},
  'cool': {'cold', 'cool', 'cooled', 'chill'},
  'clean': {'clean', 'wash', 'rinse'},
}
_WHERE = {'heat': 'microwave', 'cool': 'fridge', 'clean': 'sinkbasin'}

Policy = Callable[[str], str]


@dataclasses.dataclass(frozen=True)
class Aim:
  """What a goal sentence says. `place` is None for looking under a lamp."""

  thing: str
  place: str | None
  lamp: str | None = None
  verb: str | None = None
  count: int = 1


def read_goal(text: str) -> Aim:
  """Reads 'Goal: …' or '… task is to: …' out of a text.

  Raises:
    ValueError: if the text has no goal, or one that is not understood.
  """
  match = _GOAL.search(text)
  words = match[1].lower().split() if match else []
  kinds = [word for word in words if word not in _FILLERS]
  if len(kinds) != 2:
    raise ValueError(
      'Found no goal about one kind of thing and one place in the text'
      f' {text!r}. The expert reads "Goal: put a hot apple in cabinet." and the'
      ' like.'
    )
  thing, other = kinds
  if other.endswith('lamp'):
    return Aim(thing=thing, place=None, lamp=other)
  verbs = [verb for verb in _WORDS if _WORDS[verb] & set(words)]
  return Aim(
    thing=thing,
    place=other,
    verb=verbs[0] if verbs else None,
    count=2 if 'two' in words else 1,
  )


def expert(
  *, seed: int, recipe: Literal['known', 'unknown'] = 'known'
) -> Policy:
  """A player: call it with each text that the game shows, opening first.

  Args:
    seed: Of the place where a search begins.
    recipe: 'unknown' for a player who has to guess, where the opening does not
      tell, what 'hot', 'cold' and 'clean' are made with.

  Returns:
    A function of the newest text to the next command. It never gives up.
  """
  rng = np.random.default_rng(seed)
  player = None

  def policy(text: str) -> str:
    nonlocal player
    if player is None:
      player = _play(text, rng, recipe == 'known')
      return next(player)
    return player.send(text)

  return policy


def demonstrate(
  game: game_lib.Game, policy: Policy, *, skill: str = '', max_turns: int = 12
) -> tuple[list[tuple[str, str]], bool]:
  """Plays one game.

  Args:
    game: What to play.
    policy: A fresh player, such as `expert(seed=…)`.
    skill: Text in front of the opening.
    max_turns: Commands at most.

  Returns:
    (what was read, command) for each turn, and whether the game was won.
  """
  world = world_lib.World(game)
  text = '\n'.join(part for part in (skill, world.reset()) if part)
  turns = []
  while len(turns) < max_turns and not world.won:
    turns.append((text, policy(text)))
    text = world.step(turns[-1][1])
  return turns, world.won


def _play(
  opening: str, rng: np.random.Generator, knows: bool
) -> Generator[str, str, None]:
  """The player's whole plan; see `expert`."""
  aim = read_goal(opening)
  house = _House(opening, rng)
  recipes = _recipes(aim, opening, house, rng, knows)
  held = yield from house.fetch(aim.thing)
  if aim.lamp is not None:
    lamp, _ = yield from house.find(aim.lamp)
    yield f'use {lamp}'
  target = None
  while aim.place is not None:
    target = target or house.first(aim.place)  # both things to the same place
    if recipes:
      verb, appliance = recipes[0]
      if house.at != appliance:
        yield from house.go(appliance, look_inside=False)
      text = yield f'{verb} {held} with {appliance}'
      if text.startswith('Nothing') and len(recipes) > 1:
        recipes = recipes[1:]
        continue
    yield from house.go(target)
    yield f'move {held} to {target}'
    # Still playing: another is wanted, or the recipe was a wrong guess.
    if aim.count > 1:
      house.done.add(held)
      held = yield from house.fetch(aim.thing)
    elif len(recipes) > 1:
      recipes = recipes[1:]
      yield f'take {held} from {target}'
    else:
      break
  while True:
    yield 'look'


def _recipes(
  aim: Aim,
  opening: str,
  house: '_House',
  rng: np.random.Generator,
  knows: bool,
) -> list[tuple[str, str]]:
  """(verb, appliance) in the order to try them; empty if nothing is asked."""
  if aim.verb is None:
    return []
  verbs = [aim.verb]
  told = f'with {_WHERE[aim.verb]}' in opening
  if not knows and not told:
    verbs = [list(_WHERE)[i] for i in rng.permutation(len(_WHERE))]
  steps = [(verb, house.first(_WHERE[verb])) for verb in verbs]
  return [(verb, place) for verb, place in steps if place is not None]


class _House:
  """What the player has learned of the house, and how to learn more."""

  def __init__(self, opening: str, rng: np.random.Generator):
    names = dict.fromkeys(' '.join(pair) for pair in _PLACE.findall(opening))
    self._hints: Mapping[str, str] = dict(_HINT.findall(opening))
    self._names = tuple(names)
    start = int(rng.integers(max(len(names), 1)))
    self._order = self._names[start:] + self._names[:start]
    self._inside: dict[str, list[str]] = {}
    self.at: str | None = None
    self.done: set[str] = set()  # things that are where they should be

  def first(self, kind: str) -> str | None:
    """The first place of a kind, preferably one already looked into."""
    places = [name for name in self._names if name.split()[0] == kind]
    known = [name for name in places if name in self._inside]
    return (known + places + [None])[0]

  def go(self, place: str, look_inside: bool = True):
    """Goes to a place, and opens it if it is closed."""
    text = yield f'go to {place}'
    self.at = place
    if f'{place} is closed' in text:
      if not look_inside:
        return
      text = yield f'open {place}'
    self._inside[place] = [
      name
      for name in (' '.join(pair) for pair in _PLACE.findall(text))
      if name not in self._names
    ]

  def find(self, kind: str):
    """Goes to a thing of a kind; returns its name and where it is."""
    while True:
      here = [self.at] if self.at in self._inside else []
      for place in here + list(self._inside):
        for name in self._inside[place]:
          if name.split()[0] == kind and name not in self.done:
            if place != self.at:
              yield from self.go(place)
            return name, place
      unseen = [name for name in self._order if name not in self._inside]
      if not unseen:  # every place was seen: look again
        self._inside.clear()
        continue
      hint = self._hints.get(kind)
      unseen.sort(key=lambda name: name.split()[0] != hint)
      yield from self.go(unseen[0])

  def fetch(self, kind: str):
    """Takes a thing of a kind; returns its name."""
    name, place = yield from self.find(kind)
    yield f'take {name} from {place}'
    self._inside[place].remove(name)
    return name
