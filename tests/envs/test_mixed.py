"""Mixed tasks: what is asked can be done, and what is done is graded."""

from gymnasium.utils import env_checker
import numpy as np
import pytest

from jaxagent import envs, tokens
from jaxagent.agents import protocol, single_turn
from jaxagent.envs import mixed


@pytest.fixture(scope='module')
def games():
  return mixed.Games(size=300)


def of_kind(games, kind):
  return [game for game in games if game.kind == kind]


def test_environment_passes_gymnasium_check():
  env = mixed.MixedEnv()
  env_checker.check_env(env, skip_render_check=True)
  question, info = env.reset(options={'game': 4})
  assert info['task'] == question and info['task_type'] == 'instruction'


def test_games_are_what_their_config_says(games):
  assert list(games) == list(mixed.Games(size=300))
  assert games[7] != mixed.Games(size=300, seed=1)[7]
  assert len(set(games.names)) == len(games) == len(list(games))
  only = mixed.Games(kinds=('both',), size=9)
  assert {g.kind for g in only} == {'both'}


def test_splits_share_no_sum_and_no_instruction(games):
  test = mixed.Games('test', size=300)
  for kind in mixed.KINDS:
    asked = [{g.question for g in of_kind(s, kind)} for s in (games, test)]
    assert not asked[0] & asked[1] and len(asked[1]) >= 20


def test_answers_meet_what_is_asked(games):
  kinds = set()
  for game in games:
    found = mixed.grade(game, game.answer, target=6)
    kinds |= {name for name, _ in game.checks}
    style = found.pop('style', None)
    assert (style is None) == (game.kind == 'sum')
    assert set(found.values()) == {1.0}, game
  assert kinds == {'start', 'use', 'end', 'count', 'avoid'}


@pytest.mark.parametrize(
  'name, value, reply, met',
  [
    ('start', 'cup', 'Cup, pen', True),
    ('start', 'cup', 'pen cup', False),
    ('start', 'cup', '', False),
    ('use', 'pen', 'a pen.', True),
    ('use', 'pen', 'pencil', False),
    ('end', 'cup', 'pen cup!', True),
    ('end', 'cup', 'cup pen', False),
    ('end', 'cup', '', False),
    ('count', 2, 'cup  pen .', True),
    ('count', 2, 'cup', False),
    ('avoid', 'z', 'cup pen', True),
    ('avoid', 'u', 'CUP', False),
  ],
)
def test_constraints(name, value, reply, met):
  checks = ((name, value), ('use', 'nowhere'))
  game = mixed.Game('x', 'instruction', '', '', checks)
  assert mixed.grade(game, reply)['constraints'] == met / 2


@pytest.mark.parametrize(
  'reply, correct',
  [
    ('14', 1),
    ('so 8 and 6 is 14.', 1),
    ('14 or 15', 0),
    ('fourteen', 0),
    ('-14', 0),
    ('', 0),
    ('²', 0),
  ],
)
def test_the_last_number_counts(reply, correct):
  game = mixed.Game('x', 'sum', '8 + 6?', '14')
  assert mixed.grade(game, reply)['correct'] == correct


def test_length_by_hand():
  got = [mixed.length_score(n, 100) for n in (0, 90, 120, 150, 200, 500)]
  np.testing.assert_allclose(got, [1, 1, 0.96, 0.75, 0, 0])
  assert mixed.length_score(150, 100, steepness=2) == 0.5


@pytest.mark.parametrize('rho', [-1.0, -0.6, 0.0, 0.3, 0.8, 1.0])
def test_style_correlates_as_asked(rho):
  rng = np.random.default_rng(0)
  partner = rng.random(4000)
  style = [mixed.judged(x, f'{i}', rho=rho) for i, x in enumerate(partner)]
  assert min(style) >= 0 and max(style) <= 1
  assert np.corrcoef(partner, style)[0, 1] == pytest.approx(rho, abs=0.05)


def test_tasks_have_their_own_rewards(games):
  rewards = {
    'sum': {'correct', 'length'},
    'instruction': {'constraints', 'style'},
    'both': {'correct', 'length', 'style'},
  }
  for game in games:
    assert set(mixed.grade(game, 'cup')) == rewards[game.kind]
  assert set().union(*rewards.values()) == set(mixed.REWARDS)


def outcome(reply, game=0, cut=False, **options):
  """Of the one-turn agent; game 0 is a sum, 1 an instruction, 2 both."""
  _, make_env = envs.from_config({'name': 'mixed', 'split': 'train', **options})
  program = single_turn.single_turn(make_env(), protocol.Task(0, 0, 0, game))
  next(program)
  with pytest.raises(StopIteration) as stop:
    program.send(protocol.Completion(reply, truncated=cut))
  return stop.value.value


def test_the_agent_reports_what_was_observed(games):
  got = outcome(games[0].answer)
  assert got.rewards == {'success': 1, 'correct': 1, 'length': 1}
  assert got.info['task_type'] == 'sum' and got.info['success']
  wrong = outcome('99', game=2).rewards
  assert wrong['success'] == wrong['correct'] == 0 < wrong['length']
  part = outcome(games[1].answer + ' pen', game=1).rewards
  assert part['success'] == 0 < part['constraints'] < 1
  cut = outcome(games[1].answer, game=1, cut=True)
  assert cut.rewards == {'success': 0, 'constraints': 0, 'style': 0}
  assert not cut.info['success']


def test_scales_multiply_what_is_reported(games):
  got = outcome(games[0].answer, scales={'length': 10.0})
  assert got.rewards == {'success': 1, 'correct': 1, 'length': 10}


@pytest.mark.parametrize(
  'options, told',
  [
    ({'sizes': 3}, "mean 'size'"),
    ({'seeds': 3}, "mean 'seed'"),
    ({'split': 'valid'}, 'train, test'),
    ({'kinds': ('sums',)}, "mean 'sum'"),
  ],
)
def test_options_are_checked(options, told):
  with pytest.raises(ValueError, match=told):
    envs.from_config({'name': 'mixed', **options})


@pytest.mark.parametrize(
  'options, told', [({'rho': 1.5}, 'rho'), ({'scales': {'len': 2}}, 'length')]
)
def test_options_of_the_environment_are_checked(options, told):
  with pytest.raises(ValueError, match=told):
    mixed.MixedEnv(**options)


def test_demonstrations_are_short_and_leave_something_to_learn(games):
  tokenizer = tokens.default()
  grades = {kind: [] for kind in mixed.KINDS}
  for index, game in enumerate(games):
    (reply,) = games.demonstrate(index, seed=index)
    assert (reply,) == games.demonstrate(index, seed=index)
    assert len(tokenizer.encode(reply)) < 12
    prompt = tokenizer.chat([protocol.user(game.question)])
    assert len(prompt) <= 20
    found = mixed.grade(game, reply)
    grades[game.kind].append(found.get('correct', found.get('constraints')))
  for kind, values in grades.items():
    assert 0.35 < np.mean(values) < 0.75, kind
    assert len(set(values)) > 1
  for word in mixed.WORDS:
    assert len(tokenizer.encode(f' {word}')) == 1
