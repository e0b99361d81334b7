"""The scripted player: fair without a skill text, good with one."""

import numpy as np
import pytest

from jaxagent.envs.alfworld import expert, generate
from jaxagent.envs.alfworld import game as game_lib
from jaxagent.envs.alfworld import world as world_lib


def _skill(game: game_lib.Game) -> str:
  return '\n'.join(
    f'find {thing} in {place}.' for thing, place in game.homes.items()
  )


def _success(games, *, skilled, recipe='known', max_turns=12):
  return np.mean(
    [
      expert.demonstrate(
        game,
        expert.expert(seed=i, recipe=recipe),
        skill=_skill(game) if skilled else '',
        max_turns=max_turns,
      )[1]
      for i, game in enumerate(games)
    ]
  )


def _random_success(games):
  won = []
  for i, game in enumerate(games):
    rng = np.random.default_rng(i)
    world = world_lib.World(game)
    world.reset()
    for _ in range(12):
      world.step(world.admissible[rng.integers(len(world.admissible))])
      if world.won:
        break
    won.append(world.won)
  return np.mean(won)


@pytest.mark.parametrize(
  'split, homes', [('train', 'true'), ('train', 'random'), ('unseen', 'true')]
)
def test_knowing_the_homes_is_what_matters(split, homes):
  games = list(generate.Games(split, size=200, homes=homes, seed=1))
  skilled = _success(games, skilled=True)
  unskilled = _success(games, skilled=False)
  assert skilled > 0.87
  assert 0.35 < unskilled < 0.62
  assert _success(games, skilled=False, recipe='unknown') < unskilled - 0.05
  assert _random_success(games) < 0.1


def test_without_a_turn_limit_it_always_wins():
  games = generate.Games(size=100, homes='random', seed=2)
  for skilled in (True, False):
    assert _success(games, skilled=skilled, max_turns=60) == 1
  unknown = _success(games, skilled=False, recipe='unknown', max_turns=90)
  assert unknown == 1


def test_unskilled_search_is_uniform():
  """The first place gone to says nothing about where things are kept."""
  game = generate.Games(size=1)[0]
  first = [
    expert.demonstrate(game, expert.expert(seed=seed), max_turns=1)[0][0][1]
    for seed in range(1200)
  ]
  places = [f'go to {place.name}' for place in game.receptacles]
  counts = np.array([first.count(place) for place in places])
  assert counts.sum() == 1200
  expected = 1200 / len(places)
  chi2 = ((counts - expected) ** 2 / expected).sum()
  assert chi2 < 30  # 9 degrees of freedom: p < 0.001


def test_a_told_recipe_is_not_guessed():
  games = [
    game
    for game in generate.Games(size=400)
    if game.goal.hot or game.goal.cool or game.goal.clean
  ]
  text = 'heat it with microwave. cool it with fridge. clean it with sinkbasin.'
  for i, game in enumerate(games):
    policy = expert.expert(seed=i, recipe='unknown')
    turns, _ = expert.demonstrate(
      game, policy, skill=f'{text}\n{_skill(game)}', max_turns=40
    )
    verbs = {command.split()[0] for _, command in turns}
    assert len(verbs & {'heat', 'cool', 'clean'}) == 1


def test_every_command_does_something():
  for i, game in enumerate(generate.Games(size=100, seed=4)):
    turns, _ = expert.demonstrate(game, expert.expert(seed=i), max_turns=40)
    assert not any(text.startswith('Nothing happens') for text, _ in turns)


def test_same_seed_same_play():
  game = generate.Games(size=1, seed=9)[0]
  plays = [
    expert.demonstrate(game, expert.expert(seed=seed)) for seed in (1, 1, 2)
  ]
  assert plays[0] == plays[1]
  assert plays[0] != plays[2]


@pytest.mark.parametrize(
  'goal, aim',
  [
    ('put a hot apple in cabinet', ('apple', 'cabinet', None, 'heat', 1)),
    ('put some mug on desk', ('mug', 'desk', None, None, 1)),
    ('find two pen and put them in bin', ('pen', 'bin', None, None, 2)),
    ('clean some pan and put it in shelf', ('pan', 'shelf', None, 'clean', 1)),
    ('cool some egg and put it in bin', ('egg', 'bin', None, 'cool', 1)),
    ('look at cd under the desklamp', ('cd', None, 'desklamp', None, 1)),
    ('examine the cd with the desklamp', ('cd', None, 'desklamp', None, 1)),
  ],
)
@pytest.mark.parametrize('form', ['Goal: {}', 'Your task is to: {}.\n'])
def test_goals_are_read(goal, aim, form):
  assert expert.read_goal(form.format(goal)) == expert.Aim(*aim)


def test_all_generated_goals_are_read_right():
  for game in generate.Games(size=400):
    aim = expert.read_goal(f'Goal: {game.task}\nRoom: bed 1')
    assert aim.thing == game.goal.thing
    assert aim.place == game.goal.receptacle
    assert aim.lamp == game.goal.lamp
    assert aim.count == game.goal.count
    flags = (game.goal.hot, game.goal.cool, game.goal.clean)
    assert flags == tuple(aim.verb == v for v in ('heat', 'cool', 'clean'))


def test_an_unreadable_goal_is_an_error():
  with pytest.raises(ValueError, match='reads "Goal: put a hot apple'):
    expert.read_goal('You are in a room.')
