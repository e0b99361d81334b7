"""The rules of the household, one by one, in a hand-made kitchen."""

import dataclasses
import random

import pytest

from jaxagent.envs.alfworld import game as game_lib
from jaxagent.envs.alfworld import text
from jaxagent.envs.alfworld import world as world_lib

NOTHING = 'Nothing happens.'


@pytest.fixture
def world(kitchen):
  return world_lib.World(kitchen)


def play(world, *commands):
  """The last observation after some commands, none of which may fail."""
  for command in commands:
    observation = world.step(command)
    assert observation != NOTHING, command
  return observation


def test_opening_lists_furniture_in_order_and_the_goal(world):
  assert world.reset() == (
    '-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room.'
    ' Looking quickly around you, you see a table 1, a drawer 1, a fridge 1, a'
    ' microwave 1, and a sinkbasin 1.\n\nYour task is to: put a hot apple in'
    ' table.'
  )
  assert world.admissible == (
    'go to drawer 1',
    'go to fridge 1',
    'go to microwave 1',
    'go to sinkbasin 1',
    'go to table 1',
    'help',
    'inventory',
    'look',
  )


def test_opening_beside_furniture_faces_it(kitchen):
  world = world_lib.World(dataclasses.replace(kitchen, start=0))
  assert (
    'You are facing the table 1, and drawer 1. Next to it, you see nothing.'
    in world.reset()
  )


def test_look_knows_the_room_only_at_the_start(world):
  assert world.step('look') == (
    'You are in the middle of a room. Looking quickly around you, you see'
    ' nothing.'
  )


def test_going_reaches_all_that_stands_there_and_leaves_out_where_one_is(world):
  assert world.step('go to table 1') == (
    'You arrive at table 1. On the table 1, you see a apple 1, a mug 1, a spoon'
    ' 1, and a lamp 1.'
  )
  assert world.step('go to drawer 1') == NOTHING
  assert world.step('examine drawer 1') == 'The drawer 1 is closed.'
  assert world.step('look') == (
    'You are facing the table 1, and drawer 1. Next to it, you see nothing.'
  )


def test_closed_furniture_hides_and_locks_what_is_inside(world):
  assert world.step('go to fridge 1') == (
    'You arrive at fridge 1. The fridge 1 is closed.'
  )
  assert world.step('take apple 2 from fridge 1') == NOTHING
  assert world.step('open fridge 1') == (
    'You open the fridge 1. The fridge 1 is open. In it, you see a apple 2.'
  )
  assert world.step('open fridge 1') == NOTHING
  assert world.step('take apple 2 from fridge 1') == (
    'You pick up the apple 2 from the fridge 1.'
  )
  assert world.step('close fridge 1') == 'You close the fridge 1.'
  assert world.step('move apple 2 to fridge 1') == NOTHING
  assert world.step('open fridge 1') == (
    'You open the fridge 1. The fridge 1 is open. In it, you see nothing.'
  )
  assert world.step('move apple 2 to fridge 1') == (
    'You move the apple 2 to the fridge 1.'
  )


def test_one_hand_that_holds_one_thing(world):
  assert world.step('inventory') == 'You are not carrying anything.'
  play(world, 'go to table 1', 'take mug 1 from table 1')
  assert world.step('inventory') == 'You are carrying: a mug 1.'
  assert world.step('take spoon 1 from table 1') == NOTHING
  assert 'mug 1' not in world.step('examine table 1')


def test_only_listed_kinds_may_be_put(world):
  play(world, 'go to table 1', 'take mug 1 from table 1', 'open drawer 1')
  assert world.step('move mug 1 to drawer 1') == NOTHING
  assert 'move mug 1 to table 1' in world.admissible


def test_things_return_to_their_rank_in_listings(world):
  play(world, 'go to table 1', 'take apple 1 from table 1')
  play(world, 'move apple 1 to table 1')
  assert world.step('examine table 1').startswith(
    'On the table 1, you see a apple 1, a mug 1'
  )


def test_what_is_fixed_cannot_be_taken_and_what_is_nowhere_cannot_be_seen(
  world,
):
  play(world, 'go to table 1')
  assert world.step('take lamp 1 from table 1') == NOTHING
  assert not any('window' in command for command in world.admissible)


