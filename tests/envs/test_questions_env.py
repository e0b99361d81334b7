"""Questions asked once: from files, and from generators with their scorers."""

import importlib.util
import json

import gymnasium
from gymnasium import error
from gymnasium.utils import env_checker
import pytest

from jaxagent import envs
from jaxagent.agents import protocol, single_turn
from jaxagent.answers import verify
from jaxagent.data import prepared
from jaxagent.envs import questions, reasoning

needs_gym = pytest.mark.skipif(
  importlib.util.find_spec('reasoning_gym') is None,
  reason='needs reasoning-gym: pip install jaxagent[reasoning]',
)


def play(env, game, reply):
  env.reset(options={'game': game})
  _, reward, terminated, truncated, info = env.step(reply)
  assert terminated and not truncated
  return reward, info


# --- files --------------------------------------------------------------------


def test_the_sample_is_split_and_judged():
  splits = {s: questions.open_questions(split=s) for s in ('train', 'test')}
  asked = [{q.question for q in split} for split in splits.values()]
  assert len(asked[0]) == 48 and len(asked[1]) == 16 and not asked[0] & asked[1]
  kinds = {q.subject for split in splits.values() for q in split}
  assert len(kinds) == 7
  for split in splits.values():
    env = questions.make(split='train' if split is splits['train'] else 'test')
    for k, question in enumerate(split):
      assert play(env, k, f'so \\boxed{{{question.answer}}}')[0] == 1
      assert play(env, k, 'so \\boxed{-77}')[0] == 0


def test_an_echo_earns_nothing():
  env = questions.make()
  for k in range(len(env.questions)):
    asked, _ = env.reset(options={'game': k})
    assert env.step(asked)[1] == 0


def test_environment_passes_gymnasium_check():
  env = gymnasium.make('jaxagent/Questions-v0', split='test').unwrapped
  env_checker.check_env(env, skip_render_check=True)
  question, info = env.reset(options={'game': 'test/3'})
  assert question == f'{info["task"]}\n{questions.INSTRUCTION}'
  assert (info['game'], info['task_type']) == ('test/3', 'fraction')
  with pytest.raises(error.ResetNeeded):
    env.step('1')
    env.step('1')


def test_users_files_and_prepared_ones_play_the_same(tmp_path):
  line = {'problem': 'What is 1/2 + 1/4?', 'solution': 'It is \\boxed{3/4}.'}
  folder = tmp_path / 'files'
  folder.mkdir()
  for split in ('train', 'test'):
    (folder / f'{split}.jsonl').write_text(json.dumps(line) + '\n')
  config = {'name': 'questions', 'path': str(folder), 'split': 'test'}
  read, make_env = envs.from_config(config)
  assert play(make_env(), 0, 'The answer is 0.75.')[0] == 1
  assert play(make_env(), 0, 'The answer is 0.7.')[0] == 0
  config['path'] = str(prepared.write({'test': read}, tmp_path / 'tfds'))
  again, make_env = envs.from_config(config)
  assert list(again) == list(read)
  assert play(make_env(), 0, '\\boxed{\\frac{3}{4}}')[1]['won']


def test_wrong_options_are_named(tmp_path):
  with pytest.raises(ValueError, match='Known: test, train'):
    envs.from_config({'name': 'questions', 'split': 'valid'})
  with pytest.raises(ValueError, match="Did you mean 'verifier'"):
    envs.from_config({'name': 'questions', 'verifer': 'own'})
  with pytest.raises(ValueError, match='Known: own, math_verify'):
    envs.from_config({'name': 'questions', 'verifier': 'sympy'})
  with pytest.raises(FileNotFoundError, match='one file a split'):
    envs.from_config({'name': 'questions', 'path': str(tmp_path / 'no')})


def test_single_turn_hands_the_whole_reply_over():
  env = questions.make(split='train')
  answer = env.questions[0].answer
  for text, cut, reward in (
    (f'<think>\\boxed{{0}}</think>\n\\boxed{{{answer}}}', False, 1.0),
    (f'\\boxed{{{answer}}}', True, 0.0),
  ):
    program = single_turn.single_turn(env, protocol.Task(0, 0, 0, 0))
    assert next(program).open[0]['content'].endswith('\\boxed{}.')
    with pytest.raises(StopIteration) as stop:
      program.send(protocol.Completion(text, truncated=cut))
    assert stop.value.value.rewards == {'success': reward}


