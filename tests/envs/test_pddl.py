"""PDDL problems become games; whatever is not understood is refused."""

import pytest

from jaxagent.envs.alfworld import game as game_lib
from jaxagent.envs.alfworld import pddl

PROBLEM = """
(define (problem p) (:domain alfred)
 (:objects agent1 - agent Apple - object AppleType - otype
  Apple_bar__minus_1_bar_2 - object)
 (:init ; a comment (not a fact)
  (= (distance loc_bar_1 loc_bar_2) 3)
  (receptacleType Fridge_bar_1 FridgeType)
  (receptacleType Sink_bar_1_bar_SinkBasin SinkBasinType)
  (receptacleAtLocation Fridge_bar_1 loc_bar_1)
  (receptacleAtLocation Sink_bar_1_bar_SinkBasin loc_bar_2)
  (openable Fridge_bar_1)
  (canContain FridgeType AppleType) (canContain FridgeType AppleType)
  (canContain SinkBasinType AppleType)
  (objectType Apple_bar__minus_1_bar_2 AppleType)
  (objectType Apple_bar__plus_1_bar_2 AppleType)
  (objectType Bowl_bar_1 BowlType)
  (isReceptacleObject Bowl_bar_1)
  (inReceptacleObject Apple_bar__plus_1_bar_2 Bowl_bar_1)
  (pickupable Apple_bar__minus_1_bar_2) (pickupable Apple_bar__plus_1_bar_2)
  (pickupable Apple_bar__plus_1_bar_2_bar_slice)
  (coolable Apple_bar__plus_1_bar_2) (isCool Apple_bar__plus_1_bar_2)
  (inReceptacle Apple_bar__plus_1_bar_2 Fridge_bar_1)
  (inReceptacle Apple_bar__plus_1_bar_2 Sink_bar_1_bar_SinkBasin)
  (objectAtLocation Apple_bar__plus_1_bar_2 loc_bar_2)
  (atLocation agent1 loc_bar_3)
 )
 (:goal (and (exists (?r - receptacle) (exists (?o - object) %s))))
)
"""
PLACE = """(and (coolable ?o) (objectType ?o AppleType)
  (receptacleType ?r FridgeType) (isCool ?o) (inReceptacle ?o ?r))"""
TWO = """(and (objectType ?o1 AppleType) (receptacleType ?r FridgeType)
  (inReceptacle ?o1 ?r) (exists (?o2 - object) (and (not (= ?o1 ?o2))
  (objectType ?o2 AppleType) (inReceptacle ?o2 ?r))))"""
LOOK = """(and (objectType ?t DeskLampType) (toggleable ?t) (isToggled ?t)
  (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?t ?r)
  (objectType ?o AppleType) (holds ?a ?o))"""


def parse(problem):
  return pddl.parse(problem, id='a/b/c', task='cool an apple')


def test_names_count_down_over_all_identifiers_of_a_kind():
  game = parse(PROBLEM % PLACE)
  assert [item.name for item in game.receptacles] == [
    'fridge 1',
    'sinkbasin 1',
  ]
  # The third apple has no type, yet it takes the number 1.
  assert [thing.name for thing in game.things] == [
    'apple 3',
    'apple 2',
    'apple 1',
    'bowl 1',
  ]


def test_facts_become_fields():
  game = parse(PROBLEM % PLACE)
  fridge, sink = game.receptacles
  assert fridge.openable and not fridge.opened and not sink.openable
  assert sink.kind == 'sinkbasin'
  apple = game.things[1]
  assert apple.inside == ('fridge 1', 'sinkbasin 1')
  assert apple.location == sink.location != fridge.location
  assert apple.cool and apple.coolable and apple.pickupable
  assert not (apple.heatable or apple.sliceable or apple.clean)
  assert game.things[0].location == game_lib.NOWHERE
  assert game.things[3].container and game.things[3].holds == ('apple 2',)
  assert game.can_contain == {
    'fridge': frozenset(['apple']),
    'sinkbasin': frozenset(['apple']),
  }
  assert game.start == game_lib.NOWHERE


@pytest.mark.parametrize(
  'goal, task_type, expected',
  [
    (
      PLACE,
      'pick_cool_then_place_in_recep',
      game_lib.Goal(thing='apple', receptacle='fridge', cool=True),
    ),
    (
      PLACE.replace('(isCool ?o)', '(isSliced ?o)'),
      'pick_and_place_simple',
      game_lib.Goal(thing='apple', receptacle='fridge', sliced=True),
    ),
    (
      TWO,
      'pick_two_obj_and_place',
      game_lib.Goal(thing='apple', receptacle='fridge', count=2),
    ),
    (
      LOOK,
      'look_at_obj_in_light',
      game_lib.Goal(thing='apple', lamp='desklamp'),
    ),
  ],
)
def test_goals(goal, task_type, expected):
  game = parse(PROBLEM % goal)
  assert (game.task_type, game.goal) == (task_type, expected)


@pytest.mark.parametrize(
  'problem, message',
  [
    ('', 'no \\(:init'),
    ((PROBLEM % PLACE).split('(:goal')[0], 'no \\(:init'),
    (PROBLEM % PLACE.replace('isCool', 'isWet'), "asks for \\['iswet'\\]"),
    (PROBLEM % '(and (coolable ?o))', 'none of the six'),
    (
      (PROBLEM % PLACE).replace('(openable ', '(flies agent1) (openable '),
      "does not know: \\['flies'\\]",
    ),
    ((PROBLEM % PLACE).replace('(openable F', '(openable a F'), '1 argument'),
    (
      (PROBLEM % PLACE).replace('(atLocation agent1 loc_bar_3)', ''),
      '0 agents',
    ),
    ((PROBLEM % PLACE).replace('receptacleType', 'wasInReceptacle'), 'cut off'),
    (
      (PROBLEM % PLACE).replace('inReceptacle Apple', 'inReceptacle P_bar_1 A'),
      'argument',
    ),
    (
      (PROBLEM % PLACE).replace(
        '(objectType Bowl_bar_1',
        '(inReceptacle a_bar_1 z)(objectType Bowl_bar_1',
      ),
      'z',
    ),
  ],
)
def test_what_is_not_a_known_problem_is_refused(problem, message):
  with pytest.raises(ValueError, match=message) as caught:
    parse(problem)
  assert 'a/b/c' in str(caught.value)