def test_things_are_examined_only_in_hand(world):
  play(world, 'go to table 1')
  assert world.step('examine mug 1') == NOTHING
  play(world, 'take mug 1 from table 1')
  assert world.step('examine mug 1') == (
    'This is a normal mug 1. In it, you see a spoon 1.'
  )


def test_lamps_only_ever_turn_on(world):
  play(world, 'go to table 1')
  for _ in range(2):
    assert world.step('use lamp 1') == 'You turn on the lamp 1.'
  assert world.step('use mug 1') == NOTHING


def test_treatments_need_the_appliance_but_not_its_door(world):
  play(world, 'go to table 1', 'take apple 1 from table 1')
  assert world.step('examine apple 1') == (
    "There's nothing special about apple 1."
  )
  assert world.step('heat apple 1 with microwave 1') == NOTHING
  play(world, 'go to microwave 1')
  assert world.step('heat apple 1 with microwave 1') == (
    'You heat the apple 1 using the microwave 1.'
  )
  assert world.step('examine apple 1') == 'This is a hot apple 1.'
  play(world, 'go to sinkbasin 1', 'clean apple 1 with sinkbasin 1')
  assert world.step('examine apple 1') == 'This is a hot and clean apple 1.'
  play(world, 'go to fridge 1', 'cool apple 1 with fridge 1')
  assert world.step('examine apple 1') == 'This is a cool and clean apple 1.'


def test_slicing_needs_a_knife_and_the_thing_lying_here(world):
  play(world, 'go to table 1')
  assert not any(command.startswith('slice') for command in world.admissible)
  play(world, 'open drawer 1', 'take knife 1 from drawer 1')
  assert world.step('slice apple 2 with knife 1') == NOTHING
  assert world.step('slice apple 1 with knife 1') == (
    'You sliced the apple 1 with the knife 1.'
  )
  play(world, 'move knife 1 to table 1', 'take apple 1 from table 1')
  assert world.step('examine apple 1') == 'This is a sliced apple 1.'


def test_slicing_reaches_into_a_closed_fridge(world):
  play(world, 'go to table 1', 'open drawer 1', 'take knife 1 from drawer 1')
  play(world, 'go to fridge 1')
  assert 'slice apple 2 with knife 1' in world.admissible


def test_a_thing_moved_within_a_place_lies_next_to_where_it_was(world):
  play(world, 'go to table 1', 'open drawer 1', 'take spoon 1 from table 1')
  play(world, 'move spoon 1 to drawer 1')
  assert world.step('look').endswith('Next to it, you see a spoon 1.')
  play(world, 'take spoon 1 from drawer 1', 'move spoon 1 to table 1')
  assert world.step('look').endswith('Next to it, you see a spoon 1.')


@pytest.mark.parametrize(
  'states, expected',
  [
    ({'hot', 'clean', 'sliced'}, 'This is a hot and clean sliced apple 1.'),
    ({'cool', 'clean', 'sliced'}, 'This is a cool and clean sliced apple 1.'),
    ({'clean', 'sliced'}, 'This is a clean sliced apple 1.'),
    ({'hot', 'sliced'}, 'This is a hot sliced apple 1.'),
    ({'cool', 'sliced'}, 'This is a cool sliced apple 1.'),
    ({'clean'}, 'This is a clean apple 1.'),
    ({'cool'}, 'This is a cold apple 1.'),
    ({'cool', 'on'}, 'This is a cold apple 1.'),
    ({'on', 'sliced'}, 'This apple 1 is on.'),
  ],
)
def test_words_for_states(states, expected):
  assert text.thing(game_lib.Thing('apple 1', 'apple'), states) == expected


@pytest.mark.parametrize(
  'names, expected',
  [
    ([], 'nothing'),
    (['a'], 'a a'),
    (['a', 'b'], 'a a, and a b'),
    (['a', 'b', 'c'], 'a a, a b, and a c'),
  ],
)
def test_listing(names, expected):
  assert text.listing(names) == expected


def test_commands_are_exact_up_to_spaces_around_them(world):
  assert world.step('  go to table 1\n').startswith('You arrive at table 1.')
  for command in ('', 'LOOK', 'go to', 'go  to fridge 1', 'look now', 'l'):
    assert world.step(command) == NOTHING


