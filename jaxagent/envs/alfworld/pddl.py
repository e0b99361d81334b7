"""Reads an ALFWorld problem file (PDDL) into a `Game`.

Only the problem is read. The domain, which is one and the same for all games,
is what `world.py` implements.
"""

import collections
from collections.abc import Iterator, Sequence
import re

from jaxagent.envs.alfworld import game as game_lib

_FACT = re.compile(r'\((?!distance)([a-z]\w*)\s+([^()]*)\)')
_COMMENT = re.compile(r';[^\n]*')
_SECTIONS = re.compile(r'\(:init\b(.*)\(:goal\b(.*)', re.DOTALL)

# Field of `Thing` -> predicate that sets it.
_FLAGS = {
  'pickupable': 'pickupable',
  'cleanable': 'cleanable',
  'heatable': 'heatable',
  'coolable': 'coolable',
  'sliceable': 'sliceable',
  'toggleable': 'toggleable',
  'container': 'isreceptacleobject',
  'cool': 'iscool',
  'hot': 'ishot',
  'clean': 'isclean',
  'sliced': 'issliced',
  'on': 'istoggled',
}
# Predicates that are read, and how many arguments each has.
_ARITY = dict.fromkeys(_FLAGS.values(), 1) | {
  'atlocation': 2,
  'cancontain': 2,
  'inreceptacle': 2,
  'inreceptacleobject': 2,
  'objectatlocation': 2,
  'objecttype': 2,
  'openable': 1,
  'opened': 1,
  'receptacleatlocation': 2,
  'receptacletype': 2,
}
# True of the original world, but of no consequence for what a player sees.
_IGNORED = frozenset(
  [
    'checked',
    'examined',
    'full',
    'ison',
    'isreceptacleobjectfull',
    'moveable',
    'wasinreceptacle',
  ]
)

_GOAL_STATES = {
  'isclean': 'clean',
  'ishot': 'hot',
  'iscool': 'cool',
  'issliced': 'sliced',
}
_PLACING = frozenset(
  ['inreceptacle', 'objecttype', 'receptacletype', '='],
) | frozenset(_GOAL_STATES)
_LOOKING = frozenset(
  [
    'atlocation',
    'holds',
    'inreceptacle',
    'issliced',
    'istoggled',
    'objecttype',
    'receptacleatlocation',
    'toggleable',
  ]
)
_ABLE = frozenset(['cleanable', 'heatable', 'coolable', 'sliceable'])


def parse(
  problem: str,
  *,
  id: str,
  task: str,
  walkthrough: Sequence[str] | None = None,
) -> game_lib.Game:
  """Builds a game from a PDDL problem.

  Args:
    problem: The text of the problem file; upper and lower case are the same.
    id: Name for the game.
    task: The goal sentence without its full stop.
    walkthrough: Commands that win, where known.

  Returns:
    The game, with things and furniture in the order of the original listings.

  Raises:
    ValueError: if the text is not a problem of the ALFWorld domain; it says
      what was found instead.
  """
  sections = _SECTIONS.search(_COMMENT.sub('', problem).lower())
  if sections is None:
    raise ValueError(
      f'The PDDL problem of {id!r} has no (:init …) followed by a (:goal …);'
      ' the file seems to be cut off or to be something else.'
    )
  facts = _facts(sections[1], id)
  names = _names(facts)
  locations: dict[str, int] = {}
  for _, spot in facts['receptacleatlocation'] + facts['objectatlocation']:
    locations.setdefault(spot, len(locations))
  (_, start), *others = facts['atlocation'] or [(None, None)]
  if start is None or others:
    raise ValueError(
      f'The PDDL problem of {id!r} puts {len(facts["atlocation"])} agents at a'
      ' location; it must be exactly one.'
    )
  try:
    receptacles = _receptacles(facts, names, locations)
    things = _things(facts, names, locations)
  except KeyError as error:
    raise ValueError(
      f'The PDDL problem of {id!r} speaks of {error.args[0]!r} as of a thing or'
      ' a place, but says nowhere what or where it is. The file is broken.'
    ) from error
  goal = _goal(sections[2], id)
  return game_lib.Game(
    id=id,
    task=task,
    task_type=_task_type(goal),
    receptacles=receptacles,
    things=things,
    can_contain=_can_contain(facts),
    goal=goal,
    start=locations.get(start, game_lib.NOWHERE),
    walkthrough=None if walkthrough is None else tuple(walkthrough),
  )


Facts = dict[str, list[tuple[str, ...]]]


def _facts(init: str, id: str) -> Facts:
  facts: Facts = collections.defaultdict(list)
  for predicate, arguments in dict.fromkeys(_FACT.findall(init)):
    words = tuple(arguments.split())
    facts[predicate].append(words)
    if len(words) != _ARITY.get(predicate, len(words)):
      raise ValueError(
        f'The PDDL problem of {id!r} has ({predicate} {arguments}), which'
        f' should have {_ARITY[predicate]} argument(s). The file is broken.'
      )
  foreign = sorted(facts.keys() - _ARITY.keys() - _IGNORED)
  if foreign:
    raise ValueError(
      f'The PDDL problem of {id!r} starts with facts that this simulator does'
      f' not know: {foreign}. Play it with the original engine'
      ' (source="engine").'
    )
  for predicate in ('objecttype', 'receptacletype', 'receptacleatlocation'):
    if not facts[predicate]:
      raise ValueError(
        f'The PDDL problem of {id!r} has no ({predicate} …) fact, so it has'
        ' nothing to play with; the file seems to be cut off.'
      )
  return facts


