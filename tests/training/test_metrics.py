"""The record of a run survives kills and resumption; intervals are right."""

import io
import json
import math
import re

import numpy as np
import pytest
import rich.console
from scipy import stats

from jaxagent.training import metrics


def _lines(workdir):
  return [
    json.loads(line)
    for line in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]


def test_rows_come_back_as_columns(tmp_path):
  with metrics.Writer(tmp_path) as writer:
    writer.write(0, {'rollout/success': 0.25, 'update/loss': np.float32(2)})
    writer.write(1, {'rollout/success': math.nan})
    writer.write(1, {'evaluation/seen/success': 0.5})
  columns = metrics.read(tmp_path)
  assert columns['step'].tolist() == [0, 1, 1]
  assert columns['step'].dtype == np.int64
  np.testing.assert_array_equal(
    columns['rollout/success'], [0.25, np.nan, np.nan]
  )
  np.testing.assert_array_equal(columns['update/loss'], [2, np.nan, np.nan])
  assert columns['evaluation/seen/success'][2] == 0.5
  assert 'NaN' not in (tmp_path / 'metrics.jsonl').read_text()


def test_a_row_is_on_disk_before_close(tmp_path):
  writer = metrics.Writer(tmp_path)
  writer.write(0, {'a/b': 1})
  assert _lines(tmp_path)[0]['a/b'] == 1
  writer.close()


def test_resumption_leaves_no_duplicate(tmp_path):
  with metrics.Writer(tmp_path) as writer:
    for step in range(6):
      writer.write(step, {'a/b': step})
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 6, "a/')  # killed inside a line
  assert metrics.read(tmp_path)['step'].tolist() == [0, 1, 2, 3, 4, 5]
  with metrics.Writer(tmp_path, step=3) as writer:
    for step in range(3, 8):
      writer.write(step, {'a/b': 10 * step})
  assert [row['step'] for row in _lines(tmp_path)] == list(range(8))
  assert metrics.read(tmp_path)['a/b'].tolist() == [
    *range(3),
    *range(30, 80, 10),
  ]


def test_a_fresh_run_starts_an_empty_file(tmp_path):
  for _ in range(2):
    with metrics.Writer(tmp_path) as writer:
      writer.write(0, {'a/b': 1})
  assert len(_lines(tmp_path)) == 1


def test_tensorboard_gets_events(tmp_path):
  with metrics.Writer(tmp_path) as writer:
    writer.write(0, {'rollout/success': 0.25})
  (events,) = (tmp_path / 'tensorboard').glob('events*')
  assert b'rollout/success' in events.read_bytes()


def test_only_the_first_process_writes(tmp_path):
  with metrics.Writer(tmp_path / 'other', primary=False) as writer:
    writer.write(0, {'a/b': 1})
  assert not (tmp_path / 'other').exists()


def test_own_columns_are_protected(tmp_path):
  with (
    metrics.Writer(tmp_path) as writer,
    pytest.raises(ValueError, match='group/name'),
  ):
    writer.write(0, {'time': 1.0})


@pytest.mark.parametrize('line', ['{"step": ', '[1]', '{"loss": 1}'])
def test_a_broken_line_is_named(tmp_path, line):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 0}\n' + line + '\n{"step": 2}\n')
  with pytest.raises(ValueError, match='line 2'):
    metrics.read(path)


def test_progress_without_a_terminal_is_a_few_lines():
  out = io.StringIO()
  with metrics.progress(100, start=50, every=10, file=out) as advance:
    for step in range(50, 100):
      advance(success=step / 100)
  lines = out.getvalue().splitlines()
  assert len(lines) == 6  # 51, 60, 70, 80, 90, 100
  assert lines[0].startswith('train 51/100 (51 %)')
  assert re.search(r'100/100 .* 0:00 left \| success 0\.99$', lines[-1])


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def test_progress_on_a_terminal_shows_the_numbers():
  out = _Terminal()
  with metrics.progress(4, start=2, file=out) as advance:
    advance(2, success=0.125)
  assert '4/4' in out.getvalue()
  assert 'success 0.125' in out.getvalue()


def test_print_table_has_every_column():
  out = io.StringIO()
  metrics.print_table(
    'Arms',
    [{'arm': 'grpo', 'success': 0.51239}, {'arm': 'sdar', 'n': 256}],
    console=rich.console.Console(file=out, width=60),
  )
  text = out.getvalue()
  for word in ('Arms', 'arm', 'success', 'n', '0.5124', 'sdar', '256'):
    assert word in text


def test_mean_interval_is_the_t_interval():
  values = [0.5, 0.6, 0.8]
  interval = metrics.mean_interval(values)
  low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
  np.testing.assert_allclose(
    interval, [np.mean(values), low, high, 3], rtol=1e-12
  )


def test_mean_interval_of_one_value_has_no_bounds():
  interval = metrics.mean_interval([0.5])
  assert interval.mean == 0.5 and math.isnan(interval.low)


@pytest.mark.parametrize('values', [[], [0.1, math.nan]])
def test_mean_interval_refuses_what_is_no_number(values):
  with pytest.raises(ValueError, match='finite'):
    metrics.mean_interval(values)


@pytest.mark.parametrize('successes, n', [(0, 20), (7, 20), (20, 20), (1, 256)])
def test_proportion_interval_is_wilson(successes, n):
  expected = stats.binomtest(successes, n).proportion_ci(method='wilson')
  interval = metrics.proportion_interval(successes, n)
  np.testing.assert_allclose(interval[1:3], expected, atol=1e-12)
  assert interval.mean == successes / n


def test_proportion_interval_covers_as_promised():
  rng = np.random.default_rng(0)
  draws = rng.binomial(50, 0.3, size=2000)
  intervals = [metrics.proportion_interval(int(k), 50) for k in draws]
  covered = np.mean([i.low <= 0.3 <= i.high for i in intervals])
  assert 0.93 < covered < 0.97


def test_proportion_interval_without_trials_says_nothing():
  interval = metrics.proportion_interval(0, 0)
  assert math.isnan(interval.mean) and interval[1:] == (0.0, 1.0, 0)


def test_more_successes_than_trials_is_an_error():
  with pytest.raises(ValueError, match='3 of 2'):
    metrics.proportion_interval(3, 2)
