"""What the kernel bench compares, keeps and shows; never how fast it is."""

import argparse
import json
import statistics

import numpy as np
import pytest

from experiments import bench, bench_kernels, bench_tables

TINY = ['--lengths=48', '--heads=2', '--width=16']


def options(*more) -> argparse.Namespace:
  parser = argparse.ArgumentParser()
  bench_kernels.add_arguments(parser)
  parser.add_argument('--out')
  return parser.parse_args([*TINY, *more])


@pytest.mark.parametrize(
  'decay, backward', [('scalar', False), ('channel', True)]
)
def test_ours_agrees_with_the_plain_scan(decay, backward, monkeypatch):
  monkeypatch.setattr(bench_kernels, 'SECONDS', 0.0)
  inputs = bench_kernels.make_inputs(48, 2, 16, decay)
  arms = bench_kernels.measure(
    ['scan', 'ours'], inputs, options(), backward=backward, repeats=2
  )
  names = {'o', 'd_q', 'd_k', 'd_v', 'd_g', 'd_beta'} if backward else {'o'}
  for arm in arms.values():
    assert 'failed' not in arm, arm
    assert arm['error'].keys() == names
    assert len(arm['cpu_ms']) == len(arm['wall_ms']) == 2
    assert arm['calls'] == 1 and arm['peak_mib'] >= 0
    assert 'jax' in arm['versions']
  assert max(arms['scan']['error'].values()) == 0
  assert 0 < max(arms['ours']['error'].values()) < 1e-5


def test_an_arm_that_differs_or_dies_is_not_timed(monkeypatch):
  monkeypatch.setattr(bench_kernels, 'SECONDS', 0.0)
  monkeypatch.setattr(bench_kernels, 'TOLERANCE', 1e-12)
  inputs = bench_kernels.make_inputs(48, 2, 16, 'scalar')
  arms = bench_kernels.measure(
    ['scan', 'ours', 'maxtext'],
    inputs,
    options('--maxtext=nowhere'),
    backward=False,
    repeats=1,
  )
  assert len(arms['scan']['cpu_ms']) == 1
  assert set(arms['ours']) == {'failed'} == set(arms['maxtext'])
  assert 'ours differs by' in arms['ours']['failed']
  assert 'checkout' in arms['maxtext']['failed']


def test_errors_see_a_wrong_gradient_and_undo_the_gate():
  inputs = bench_kernels.make_inputs(16, 1, 8, 'channel')
  rng = np.random.default_rng(0)
  want = {name: rng.normal(size=(16, 8)) for name in ('o', 'd_q')}
  want['d_g'] = rng.normal(size=inputs['g'].shape)
  share = 1 / (1 + np.exp(-inputs['x'].astype(np.float64)))
  raw = {**want, 'd_x': want['d_g'] * -5 * share * (1 - share)}
  del raw['d_g']
  for got, reference in ((raw, want), (want, raw), (want, want)):
    found = bench_kernels.errors(got, reference, inputs)
    assert max(found.values()) < 1e-6
  wrong = {**want, 'd_q': want['d_q'] + 0.01}
  assert bench_kernels.errors(wrong, want, inputs)['d_q'] > 1e-3
  with pytest.raises(RuntimeError, match='wanted'):
    bench_kernels.errors({'o': want['o']}, want, inputs)


def fake(names, inputs, options, *, backward, repeats, **_):
  length = inputs['q'].shape[1]
  speed = {
    'scan': 3.0,
    'maxtext': 2.0,
    'ours': 1.0,
    'kda': 1.0,
    'fg2_plus': 1.1,
  }
  return {
    name: {
      'cpu_ms': [speed[name] * length / 1e3] * repeats,
      'wall_ms': [1.0] * repeats,
      'calls': 1,
      'peak_mib': 8.0,
      'error': {'o': 1e-7},
      'versions': {'jax': '0'},
    }
    for name in names
  }


def test_rows_are_kept_and_shown(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(bench_kernels, 'measure', fake)
  monkeypatch.setattr(
    bench_kernels, 'ARMS', {
      **bench_kernels.ARMS,
      'scan': bench_kernels.Arm(longest={('scalar', True): 40}),
    },
  )  # fmt: skip
  out = tmp_path / 'rows.json'
  command = ['kernels', *TINY, '--peers=scan,maxtext', '--maxtext=x']
  bench.main([*command, f'--out={out}'])
  shown = capsys.readouterr().out
  rows = json.loads(out.read_text())['rows']
  assert len(rows) == 6 and out.with_suffix('.png').stat().st_size > 1000
  both = rows['scalar decay, forward and backward, T=48, H=2, d=16']
  assert both['arms'].keys() == {'maxtext', 'ours'}
  assert '40 tokens' in both['skipped']['scan']
  assert bench_tables.lead(both) == pytest.approx(2)
  channel = rows['channel decay, forward, T=48, H=2, d=16']
  assert channel['skipped'].keys() == {'maxtext'}
  assert bench_tables.lead(channel) == pytest.approx(3)
  scaling = rows['FG2-GDN+ over KDA, forward, T=48, H=2, d=16']
  assert scaling['ratio']['ratio'] == pytest.approx(1.1)
  assert '**3.00x**' in shown and '1.100' in shown

  def never(*_, **__):
    raise AssertionError('measured again')

  monkeypatch.setattr(bench_kernels, 'measure', never)
  bench.main([*command, f'--out={out}'])  # all rows are there
  with pytest.raises(AssertionError, match='again'):
    bench.main([*command, f'--out={out}', '--fresh'])


def test_the_interval_of_a_ratio_holds_it():
  rng = np.random.default_rng(1)
  over, under = rng.normal(2.2, 0.1, 41), rng.normal(2.0, 0.1, 41)
  found = bench_kernels.ratio(over, under)
  assert found['low'] < found['ratio'] < found['high']
  assert found['ratio'] == statistics.median(over) / statistics.median(under)
  assert found['low'] > 1.02 and found['high'] < 1.2


def test_what_is_missing_is_asked_for():
  with pytest.raises(SystemExit, match='--peer-envs'):
    bench_kernels.python_of('tokamax', options())
  with pytest.raises(SystemExit, match='--maxtext'):
    bench.main(['kernels', *TINY, '--peers=maxtext'])
  with pytest.raises(SystemExit, match='none of'):
    bench.main(['kernels', *TINY, '--peers=other'])
