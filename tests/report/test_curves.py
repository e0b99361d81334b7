"""Figures show what the metrics hold, and say so when there is nothing."""

from matplotlib import figure as figure_lib
from matplotlib import image
import numpy as np
import pytest

from jaxagent.report import curves
from jaxagent.training import metrics


def _workdir(folder, rows):
  with metrics.Writer(folder) as writer:
    for step, values in rows:
      writer.write(step, values)
  return folder


def test_panels_follow_the_columns(tmp_path, curve_rows):
  drawn = curves.plot(_workdir(tmp_path, curve_rows))
  assert drawn == [
    'Success',
    'Policy entropy',
    'Distillation gate',
    'Teacher gap',
    'Groups by outcome',
    'Sampler against trainer',
  ]
  pixels = image.imread(tmp_path / 'curves.png')
  assert pixels.shape[0] > 300 and pixels[..., :3].std() > 0.01


def test_one_panel_is_a_figure_too(tmp_path):
  path = tmp_path / 'one.png'
  _workdir(
    tmp_path, [(0, {'policy/kl': 0.1}), (1, {'policy/kl': float('nan')})]
  )
  assert curves.plot(tmp_path, path) == ['KL to the reference']
  assert path.exists() and not (tmp_path / 'curves.png').exists()


def test_evaluations_alone_are_drawn(tmp_path):
  rows = [(s, {'evaluation/seen/success': 0.1 * s}) for s in range(3)]
  assert curves.plot(_workdir(tmp_path, rows)) == ['Success']


def test_no_known_column_is_an_error(tmp_path):
  _workdir(tmp_path, [(0, {'a/b': 1})])
  with pytest.raises(ValueError, match='a/b.*PANELS'):
    curves.plot(tmp_path)


def test_every_column_of_an_evaluation_is_left_to_the_first_panel():
  columns = {'evaluation/seen/success': np.array([0.1])}
  assert curves.find(columns, '*/success') is None


def test_a_column_without_numbers_is_not_found():
  columns = {
    'a/kl': np.array([np.nan]),
    'b/kl': np.array([np.nan, 1.0]),
  }
  assert curves.find(columns, '*/kl') == 'b/kl'


def test_running_mean_against_slices():
  values = np.random.default_rng(0).normal(size=40)
  expected = [values[max(0, i - 3) : i + 4].mean() for i in range(40)]
  np.testing.assert_allclose(
    curves.running_mean(values, window=7), expected, atol=1e-12
  )


def test_running_mean_keeps_a_constant_and_the_empty():
  np.testing.assert_allclose(curves.running_mean([2, 2, 2]), [2, 2, 2])
  assert curves.running_mean([]).size == 0


def test_compare_returns_the_t_intervals(tmp_path):
  arms = {'grpo': [0.5, 0.6, 0.7], 'sdar': [0.6, 0.7, 0.8], 'none': [0.2]}
  path = tmp_path / 'arms.png'
  intervals = curves.compare(arms, path, baseline='grpo', title='Arms')
  assert intervals['grpo'] == metrics.mean_interval(arms['grpo'])
  assert intervals['none'].n == 1
  assert image.imread(path)[..., :3].std() > 0.01


@pytest.mark.parametrize(
  'arms, baseline', [({}, None), ({'sdar': [0.5]}, 'grpo')]
)
def test_compare_needs_arms_and_a_known_baseline(tmp_path, arms, baseline):
  with pytest.raises(ValueError, match='at least one arm'):
    curves.compare(arms, tmp_path / 'arms.png', baseline=baseline)


def test_over_seeds_draws_the_mean_and_the_range():
  axes = figure_lib.Figure().subplots()
  lines = [[0.0, 1.0, 4.0], [2.0, 3.0, 0.0]]
  curves.over_seeds(axes, [0, 10, 20], lines, 7, label='arm')
  (line,) = axes.get_lines()
  assert line.get_label() == 'arm' and line.get_linestyle() == '--'
  np.testing.assert_allclose(line.get_xydata(), [[0, 1], [10, 2], [20, 2]])
  (band,) = axes.collections
  ends = band.get_paths()[0].get_extents()
  assert (ends.ymin, ends.ymax) == (0.0, 4.0)
