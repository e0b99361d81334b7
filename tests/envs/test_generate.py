"""Generated games: solvable, reproducible, and worth learning."""

import collections
import dataclasses
import pickle

import numpy as np
import pytest

from jaxagent.envs.alfworld import game as game_lib
from jaxagent.envs.alfworld import generate, homes
from jaxagent.envs.alfworld import world as world_lib

KNOWN = (
  'look at pen under the desklamp',
  (
    'go to chest 1',
    'open chest 1',
    'take pen 1 from chest 1',
    'go to desk 1',
    'use desklamp 1',
  ),
)


def _plays_out(game: game_lib.Game) -> bool:
  world = world_lib.World(game)
  world.reset()
  for command in game.walkthrough:
    assert not world.won, f'{game.id} is won before {command!r}'
    assert command in world.admissible, (game.id, command)
    world.step(command)
  return world.won


@pytest.mark.parametrize('split', generate.SPLITS)
@pytest.mark.parametrize('table', ['true', 'random'])
def test_walkthroughs_win(split, table):
  games = generate.Games(split, size=100, homes=table, seed=3)
  assert all(_plays_out(game) for game in games)
  assert {game.task_type for game in games} == set(game_lib.TASK_TYPES)


@pytest.mark.parametrize('receptacles', [4, 6, 8])
def test_thinned_rooms_stay_solvable(receptacles):
  games = generate.Games(size=100, receptacles=receptacles, things=(0, 2))
  assert all(_plays_out(game) for game in games)
  assert max(len(game.receptacles) for game in games) <= receptacles


def test_plans_are_short_and_start_unsolved():
  lengths = [len(game.walkthrough) for game in generate.Games(size=300)]
  assert min(lengths) >= 3 and max(lengths) <= 11
  assert np.mean(lengths) < 8


def test_a_game_is_a_function_of_its_index():
  games = generate.Games(seed=7, size=50)
  again = generate.Games(seed=7, size=5000)
  assert pickle.dumps(games[31]) == pickle.dumps(again[31])
  assert games[-1] == games[49]
  assert games[31].id == games.name(31) == games.names[31]
  assert games[31] != dataclasses.replace(games, seed=8)[31]
  assert (
    games[31].things != dataclasses.replace(games, homes='random')[31].things
  )


def test_a_known_game_stays_as_it_was():
  """Games are the same on every machine and in every version."""
  game = generate.Games('train', seed=0)[0]
  assert (game.task, game.walkthrough) == KNOWN


def test_unseen_rooms_are_other_rooms():
  def rooms(split):
    return {
      frozenset(collections.Counter(r.kind for r in g.receptacles).items())
      for g in generate.Games(split, size=100)
    }

  assert rooms('train') == rooms('seen')
  assert not rooms('train') & rooms('unseen')
  train = {game.task for game in generate.Games('train', size=50)}
  assert train != {game.task for game in generate.Games('seen', size=50)}


def test_things_are_mostly_at_home():
  at_home = []
  for game in generate.Games(size=300, home_probability=0.9):
    for thing in game.things:
      kind = thing.inside[0].split()[0]
      at_home.append(kind == game.homes[thing.kind])
  assert 0.88 < np.mean(at_home) < 0.95  # anywhere may be home by chance


def test_true_homes_are_one_table_and_random_homes_are_many():
  def tables(kind):
    return {
      tuple(sorted(game.homes.items()))
      for game in generate.Games(size=100, homes=kind)
    }

  assert tables('true') == {
    tuple(sorted(room.homes.items())) for room in homes.ROOMS.values()
  }
  assert len(tables('random')) == 100


def test_no_goal_asks_to_bring_a_thing_home():
  for table in ('true', 'random'):
    for game in generate.Games(size=100, homes=table):
      assert game.goal.receptacle != game.homes[game.goal.thing]


def test_every_home_stands_in_every_layout():
  for room in homes.ROOMS.values():
    for layout in room.seen + room.unseen:
      for thing, place in room.homes.items():
        assert place in layout and homes.holds(place, thing), (thing, place)


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(split='test'), 'split.*train, seen, unseen'),
    (dict(homes='none'), 'homes.*true, random'),
    (dict(task_types=['pick']), 'task_types.*pick_and_place_simple'),
    (dict(task_types=[]), 'task_types'),
    (dict(rooms=['attic']), 'rooms.*kitchen'),
    (
      dict(rooms=['bathroom'], task_types=['look_at_obj_in_light']),
      'None of the rooms',
    ),
  ],
)
def test_errors_name_what_is_known(options, message):
  with pytest.raises(ValueError, match=message):
    generate.Games(**options)


def test_index_out_of_range():
  with pytest.raises(IndexError, match='larger `size`'):
    generate.Games(size=3)[3]
