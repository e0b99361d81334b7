import json

import numpy as np
import pytest

from experiments.claims import paired, sdar, sdar_report


def result(arm, seed, after, before=0.2):
  def summary(success):
    return {'success': success, 'low': 0.0, 'high': 1.0, 'n': 256}

  return {
    'arm': arm,
    'seed': seed,
    'evaluations': {
      'before': {'seen': summary(before), 'seen+skills': summary(0.8)},
      'after': {'seen': summary(after), 'seen+skills': summary(0.7)},
    },
    'curves': {
      'reward/success': [0.2] * 20,
      'groups/live': [1.0] * 10 + [0.5] * 10,
      'sdar/gate': [0.25] * 10 + [0.5] * 10,
    },
    'seconds': 60.0,
    'commit': 'abc',
    'hardware': 'a laptop',
    'python': '3.11',
    'versions': {'jax': '0'},
    'command': 'claims',
  }


RESULTS = [
  result('grpo', 0, 0.50),
  result('grpo', 1, 0.60),
  result('grpo', 2, 0.55),
  result('sdar', 0, 0.55),
  result('sdar', 1, 0.67),
  result('sdar', 2, 0.61),
  result('sdar', 3, 0.99),
]


def test_differences_are_paired_by_seed():
  got = paired.difference(RESULTS, 'sdar', 'grpo', 'seen', sdar_report.final)
  values = np.array([0.05, 0.07, 0.06])
  half = 4.302653 * values.std(ddof=1) / np.sqrt(3)
  assert got.n == 3
  np.testing.assert_allclose(
    [got.mean, got.low, got.high], [0.06, 0.06 - half, 0.06 + half], rtol=1e-5
  )
  absent = paired.difference(
    RESULTS, 'absent', 'grpo', 'seen', sdar_report.final
  )
  assert absent is None


def test_report_says_what_the_files_say(tmp_path):
  figure = tmp_path / 'figure.png'
  text = sdar_report.report(
    RESULTS,
    title='A title',
    splits=['seen'],
    baseline='grpo',
    arms=['grpo', 'sdar', 'never_run'],
    gate=0.15,
    figure=figure,
  )
  assert figure.stat().st_size > 1000
  assert '20.0 % without skills' in text and '60.0 %, passed' in text
  assert '| sdar | 4 |' in text and '+6.0 [' in text
  assert '0.25 → 0.50' in text and '1.00 → 0.50' in text
  assert 'never_run' not in text
  weak = [result('grpo', 0, 0.5, before=0.7)]
  text = sdar_report.report(
    weak,
    title='t',
    splits=['seen'],
    baseline='grpo',
    arms=['grpo'],
    gate=0.15,
    figure=figure,
  )
  assert 'NOT passed' in text


@pytest.mark.parametrize('arm', sdar.ARMS)
def test_every_arm_is_a_config_that_builds(arm, tmp_path):
  config = sdar.arm_config('generated', '', arm, 3, tmp_path)
  assert config.seed == 3 and config.model.init == str(tmp_path)
  from jaxagent import agents, envs, losses

  losses.from_config(config.loss.to_dict())
  _, make_env = envs.from_config(config.env.to_dict())
  agents.from_config(config.agent.to_dict(), make_env)
  same = sdar.arm_config('generated', '', 'grpo', 3, tmp_path)
  for section in ('batch', 'optimizer', 'train', 'eval', 'rollout', 'env'):
    assert config[section].to_dict() == same[section].to_dict()


def test_finished_results_are_not_run_again(tmp_path, monkeypatch):
  monkeypatch.setattr(sdar, 'RESULTS', tmp_path)
  path = tmp_path / 'generated' / 'grpo_0.json'
  path.parent.mkdir()
  path.write_text(json.dumps(RESULTS[0]))
  monkeypatch.setattr(sdar.runs.run, 'run', lambda *a: pytest.fail('was run'))
  assert sdar.run_arm('generated', '', 'grpo', 0, tmp_path / 'w') == path


@pytest.mark.parametrize(
  'claim, verdict',
  [
    (paired.Claim('x', 'sdar', 'grpo'), 'shown'),
    (paired.Claim('x', 'grpo', 'sdar'), 'contradicted'),
    (paired.Claim('x', 'sdar', 'grpo', 'equal'), 'contradicted'),
    (paired.Claim('x', 'noisy', 'grpo'), 'not told apart'),
    (
      paired.Claim('x', 'noisy', 'grpo', 'equal'),
      'not told apart, as expected',
    ),
    (paired.Claim('x', 'sdar', 'grpo', 'less', of='loss'), 'shown'),
    (paired.Claim('x', 'sdar', 'grpo', 'less'), 'contradicted'),
    (paired.Claim('x', 'once', 'grpo'), 'one seed: open'),
  ],
)
def test_verdicts_follow_the_interval(claim, verdict, tmp_path):
  noisy = [result('noisy', 0, 0.9), result('noisy', 1, 0.2)]
  text = sdar_report.report(
    [*RESULTS, *noisy, result('once', 1, 0.7)],
    title='t',
    splits=['seen'],
    baseline='grpo',
    arms=['grpo', 'sdar'],
    gate=0.15,
    figure=tmp_path / 'f.png',
    claims=[claim],
  )
  (line,) = [line for line in text.splitlines() if line.startswith('| x |')]
  assert line.endswith(f'| {verdict} |')


def test_claims_without_results_are_left_out(tmp_path):
  text = sdar_report.report(
    RESULTS,
    title='t',
    splits=['seen'],
    baseline='grpo',
    arms=['grpo'],
    gate=0.15,
    figure=tmp_path / 'f.png',
    claims=[paired.Claim('x', 'absent', 'grpo')],
  )
  assert 'one by one' not in text
