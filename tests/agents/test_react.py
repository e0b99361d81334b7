"""The react program, driven by hand and by the scripted player."""

import json

import numpy as np
import pytest

from jaxagent import agents, types
from jaxagent.agents import (
  demonstrations,
  protocol,
  react,
  skill_library,
  skills,
)
from jaxagent.envs.alfworld import env as env_lib
from jaxagent.envs.alfworld import expert, generate

GAMES = generate.Games(size=1000, homes='random', seed=11)


class House(env_lib.ALFWorldEnv):
  """The generated games, with a note of when it was closed."""

  closed = False

  def __init__(self):
    super().__init__(GAMES)

  def close(self):
    House.closed = True


def _task(game=0, training=True):
  return protocol.Task(game, game, game, game, training)


def _skills(mode='privileged', **options):
  return skills.Skills(skill_library.default(), mode=mode, **options)


def _run(program, replies):
  """Sends replies; returns the requests that were answered, and the outcome."""
  requests = [next(program)]
  try:
    for reply in replies:
      requests.append(program.send(protocol.Completion(reply)))
  except StopIteration as stop:
    return requests, stop.value
  return requests, None


@pytest.mark.parametrize('rows', ['episode', 'turn'])
def test_the_walkthrough_wins(rows):
  for i in range(20):
    program = react.react(House(), _task(i), rows=rows)
    requests, outcome = _run(program, GAMES[i].walkthrough)
    assert len(requests) == len(GAMES[i].walkthrough)
    assert outcome.rewards == {'success': 1.0, 'invalid': 0.0}
    assert outcome.status == types.Status.DONE
    assert outcome.info['game'] == GAMES[i].id
    assert json.loads(json.dumps(outcome.info)) == outcome.info
    opens = [request.open is not None for request in requests]
    assert all(opens[1:]) if rows == 'turn' else not any(opens[1:])


def test_invalid_replies_are_counted_where_they_happen():
  replies = ['fly', 'inventory', '', '<b>look</b>', 'look']
  requests, outcome = _run(react.react(House(), _task(), max_turns=5), replies)
  assert [r.reward for r in requests] == [0, -0.01, 0, -0.01, -0.01]
  assert outcome.reward == 0
  assert outcome.rewards == {'success': 0.0, 'invalid': 3.0}
  assert outcome.status == types.Status.TURN_LIMIT
  assert outcome.info['turns'] == 5
  _, outcome = _run(react.react(House(), _task(), max_turns=1), ['fly'])
  assert outcome.reward == -0.01


def test_out_of_context_is_its_own_end():
  program = react.react(House(), _task())
  next(program)
  program.send(protocol.Completion('fly'))
  with pytest.raises(StopIteration) as stop:
    program.throw(protocol.ContextLimit())
  outcome = stop.value.value
  assert outcome.status == types.Status.CONTEXT_LIMIT
  assert outcome.rewards == {'success': 0.0, 'invalid': 1.0}


def test_anchors_name_the_state():
  """Same place and same hands, same anchor, whatever the way there."""
  game = GAMES[0]
  take = next(c for c in game.walkthrough if c.startswith('take'))
  place = take.partition(' from ')[2]
  to_place = [c for c in game.walkthrough if c.endswith(place)][:2]
  there = [c for c in to_place if not c.startswith('take')]
  other = f'go to {next(r.name for r in game.receptacles if r.name != place)}'
  back = f'go to {place}'
  requests, _ = _run(
    react.react(House(), _task(), max_turns=20),
    [*there, other, back, take, other, back, other],
  )
  anchors = [r.anchor for r in requests][len(there) :]
  # other, back with empty hands; then take, other, back with full ones.
  thing = take.split(' from ')[0].removeprefix('take ')
  assert anchors[2].endswith('\n')
  assert all(a.endswith(f'\n{thing}') for a in anchors[3:])
  assert anchors[4] == anchors[6] != anchors[1]


@pytest.mark.parametrize(
  'mode, training, policy_sees, teacher_sees',
  [
    ('privileged', True, False, True),
    ('privileged', False, False, True),
    ('prompt', True, True, False),
    ('prompt', False, True, False),
    ('train_prompt', True, True, False),
    ('train_prompt', False, False, False),
    ('none', True, False, False),
  ],
)
@pytest.mark.parametrize('rows', ['episode', 'turn'])
def test_who_sees_the_skills(mode, training, policy_sees, teacher_sees, rows):
  task = _task(3, training)
  fact = f'find {GAMES[3].goal.thing} in '
  program = react.react(House(), task, skills=_skills(mode), rows=rows)
  requests, _ = _run(program, ['look', 'look'])
  for request in requests:
    if request.open is None:
      assert request.privileged is None
      continue
    assert (fact in request.open[-1]['content']) == policy_sees
    assert (request.privileged is not None) == teacher_sees
    if teacher_sees:
      policy, teacher = (
        view[-1]['content'] for view in (request.open, request.privileged)
      )
      assert fact in teacher and teacher.endswith(policy)


