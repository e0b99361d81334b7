"""What the report on AOPD says of results, and how its signal is measured."""

import json
import math

import numpy as np
import pytest

from experiments.claims import aopd, aopd_report, aopd_signal
from experiments.configs import aopd_chains

RARE = [0.0] * 30 + [0.6] * 70


def evaluations(sums, products):
  return {
    'test_sum': {'success': sums, 'pass_at_k': sums + 0.1},
    'test_product': {'success': products, 'pass_at_k': products + 0.1},
  }


def result(arm, seed, sums, *, rate=3e-4, before=0.2, stage='first', rare=RARE):
  return {
    'start': 'weak',
    'stage': stage,
    'arm': arm,
    'seed': seed,
    'rate': rate,
    'evaluations': {
      'before': evaluations(before, 0.4),
      'after': evaluations(sums, 0.5),
    },
    'curves': {
      'evaluation/test_sum/success': [before, before - 0.1, before, sums, sums],
      'policy/entropy': [0.5] * 100,
      'gradient/norm': [1.0 if arm == 'aopd' else 3.0] * 100,
      'reward/success': [sums] * 100,
      'reward/rare': rare,
    },
    'commit': 'abc',
    'hardware': 'a laptop',
    'python': '3.11',
    'versions': {'jax': '0'},
    'command': 'claims',
  }


@pytest.fixture
def folder(tmp_path):
  def save(r, name):
    path = tmp_path / 'aopd' / f'weak_{r["stage"]}' / f'{name}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(r))

  for seed in (0, 1, 2):
    save(result('opd', seed, 0.30 + 0.01 * seed), f'opd_{seed}')
    save(result('aopd', seed, 0.50 + 0.01 * seed), f'aopd_{seed}')
    second = dict(stage='second', before=0.5)
    # sums are lost: 12 points and 11 and 10, and 1 and 2 and 3
    save(result('opd', seed, 0.38 + 0.01 * seed, **second), f'opd_{seed}')
    save(result('aopd', seed, 0.49 - 0.01 * seed, **second), f'aopd_{seed}')
  worse = result('aopd', 0, 0.1, rate=1e-3, rare=[0.0] * 100)
  save(worse, 'aopd_0.001_0')
  return tmp_path / 'aopd'


def test_report_says_what_the_results_say(folder):
  text = aopd_report.write(folder, ('opd', 'aopd'), ('weak', 'strong'))
  assert folder.with_suffix('.md').read_text() == text
  assert folder.with_suffix('.png').read_bytes().startswith(b'\x89PNG')
  assert '## Weak start' in text and '## Strong start' not in text
  lines = text.splitlines()
  (row,) = [x for x in lines if x.startswith('| aopd | 3 | 0.0003 | 51.0 %')]
  assert '+20.0 [+20.0, +20.0]' in row  # paired by seed
  (claim,) = [x for x in lines if 'smaller gradients' in x]
  assert '-2.00 [-2.00, -2.00]' in claim and claim.endswith('shown |')
  (forgot,) = [x for x in lines if 'AOPD forgets less, weak' in x]
  assert '+9.0' in forgot and forgot.endswith('shown |')
  (dip,) = [x for x in lines if 'AOPD dips less' in x]
  assert dip.endswith('not told apart |')
  assert not [x for x in lines if x.startswith('| (a)')]  # gkd was not run


def test_a_report_of_nothing_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match='No result in'):
    aopd_report.write(tmp_path / 'none', ('opd',), ('weak',))


def test_only_runs_at_the_best_rate_are_reported():
  results = [
    result('opd', 0, 0.3, rate=3e-4),
    result('opd', 0, 0.4, rate=1e-3),
    result('opd', 1, 0.9, rate=3e-4),
    result('opd', 1, 0.5, rate=1e-3),
  ]
  kept = aopd_report.at_best_rate(results)
  assert [(r['seed'], r['rate']) for r in kept] == [(0, 1e-3), (1, 1e-3)]


def test_the_hole_is_found_where_the_running_mean_rises():
  found = aopd_report.updates_to_hole(result('aopd', 0, 0.5))
  assert 27 <= found <= 29  # windows of five updates
  never = result('opd', 0, 0.5, rare=[0.05] * 100)
  assert aopd_report.updates_to_hole(never) == math.inf


def test_noise_of_a_gradient_is_told_from_its_mean():
  rng = np.random.default_rng(0)
  mean = np.zeros(500)
  mean[0] = 2.0
  gradients = mean + 0.1 * rng.standard_normal((400, 500))
  got = aopd_signal.noise(gradients)
  assert got['signal'] == pytest.approx(2.0, rel=0.02)
  assert got['noise'] == pytest.approx(0.1 * 500**0.5, rel=0.02)
  assert got['noise_over_signal'] == pytest.approx(got['noise'] / got['signal'])


@pytest.mark.slow  # compiles four updates
def test_signal_splits_the_gradient_of_opd(tmp_path, monkeypatch):
  """Positive and negative parts add up; AOPD shares the positive one."""
  names = ('OPD', 'OPD, A > 0', 'OPD, A <= 0')
  seen = {}
  terms = {name: aopd_signal.TERMS[name] for name in names}
  monkeypatch.setattr(aopd_signal, 'TERMS', terms)
  measure = aopd_signal.gradients

  def spy(*args, label):
    seen[label] = measure(*args, label=label)
    return seen[label]

  monkeypatch.setattr(aopd_signal, 'gradients', spy)
  config = aopd_chains.get_config('debug')
  path = aopd_signal.record(tmp_path / 'signal.json', config, batches=2)
  whole, up, down = (seen[name] for name in names)
  np.testing.assert_allclose(up + down, whole, atol=1e-4 * abs(whole).max())
  assert abs(up).max() > 0 and abs(down).max() > 0
  told = json.loads(path.read_text())
  assert told['rows'] == 16 and told['tokens'] > 16
  assert set(told['terms']) == set(names)
  assert 0 < told['advantage']['negative_share'] < 1
  quantiles = list(told['advantage']['quantiles'].values())
  assert quantiles == sorted(quantiles)
  assert 0 <= told['zero']['share'] <= 1


@pytest.mark.parametrize('arm', aopd.ARMS)
def test_arms_are_runs_that_differ_in_their_loss(arm):
  config = aopd.arm_config(arm, 'second', 4, 1e-3, 'student', 'teacher')
  assert config.seed == 4 and config.optimizer.learning_rate == 1e-3
  assert config.model.init == 'student' and config.teacher.init == 'teacher'
  assert config.env.split == 'train_product' and config.train.steps == 40
  source = 'teacher_samples' if arm == 'seqkd' else 'rollouts'
  assert config.source == source
  if arm == 'aopd_one':
    assert config.loss.fkl_scale == 'one'
  base = aopd.arm_config('opd', 'second', 4, 1e-3, 'student', 'teacher')
  differing = {
    name
    for name, value in config.items()
    if value != base[name] and name != 'name'
  }
  assert differing <= {'loss', 'source'}


def test_every_start_has_its_warm_up():
  weak, strong, hole = (
    aopd.student_config(start) for start in ('weak', 'strong', 'hole')
  )
  assert weak.train.steps < strong.train.steps == hole.train.steps
  assert hole.env.rare < 0.01 < weak.env.rare == strong.env.rare
  assert aopd.teacher_config().env.rare > weak.env.rare
