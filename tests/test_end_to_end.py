"""Every config trains from nothing to a report; every field of it is read.

The runs are made once a session: those of the warm start and of SDAR by the
quickstart, which is `run.run` on both, the others by `run.run` itself.
"""

from collections.abc import Mapping
import copy
import importlib
import json
import re
import sys

from absl import flags
from ml_collections import config_flags
import numpy as np
import pytest

from experiments import evaluate, quickstart, run
from jaxagent import losses, types
from jaxagent.agents import protocol
from jaxagent.envs.alfworld import expert
from jaxagent.language_models import scripted
from jaxagent.rollouts import drive
from jaxagent.training import build, metrics, sources

FOLDER = run.ROOT / 'experiments' / 'configs'
NAMES = sorted(p.stem for p in FOLDER.glob('*.py') if p.stem != '__init__')
QUICKSTART = {'sft_alfworld': 'sft', 'sdar_alfworld': 'sdar'}


def get_config(name, arg='debug'):
  return importlib.import_module(f'experiments.configs.{name}').get_config(arg)


def changed(config, **fields):
  """A copy of a config; `rollout__top_k=1` sets config.rollout.top_k."""
  config = copy.deepcopy(config)
  for path, value in fields.items():
    *sections, last = path.split('__')
    section = config
    for name in sections:
      section = section[name]
    section[last] = value
  return config


@pytest.fixture(scope='session')
def quickstarted(tmp_path_factory):
  """(what `quickstart` returned, its workdir)."""
  workdir = tmp_path_factory.mktemp('quickstart')
  return quickstart.quickstart(workdir, 'debug'), workdir


@pytest.fixture(scope='session')
def workdir_of(quickstarted, tmp_path_factory):
  """From a config's name to the workdir of its finished debug run."""
  done = {k: quickstarted[1] / v for k, v in QUICKSTART.items()}

  def of(name):
    if name not in done:
      workdir = tmp_path_factory.mktemp(name)
      assert run.run(get_config(name), workdir) == workdir / 'model'
      done[name] = workdir
    return done[name]

  return of


@pytest.fixture(scope='session')
def model():
  """Policy and parameters that every debug config starts from."""
  config = get_config('sdar_alfworld')
  return build.load_model(
    config.to_dict(), build.load_tokenizer(config.to_dict())
  )


def test_there_are_configs():
  assert set(QUICKSTART) <= set(NAMES) and len(NAMES) > len(QUICKSTART)


@pytest.mark.parametrize('name', NAMES)
def test_every_config_trains_and_leaves_what_a_person_reads(name, workdir_of):
  config, workdir = get_config(name), workdir_of(name)
  columns = metrics.read(workdir)
  training = ~np.isnan(columns['loss'])
  assert list(columns['step'][training]) == list(range(config.train.steps))
  lines = (workdir / metrics.FILE).read_text().splitlines()
  for row in map(json.loads, lines):  # null is what was not finite
    assert not [column for column, value in row.items() if value is None]
  assert (columns['gradient/norm'][training] > 0).all()
  assert (columns['gradient/skipped'][training] == 0).all()
  assert (columns['batch/action_tokens'][training] > 0).all()
  terms = {c for c in columns if c.count('/') == 1 and c.endswith('/loss')}
  assert terms, 'no term of the loss is in the metrics'
  total = sum(columns[c][training] for c in terms)
  np.testing.assert_allclose(total, columns['loss'][training], rtol=1e-4)
  for file in ('report.md', 'trajectories.html', 'evaluations.json'):
    assert (workdir / file).stat().st_size > 0, file
  assert (workdir / 'curves.png').read_bytes().startswith(b'\x89PNG')
  assert json.loads((workdir / 'meta.json').read_text())['versions']['jax']
  assert {'config.json', 'model.safetensors', 'tokenizer.json'} <= {
    path.name for path in (workdir / 'model').iterdir()
  }
  report = (workdir / 'report.md').read_text()
  assert config.name in report
  assert '## Missing' not in report


def test_losses_fall_in_the_warm_start(workdir_of):
  loss = metrics.read(workdir_of('sft_alfworld'))['loss']
  loss = loss[~np.isnan(loss)]
  assert loss[-1] < loss[0]


def test_quickstart_says_before_and_after(quickstarted):
  results, workdir = quickstarted
  assert set(results) == {'before', 'after'}
  assert results['before'].keys() == results['after'].keys()
  for when, step in (('before', 0), ('after', 4)):
    for result in results[when].values():
      assert result['step'] == step and result['n'] == 8
      assert 0 <= result['low'] <= result['success'] <= result['high'] <= 1
  started = json.loads((workdir / 'sdar' / 'config.json').read_text())
  assert started['model']['init'] == str(workdir / 'sft' / 'model')


def test_quickstart_again_only_reads_what_it_did(quickstarted):
  results, workdir = quickstarted
  before = (workdir / 'sdar' / 'metrics.jsonl').read_text()
  assert quickstart.quickstart(workdir, 'debug') == results
  assert (workdir / 'sdar' / 'metrics.jsonl').read_text() == before