def test_the_verifier_is_the_one_that_was_named(monkeypatch):
  seen = []
  monkeypatch.setattr(
    verify,
    'verify',
    lambda *_, **o: (
      seen.append(o['implementation']) or verify.Verdict(True, '', 'same', '')
    ),
  )
  for name in ('', 'own'):
    play(questions.make(verifier=name), 0, '1')
  assert seen == [None, 'own']


# --- generated: a stand-in for reasoning-gym, so that this runs without it ----

_STAND_IN = """
import itertools, random, time
from reasoning_gym.factory import DATASETS

class Sums:
  def __init__(self, *, seed, size, most=10**6):
    self.seed, self.size, self.most = seed, size, most
  def __getitem__(self, index):
    if not 0 <= index < self.size:
      raise IndexError(index)
    a = random.Random(self.seed + index).randrange(self.most)
    return {'question': f'{a} + 1?', 'answer': str(a + 1)}
  def score_answer(self, answer, entry):
    if answer == 'hang':
      time.sleep(1000)
    return 2.0 if answer == entry['answer'] else -1.0 / len(answer.strip('_'))

class Moody(Sums):
  count = itertools.count()
  def __getitem__(self, index):
    return {'question': f'{next(self.count)} + 1?', 'answer': '1'}

DATASETS.update(sums=Sums, more=Sums, moody=Moody, composite=Sums)
def create_dataset(name, **options):
  return DATASETS[name](**options)
"""


_MODULES = (
  'sympy',
  'reasoning_gym.factory',
  'reasoning_gym.algorithmic.string_insertion',
  'reasoning_gym.algorithmic.spiral_matrix',
  'reasoning_gym.algorithmic.binary_matrix',
  'reasoning_gym.games.n_queens',
  'reasoning_gym.games.countdown',
  'reasoning_gym.games.puzzle24',
)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
  for module in _MODULES:
    path = tmp_path.joinpath(*module.split('.')).with_suffix('.py')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('DATASETS = {}\ndef parse_expr(text): pass\n')
    if path.parent != tmp_path:
      (path.parent / '__init__.py').touch()
  (tmp_path / 'reasoning_gym' / '__init__.py').write_text(_STAND_IN)
  monkeypatch.syspath_prepend(tmp_path)
  caches = (reasoning._children, reasoning._chosen, reasoning._training)
  for cache in caches:
    cache.cache_clear()
  yield
  reasoning._children().close()
  for cache in caches:
    cache.cache_clear()


SIZES = {'train': 60, 'validation': 20, 'test': 20}


def opened(split, datasets=('sums',), **options):
  config = {'name': 'reasoning', 'datasets': datasets, 'sizes': SIZES}
  return envs.from_config({**config, 'split': split, **options})


@pytest.mark.parametrize('most', [10**6, 150])
def test_splits_share_no_question(stand_in, most):
  """Also where generators repeat themselves: 100 of 150 possible questions."""
  options = {'sums': {'most': most}}
  asked = {
    split: [t.question for t in opened(split, options=options)[0]]
    for split in SIZES
  }
  assert {k: len(v) for k, v in asked.items()} == SIZES
  assert len(set(asked['test'])) == len(set(asked['validation'])) == 20
  for one, other in (('train', 'test'), ('train', 'validation')):
    assert not set(asked[one]) & set(asked[other])
  assert not set(asked['test']) & set(asked['validation'])


def test_neighbouring_seeds_give_other_questions(stand_in):
  """Though the generator seeds by seed + index."""
  one, other = (opened('train', seed=seed)[0] for seed in (0, 1))
  assert not {t.question for t in one} & {t.question for t in other}
  assert list(one) == list(opened('train', seed=0)[0])


def test_datasets_take_turns(stand_in):
  tasks, _ = opened('train', ('sums', 'more'), sizes={'train': 5, 'test': 3})
  assert [t.subject for t in tasks] == ['sums', 'more', 'sums', 'more', 'sums']
  assert [t.id for t in tasks] == tasks.names
  assert tasks[-1].id == 'sums/train/2'


def test_the_datasets_own_score_is_the_reward(stand_in):
  tasks, make_env = opened('test')
  env, answer = make_env(), str(int(tasks[3].question.split()[0]) + 1)
  assert play(env, 3, f'\\boxed{{{answer}}}')[0] == 1  # 2, cut
  assert play(env, 3, f'<answer>\n{answer}\n</answer>')[0] == 1
  assert play(env, 3, f' {answer} ')[0] == 1
  assert play(env, 3, f'I say {answer}')[0] == 0  # -1, cut
  assert play(env, 3, '<think>')[0] == 0


