"""The report holds the run's numbers, and names what it could not show."""

import json
import subprocess
import sys

import numpy as np
import pytest

from jaxagent import report
from jaxagent.report import markdown, trajectories
from jaxagent.training import metrics


def _result(successes, n, **more):
  interval = metrics.proportion_interval(successes, n)
  return interval._asdict() | {'success': interval.mean} | more


@pytest.fixture
def workdir(tmp_path, make_row, curve_rows):
  with metrics.Writer(tmp_path) as writer:
    for step, values in curve_rows:
      writer.write(step, values)
  for step in (0, 19):
    trajectories.save(
      tmp_path / f'trajectories/step_{step:06}.jsonl',
      [make_row(step=step, episode=e, success=float(e > 2)) for e in range(6)],
    )
  files = {
    'config': {'name': 'sdar', 'seed': 7, 'loss': {'beta': 5.0}},
    'meta': {
      'command': ['python', 'train.py', '--x=1'],
      'commit': '1234abc',
      'versions': {'jax': '0.10.2'},
      'hardware': '2 cores',
    },
    'evaluations': {
      'before': {'seen': _result(13, 128, by_type={'heat': 0.125})},
      'after': {
        'seen': _result(96, 128, by_type={'heat': _result(32, 64)}),
        'unseen': _result(64, 128),
      },
    },
  }
  for name, content in files.items():
    (tmp_path / f'{name}.json').write_text(json.dumps(content))
  return tmp_path


def _cells(text, first):
  """The cells of the table row that starts with `first`."""
  (line,) = [x for x in text.split('\n') if x.startswith(f'| {first} |')]
  return [cell.strip() for cell in line.split('|')[2:-1]]


def test_a_whole_workdir(workdir):
  made = report.write(workdir)
  assert list(made) == ['curves.png', 'trajectories.html', 'report.md']
  assert all(path.stat().st_size > 500 for path in made.values())
  text = made['report.md'].read_text()
  assert text.startswith('# sdar\n\n```sh\npython train.py --x=1\n```')
  assert _cells(text, 'seed') == ['7']
  assert _cells(text, 'commit') == ['1234abc']
  assert _cells(text, 'versions') == ['jax 0.10.2']
  assert _cells(text, 'last step') == ['19']
  before, after, change = _cells(text, 'seen')
  assert before == '10.2 % [6.0, 16.6] (128)'
  assert after == '75.0 % [66.8, 81.7] (128)'
  assert change.startswith('+64.8 [+5')
  assert _cells(text, 'unseen')[::2] == ['–', '–']
  assert _cells(text, 'heat') == ['12.5 %', '50.0 % [38.1, 61.9] (64)']
  assert _cells(text, 'all fail') == ['0.250'] * 3
  assert _cells(text, 'mean gate') == ['0.305', '0.395', '0.485']
  assert _cells(text, 'rollout') == ['3.000', '60.0', '75 %']
  assert '](curves.png)' in text and '](trajectories.html)' in text
  assert '"beta": 5.0' in text
  assert '## Missing' not in text


def test_examples_are_the_best_and_worst_of_the_last_step(workdir):
  text = report.write(workdir)['report.md'].read_text()
  assert 'From step 19.' in text
  assert (
    '**Best**: put a hot apple in cabinet. (training episode 5, DONE' in text
  )
  assert (
    '**Worst**: put a hot apple in cabinet. (training episode 0, TURN' in text
  )
  assert text.count('> open fridge 1') >= 3


def test_an_empty_workdir_says_what_is_missing(tmp_path):
  made = report.write(tmp_path)
  assert list(made) == ['report.md']
  text = made['report.md'].read_text()
  for name in ('config', 'meta', 'evaluations'):
    assert f'- `{name}.json`: not in the workdir' in text
  assert '- `metrics.jsonl`: not in the workdir' in text
  assert 'no `trajectories/*.jsonl`' in text


def test_broken_files_cost_only_their_part(workdir):
  (workdir / 'evaluations.json').write_text('{')
  (workdir / 'metrics.jsonl').write_text('nonsense\n')
  (workdir / 'trajectories' / 'step_000000.jsonl').write_text('{}\n')
  made = report.write(workdir)
  text = made['report.md'].read_text()
  assert '`evaluations.json`: no JSON' in text
  assert '`metrics.jsonl`' in text and 'line 1' in text
  assert "lacks ['step'" in text
  assert _cells(text, 'commit') == ['1234abc']


def test_too_many_rows_are_cut_and_said(workdir):
  made = report.write(workdir, limit=5)
  html = made['trajectories.html'].read_text()
  assert 'the latest 5 of 12 rows' in html


def test_no_folder_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match='--workdir'):
    report.write(tmp_path / 'absent')


def test_the_command_line(tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'jaxagent.report', tmp_path],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.split() == [str(tmp_path / 'report.md')]


def test_difference_is_newcombe():
  # Newcombe (1998), example (a): 56/70 and 48/80, method 10.
  change = markdown.difference(_result(48, 80), _result(56, 70))
  np.testing.assert_allclose(change[:3], [0.2, 0.0524, 0.3339], atol=1e-4)


def test_text_cannot_leave_its_place(make_row):
  row = make_row(goal='a | b\n# c <img>', turns=1)
  row['tokens'][1] = '```\n# out'
  text = markdown.render(rows=[row])
  assert 'a \\| b # c \\<img>' in text
  assert '````text\n' in text and '\n````' in text


def test_nothing_to_report_is_a_title():
  assert markdown.render() == '# Run\n'
