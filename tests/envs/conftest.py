"""A kitchen small enough to know by heart."""

import pytest

from jaxagent.envs.alfworld import game as game_lib

FOOD = dict(
  pickupable=True, cleanable=True, heatable=True, coolable=True, sliceable=True
)


@pytest.fixture
def kitchen() -> game_lib.Game:
  """A table and its drawer at one place, three appliances, and a lamp."""
  return game_lib.Game(
    id='test/kitchen',
    task='put a hot apple in table',
    task_type='pick_heat_then_place_in_recep',
    receptacles=(
      game_lib.Receptacle('table 1', 'table', 0),
      game_lib.Receptacle('drawer 1', 'drawer', 0, openable=True),
      game_lib.Receptacle('fridge 1', 'fridge', 1, openable=True),
      game_lib.Receptacle('microwave 1', 'microwave', 2, openable=True),
      game_lib.Receptacle('sinkbasin 1', 'sinkbasin', 3),
    ),
    things=(
      game_lib.Thing('apple 2', 'apple', ('fridge 1',), cool=True, **FOOD),
      game_lib.Thing('apple 1', 'apple', ('table 1',), **FOOD),
      game_lib.Thing('knife 1', 'knife', ('drawer 1',), pickupable=True),
      game_lib.Thing(
        'mug 1',
        'mug',
        ('table 1',),
        pickupable=True,
        container=True,
        holds=('spoon 1',),
      ),
      game_lib.Thing('spoon 1', 'spoon', ('table 1',), pickupable=True),
      game_lib.Thing('lamp 1', 'lamp', ('table 1',), toggleable=True),
      game_lib.Thing('window 1', 'window'),
    ),
    can_contain={
      'table': frozenset(['apple', 'mug', 'spoon', 'knife']),
      'drawer': frozenset(['knife', 'spoon']),
      'fridge': frozenset(['apple']),
    },
    goal=game_lib.Goal(thing='apple', receptacle='table', hot=True),
    walkthrough=(
      'go to table 1',
      'take apple 1 from table 1',
      'go to microwave 1',
      'heat apple 1 with microwave 1',
      'go to table 1',
      'move apple 1 to table 1',
    ),
  )
