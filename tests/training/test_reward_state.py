"""What a reward transform remembers is part of a run."""

import dataclasses
import json

import jax
import numpy as np

from experiments.configs import rdpo_mixed
from jaxagent.rewards import whitening
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
