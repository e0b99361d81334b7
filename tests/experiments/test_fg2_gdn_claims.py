"""The recall experiment: equal models, runs that resume, a faithful report."""

import json

import numpy as np
import pytest

from experiments.claims import fg2_gdn, recall_report

TINY = fg2_gdn.Setting('multi_query', 16, 4, 8, 2, vocab=32)


@pytest.mark.parametrize('name', fg2_gdn.SETTINGS)
def test_arms_are_equally_large(name):
  setting = fg2_gdn.SETTINGS[name]
  sizes = [
    fg2_gdn._size(fg2_gdn.arm_config(arm, setting)) for arm in fg2_gdn.ARMS
  ]
  assert max(sizes) / min(sizes) < 1.01


def test_arms_differ_in_what_they_are_named_after():
  configs = {arm: fg2_gdn.arm_config(arm, TINY) for arm in fg2_gdn.ARMS}
  assert configs['attention'].kinds == ('attention',) * 2
  for arm in ('gdn', 'kda', 'fg2', 'fg2_plus'):
    assert configs[arm].kinds == ('gated_delta',) * 2
    assert configs[arm].gated_delta.variant == arm


def test_text_is_asked_for_its_next_token():
  setting = fg2_gdn.SETTINGS['text_256']
  tokens, targets = fg2_gdn.batch(setting, 'train', 0, 0)
  assert tokens.shape == targets.shape == (setting.rows, 256)
  np.testing.assert_array_equal(tokens[:, 1:], targets[:, :-1])


def test_streams_share_no_row():
  rows = [fg2_gdn.batch(TINY, s, 0, 0).tokens for s in fg2_gdn._STREAMS]
  assert not (rows[0] == rows[1]).all() and not (rows[1] == rows[2]).all()


def test_training_mixes_few_and_many_keys():
  counts = {
    stream: [
      int(
        (
          fg2_gdn.batch(fg2_gdn.SETTINGS['mqar_64'], stream, i, 0).targets[0]
          >= 0
        ).sum()
      )
      for i in range(4)
    ]
    for stream in ('train', 'test')
  }
  assert counts == {'train': [2, 4, 8, 2], 'test': [8, 8, 8, 8]}


def test_a_run_is_one_file_and_is_not_repeated(tmp_path, monkeypatch):
  monkeypatch.setattr(fg2_gdn, 'RESULTS', tmp_path)
  monkeypatch.setitem(fg2_gdn.SETTINGS, 'tiny', TINY)
  monkeypatch.setattr(fg2_gdn, 'HELD_OUT', TINY.rows)
  path = fg2_gdn.run_one('tiny', 'fg2_plus', 1e-3, 0)
  result = json.loads(path.read_text())
  assert result['arm'] == 'fg2_plus' and not result['diverged']
  assert np.log(result['sizes']['vocab']) - 1 < result['test']['loss'] < 6
  monkeypatch.setattr(
    fg2_gdn.sequence, 'train', lambda *a, **k: pytest.fail('was run')
  )
  assert fg2_gdn.run_one('tiny', 'fg2_plus', 1e-3, 0) == path
  with pytest.raises(ValueError, match="setting 'tinny'. Did you mean 'tiny'"):
    fg2_gdn.run_one('tinny', 'kda', 1e-3, 0)


def _write(folder, arm, seed, rate, validation, accuracy):
  folder.mkdir(exist_ok=True)
  (folder / f'mqar-{arm}-{rate}-{seed}.json').write_text(
    json.dumps(
      {
        'setting': 'mqar',
        'sizes': TINY._asdict(),
        'arm': arm,
        'seed': seed,
        'learning_rate': rate,
        'diverged': False,
        'validation': {'loss': validation, 'accuracy': 0.0},
        'test': {'loss': 1.0, 'accuracy': accuracy},
        'parameters': 1000,
        'seconds': 60.0,
        'commit': 'abc',
        'hardware': 'a laptop',
        'python': '3.11',
        'versions': {'jax': '0'},
      }
    )
  )


def test_report_takes_the_rate_that_validation_prefers(tmp_path):
  folder = tmp_path / 'fg2_gdn'
  for seed, accuracy in ((0, 0.50), (1, 0.60)):
    _write(folder, 'kda', seed, 0.01, 0.5, accuracy)
    _write(folder, 'fg2_plus', seed, 0.001, 0.4, accuracy + 0.1)
  _write(folder, 'fg2_plus', 0, 0.01, 0.9, 0.99)  # worse on validation
  text = recall_report.write(folder, fg2_gdn.ARMS, {'mqar': TINY})
  assert '| kda | 2 | 55.0 %' in text
  assert (
    '| fg2\\_plus | 2 | 65.0 %' in text or '| fg2_plus | 2 | 65.0 %' in text
  )
  assert '+10.0 % [+10.0, +10.0]' in text
  assert '99.0' not in text
  assert (tmp_path / 'fg2_gdn.png').stat().st_size > 1000
  assert (tmp_path / 'fg2_gdn.md').read_text() == text


def test_no_result_is_said(tmp_path):
  with pytest.raises(FileNotFoundError, match='No result'):
    recall_report.load(tmp_path)
