"""The bench counts what it does, and compares only what is comparable."""

import json

import pytest

from experiments import bench


def test_envs_counts_episodes_and_steps(tmp_path, capsys):
  out = tmp_path / 'envs.json'
  bench.main(['envs', '--count=3', '--steps=9', '--repeats=2', f'--out={out}'])
  result = json.loads(out.read_text())
  assert json.loads(capsys.readouterr().out) == result
  simulator = result['simulator']
  assert (simulator['episodes'], simulator['steps']) == (6, 54)
  seconds = (
    6 * simulator['milliseconds_a_start']
    + 54 * simulator['milliseconds_a_step']
  ) / 1e3
  assert simulator['steps_per_second'] == pytest.approx(54 / seconds)
  assert result['machine']['cores'] >= 1


def test_the_engine_needs_official_games():
  with pytest.raises(SystemExit, match='--games'):
    bench.main(['envs', '--engine-python=python'])