def played(workdir, name, episodes):
  """What was sampled, and in a run's own file of its last evaluation."""
  path = workdir / 'trajectories' / f'eval_{name}_000004.jsonl'
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  return [[(r['game'], r['tokens']) for r in some] for some in (episodes, rows)]


@pytest.mark.parametrize('name', ['sdar_alfworld', 'grpo'])
def test_a_saved_model_plays_as_the_run_did(name, workdir_of):
  """From its checkpoint and from its folder, token for token."""
  workdir = workdir_of(name)
  after = json.loads((workdir / 'evaluations.json').read_text())['after']
  for policy, config in (
    (workdir, None),
    (workdir / 'model', get_config(name)),
  ):
    summaries, episodes = evaluate.evaluate(policy, config, tasks=8)
    assert summaries['seen'] | {'step': 4} == after['seen']
    got, want = played(workdir, 'seen', episodes['seen'])
    assert got == want and len(got) >= 8


def test_evaluate_wants_a_config_for_a_bare_folder(workdir_of):
  with pytest.raises(FileNotFoundError, match='--config'):
    evaluate.evaluate(workdir_of('grpo') / 'model', None)


def test_evaluate_shows_skills_where_the_split_says_so(workdir_of):
  _, episodes = evaluate.evaluate(
    workdir_of('grpo'), None, splits=('seen', 'seen+skills'), tasks=2
  )
  lengths = [
    sum(r['action'].index(1) for r in episodes[split])  # of the prompts
    for split in ('seen', 'seen+skills')
  ]
  assert lengths[0] < lengths[1]


def test_a_workdir_of_another_config_is_refused(workdir_of):
  config = changed(get_config('grpo'), seed=1)
  with pytest.raises(ValueError, match='another config'):
    run.run(config, workdir_of('grpo'))


# --- configs ---------------------------------------------------------------


@pytest.mark.parametrize('name', NAMES)
def test_an_unknown_argument_names_the_known_ones(name):
  with pytest.raises(ValueError, match="'debg'.*'debug'"):
    get_config(name, 'debg')
  for arg in re.findall(r"arg == '(\w+)'", (FOLDER / f'{name}.py').read_text()):
    with pytest.raises(ValueError, match=arg):
      get_config(name, 'debg')


@pytest.mark.parametrize(
  'name, arg',
  [(n, a) for n in NAMES for a in ('', 'debug')] + [('grpo', 'smollm2')],
)
def test_every_argument_names_parts_that_exist(name, arg):
  """All that can be built without weights."""
  config = get_config(name, arg)
  losses.from_config(config.loss)
  for split in (config.env.split, *config.eval.splits):
    games, agent = build.make_agent(config.to_dict(), split.partition('+')[0])
    request = next(agent(protocol.Task(episode=0, group=0, seed=0, game=0)))
    assert len(games) >= config.eval.tasks and request.open


def on_the_command_line(monkeypatch, *arguments):
  monkeypatch.setattr(sys, 'argv', ['train', *arguments])
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config', lock_config=True, flag_values=values
  )
  values(sys.argv)
  return values.config


def test_the_command_line_knows_the_fields(monkeypatch):
  path = f'--config={FOLDER}/sdar_alfworld.py:debug'
  config = on_the_command_line(
    monkeypatch, path, '--config.rollout.temperature=0.5'
  )
  assert config.rollout.temperature == 0.5
  with pytest.raises(AttributeError, match='Did you mean.*temperature'):
    on_the_command_line(monkeypatch, path, '--config.rollout.temprature=0.5')
  with pytest.raises(flags.IllegalFlagValueError, match="'debg'"):
    on_the_command_line(monkeypatch, path[:-5] + 'debg')


@pytest.mark.parametrize(
  'field, value, told',
  [
    ('model__init', 'qwen3', 'neither a folder'),
    ('model__dtype', 'float12', 'bfloat16'),
    ('model__overrides', {'layrs': 3}, 'layrs'),
    ('tokenizer', 'nowhere', 'nowhere'),
    ('source', 'demos', 'Known: rollouts, demonstrations'),
    ('env__name', 'alfwrld', "Did you mean 'alfworld'"),
    ('env__source', 'generatd', "Did you mean 'generated'"),
    ('env__split', 'valid', 'train, seen, unseen'),
    ('env__sizes', 3, "Did you mean 'size'"),
    ('agent__name', 'reac', 'react'),
    ('agent__max_turn', 3, 'max_turns'),
    ('agent__skills__mode', 'teacher', 'privileged'),
    ('agent__skills__strategy', 'keywords', 'keyword'),
    ('rollout__driver', 'c', 'python'),
    ('rollout__cache_lengths', (8, 4), 'ascend'),
    ('rollout__top_p', 0.0, 'top_p'),
    ('loss__name', 'sdarr', "Did you mean 'sdar'"),
    ('loss__betta', 3.0, "Did you mean 'beta'"),
    ('reduce', 'tokenmean', "Did you mean 'token_mean'"),
    ('rewards__transform__name', 'z', 'group_normalize'),
    ('rewards__advantages__name', 'z', 'gigpo'),
    ('optimizer__lr', 1.0, 'lr'),
    ('train__teacher', 'old', 'initial'),
    ('train__step', 3, 'step'),
    ('eval__splits', ('valid',), 'train, seen, unseen'),
    ('eval__tasks', 10**6, 'lower eval.tasks'),
    ('mesh__fsdp', 64, 'needs 64 devices'),
  ],
)
def test_a_wrong_field_is_named(field, value, told, model, monkeypatch):
  if not field.startswith('model'):
    monkeypatch.setattr(build, 'load_model', lambda *_: model)
  config = changed(get_config('sdar_alfworld'), **{field: value})
  with pytest.raises((ValueError, TypeError, FileNotFoundError), match=told):
    build.from_config(config.to_dict())