def _names(facts: Facts) -> dict[str, str]:
  """What the player calls each identifier, in the order of listings.

  Everything of a kind is numbered downwards in the order of identifiers.
  """
  found = {item for rows in facts.values() for row in rows for item in row}
  identifiers = sorted(item for item in found if '_bar_' in item)
  kinds = {item: _spoken(item) for item in identifiers}
  left = collections.Counter(kinds.values())
  names: dict[str, str] = {}
  for item, kind in kinds.items():
    names[item] = f'{kind} {left[kind]}'
    left[kind] -= 1
  return names


def _spoken(identifier: str) -> str:
  basin = 'basin' if 'basin' in identifier else ''
  return identifier.split('_bar_', 1)[0] + basin


def _kind(type_name: str) -> str:
  return type_name.removesuffix('type')


def _receptacles(
  facts: Facts, names: dict[str, str], locations: dict[str, int]
) -> tuple[game_lib.Receptacle, ...]:
  kinds = dict(facts['receptacletype'])
  spots = dict(facts['receptacleatlocation'])
  openable = {item for (item,) in facts['openable']}
  opened = {item for (item,) in facts['opened']}
  return tuple(
    game_lib.Receptacle(
      name=names[item],
      kind=_kind(kinds.get(item, '')),
      location=locations[spots[item]],
      openable=item in openable,
      opened=item in opened,
    )
    for item in names
    if item in spots
  )


def _things(
  facts: Facts, names: dict[str, str], locations: dict[str, int]
) -> tuple[game_lib.Thing, ...]:
  kinds = dict(facts['objecttype'])
  spots = dict(facts['objectatlocation'])
  flags = {
    field: {item for (item,) in facts[predicate]}
    for field, predicate in _FLAGS.items()
  }
  inside = collections.defaultdict(set)
  holds = collections.defaultdict(set)
  for item, place in facts['inreceptacle']:
    inside[item].add(place)
  for item, container in facts['inreceptacleobject']:
    holds[container].add(item)
  present = set(kinds).union(spots, inside, holds, *flags.values())
  return tuple(
    game_lib.Thing(
      name=names[item],
      kind=_kind(kinds.get(item, '')),
      inside=tuple(names[place] for place in sorted(inside[item])),
      location=locations.get(spots.get(item), game_lib.NOWHERE),
      holds=tuple(names[inner] for inner in sorted(holds[item])),
      **{field: item in members for field, members in flags.items()},
    )
    for item in names
    if item in present
  )


def _can_contain(facts: Facts) -> dict[str, frozenset[str]]:
  table = collections.defaultdict(set)
  for receptacle, thing in facts['cancontain']:
    table[_kind(receptacle)].add(_kind(thing))
  return {kind: frozenset(table[kind]) for kind in table}


def _goal(text: str, id: str) -> game_lib.Goal:
  """The goal, if it is one of the six; see `game.Goal`."""
  atoms = [
    (words[0], tuple(words[1:]))
    for words in _atoms(text)
    if words[0] not in _ABLE
  ]
  predicates = {predicate for predicate, _ in atoms}
  looking = 'holds' in predicates
  foreign = sorted(predicates - (_LOOKING if looking else _PLACING))
  kinds = {
    arguments[0]: _kind(arguments[-1])
    for predicate, arguments in atoms
    if predicate == 'objecttype'
  }
  held = {arguments[-1] for name, arguments in atoms if name == 'holds'}
  things = {kind for name, kind in kinds.items() if not held or name in held}
  others = {kinds[name] for name in kinds.keys() - held} if held else set()
  others |= {
    _kind(arguments[-1])
    for predicate, arguments in atoms
    if predicate == 'receptacletype'
  }
  if foreign or len(things) != 1 or len(others) != 1:
    raise ValueError(
      f'The goal of {id!r} is none of the six task types:'
      f' {" ".join(text.split())!r}'
      + (f' asks for {foreign}' if foreign else '')
      + '. Play it with the original engine (source="engine").'
    )
  states = {
    _GOAL_STATES[predicate]: True
    for predicate, _ in atoms
    if predicate in _GOAL_STATES
  }
  (thing,), (other,) = things, others
  if looking:
    return game_lib.Goal(thing=thing, lamp=other, **states)
  return game_lib.Goal(
    thing=thing, receptacle=other, count=len(kinds), **states
  )


def _task_type(goal: game_lib.Goal) -> str:
  if goal.lamp is not None:
    return 'look_at_obj_in_light'
  if goal.count > 1:
    return 'pick_two_obj_and_place'
  for state, verb in (('clean', 'clean'), ('hot', 'heat'), ('cool', 'cool')):
    if getattr(goal, state):
      return f'pick_{verb}_then_place_in_recep'
  return 'pick_and_place_simple'


def _atoms(text: str) -> Iterator[list[str]]:
  """The innermost lists of a goal, without lists of typed variables."""
  for inner in re.findall(r'\(([^()]*)\)', text):
    words = inner.split()
    if words and '-' not in words:
      yield words
