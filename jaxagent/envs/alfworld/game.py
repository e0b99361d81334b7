"""What a household text game is: a plain record, made by a loader or by hand.

The world engine (`world.py`) reads nothing but a `Game`. The PDDL loader
(`data.py`) and the generator (`generate.py`) both produce one.

Conventions:

* Names are what the player reads and types: a lower-case kind and a number,
  'drawer 2'. They are unique over receptacles and things together.
* Kinds are lower-case: 'drawer', 'sinkbasin', 'alarmclock'.
* Order is text: receptacles and things are listed in observations in the order
  in which they stand in the game, wherever they are put later. The original
  data count downwards ('drawer 3, drawer 2, drawer 1').
* Locations are small integers. Receptacles may share one; the player at a
  location reaches all receptacles there.
"""

from collections.abc import Mapping
import dataclasses

TASK_TYPES = (
  'pick_and_place_simple',
  'look_at_obj_in_light',
  'pick_clean_then_place_in_recep',
  'pick_heat_then_place_in_recep',
  'pick_cool_then_place_in_recep',
  'pick_two_obj_and_place',
)

# Kinds that mean something to the rules, as opposed to the text.
SINKS = frozenset({'sink', 'sinkbasin'})  # clean here
MICROWAVES = frozenset({'microwave'})  # heat here
FRIDGES = frozenset({'fridge'})  # cool here
KNIVES = frozenset({'knife', 'butterknife'})  # slice with one of these

NOWHERE = -1  # a location at which no receptacle stands


@dataclasses.dataclass(frozen=True)
class Receptacle:
  """Furniture: a place to go to. An openable one starts closed."""

  name: str
  kind: str
  location: int
  openable: bool = False
  opened: bool = False


@dataclasses.dataclass(frozen=True)
class Thing:
  """An object. Only a pickupable one can be taken.

  `inside` names the receptacles that it is in or on: usually one; none for what
  hangs on a wall; the original data has a few in a drawer and on the dresser
  around it. `location` is where it counts as lying, which matters for slicing;
  None is the location of its first receptacle.
  """

  name: str
  kind: str
  inside: tuple[str, ...] = ()
  location: int | None = None
  pickupable: bool = False
  cleanable: bool = False
  heatable: bool = False
  coolable: bool = False
  sliceable: bool = False
  toggleable: bool = False
  container: bool = False  # a plate, a bowl: `holds` shows when examined
  holds: tuple[str, ...] = ()
  cool: bool = False  # at the start, as are the next four
  hot: bool = False
  clean: bool = False
  sliced: bool = False
  on: bool = False


@dataclasses.dataclass(frozen=True)
class Goal:
  """When a game is won.

  With a `lamp` kind: such a lamp has been switched on and stands in or on a
  receptacle within reach, while a thing of kind `thing` is held. Otherwise:
  `count` (1 or 2) different things of kind `thing`, each in the state the flags
  ask for, are in or on one and the same receptacle of kind `receptacle`.
  """

  thing: str
  receptacle: str | None = None
  count: int = 1
  clean: bool = False
  hot: bool = False
  cool: bool = False
  sliced: bool = False
  lamp: str | None = None

  def __post_init__(self):
    if (self.receptacle is None) == (self.lamp is None):
      raise ValueError(
        'A goal is either to put things in a `receptacle` or to look at a thing'
        f' under a `lamp`; got receptacle={self.receptacle!r} and'
        f' lamp={self.lamp!r}. Give exactly one of the two.'
      )


@dataclasses.dataclass(frozen=True)
class Game:
  """One game, from its first room to its goal; hashable by its `id` alone.

  `task` is the goal sentence without its full stop, as in 'put a mug in desk'.
  `can_contain` maps a receptacle's kind to the kinds of things that may be put
  there. `start` is the player's location; `NOWHERE` is the middle of the room.
  `walkthrough` is a list of commands that wins, where one is known. `homes` is
  where each kind of thing is kept as a rule, for those who write a guide to the
  room: kind of thing to kind of receptacle, empty where nobody knows.
  """

  id: str
  task: str
  task_type: str
  receptacles: tuple[Receptacle, ...]
  things: tuple[Thing, ...]
  can_contain: Mapping[str, frozenset[str]]
  goal: Goal
  start: int = NOWHERE
  walkthrough: tuple[str, ...] | None = None
  homes: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __hash__(self) -> int:
    return hash(self.id)

  def __post_init__(self):
    if self.task_type not in TASK_TYPES:
      raise ValueError(
        f'Game {self.id!r} has the task type {self.task_type!r}; the six known'
        f' ones are {", ".join(TASK_TYPES)}.'
      )
    names = [item.name for item in self.receptacles + self.things]
    known = set(names)
    if len(known) < len(names):
      twice = sorted({name for name in names if names.count(name) > 1})
      raise ValueError(
        f'Game {self.id!r} uses these names more than once: {twice}. Number'
        ' receptacles and things of one kind differently.'
      )
    places = {receptacle.name for receptacle in self.receptacles}
    for thing in self.things:
      lost = [name for name in thing.inside if name not in places]
      lost += [name for name in thing.holds if name not in known]
      if lost:
        raise ValueError(
          f'{thing.name!r} in game {self.id!r} refers to {lost}, which the game'
          ' does not have. `inside` takes names of receptacles, `holds` names'
          ' of things.'
        )