def test_help_begins_and_ends_like_the_original(world):
  lines = world.step('help').split('\n')
  assert lines[0] == 'Available commands:'
  assert lines[-1] == '' and len(lines) == 15


def test_walkthrough_wins_with_its_last_command(world, kitchen):
  won = []
  for command in kitchen.walkthrough:
    play(world, command)
    won.append(world.won)
  assert won == [False] * 5 + [True]
  play(world, 'take apple 1 from table 1')
  assert not world.won
  world.reset()
  assert not world.won and world.step('inventory').endswith('anything.')


def _with_goal(kitchen, **goal):
  return world_lib.World(
    dataclasses.replace(kitchen, goal=game_lib.Goal(**goal))
  )


def test_goal_state_must_be_the_one_asked_for(kitchen):
  world = _with_goal(kitchen, thing='apple', receptacle='table', cool=True)
  play(world, *kitchen.walkthrough)
  assert not world.won
  play(world, 'go to fridge 1', 'open fridge 1', 'take apple 2 from fridge 1')
  play(world, 'go to table 1', 'move apple 2 to table 1')
  assert world.won


def test_two_things_must_be_on_one_receptacle(kitchen):
  world = _with_goal(kitchen, thing='apple', receptacle='table', count=2)
  play(world, *kitchen.walkthrough)
  assert not world.won
  play(world, 'go to fridge 1', 'open fridge 1', 'take apple 2 from fridge 1')
  assert not world.won
  play(world, 'go to table 1', 'move apple 2 to table 1')
  assert world.won


def test_sliced_goal(kitchen):
  world = _with_goal(kitchen, thing='apple', receptacle='table', sliced=True)
  assert not world.won
  play(world, 'go to table 1', 'open drawer 1', 'take knife 1 from drawer 1')
  play(world, 'slice apple 1 with knife 1')
  assert world.won


def test_looking_under_a_lamp_needs_light_here_and_the_thing_in_hand(kitchen):
  world = _with_goal(kitchen, thing='mug', lamp='lamp')
  play(world, 'go to table 1', 'take mug 1 from table 1')
  assert not world.won
  play(world, 'use lamp 1')
  assert world.won
  play(world, 'go to fridge 1')
  assert not world.won
  play(world, 'go to drawer 1')
  assert world.won


@pytest.mark.parametrize('seed', range(10))
def test_exactly_the_admissible_commands_do_something(kitchen, seed):
  rng = random.Random(seed)
  world = world_lib.World(kitchen)
  names = [item.name for item in kitchen.receptacles + kitchen.things]
  forms = (
    *('go to {}', 'open {}', 'close {}', 'examine {}', 'use {}'),
    *('take {} from {}', 'move {} to {}', 'slice {} with {}'),
    *('heat {} with {}', 'cool {} with {}', 'clean {} with {}'),
  )
  tried = {True: 0, False: 0}
  for _ in range(150):
    command = rng.choice(world.admissible)
    if rng.random() < 0.5:
      command = rng.choice(forms).format(rng.choice(names), rng.choice(names))
    admissible = command in world.admissible
    tried[admissible] += 1
    assert (world.step(command) != NOTHING) == admissible, command
    assert world.admissible == tuple(sorted(set(world.admissible)))
  assert min(tried.values()) > 20


def test_the_same_commands_give_the_same_game(kitchen):
  rng = random.Random(0)
  first, second = world_lib.World(kitchen), world_lib.World(kitchen)
  for _ in range(200):
    command = rng.choice(first.admissible)
    assert first.step(command) == second.step(command)
    assert first.admissible == second.admissible
    assert first.won == second.won


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(task_type='pick'), 'six known'),
    (dict(receptacles=()), 'refers to'),
  ],
)
def test_games_that_make_no_sense_are_refused(kitchen, changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(kitchen, **changes)


def test_names_must_be_unique(kitchen):
  with pytest.raises(ValueError, match="'mug 1'"):
    dataclasses.replace(kitchen, things=kitchen.things + kitchen.things[3:4])


def test_a_goal_is_to_put_or_to_look():
  with pytest.raises(ValueError, match='exactly one'):
    game_lib.Goal(thing='mug')
