"""The rules of the household world: commands in, observations out.

A fresh implementation of the text world of ALFWorld (arXiv:2010.03768) that
agrees with the TextWorld engine step by step: observations, admissible
commands, winning. Oddities of the original are kept, because agents meet them:
a lamp only ever turns on; a thing can be examined only while held; 'look' in
the middle of the room lists the furniture at the start of a game but not later;
heating needs no open microwave; a thing taken from one receptacle and put on
another at the same location counts as lying next to the first.
"""

from collections.abc import Callable

from jaxagent.envs.alfworld import game as game_lib
from jaxagent.envs.alfworld import text

_FLAGS = ('clean', 'hot', 'cool', 'sliced', 'on')
# verb -> (what a thing must be, where, state gained, state lost)
_TREATMENTS = (
  ('clean', 'cleanable', game_lib.SINKS, 'clean', None),
  ('heat', 'heatable', game_lib.MICROWAVES, 'hot', 'cool'),
  ('cool', 'coolable', game_lib.FRIDGES, 'cool', 'hot'),
)


class World:
  """One game being played.

  Every command that does something in a state is listed before it is asked for
  (`admissible`), so that playing is a look-up and whatever is not listed gives
  'Nothing happens.'. Spaces around a command are ignored; nothing else is.

  Attributes:
    game: The game.
    won: Whether the goal holds now. It may cease to hold if play goes on.
  """

  def __init__(self, game: game_lib.Game):
    self.game = game
    self._rank = {thing.name: i for i, thing in enumerate(game.things)}
    self._things = {thing.name: thing for thing in game.things}
    self._at: dict[int, list[game_lib.Receptacle]] = {}
    for receptacle in game.receptacles:
      self._at.setdefault(receptacle.location, []).append(receptacle)
    self._sliceable = [thing for thing in game.things if thing.sliceable]
    self._wanted = _wanted(game)
    self._targets = [
      receptacle.name
      for receptacle in game.receptacles
      if receptacle.kind == game.goal.receptacle
    ]
    self._goings: dict[int, dict[str, tuple]] = {}
    self.reset()

  def reset(self) -> str:
    """Starts over; returns the first observation."""
    game = self.game
    places = {item.name: item.location for item in game.receptacles}
    self._location = game.start
    self._held: game_lib.Thing | None = None
    self._opened = {item.name for item in game.receptacles if item.opened}
    self._contents: dict[str, set[str]] = {name: set() for name in places}
    self._lying: dict[str, set[int]] = {}
    self._states: dict[str, set[str]] = {}
    self._left: set[tuple[str, str]] = set()  # thing was taken from receptacle
    for thing in game.things:
      for name in thing.inside:
        self._contents[name].add(thing.name)
      location = thing.location
      if location is None and thing.inside:
        location = places[thing.inside[0]]
      self._lying[thing.name] = set() if location is None else {location}
      self._states[thing.name] = {
        flag for flag in _FLAGS if getattr(thing, flag)
      }
    self._refresh()
    if self._location in self._at:
      surroundings = self._look()
    else:
      surroundings = text.in_the_middle(places)
    return text.opening(surroundings, game.task)

  def step(self, command: str) -> str:
    """Does what a command says; returns what there is to see."""
    action = self._commands.get(command.strip())
    if action is None:
      return text.NOTHING_HAPPENS
    function, *arguments = action
    observation = function(self, *arguments)
    if function not in _IDLE:
      self._refresh()
    return observation

  @property
  def admissible(self) -> tuple[str, ...]:
    """The commands that do something in this state, sorted."""
    if self._sorted is None:
      self._sorted = tuple(sorted(self._commands))
    return self._sorted

  def _refresh(self):
    self._commands = self._list_commands()
    self._sorted: tuple[str, ...] | None = None
    self.won = self._is_won()

  def _is_open(self, place: game_lib.Receptacle) -> bool:
    return not place.openable or place.name in self._opened

  def _inside(self, place: game_lib.Receptacle) -> list[str]:
    return sorted(self._contents[place.name], key=self._rank.__getitem__)

  # What can be done.

  def _list_commands(self) -> dict[str, tuple]:
    commands = self._list_goings().copy()
    held = self._held
    for place in self._at.get(self._location, ()):
      name = place.name
      commands[f'examine {name}'] = (World._examine_place, place)
      if place.openable and name in self._opened:
        commands[f'close {name}'] = (World._close, place)
      elif place.openable:
        commands[f'open {name}'] = (World._open, place)
      is_open = self._is_open(place)
      for inner in self._contents[name]:
        thing = self._things[inner]
        if held is None and is_open and thing.pickupable:
          commands[f'take {inner} from {name}'] = (World._take, thing, place)
        if thing.toggleable:
          commands[f'use {inner}'] = (World._use, thing)
      if held is not None:
        self._list_uses(commands, held, place)
    if held is not None:
      commands[f'examine {held.name}'] = (World._examine_thing, held)
      if held.kind in game_lib.KNIVES:
        for thing in self._sliceable:
          if self._location in self._lying[thing.name]:
            command = f'slice {thing.name} with {held.name}'
            commands[command] = (World._slice, thing, held)
    return commands

  def _list_goings(self) -> dict[str, tuple]:
    """Commands that depend on the location alone."""
    if self._location not in self._goings:
      self._goings[self._location] = {
        'help': (World._help,),
        'inventory': (World._inventory,),
        'look': (World._look,),
      } | {
        f'go to {place.name}': (World._go, place)
        for place in self.game.receptacles
        if place.location != self._location
      }
    return self._goings[self._location]

  def _list_uses(
    self,
    commands: dict[str, tuple],
    held: game_lib.Thing,
    place: game_lib.Receptacle,
  ):
    """Adds what can be done to the held thing at a place."""
    allowed = self.game.can_contain.get(place.kind, ())
    if held.kind in allowed and self._is_open(place):
      commands[f'move {held.name} to {place.name}'] = (World._put, held, place)
    for verb, ability, kinds, gained, lost in _TREATMENTS:
      if place.kind in kinds and getattr(held, ability):
        command = f'{verb} {held.name} with {place.name}'
        commands[command] = (World._treat, held, place, verb, gained, lost)

  def _is_won(self) -> bool:
    goal = self.game.goal
    if goal.lamp is not None:
      return (
        self._held is not None
        and self._held.name in self._wanted
        and self._is_lit(goal.lamp)
        and self._is_ready(self._held.name)
      )
    for name in self._targets:
      placed = self._contents[name] & self._wanted
      if len(placed) >= goal.count and (
        sum(map(self._is_ready, placed)) >= goal.count
      ):
        return True
    return False

  def _is_lit(self, lamp: str) -> bool:
    return any(
      self._things[name].kind == lamp and 'on' in self._states[name]
      for place in self._at.get(self._location, ())
      for name in self._contents[place.name]
    )

  def _is_ready(self, name: str) -> bool:
    goal, states = self.game.goal, self._states[name]
    return all(
      state in states
      for state in ('clean', 'hot', 'cool', 'sliced')
      if getattr(goal, state)
    )

  # What it does.

  def _help(self) -> str:
    return text.HELP

  def _inventory(self) -> str:
    if self._held is None:
      return 'You are not carrying anything.'
    return f'You are carrying: {text.listing([self._held.name])}.'

  def _look(self) -> str:
    here = [place.name for place in self._at.get(self._location, ())]
    if not here:
      return text.in_the_middle([])
    floor = [
      name
      for name in self._rank
      if self._location in self._lying[name]
      for place in here
      if (name, place) in self._left
    ]
    return text.facing(here, floor)

  def _examine_place(self, place: game_lib.Receptacle) -> str:
    return text.place(
      place,
      is_open=place.name in self._opened,
      contents=self._inside(place),
    )

  def _examine_thing(self, thing: game_lib.Thing) -> str:
    return text.thing(thing, self._states[thing.name])

  def _go(self, place: game_lib.Receptacle) -> str:
    self._location = place.location
    return f'You arrive at {place.name}. {self._examine_place(place)}'

  def _open(self, place: game_lib.Receptacle) -> str:
    self._opened.add(place.name)
    return f'You open the {place.name}. {self._examine_place(place)}'

  def _close(self, place: game_lib.Receptacle) -> str:
    self._opened.discard(place.name)
    return f'You close the {place.name}.'

  def _take(self, thing: game_lib.Thing, place: game_lib.Receptacle) -> str:
    self._held = thing
    self._contents[place.name].discard(thing.name)
    self._lying[thing.name].discard(self._location)
    self._left.add((thing.name, place.name))
    return f'You pick up the {thing.name} from the {place.name}.'

  def _put(self, thing: game_lib.Thing, place: game_lib.Receptacle) -> str:
    self._held = None
    self._contents[place.name].add(thing.name)
    self._lying[thing.name].add(self._location)
    self._left.discard((thing.name, place.name))
    return f'You move the {thing.name} to the {place.name}.'

  def _treat(
    self,
    thing: game_lib.Thing,
    place: game_lib.Receptacle,
    verb: str,
    gained: str,
    lost: str | None,
  ) -> str:
    states = self._states[thing.name]
    states.discard(lost)
    states.add(gained)
    return f'You {verb} the {thing.name} using the {place.name}.'

  def _use(self, thing: game_lib.Thing) -> str:
    self._states[thing.name].add('on')
    return f'You turn on the {thing.name}.'

  def _slice(self, thing: game_lib.Thing, knife: game_lib.Thing) -> str:
    self._states[thing.name].add('sliced')
    return f'You sliced the {thing.name} with the {knife.name}.'


# After these the commands and the goal are as before.
_IDLE: frozenset[Callable] = frozenset(
  [
    World._help,
    World._inventory,
    World._look,
    World._examine_place,
    World._examine_thing,
  ]
)


def _wanted(game: game_lib.Game) -> frozenset[str]:
  """Things of the goal's kind that can come into the state it asks for."""
  abilities = [
    ability
    for _, ability, _, state, _ in _TREATMENTS
    if getattr(game.goal, state)
  ]
  return frozenset(
    thing.name
    for thing in game.things
    if thing.kind == game.goal.thing
    and all(getattr(thing, ability) for ability in abilities)
  )
