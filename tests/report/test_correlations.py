"""Heat maps of reward correlations hold what the metrics hold."""

from matplotlib import image
import numpy as np

from jaxagent import report
from jaxagent.report import correlations
from jaxagent.training import metrics

ROWS = [
  {
    'rewards/correlation/right~short': 0.2 * step,
    'rewards/correlation/short~style': 0.8,
    'summed/correlation/right~short': 0.0,
  }
  for step in range(4)
]


def written(folder, rows):
  with metrics.Writer(folder) as writer:
    for step, values in enumerate(rows):
      writer.write(step, values)
  return metrics.read(folder)


def test_matrices_are_means_of_the_second_half(tmp_path):
  found = correlations.matrices(written(tmp_path, ROWS))
  names, matrix = found['rewards']
  assert names == ['right', 'short', 'style']
  np.testing.assert_allclose(
    matrix, [[1, 0.5, np.nan], [0.5, 1, 0.8], [np.nan, 0.8, 1]]
  )
  names, matrix = found['summed']
  assert names == ['right', 'short'] and matrix[0, 1] == 0


def test_the_report_shows_them(tmp_path):
  written(tmp_path, ROWS)
  made = report.write(tmp_path)
  assert image.imread(made['correlations.png'])[..., :3].std() > 0.01
  assert '](correlations.png)' in made['report.md'].read_text()


def test_one_reward_has_none(tmp_path):
  columns = written(tmp_path, [{'policy/entropy': 1.0}])
  assert correlations.plot(columns, tmp_path / 'x.png') == {}
  assert 'correlations.png' not in report.write(tmp_path)
  assert not (tmp_path / 'x.png').exists()