class Reader(Mapping):
  """A config that remembers which of its fields were read."""

  def __init__(self, values, read, path=''):
    self.values_, self.read, self.path = values, read, path

  def __getitem__(self, name):
    path, value = f'{self.path}{name}', self.values_[name]
    self.read.add(path)
    if isinstance(value, Mapping):
      return Reader(value, self.read, f'{path}.')
    return value

  def __iter__(self):
    return iter(self.values_)

  def __len__(self):
    return len(self.values_)


def leaves(values, path=''):
  for name, value in values.items():
    if isinstance(value, Mapping) and value:
      yield from leaves(value, f'{path}{name}.')
    else:
      yield f'{path}{name}'


@pytest.mark.parametrize('name', NAMES)
def test_every_field_is_read(name, model, monkeypatch):
  """What nobody reads would be a promise that changes nothing.

  Functions that sections are handed to as a whole reject what they do not
  know, see `test_a_wrong_field_is_named`.
  """
  monkeypatch.setattr(
    build, 'load_model', lambda config, _: dict(config['model']) and model
  )
  read, config = set(), get_config(name)
  setup = build.from_config(Reader(config.to_dict(), read))
  written = config.source in ('demonstrations', 'answers')
  if written:
    setup.source.next(None, 0)
  else:  # tasks are drawn where rows are asked for, before anything is played
    with pytest.raises(Played):
      monkeypatch.setattr(type(setup.evaluators[0].rollout), '__call__', stop)
      setup.source.next(None, 0)
  unread = set(leaves(config.to_dict())) - read
  # The name is for people. Imitation has neither rewards nor sampling, which
  # an evaluation of it sets for itself.
  assert unread <= {'name'} | (
    {path for path in unread if path.startswith('rewards.')}
    if written
    else set()
  )


class Played(Exception):  # noqa: N818
  """Stands for a rollout."""


def stop(*_):
  raise Played


@pytest.fixture(scope='session')
def sample(model):
  """Rows of two training episodes of two turns, under changed fields."""
  policy, params = model
  base = changed(
    get_config('grpo'),
    rollout__slots=2,
    rollout__cache_lengths=(320,),
    batch__tasks=1,
    batch__group=2,
    agent__max_turns=2,
  )

  def of(**fields):
    config = changed(base, **fields)
    layout = sources.Layout(
      lengths=tuple(config.rollout.cache_lengths),
      teacher_extra=0,
      multiple=1,
      reward_names=tuple(config.rewards.names),
      teacher=False,
    )
    tokenizer = build.load_tokenizer(config.to_dict())
    source = build.SOURCES[config.source](
      config.to_dict(), policy, tokenizer, layout
    )
    return [row for e in source.next(params, 0).episodes for row in e.rows]

  return of


@pytest.fixture(scope='session')
def sampled(sample):
  return [row.ids for row in sample()]


@pytest.mark.parametrize(
  'field, value',
  [('seed', 1), ('rollout__temperature', 0.01), ('rollout__top_k', 1)],
)
def test_sampling_follows_the_config(field, value, sample, sampled):
  assert [row.ids for row in sample(**{field: value})] != sampled


@pytest.mark.parametrize(
  'field, value', [('rollout__slots', 1), ('rollout__driver', 'jit')]
)
def test_how_rows_are_sampled_changes_nothing(field, value, sample, sampled):
  assert [row.ids for row in sample(**{field: value})] == sampled


def test_lengths_follow_the_config(sample, sampled):
  rows = sample(rollout__max_new=3, agent__max_turns=1)
  assert len(rows) == len(sampled) == 2
  assert all(0 < sum(row.mask) <= 3 and len(row.turns) == 1 for row in rows)


# --- one program, two ways to run it -----------------------------------------


def test_the_expert_wins_the_games_that_the_configs_train_on():
  """By the very program that the policy runs, without a device."""
  config = get_config('sdar_alfworld', '')
  _, agent = build.make_agent(config.to_dict(), 'train')
  won = 0
  for game in range(8):
    task = protocol.Task(episode=game, group=game, seed=game, game=game)
    player = expert.expert(seed=game)

    def write(messages, player=player):
      return player(messages[-1]['content'])

    outcome = drive.drive(
      agent(task), scripted.scripted(write), max_new=16
    ).outcome
    assert outcome.status in (types.Status.DONE, types.Status.TURN_LIMIT)
    assert outcome.rewards['invalid'] == 0
    won += outcome.rewards['success']
  assert won > 0
