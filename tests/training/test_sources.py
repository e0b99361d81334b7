import dataclasses

import numpy as np
import pytest

from experiments.configs import sdar_alfworld, sft_alfworld
from jaxagent import types
from jaxagent.agents import protocol
from jaxagent.rollouts import demonstrations
from jaxagent.rollouts import host as host_lib
from jaxagent.training import build, evaluation, records, sources, tasks

GAMES = range(10)


def test_tasks_are_a_function_of_seed_and_step():
  deal = dict(seed=1, num_tasks=4, group_size=3)
  first = tasks.training_tasks(GAMES, step=0, **deal)
  assert first == tasks.training_tasks(GAMES, step=0, **deal)
  assert first != tasks.training_tasks(GAMES, step=1, **deal)
  other = tasks.training_tasks(GAMES, step=0, **{**deal, 'seed': 2})
  assert [t.game for t in first] != [t.game for t in other]
  assert [t.episode for t in first] == list(range(12))
  for group in range(4):
    same = [t for t in first if t.group == group]
    assert len(same) == 3 and len({(t.game, t.seed) for t in same}) == 1


def test_a_pass_deals_every_game_once():
  dealt = [
    t.game
    for step in range(5)
    for t in tasks.training_tasks(
      GAMES, seed=0, step=step, num_tasks=4, group_size=1
    )
  ]
  assert sorted(dealt[:10]) == list(GAMES) == sorted(dealt[10:])
  assert dealt[:10] != dealt[10:]


def test_processes_share_the_groups_of_a_step():
  deal = dict(seed=1, step=3, num_tasks=4, group_size=2)
  whole = tasks.training_tasks(GAMES, **deal)
  parts = [
    tasks.training_tasks(GAMES, process=(k, 2), **deal) for k in range(2)
  ]
  assert sorted(parts[0] + parts[1], key=lambda t: t.episode) == whole
  assert not {t.group for t in parts[0]} & {t.group for t in parts[1]}
  with pytest.raises(ValueError, match='divide'):
    tasks.training_tasks(GAMES, process=(0, 3), **deal)
  with pytest.raises(ValueError, match='lower eval.tasks'):
    tasks.evaluation_tasks(5, num_tasks=6)


def config_of(module):
  return module.get_config('debug').to_dict()


def test_demonstrations_are_what_the_expert_wrote():
  config = config_of(sft_alfworld)
  setup = build.from_config(config)
  rows = setup.source.next(None, 0)
  batch = rows.trajectory
  assert batch.action_mask.sum() == sum(
    sum(row.mask) for e in rows.episodes for row in e.rows
  )
  # Every second game shows skills, and none a teacher.
  shown = [
    'find ' in setup.tokenizer.decode(e.rows[0].ids) for e in rows.episodes
  ]
  assert shown == [k % 2 == 1 for k in range(8)]
  assert batch.teacher is None
  again = setup.source.next(None, 0).trajectory
  np.testing.assert_array_equal(batch.tokens, again.tokens)
  assert not np.array_equal(
    batch.tokens[:, :64], setup.source.next(None, 1).trajectory.tokens[:, :64]
  )


def test_a_demonstration_that_does_not_fit_is_cut_before():
  tokenizer = build.load_tokenizer(config_of(sft_alfworld))

  def program():
    yield protocol.Generate(open=[protocol.user('go')])
    while True:
      yield protocol.Generate(extend='you see a shelf')

  task = protocol.Task(0, 0, 0, 0)
  episode = demonstrations.demonstrate(
    task, program(), ['look'] * 99, tokenizer=tokenizer, max_length=60
  )
  assert episode.outcome.status == types.Status.CONTEXT_LIMIT
  row = episode.rows[0]
  assert 40 < len(row.ids) <= 60 and row.mask[-1]
  episode = demonstrations.demonstrate(
    task, program(), ['look'] * 2, tokenizer=tokenizer, max_length=600
  )
  assert episode.outcome.status == types.Status.TURN_LIMIT
  assert sum(episode.rows[0].mask) == 2 * (len(tokenizer.encode('look')) + 1)


