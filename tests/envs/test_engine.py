"""The original engine in its process: talked to, waited for, and missed."""

import json
import lzma
import stat
import sys

import gymnasium
import pytest
from test_alfworld_data import PLAN, write_game

from jaxagent.envs.alfworld import data, engine
from jaxagent.envs.alfworld import env as env_lib

TRIAL = 'train/pick_cool_then_place_in_recep-Apple-None-Fridge-1/trial_1'
# Stands in for the engine's interpreter: 'sleep' hangs, 'die' ends, 'fail' fails.
FAKE = """\
#!{python}
import json, sys, time
for line in sys.stdin:
  request = json.loads(line)
  command = request.get('step', '')
  if command == 'die':
    sys.exit(1)
  time.sleep(60 * (command == 'sleep'))
  answer = dict(
    observation='Your task is to: win.' if 'load' in request else command,
    admissible=['win', 'look'],
    won=command == 'win',
  )
  if command == 'fail':
    answer = dict(error='KeyError: 1')
  print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def fake(tmp_path):
  file = tmp_path / 'python'
  file.write_text(FAKE.format(python=sys.executable))
  file.chmod(file.stat().st_mode | stat.S_IXUSR)
  return str(file)


@pytest.fixture
def env(tmp_path, fake):
  write_game(tmp_path, TRIAL)
  env = gymnasium.make(
    'jaxagent/ALFWorld-v0',
    source='engine',
    path=str(tmp_path),
    python=fake,
    time_limit=10.0,
  ).unwrapped
  yield env
  env.close()


def test_same_interface_as_the_simulator(env):
  observation, info = env.reset()
  assert observation == 'Your task is to: win.'
  assert info == {
    'admissible_commands': ('win', 'look'),
    'won': False,
    'task': 'win',
    'task_type': 'pick_cool_then_place_in_recep',
    'game': TRIAL,
    'expert_plan': tuple(PLAN),
  }
  assert env.step('look')[:4] == ('look', 0.0, False, False)
  assert env.step('win')[:4] == ('win', 1.0, True, False)
  assert env.reset()[0] == observation


def test_an_engine_that_hangs_is_ended_and_can_be_started_again(tmp_path, fake):
  file = write_game(tmp_path, TRIAL)
  player = engine.Engine(python=fake, time_limit=10.0)
  world = player.open(file)
  player.time_limit = 0.2
  with pytest.raises(TimeoutError, match='within 0.2 s'):
    world.step('sleep')
  player.time_limit = 10.0
  assert player.open(file).step('look') == 'look'
  player.close()


def test_an_engine_that_fails_or_ends_says_so(tmp_path, fake):
  player = engine.Engine(python=fake, time_limit=10.0)
  world = player.open(write_game(tmp_path, TRIAL))
  with pytest.raises(RuntimeError, match='KeyError: 1'):
    world.step('fail')
  assert world.step('look') == 'look'
  with pytest.raises(RuntimeError, match='ended without an answer'):
    world.step('die')


def test_a_missing_engine_names_the_extra(tmp_path):
  write_game(tmp_path, TRIAL)
  bare = tmp_path / 'bare'
  bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
  bare.chmod(0o700)  # an interpreter without installed packages
  env = env_lib.make(source='engine', path=str(tmp_path), python=str(bare))
  with pytest.raises(ImportError, match='jaxagent\\[alfworld\\]'):
    env.reset()


def test_engine_and_simulator_agree(shared, tmp_path):
  pytest.importorskip('alfworld', reason='needs the extra `alfworld`')
  logic = json.loads(
    (shared / 'data' / 'alfworld' / 'alfworld_logic.json').read_text()
  )
  packed = shared / 'data' / 'alfworld' / 'alfworld_valid_seen.jsonl.xz'
  with lzma.open(packed, 'rt') as stream:
    row = json.loads(next(stream))
  write_game(
    tmp_path,
    row['id'],
    pddl_domain=logic['domain'],
    grammar=logic['grammar'].replace('UNKNOWN GOAL', row['task']),
    pddl_problem=row['problem'],
    walkthrough=row['walkthrough'],
  )
  options = dict(path=str(tmp_path), split='valid_seen')
  theirs = env_lib.make(source='engine', **options)
  ours = env_lib.make(source='folder', **options)
  assert theirs.reset() == ours.reset()
  for command in row['walkthrough']:
    assert theirs.step(command) == ours.step(command)
  theirs.close()
  assert data.find(**options).names == (row['id'],)
