"""Chains of arithmetic: what is asked, what is right, what is held out."""

from gymnasium.utils import env_checker
import pytest

from jaxagent import envs, tokens
from jaxagent.agents import protocol, single_turn
from jaxagent.envs import chains


def evaluate(question):
  """By hand: the values after each operation, left to right."""
  text, _, modulus = question[:-1].partition(' (mod ')
  first, *rest = text.split()
  value, values = int(first), []
  for sign, number in zip(rest[::2], rest[1::2], strict=True):
    value = eval(f'({value}) {sign} {number}') % int(modulus)  # noqa: S307
    values.append(value)
  return tuple(values)


def test_environment_passes_gymnasium_check():
  env = chains.make(chains.Chains())
  env_checker.check_env(env, skip_render_check=True)
  question, info = env.reset(options={'game': 1})
  assert info['task'] == question and info['task_type'] == 'product'


@pytest.mark.parametrize('split', ['train', 'test_sum', 'test_product'])
def test_values_are_those_of_the_question(split):
  games = chains.Chains(split, size=60, steps=5, modulus=23)
  for game in games:
    assert game.values == evaluate(game.question)
    assert len(game.values) == 5
    signs = {c for c in game.question if c in '+-*'}
    assert signs <= set(chains.KINDS[game.subject])
  kinds = [game.subject for game in games]
  assert kinds == list(games.kinds) * (60 // len(games.kinds))


def test_splits_share_no_question():
  asked = {
    split: {g.question for g in chains.Chains(split, size=2000, steps=2)}
    for split in ('train', 'train_sum', 'test', 'test_sum', 'test_product')
  }
  held_out = asked['test'] | asked['test_sum'] | asked['test_product']
  assert not held_out & (asked['train'] | asked['train_sum'])
  assert len(asked['test']) > 300
  assert asked['train'] != asked['train_sum']


def test_games_are_a_function_of_their_options():
  games = chains.Chains(size=30)
  assert list(games) == list(chains.Chains(size=30))
  assert games[3] != chains.Chains(size=30, seed=1)[3]
  assert len(set(games.names)) == 30
  with pytest.raises(IndexError):
    games[30]
  with pytest.raises(ValueError, match="'test_sum'"):
    chains.Chains('test_sums')
  with pytest.raises(ValueError, match='option of chains'):
    envs.from_config({'name': 'chains', 'step': 3})


@pytest.mark.parametrize(
  'wrong', [{'size': 0}, {'steps': 0}, {'modulus': 1}, {'rare': 1.5}]
)
def test_sizes_that_leave_nothing_to_ask_are_named(wrong):
  (name,) = wrong
  with pytest.raises(ValueError, match=f'{name}={wrong[name]}'):
    chains.Chains(**wrong)


def play(games, index, reply, truncated=False):
  program = single_turn.single_turn(
    chains.make(games), protocol.Task(0, 0, 0, index)
  )
  next(program)
  with pytest.raises(StopIteration) as stop:
    program.send(protocol.Completion(reply, truncated=truncated))
  return stop.value.value.rewards


@pytest.mark.parametrize('rare', [0.0, 0.7, 1.0])
def test_demonstrations_are_right_and_have_their_share_of_rare_marks(rare):
  games = chains.Chains(size=200, rare=rare)
  shares = []
  for index in range(200):
    (reply,) = games.demonstrate(index, 0)
    rewards = play(games, index, reply)
    assert rewards['success'] == 1 and rewards['steps'] == 1
    shares.append(rewards['rare'])
  assert sum(shares) / 200 == pytest.approx(rare, abs=0.06)


def test_rewards_of_wrong_replies():
  games = chains.Chains(size=1, steps=3)
  a, b, c = games[0].values
  assert play(games, 0, f'{a},{b};{c}') == {
    'success': 1.0, 'steps': 1.0, 'rare': 0.5
  }  # fmt: skip
  assert play(games, 0, f'{c}') == {'success': 1.0, 'steps': float(a == c) / 3}
  wrong = play(games, 0, f'{a},{b + 1},{c + 1}')
  assert wrong['success'] == 0 and wrong['steps'] == pytest.approx(1 / 3)
  assert wrong['rare'] == 0
  assert play(games, 0, '') == {'success': 0.0, 'steps': 0.0}
  assert play(games, 0, '7' * 5000)['success'] == 0  # too long for an int
  cut = play(games, 0, f'{a},{b},{c}', truncated=True)
  assert set(cut.values()) == {0.0}


def test_a_number_and_a_mark_are_a_token_each():
  tokenizer = tokens.default()
  for mark in (chains.COMMON, chains.RARE):
    assert len(tokenizer.encode(f'7{mark}3')) == 3
