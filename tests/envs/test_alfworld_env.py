"""ALFWorld through gymnasium."""

import pickle

import gymnasium
from gymnasium import error
from gymnasium.utils import env_checker
import pytest
from test_alfworld_data import PLAN, write_game

from jaxagent import envs
from jaxagent.envs.alfworld import env as env_lib

TRIAL = 'train/pick_cool_then_place_in_recep-Apple-None-Fridge-1/trial_1'


@pytest.fixture
def env(kitchen):
  return env_lib.ALFWorldEnv([kitchen], max_steps=8)


def test_gymnasium_finds_nothing_wrong(kitchen):
  env_checker.check_env(env_lib.ALFWorldEnv([kitchen]))
  env_checker.check_env(gymnasium.make('jaxagent/ALFWorld-v0').unwrapped)


def test_winning_pays_once_and_ends_the_episode(env, kitchen):
  observation, info = env.reset()
  assert observation in env.observation_space
  for left in range(len(kitchen.walkthrough), 0, -1):
    assert len(info['expert_plan']) == left
    assert not info['won']
    action = info['expert_plan'][0]
    assert action in info['admissible_commands']
    observation, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated) == ((1.0, True) if left == 1 else (0.0, False))
  assert info['won'] and not truncated and info['expert_plan'] == ()
  with pytest.raises(error.ResetNeeded):
    env.step('look')


def test_info_says_what_is_played(env, kitchen):
  _, info = env.reset()
  assert info['game'] == 'test/kitchen'
  assert info['task'] == kitchen.task
  assert info['task_type'] == kitchen.task_type


def test_expert_plan_lasts_while_it_is_followed(env):
  _, info = env.reset()
  plan = info['expert_plan']
  for idle in ('look', 'inventory', 'sing', 'examine table 1'):
    assert env.step(idle)[-1]['expert_plan'] == plan
  assert env.step(plan[0])[-1]['expert_plan'] == plan[1:]
  assert env.step('go to fridge 1')[-1]['expert_plan'] is None
  assert env.step(plan[0])[-1]['expert_plan'] is None


def test_too_many_steps_truncate(env):
  env.reset()
  ends = [env.step('look')[2:4] for _ in range(8)]
  assert ends == [(False, False)] * 7 + [(False, True)]


def test_stepping_before_a_reset_says_so(env):
  with pytest.raises(error.ResetNeeded, match='reset'):
    env.step('look')


def test_games_are_chosen_by_seed_index_or_name():
  games = env_lib.open_games('generated', split='unseen', size=50)
  first, second = (env_lib.ALFWorldEnv(games) for _ in range(2))
  for seed in range(5):
    assert first.reset(seed=seed) == second.reset(seed=seed)
  assert len({first.reset()[1]['game'] for _ in range(20)}) > 5
  for wanted in (17, games.names[17]):
    _, info = first.reset(options={'game': wanted})
    assert info['game'] == games.names[17]
  with pytest.raises(ValueError, match='Did you mean'):
    first.reset(options={'game': games.names[17] + 'x'})


def test_registered_with_its_arguments():
  env = gymnasium.make(
    'jaxagent/ALFWorld-v0', split='seen', size=3, max_steps=2
  )
  _, info = env.reset(seed=0)
  assert info['game'].startswith('seen')
  assert [env.step('look')[3] for _ in range(2)] == [False, True]


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(source='generatd'), "Did you mean 'generated'"),
    (dict(split='valid_seen'), 'valid_seen'),
    (dict(sizes=3), "Did you mean 'size'"),
    (dict(path='/data'), "source='folder'"),
  ],
)
def test_wrong_arguments_say_what_is_right(arguments, message):
  with pytest.raises(ValueError, match=message):
    env_lib.open_games(**arguments)


def test_no_games_no_environment():
  with pytest.raises(ValueError, match='at least one'):
    env_lib.ALFWorldEnv([])


def test_config_switches_the_source_with_one_change(tmp_path):
  write_game(tmp_path, TRIAL)
  config = dict(
    name='alfworld', source='generated', path='', split='train', size=5, seed=1
  )
  games, make = envs.from_config(config)
  assert len(games) == 5
  assert make().reset(options={'game': 4})[1]['game'] == games.names[4]
  disk = dict(config, source='folder', path=str(tmp_path), check=False)
  games, make = envs.from_config(disk)
  assert games.names == (TRIAL,)
  assert make().reset()[1]['expert_plan'] == tuple(PLAN)


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(name='alfwrld'), "Did you mean 'alfworld'"),
    (dict(source='disk'), 'source of games'),
    (dict(sise=3), "Did you mean 'size'"),
  ],
)
def test_wrong_configs_say_what_is_right(changes, message):
  with pytest.raises(ValueError, match=message):
    envs.from_config(dict(dict(name='alfworld'), **changes))


def test_environments_of_one_config_do_not_share_state():
  _, make = envs.from_config(dict(name='alfworld', size=2))
  first, second = make(), make()
  before = [env.reset(options={'game': 0}) for env in (first, second)]
  assert before[0] == before[1]
  first.step(before[0][1]['expert_plan'][0])
  assert second.reset(options={'game': 0}) == before[1]


def test_games_pickle(kitchen):
  assert pickle.loads(pickle.dumps(kitchen)) == kitchen