def test_nothing_retrieved_is_nothing_privileged():
  view = _skills(strategy='none')
  requests, _ = _run(react.react(House(), _task(), skills=view), [])
  assert requests[0].privileged is None


def test_the_teacher_prompt_keeps_the_skill_when_history_is_cut():
  program = react.react(
    House(), _task(), skills=_skills(), rows='turn', history=9, max_chars=250
  )
  requests, _ = _run(program, ['look'] * 8)
  assert len(requests) == 9
  for request in requests:
    assert f'find {GAMES[0].goal.thing} in' in request.privileged[-1]['content']
    assert f'Goal: {GAMES[0].task}' in request.privileged[-1]['content']


def test_turn_rows_show_the_last_turns():
  program = react.react(House(), _task(), rows='turn', history=2)
  requests, _ = _run(program, ['fly', 'look', 'inventory', 'help'])
  content = requests[3].open[-1]['content']
  assert '> fly' not in content
  assert content.index('> look') < content.index('> inventory')
  assert content.endswith('You are not carrying anything.')


@pytest.mark.parametrize('style', ['compact', 'instruct'])
@pytest.mark.parametrize('rows', ['episode', 'turn'])
def test_demonstrations_play_the_same_program(style, rows):
  def program(i):
    return react.react(
      House(), _task(i), skills=_skills('prompt'), style=style, rows=rows
    )

  won = []
  for i in range(30):
    shown = demonstrations.demonstrate(
      program(i), expert.expert(seed=i), style=style
    )
    requests, outcome = _run(program(i), shown.replies)
    assert outcome == shown.outcome
    assert outcome.rewards['invalid'] == 0
    assert len(requests) == len(shown.replies) <= 12
    won.append(outcome.rewards['success'])
  assert np.mean(won) > 0.75  # it reads the skills out of the prompt


def test_demonstrations_differ_by_what_is_shown():
  def success(mode):
    return np.mean(
      [
        demonstrations.demonstrate(
          react.react(House(), _task(i), skills=_skills(mode)),
          expert.expert(seed=i, recipe='unknown'),
        ).outcome.rewards['success']
        for i in range(150)
      ]
    )

  assert success('prompt') > success('privileged') + 0.3


def test_usage_is_recorded_and_restored():
  used = _skills(strategy='ucb')
  _, outcome = _run(
    react.react(House(), _task(), skills=used), GAMES[0].walkthrough
  )
  used.record(outcome)
  state = json.loads(json.dumps(used.state_dict()))
  other = _skills(strategy='ucb')
  other.load_state_dict(state)
  assert other.usage == used.usage
  means = used.usage.means[GAMES[0].task_type]
  assert set(means) == set(outcome.info['skills']) != set()
  assert set(means.values()) == {1.0}
  broken = protocol.Outcome({}, types.Status.ENV_ERROR, info=outcome.info)
  used.record(broken)
  assert other.usage == used.usage


def test_from_config():
  config = {
    'name': 'react',
    'max_turns': 3,
    'skills': {'mode': 'prompt', 'strategy': 'keyword'},
  }
  agent = agents.from_config(config, House)
  House.closed = False
  requests, outcome = _run(agent(_task()), ['look'] * 3)
  assert 'find' in requests[0].open[-1]['content']
  assert outcome.info['turns'] == 3
  assert House.closed
  plain = agents.from_config({}, House)
  requests, _ = _run(plain(_task()), [])
  assert requests[0].open[-1]['content'].startswith('Goal: ')
  with pytest.raises(ValueError, match="'reactt'. Did you mean 'react'"):
    agents.from_config({'name': 'reactt'}, House)
  with pytest.raises(ValueError, match=r"react' 'turns'.*max_turns"):
    agents.from_config({'turns': 3}, House)
  with pytest.raises(ValueError, match=r"skills 'who'.*mode"):
    agents.from_config({'skills': {'who': 'all'}}, House)
  with pytest.raises(Exception, match='bandit'):
    agents.from_config({'skills': {'strategy': 'bandit'}}, House)