def test_a_scorer_that_hangs_or_fails_gives_nothing(stand_in, monkeypatch):
  _, make_env = opened('test')
  env = make_env()
  reward, info = play(env, 0, '___')
  assert reward == 0 and 'ZeroDivisionError' in info['reason']
  monkeypatch.setattr(reasoning, '_SECONDS', 2.0)
  reward, info = play(env, 0, 'hang')
  assert reward == 0 and 'No answer within' in info['reason']


def test_what_reasoning_tasks_refuse(stand_in):
  for told, arguments in {
    "Did you mean 'sums'": dict(datasets=('sum',)),
    'name its parts': dict(datasets=('composite',)),
    'wanted different names': dict(datasets=('sums', 'sums')),
    'gave 5 different questions': dict(options={'sums': {'most': 5}}),
    "unexpected keyword argument 'mos'": dict(options={'sums': {'mos': 5}}),
    'seed from 0 to': dict(seed=10**6),
    'Unknown split in sizes': dict(sizes={'valid': 3}),
    "Did you mean 'validation'": dict(split='valid'),
    "Did you mean 'datasets'": dict(dataset='x'),
  }.items():
    with pytest.raises(ValueError, match=told):
      list(opened(**{'split': 'train', **arguments})[0])


def test_a_dataset_all_of_which_is_held_out_is_refused(stand_in):
  tasks = reasoning.Tasks(
    ['sums'],
    options={'sums': {'most': 1}},
    sizes={'train': 3, 'validation': 1, 'test': 0},
  )
  with pytest.raises(ValueError, match='no question that is not held out'):
    tasks[0]


def test_a_dataset_that_changes_its_mind_is_reported(stand_in):
  _, make_env = opened('test', ('moody',))
  with pytest.raises(RuntimeError, match='leave this dataset out'):
    play(make_env(), 0, '1')


def test_without_the_package_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ImportError, match=r'pip install .*jaxagent\[reasoning\]'):
    opened('train')


# --- the package itself -------------------------------------------------------


@pytest.fixture(scope='module')
def gym_env():
  return gymnasium.make(
    'jaxagent/Reasoning-v0',
    datasets=('chain_sum', 'gsm_symbolic', 'countdown', 'spiral_matrix'),
    split='test',
    sizes={'test': 8, 'validation': 8},
  ).unwrapped


@needs_gym
def test_real_generators_score_their_own_answers(gym_env):
  import reasoning_gym

  for k, task in enumerate(gym_env.questions):
    stream = gym_env.questions.streams[task.subject, 'test']
    entry = reasoning_gym.create_dataset(
      task.subject, seed=stream.seed, size=2 * stream.size
    )[task.index]
    assert entry['question'] == task.question
    assert play(gym_env, k, f'so\n\\boxed{{{entry["answer"]}}}')[0] == 1
    assert play(gym_env, k, 'so\n\\boxed{?}')[0] < 0.1


@needs_gym
@pytest.mark.parametrize('game', [2, 3])
def test_a_reply_is_not_run_as_code(gym_env, game, tmp_path):
  """Scorers of both kinds: Python's eval, and sympy's."""
  assert gym_env.questions[game].subject in ('countdown', 'spiral_matrix')
  mark = tmp_path / 'ran'
  for code in (
    f"__import__('os').mkdir('{mark}')",
    f"[__import__('os').mkdir('{mark}')]",
    f"eval(chr(95)*2+'import'+chr(95)*2)('os').mkdir('{mark}')",
    f"open('{mark}', 'w')",
    f"sqrt.__class__.__base__.__subclasses__() or open('{mark}', 'w')",
  ):
    assert play(gym_env, game, f'\\boxed{{{code}}}')[0] < 0.1
  assert not mark.exists()


@needs_gym
def test_a_real_scorer_is_stopped(gym_env, monkeypatch):
  monkeypatch.setattr(reasoning, '_SECONDS', 2.0)
  reward, info = play(gym_env, 2, '\\boxed{9**9**9**9}')
  assert reward == 0 and 'No answer within' in info['reason']
  monkeypatch.undo()
  assert play(gym_env, 2, '\\boxed{1}')[0] < 0.1


@needs_gym
def test_codeio_is_refused():
  with pytest.raises(ValueError, match='codeio.*depend'):
    reasoning.Tasks(['codeio'])
