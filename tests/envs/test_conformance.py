"""The simulator prints what the original engine printed, to the letter."""

import json
import lzma

import pytest

from jaxagent.envs.alfworld import data
from jaxagent.envs.alfworld import world as world_lib


def _transcripts(shared):
  with lzma.open(
    shared / 'data' / 'alfworld' / 'transcripts_train.jsonl.xz', 'rt'
  ) as stream:
    return [json.loads(line) for line in stream]


def test_every_recorded_step_is_equal(shared):
  games = data.load(shared / 'data' / 'alfworld', split='train')
  index = {name: i for i, name in enumerate(games.names)}
  steps = 0
  for transcript in _transcripts(shared):
    world = world_lib.World(games[index[transcript['id']]])
    for episode in transcript['episodes']:
      where = f'{transcript["id"]}, {episode["mode"]}'
      assert world.reset() == episode['reset_observation'], where
      assert set(world.admissible) == set(episode['reset_admissible']), where
      for step in episode['steps']:
        assert world.step(step['command']) == step['observation'], where
        assert set(world.admissible) == set(step['admissible']), where
        expected = (step['won'], step['done'], step['score'])
        assert (world.won, world.won, int(world.won)) == expected, where
        steps += 1
  assert steps > 4000


def _lost(games):
  """Games that their stored walkthrough does not win, or wins too early."""
  lost = []
  for game in games:
    world = world_lib.World(game)
    won = [world.won]
    for command in game.walkthrough:
      assert command in world.admissible, (game.id, command)
      world.step(command)
      won.append(world.won)
    if not won[-1]:
      lost.append(game.id)
  return lost


def test_walkthroughs_win(shared):
  games = data.load(shared / 'data' / 'alfworld', split='valid_seen')
  assert len(games) == 140
  assert not _lost(games)


@pytest.mark.slow
@pytest.mark.parametrize(
  'split, count', [('train', 3553), ('valid_train', 200)]
)
def test_all_walkthroughs_win(shared, split, count):
  games = data.load(shared / 'data' / 'alfworld', split=split)
  assert len(games) == count
  assert not _lost(games)
