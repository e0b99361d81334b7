from gymnasium.utils import env_checker
import pytest

from jaxagent.agents import protocol, single_turn
from jaxagent.envs import arithmetic


def test_splits_are_disjoint_and_together_all_sums():
  train, test = arithmetic.Sums('train'), arithmetic.Sums('test')
  pairs = [{(s.a, s.b) for s in split} for split in (train, test)]
  assert not pairs[0] & pairs[1]
  assert pairs[0] | pairs[1] == {
    (a, b) for a in range(1, 10) for b in range(1, 10)
  }
  assert len(train) + len(test) == 81 and len(test) == 20
  with pytest.raises(ValueError, match='train'):
    arithmetic.Sums('valid')


def test_environment_passes_gymnasium_check():
  env = arithmetic.make(arithmetic.Sums())
  env_checker.check_env(env, skip_render_check=True)
  question, info = env.reset(options={'game': 3})
  assert info['task'] == question


@pytest.mark.parametrize(
  'text,cut,reward',
  [
    ('The answer is {0}.', False, 1.0),
    ('1 + 1 is 2, no: {0}', False, 1.0),
    ('{0}', True, 0.0),
    ('{0} or 99', False, 0.0),
    ('no idea', False, 0.0),
    ('', False, 0.0),
  ],
)
def test_last_integer_counts(text, cut, reward):
  sums = arithmetic.Sums()
  task = protocol.Task(0, 0, 0, 'train/5')
  program = single_turn.single_turn(arithmetic.make(sums), task)
  request = next(program)
  right = sums[5].a + sums[5].b
  assert str(sums[5].a) in request.open[0]['content']
  with pytest.raises(StopIteration) as stop:
    program.send(protocol.Completion(text.format(right), truncated=cut))
  assert stop.value.value.rewards == {'success': reward}


def test_a_system_message_comes_first():
  task = protocol.Task(0, 0, 0, 5)
  program = single_turn.single_turn(
    arithmetic.make(arithmetic.Sums()), task, system='Be brief.'
  )
  roles = [message['role'] for message in next(program).open]
  assert roles == ['system', 'user']