def test_layout_grows_by_buckets_and_says_what_is_too_long():
  layout = sources.Layout((8, 16), 4, 4, ('success',), True)
  row = dict(
    uid=0, episode=0, part=types.Part.ACT, prompt=1, privileged=[1, 2, 3],
    mask=[True], logprobs=[0.0], turn=[0], turns=[],
  )  # fmt: skip
  from jaxagent.rollouts import rows as rows_lib

  def episode(length):
    made = rows_lib.Row(ids=[5] * length, **row)
    made.mask, made.logprobs = [True] * length, [0.0] * length
    made.turn, made.turns = [0] * length, [rows_lib.Turn(None)]
    return host_lib.Episode(
      protocol.Task(0, 0, 0, 0), protocol.Outcome({'success': 1.0}), (made,)
    )

  small = layout.assemble([episode(8)])
  assert small.tokens.shape == (4, 8) and small.teacher.tokens.shape == (4, 12)
  assert small.teacher.shift[0] == 2
  assert layout.assemble([episode(9)]).tokens.shape == (4, 16)
  with pytest.raises(ValueError, match='exceeds every bucket'):
    layout.assemble([episode(17)])


def outcome(success, kind, status=types.Status.DONE, **rewards):
  rewards = {'success': success, **rewards}
  return host_lib.Episode(
    protocol.Task(0, 0, 0, 0),
    protocol.Outcome(rewards, status, info={'task_type': kind}),
    (),
  )


def test_summary_leaves_failed_environments_out():
  episodes = [
    outcome(1.0, 'a'),
    outcome(0.0, 'a'),
    outcome(1.0, 'b'),
    outcome(0.0, 'b', types.Status.ENV_ERROR),
  ]
  summary = evaluation.summarize(episodes)
  assert summary['success'] == pytest.approx(2 / 3) and summary['n'] == 3
  assert summary['env_errors'] == 1
  assert summary['by_type']['a']['success'] == 0.5
  assert summary['by_type']['b']['n'] == 1
  assert 0 < summary['low'] < 2 / 3 < summary['high'] < 1


def test_pass_at_k_counts_tasks_that_one_of_k_episodes_solves():
  def played(group, success, status=types.Status.DONE):
    episode = outcome(success, 'a', status)
    task = dataclasses.replace(episode.task, group=group)
    return dataclasses.replace(episode, task=task)

  episodes = [
    played(0, 1.0), played(0, 0.0),
    played(1, 0.0), played(1, 0.0),
    played(2, 1.0), played(2, 1.0),
    played(3, 1.0), played(3, 1.0, types.Status.ENV_ERROR),
  ]  # fmt: skip
  summary = evaluation.summarize(episodes)
  assert summary['k'] == 2 and summary['n'] == 7
  assert summary['pass_at_k'] == pytest.approx(2 / 3)
  once = evaluation.summarize([played(0, 1.0), played(1, 0.0)])
  assert 'k' not in once and 'pass_at_k' not in once


def test_summary_has_the_mean_of_each_reward_where_it_is():
  episodes = [
    outcome(1.0, 'a', length=0.5),
    outcome(0.0, 'a', length=0.2),
    outcome(1.0, 'b', style=0.4),
    outcome(0.0, 'b', types.Status.ENV_ERROR, style=0.0),
  ]
  summary = evaluation.summarize(episodes)
  assert summary['rewards'] == pytest.approx(
    {'success': 2 / 3, 'length': 0.35, 'style': 0.4}
  )
  assert summary['by_type']['b']['rewards'] == {'success': 1.0, 'style': 0.4}


def test_records_show_every_token(tmp_path):
  setup = build.from_config(config_of(sdar_alfworld))
  rows = setup.source.next(setup.params, 0)
  shape = rows.trajectory.tokens.shape
  gate = np.full(shape, 0.25, np.float32)
  out = records.records(
    rows.episodes, setup.tokenizer, step=7,
    advantages=np.ones(shape, np.float32), tokens={'sdar/gate': gate},
  )  # fmt: skip
  assert len(out) == len(rows.episodes)
  for record, episode in zip(out, rows.episodes, strict=True):
    row = episode.rows[0]
    assert ''.join(record['tokens']) == setup.tokenizer.decode(row.ids)
    acted = [g for g in record['gate'] if g is not None]
    assert acted == [0.25] * sum(row.mask) and record['advantage'] == 1.0
    assert record['privileged'].startswith('<|user|>')
  records.write(tmp_path / 'a' / 'x.jsonl', out)
  assert len((tmp_path / 'a' / 'x.jsonl').read_text().splitlines()) == len(out)
