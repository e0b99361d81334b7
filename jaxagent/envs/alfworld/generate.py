"""New household games without end: the data of the project when there is none.

Game `i` of a split is a function of `(seed, split, homes, i)` alone. Every game
can be won, and carries a plan that wins it. The regularity worth learning is in
`homes.py`: a thing lies where its kind is kept with `home_probability`, anywhere
else otherwise. Searching at random often outlasts a short turn limit; knowing
the homes does not.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import zlib

import numpy as np

from jaxagent.envs.alfworld import game as game_lib
from jaxagent.envs.alfworld import homes as homes_lib

SPLITS = ('train', 'seen', 'unseen')

# {thing} and {place} are kinds. The readers in `expert.py` know these words.
PHRASES: Mapping[str, tuple[str, ...]] = {
  'pick_and_place_simple': (
    'put a {thing} in {place}',
    'move some {thing} to {place}',
  ),
  'look_at_obj_in_light': (
    'look at {thing} under the desklamp',
    'examine the {thing} with the desklamp',
  ),
  'pick_clean_then_place_in_recep': (
    'put a clean {thing} in {place}',
    'wash some {thing} and put it in {place}',
  ),
  'pick_heat_then_place_in_recep': (
    'put a hot {thing} in {place}',
    'warm some {thing} and put it in {place}',
  ),
  'pick_cool_then_place_in_recep': (
    'put a cold {thing} in {place}',
    'chill some {thing} and put it in {place}',
  ),
  'pick_two_obj_and_place': (
    'put two {thing} in {place}',
    'find two {thing} and put them in {place}',
  ),
}
# What a task type asks of the room and of the thing.
_APPLIANCE = {
  'pick_clean_then_place_in_recep': ('clean', 'sinkbasin'),
  'pick_heat_then_place_in_recep': ('heat', 'microwave'),
  'pick_cool_then_place_in_recep': ('cool', 'fridge'),
}
_ABLE = {
  'clean': homes_lib.CLEANABLE,
  'heat': homes_lib.HEATABLE,
  'cool': homes_lib.COOLABLE,
}
_FLAG = {'clean': 'clean', 'heat': 'hot', 'cool': 'cool'}


@dataclasses.dataclass(frozen=True)
class Games(Sequence[game_lib.Game]):
  """A lazy sequence of generated games.

  Args:
    split: 'train'; 'seen', new games in the rooms of `train`; or 'unseen', other
      rooms with the same homes.
    size: How many games.
    seed: Another seed gives other games.
    homes: 'true' for the homes of `homes.ROOMS`; 'random' draws a new table of
      homes for each game, so that what is learned from such games is to read a
      table and not a table. Either way the table is in `Game.homes`.
    home_probability: That a thing lies in its home.
    things: Least and greatest number of things beside those of the goal.
    receptacles: Thins out each room to this many where it has more; None keeps
      all of the about ten. Fewer are easier.
    task_types: The task types to draw from, uniformly.
    rooms: The names of the rooms to draw from, uniformly.

  Raises:
    ValueError: if a split, task type or room is unknown, or none of the rooms
      has what the task types need.
  """

  split: str = 'train'
  size: int = 10_000
  seed: int = 0
  homes: str = 'true'
  home_probability: float = 0.9
  things: tuple[int, int] = (3, 5)
  receptacles: int | None = None
  task_types: Sequence[str] = game_lib.TASK_TYPES
  rooms: Sequence[str] = tuple(homes_lib.ROOMS)

  def __post_init__(self):
    _require('split', [self.split], SPLITS)
    _require('homes', [self.homes], ('true', 'random'))
    _require('task_types', self.task_types, game_lib.TASK_TYPES)
    _require('rooms', self.rooms, tuple(homes_lib.ROOMS))
    for task_type in self.task_types:
      if not self._rooms_for(task_type):
        raise ValueError(
          f'None of the rooms {list(self.rooms)} has what {task_type!r} needs.'
          ' Add a room or leave the task type out.'
        )

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int) -> game_lib.Game:
    if not -self.size <= index < self.size:
      raise IndexError(
        f'Game {index} of {self.size}. A larger `size` makes more games.'
      )
    index %= self.size
    words = f'{self.split} {self.homes}'.encode()
    rng = np.random.default_rng([self.seed, zlib.crc32(words), index])
    return self._generate(rng, self.name(index))

  def name(self, index: int) -> str:
    """The id of a game, without making the game."""
    return f'{self.split}-{self.homes}-{self.seed}/{index:05d}'

  @functools.cached_property
  def names(self) -> tuple[str, ...]:
    """The ids of all games, in order."""
    return tuple(map(self.name, range(self.size)))

  def _rooms_for(self, task_type: str) -> list[str]:
    return [name for name in self.rooms if _fits(name, task_type)]

  def _generate(self, rng: np.random.Generator, name: str) -> game_lib.Game:
    task_type = _choose(rng, self.task_types)
    room = homes_lib.ROOMS[_choose(rng, self._rooms_for(task_type))]
    layout = _choose(rng, room.unseen if self.split == 'unseen' else room.seen)
    table = dict(room.homes)
    if self.homes == 'random':
      table = {thing: _choose(rng, _suitable(layout, thing)) for thing in table}
    target = _choose(rng, _targets(table, task_type))
    goal = _goal(rng, task_type, target, layout, table[target])
    _, appliance = _APPLIANCE.get(task_type, (None, None))
    furniture = _thin(
      rng,
      _furniture(rng, layout),
      self.receptacles,
      {table[target], goal.receptacle, appliance, table.get(goal.lamp)},
    )
    things = _place(
      rng,
      furniture,
      _cast(rng, goal, table, self.things),
      table,
      self.home_probability,
      goal,
    )
    phrase = _choose(rng, PHRASES[task_type])
    return game_lib.Game(
      id=name,
      task=phrase.format(thing=target, place=goal.receptacle),
      task_type=task_type,
      receptacles=furniture,
      things=things,
      can_contain={
        kind: frozenset(
          thing for thing in table if homes_lib.holds(kind, thing)
        )
        for kind in layout
      },
      goal=goal,
      walkthrough=tuple(_walkthrough(furniture, things, goal, task_type)),
      homes=table,
    )


def _require(what: str, got: Sequence[str], known: Sequence[str]):
  unknown = [name for name in got if name not in known]
  if unknown or not got:
    raise ValueError(
      f'{what} = {list(got)}; the generator knows {", ".join(known)}.'
    )


def _choose(rng: np.random.Generator, items: Sequence):
  return items[int(rng.integers(len(items)))]


def _fits(room: str, task_type: str) -> bool:
  """Whether the room has what the task type needs, in every layout."""
  homes = homes_lib.ROOMS[room].homes
  layouts = homes_lib.ROOMS[room].seen + homes_lib.ROOMS[room].unseen
  _, appliance = _APPLIANCE.get(task_type, (None, None))
  if task_type == 'look_at_obj_in_light' and homes_lib.LAMP not in homes:
    return False
  if appliance and not all(appliance in layout for layout in layouts):
    return False
  return bool(_targets(homes, task_type))


def _targets(table: Mapping[str, str], task_type: str) -> list[str]:
  """The kinds of things that a goal of this type can be about."""
  verb, _ = _APPLIANCE.get(task_type, (None, None))
  able = _ABLE.get(verb, frozenset(table))
  return [kind for kind in table if kind != homes_lib.LAMP and kind in able]


def _suitable(layout: Mapping[str, int], thing: str) -> list[str]:
  return [kind for kind in layout if homes_lib.holds(kind, thing)]


def _goal(
  rng: np.random.Generator,
  task_type: str,
  target: str,
  layout: Mapping[str, int],
  home: str,
) -> game_lib.Goal:
  """What has to be true at the end; never to bring a thing to its home."""
  if task_type == 'look_at_obj_in_light':
    return game_lib.Goal(thing=target, lamp=homes_lib.LAMP)
  verb, appliance = _APPLIANCE.get(task_type, (None, None))
  places = [
    kind for kind in _suitable(layout, target) if kind not in (home, appliance)
  ]
  flags = {_FLAG[verb]: True} if verb else {}
  return game_lib.Goal(
    thing=target,
    receptacle=_choose(rng, places),
    count=2 if task_type == 'pick_two_obj_and_place' else 1,
    **flags,
  )


def _furniture(
  rng: np.random.Generator, layout: Mapping[str, int]
) -> tuple[game_lib.Receptacle, ...]:
  """The furniture of a layout, listed in an order that has to be read."""
  order = [list(layout)[i] for i in rng.permutation(len(layout))]
  kinds = [
    (kind, number) for kind in order for number in range(1, layout[kind] + 1)
  ]
  return tuple(
    game_lib.Receptacle(
      name=f'{kind} {number}',
      kind=kind,
      location=location,
      openable=kind in homes_lib.OPENABLE,
    )
    for location, (kind, number) in enumerate(kinds)
  )


def _thin(
  rng: np.random.Generator,
  furniture: tuple[game_lib.Receptacle, ...],
  most: int | None,
  kinds: set[str | None],
) -> tuple[game_lib.Receptacle, ...]:
  """Drops furniture that the game does not need, down to `most` pieces."""
  if most is None or len(furniture) <= most:
    return furniture
  spare = [r for r in furniture if r.kind not in kinds or r.name[-1] != '1']
  drop = min(len(furniture) - most, len(spare))
  gone = {spare[i].name for i in rng.permutation(len(spare))[:drop]}
  return tuple(r for r in furniture if r.name not in gone)


def _cast(
  rng: np.random.Generator,
  goal: game_lib.Goal,
  table: Mapping[str, str],
  extra: tuple[int, int],
) -> list[str]:
  """The kinds of the things in the room, with repetitions."""
  others = [kind for kind in table if kind not in (goal.thing, homes_lib.LAMP)]
  number = int(rng.integers(extra[0], extra[1] + 1))
  kinds = [_choose(rng, others) for _ in range(number)]
  return [goal.thing] * goal.count + [goal.lamp] * bool(goal.lamp) + kinds


def _place(
  rng: np.random.Generator,
  furniture: tuple[game_lib.Receptacle, ...],
  kinds: Sequence[str],
  table: Mapping[str, str],
  home_probability: float,
  goal: game_lib.Goal,
) -> tuple[game_lib.Thing, ...]:
  """Puts each thing into its home, or anywhere but where the goal wants it."""
  things = []
  for i, kind in enumerate(kinds):
    places = [
      receptacle
      for receptacle in furniture
      if homes_lib.holds(receptacle.kind, kind)
      and not (kind == goal.thing and receptacle.kind == goal.receptacle)
    ]
    home = [place for place in places if place.kind == table[kind]]
    at_home = home and rng.random() < home_probability
    things.append(
      game_lib.Thing(
        name=f'{kind} {kinds[: i + 1].count(kind)}',
        kind=kind,
        inside=(_choose(rng, home if at_home else places).name,),
        pickupable=kind != homes_lib.LAMP,
        toggleable=kind == homes_lib.LAMP,
        cleanable=kind in homes_lib.CLEANABLE,
        heatable=kind in homes_lib.HEATABLE,
        coolable=kind in homes_lib.COOLABLE,
        container=kind in homes_lib.CONTAINERS,
      )
    )
  return tuple(sorted(things, key=lambda thing: thing.name))


def _walkthrough(
  furniture: Sequence[game_lib.Receptacle],
  things: Sequence[game_lib.Thing],
  goal: game_lib.Goal,
  task_type: str,
):
  """Commands that win, by one who knows where everything is."""
  verb, appliance = _APPLIANCE.get(task_type, (None, None))
  closed = {place.name for place in furniture if place.openable}

  def go(name):
    yield f'go to {name}'
    if name in closed:
      closed.remove(name)
      yield f'open {name}'

  first = {place.kind: place.name for place in reversed(furniture)}
  targets = [thing for thing in things if thing.kind == goal.thing]
  for thing in targets[: goal.count]:
    yield from go(thing.inside[0])
    yield f'take {thing.name} from {thing.inside[0]}'
    if verb is not None:
      if first[appliance] != thing.inside[0]:
        yield f'go to {first[appliance]}'
      yield f'{verb} {thing.name} with {first[appliance]}'
    if goal.lamp is not None:
      lamp = next(thing for thing in things if thing.kind == goal.lamp)
      if lamp.inside[0] != thing.inside[0]:
        yield f'go to {lamp.inside[0]}'
      yield f'use {lamp.name}'
    else:
      yield from go(first[goal.receptacle])
      yield f'move {thing.name} to {first[goal.receptacle]}'
