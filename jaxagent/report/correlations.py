"""How reward columns hang together: as they come, and as they are summed.

Read from `rewards/correlation/A~B` and `summed/correlation/A~B` of the metrics
(`jaxagent.rewards.diagnostics`); a run with one reward has neither.
"""

from collections.abc import Mapping
import os

from matplotlib import figure as figure_lib
import numpy as np

_SIDES = {'rewards': 'as they come', 'summed': 'as they are summed'}
_INK = '#333333'


def matrices(
  columns: Mapping[str, np.ndarray],
) -> dict[str, tuple[list[str], np.ndarray]]:
  """Correlation matrices, as means over the second half of the run.

  Args:
    columns: as of `metrics.read`.

  Returns:
    'rewards' and 'summed', each where the metrics have it -> names of the R
    columns, and f64[R, R] with nan for a pair that was never seen together.
  """
  found = {}
  for side in _SIDES:
    prefix = f'{side}/correlation/'
    pairs = {
      tuple(name.removeprefix(prefix).split('~')): _late_mean(values)
      for name, values in columns.items()
      if name.startswith(prefix)
    }
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    if names:
      matrix = np.full((len(names), len(names)), np.nan)
      np.fill_diagonal(matrix, 1)
      for pair, value in pairs.items():
        i, j = map(names.index, pair)
        matrix[i, j] = matrix[j, i] = value
      found[side] = names, matrix
  return found


def plot(
  columns: Mapping[str, np.ndarray], path: str | os.PathLike
) -> dict[str, tuple[list[str], np.ndarray]]:
  """Draws `matrices` beside each other, where there are any, and returns them.

  Args:
    columns: as of `metrics.read`.
    path: PNG to write; nothing is written where nothing was found.
  """
  found = matrices(columns)
  if not found:
    return found
  figure = figure_lib.Figure(
    figsize=(4.2 * len(found) + 0.6, 3.8), layout='constrained'
  )
  for at, (side, (names, matrix)) in enumerate(found.items()):
    axes = figure.add_subplot(1, len(found), at + 1)
    image = axes.imshow(matrix, vmin=-1, vmax=1, cmap='RdBu_r')
    axes.set_title(_SIDES[side], loc='left', fontsize=10, color=_INK)
    axes.set_xticks(range(len(names)), names, rotation=30, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(length=0, colors=_INK)
    for i, j in np.ndindex(matrix.shape):
      value = matrix[i, j]
      text = f'{value:.2f}' if np.isfinite(value) else '–'
      colour = 'white' if abs(value) > 0.6 else _INK
      axes.text(j, i, text, ha='center', va='center', fontsize=9, color=colour)
  figure.colorbar(image, ax=figure.axes, shrink=0.8)
  figure.savefig(path, dpi=130, facecolor='white')
  return found


def _late_mean(values: np.ndarray) -> float:
  values = values[np.isfinite(values)]
  late = values[len(values) // 2 :]
  return float(late.mean()) if late.size else float('nan')
