"""What a reward transform remembers is part of a run."""

import dataclasses
import json

import jax
import numpy as np

from experiments.configs import rdpo_mixed
from jaxagent import types
from jaxagent.models import sharding
from jaxagent.rewards import group, whitening
from jaxagent.training import build, loop, metrics


def trained(workdir, steps):
  config = rdpo_mixed.get_config('debug')
  config.eval.tasks = 3
  config.rewards.transform.whitening = dict(warmup=1, alpha=0.5)
  setup = build.from_config(config.to_dict())
  schedule = dataclasses.replace(setup.schedule, steps=steps)
  return loop.run(dataclasses.replace(setup, schedule=schedule), workdir)


def whiten_state(state):
  (found,) = [
    part
    for part in state.reward_state
    if isinstance(part, whitening.WhitenState)
  ]
  return found


def test_a_resumed_run_has_the_same_state(tmp_path):
  whole = trained(tmp_path / 'whole', 4)
  first = trained(tmp_path / 'cut', 2)
  resumed = trained(tmp_path / 'cut', 4)
  assert int(whiten_state(first).step) == 2
  assert int(whiten_state(whole).step) == 4
  changed = whiten_state(first).covariance != whiten_state(whole).covariance
  assert np.any(changed)
  for got, want in zip(
    jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True
  ):
    np.testing.assert_array_equal(got, want)
  logs = [
    [
      {k: v for k, v in json.loads(line).items() if k.startswith(KEPT)}
      for line in (tmp_path / name / metrics.FILE).read_text().splitlines()
    ]
    for name in ('whole', 'cut')
  ]
  assert [row for row in logs[0] if row] == [row for row in logs[1] if row]
  names = set().union(*logs[0])
  assert {
    'scores/participation',
    'scores/domination',
    'summed/eta_eff',
    'whitening/min_weight',
    'rewards/nonfinite',
  } <= names
  assert 'rewards/correlation/length~style' in names
  assert 'rewards/correlation/length~constraints' not in names  # no task has


KEPT = ('scores/', 'summed/', 'whitening/', 'rewards/', 'reward/')


def test_credit_is_compiled_once_and_by_the_parts_of_the_setup(monkeypatch):
  setup = build.from_config(rdpo_mixed.get_config('debug').to_dict())
  rows = setup.source.next(setup.params, 0).trajectory
  values = np.random.default_rng(0).random(rows.rewards.shape)
  rows = rows.replace(rewards=values.astype(np.float32))
  traced = []

  def counted(function):
    def fn(*args):
      traced.append(function)
      return function(*args)

    return fn

  statistics, estimator = group.group_statistics, setup.estimator
  monkeypatch.setattr(group, 'group_statistics', counted(statistics))
  setup = dataclasses.replace(setup, estimator=counted(estimator))
  credit = loop.make_credit(setup, sharding.make_mesh())
  state = setup.transform.init(4)
  got, after, _ = credit(rows, state)
  credit(rows, after)
  assert sorted(map(id, traced)) == sorted(map(id, (statistics, estimator)))
  rewards = types.Rewards(
    rows.rewards, rows.active, rows.group, rows.episode, rows.part
  )
  rewards, _ = setup.transform.apply(rewards, state)
  np.testing.assert_allclose(got, estimator(rows, rewards), atol=1e-6)
  assert np.abs(got).max() > 0
