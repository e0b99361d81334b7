"""Curves of a run as one PNG, and a figure that compares arms.

Colours are those of Okabe and Ito (told apart by colour-blind readers); a
panel whose columns a run lacks is left out.
"""

from collections.abc import Mapping, Sequence
import fnmatch
import math
import os
import pathlib
from typing import NamedTuple

from matplotlib import axes as axes_lib
from matplotlib import figure as figure_lib
from matplotlib import ticker
import numpy as np

from jaxagent.training import metrics

COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_INK, _GRID = '#333333', '#e4e4e4'


class Panel(NamedTuple):
  """One small multiple.

  Attributes:
    title: what is shown.
    unit: label of the y axis.
    lines: legend -> column, or a pattern as of `fnmatch`; the first column
      that matches is drawn. An empty legend names the line by its title.
    limits: of the y axis; None leaves an end free.
    reference: value of a dashed line that tells good from bad, if any.
    log: logarithmic y axis.
  """

  title: str
  unit: str
  lines: Mapping[str, str]
  limits: tuple[float | int | None, float | int | None] = (None, None)
  reference: float | None = None
  log: bool = False


# The order of the page. `evaluation/SPLIT/{success,low,high}` is drawn into
# the first panel.
PANELS = (
  Panel('Success', 'share of episodes', {'training': '*/success'}, (0, 1)),
  Panel('Policy entropy', 'nats a token', {'': '*/entropy'}, (0, None)),
  Panel(
    'Distillation gate',
    'share',
    {'mean gate': '*/gate', 'gate > 0.5': '*/gate_open'},
    (0, 1),
    0.5,
  ),
  Panel(
    'Teacher gap',
    'nats a token',
    {'': '*/gap'},
    reference=0.0,
  ),
  Panel('KL to the reference', 'nats a token', {'': '*/k[l3]'}, (0, None)),
  Panel(
    'Groups by outcome',
    'share of groups',
    {
      'live': '*/live',
      'all fail': '*/all_fail',
      'all pass': '*/all_pass',
    },
    (0, 1),
  ),
  Panel(
    'Scores of a group and their sum',
    'of 1',
    {
      'participation': 'scores/participation',
      'domination': 'scores/domination',
      'efficiency of the sum': 'summed/eta_eff',
    },
    (0, 1),
  ),
  Panel(
    'Sampler against trainer',
    'max |ratio - 1|',
    {'': '*/ratio_error'},
    log=True,
  ),
  Panel('Gradient norm', 'before clipping', {'': 'gradient/norm'}, (0, None)),
  Panel('Negative log-likelihood', 'nats a token', {'': '*/nll'}, (0, None)),
  Panel(
    'Episodes by end',
    'share of episodes',
    {
      'by itself': 'status/done',
      'turn limit': 'status/turn_limit',
      'context limit': 'status/context_limit',
      'environment error': 'status/env_error',
    },
    (0, 1),
  ),
  Panel('Turns', 'turns an episode', {'': '*/turns'}, (0, None)),
  Panel('Invalid actions', 'actions an episode', {'': '*/invalid'}, (0, None)),
)


def plot(
  workdir: str | os.PathLike,
  path: str | os.PathLike | None = None,
  *,
  panels: Sequence[Panel] = PANELS,
  title: str = '',
) -> list[str]:
  """Draws `metrics.jsonl` of a workdir as small multiples.

  Raw values are points, a centred running mean over a tenth of the run is the
  line, and evaluations are marks with their 95 % intervals.

  Args:
    workdir: folder of the run, or a `metrics.jsonl`.
    path: PNG to write; `curves.png` beside the metrics by default.
    panels: what to draw, in order.
    title: headline of the figure.

  Returns:
    Titles of the panels that were drawn.

  Raises:
    ValueError: the metrics have none of the panels' columns.
  """
  workdir = pathlib.Path(workdir)
  folder = workdir if workdir.is_dir() else workdir.parent
  columns = metrics.read(workdir)
  chosen = [
    (panel, found)
    for panel in panels
    if (found := _found(panel, columns)) or _evaluated(panel, columns)
  ]
  if not chosen:
    raise ValueError(
      f'No panel has a column among {sorted(columns)}. Name metrics like the'
      ' patterns in `jaxagent.report.curves.PANELS`, or pass `panels`.'
    )
  wide = len(chosen) > 1
  cells = len(chosen) + wide
  across = min(3, cells)
  down = math.ceil(cells / across)
  figure = figure_lib.Figure(
    figsize=(3.6 * across + 0.4, 2.5 * down + 0.4), layout='constrained'
  )
  grid = figure.add_gridspec(down, across)
  place = 0
  for index, (panel, found) in enumerate(chosen):
    span = 2 if wide and index == 0 and across > 1 else 1
    row, column = divmod(place, across)
    _draw(
      figure.add_subplot(grid[row, column : column + span]),
      panel,
      found,
      columns,
    )
    place += span
  if title:
    figure.suptitle(title, x=0.01, ha='left', fontsize=12, color=_INK)
  figure.savefig(path or folder / 'curves.png', dpi=130, facecolor='white')
  return [panel.title for panel, _ in chosen]


def find(columns: Mapping[str, np.ndarray], pattern: str) -> str | None:
  """The first training column with a number whose name fits the pattern."""
  return next(
    (
      name
      for name in sorted(fnmatch.filter(columns, pattern))
      if not name.startswith('evaluation/') and np.isfinite(columns[name]).any()
    ),
    None,
  )


def _found(panel: Panel, columns: Mapping[str, np.ndarray]) -> dict[str, str]:
  """Legend -> name of the column that holds the line."""
  names = {k: find(columns, pattern) for k, pattern in panel.lines.items()}
  return {legend: name for legend, name in names.items() if name}


def _evaluated(panel: Panel, columns: Mapping[str, np.ndarray]) -> list[str]:
  """Splits whose evaluations belong in the panel."""
  if not any('success' in pattern for pattern in panel.lines.values()):
    return []
  names = fnmatch.filter(columns, 'evaluation/*/success')
  return sorted(n.split('/')[1] for n in names)


def _draw(
  axes: axes_lib.Axes,
  panel: Panel,
  found: Mapping[str, str],
  columns: Mapping[str, np.ndarray],
) -> None:
  colours = iter(COLOURS * 4)
  for legend, name in found.items():
    steps, values = _finite(columns, name)
    if panel.log:
      values = np.maximum(values, 1e-9)
    colour = next(colours)
    size = 3.5 if len(values) > 40 else 6
    axes.plot(steps, values, '.', ms=size, mew=0, color=colour, alpha=0.35)
    axes.plot(
      steps, running_mean(values), lw=1.8, color=colour, label=legend or None
    )
  for index, split in enumerate(_evaluated(panel, columns)):
    _evaluations(axes, columns, split, index, next(colours))
  if panel.reference is not None:
    axes.axhline(panel.reference, lw=0.9, ls='--', color='#8a8a8a', zorder=1)
  if panel.log:
    axes.set_yscale('log')
  _limit(axes, panel.limits)
  tidy(axes)
  axes.set_title(panel.title, loc='left', fontsize=10.5, color=_INK)
  axes.set_ylabel(panel.unit, fontsize=8.5, color=_INK)
  axes.set_xlabel('step', fontsize=8.5, color=_INK)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
  if axes.get_legend_handles_labels()[1]:
    axes.legend(frameon=False, fontsize=8, labelcolor=_INK)


def _finite(
  columns: Mapping[str, np.ndarray], name: str
) -> tuple[np.ndarray, np.ndarray]:
  keep = np.isfinite(columns[name])
  return columns['step'][keep], columns[name][keep]


def _evaluations(
  axes: axes_lib.Axes,
  columns: Mapping[str, np.ndarray],
  split: str,
  index: int,
  colour: str,
) -> None:
  steps, means = _finite(columns, f'evaluation/{split}/success')
  bounds = [f'evaluation/{split}/{end}' for end in ('low', 'high')]
  errors = None
  if all(name in columns for name in bounds):
    keep = np.isfinite(columns[f'evaluation/{split}/success'])
    low, high = (columns[name][keep] for name in bounds)
    # Where an end is unknown the bar has no length.
    errors = np.nan_to_num(np.maximum([means - low, high - means], 0))
  # Set side by side, else the bars of splits hide each other.
  span = int(np.ptp(columns['step']))
  axes.errorbar(
    steps + 0.006 * span * index,
    means,
    yerr=errors,
    fmt='o',
    ms=5,
    mfc='white',
    mew=1.6,
    capsize=3,
    elinewidth=1.4,
    color=colour,
    label=f'evaluation, {split} (95 %)',
    zorder=3,
  )


def _limit(
  axes: axes_lib.Axes, limits: tuple[float | int | None, float | int | None]
) -> None:
  low, high = limits
  if (low, high) == (0, 1):
    axes.set_ylim(-0.03, 1.03)
  elif low is not None or high is not None:
    bottom, top = axes.get_ylim()
    low = bottom if low is None else low
    # Headroom: a constant would lie on the upper edge.
    axes.set_ylim(low, top + 0.08 * (top - low) if high is None else high)


def tidy(axes: axes_lib.Axes) -> None:
  """Takes away what says nothing: frame, ticks; leaves a light grid."""
  axes.grid(axis='y', color=_GRID, lw=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(labelsize=8, length=0, colors=_INK)
  for side in ('top', 'right', 'left'):
    axes.spines[side].set_visible(False)
  axes.spines['bottom'].set_color('#b0b0b0')


def running_mean(
  values: np.ndarray | Sequence, *, window: int | None = None
) -> np.ndarray:
  """Centred mean, f64[n] -> f64[n]; at the ends over what there is.

  Args:
    values: f[n], finite.
    window: odd number of values; a tenth of n by default, at least 5.
  """
  values = np.asarray(values, float)
  if values.size == 0:
    return values
  window = window or max(5, values.size // 10) | 1
  half = window // 2
  sums = np.concatenate([[0.0], np.cumsum(values)])
  at = np.arange(values.size)
  low = np.maximum(at - half, 0)
  high = np.minimum(at + half + 1, values.size)
  return (sums[high] - sums[low]) / (high - low)


def over_seeds(
  axes: axes_lib.Axes,
  at: Sequence | np.ndarray,
  lines: Sequence[Sequence | np.ndarray],
  index: int,
  *,
  label: str,
) -> None:
  """Draws the mean of the runs of an arm, and their range behind it.

  Args:
    axes: to draw on.
    at: f[n], the steps.
    lines: f[n] each, one a seed.
    index: of the arm, for its colour; where colours run out, lines are dashed.
    label: of the arm.
  """
  colour = COLOURS[index % len(COLOURS)]
  style = '-' if index < len(COLOURS) else '--'
  lines = np.asarray(lines, float)
  axes.plot(at, lines.mean(0), style, color=colour, lw=1.6, label=label)
  axes.fill_between(
    at, lines.min(0), lines.max(0), color=colour, alpha=0.13, lw=0
  )


def compare(
  results: Mapping[str, Sequence | np.ndarray],
  path: str | os.PathLike,
  *,
  label: str = 'success',
  baseline: str | None = None,
  limits: tuple[float | int, float | int] | None = (0.0, 1.0),
  title: str = '',
) -> dict[str, metrics.Interval]:
  """Draws arms beside each other: every seed, the mean, its 95 % t-interval.

  Args:
    results: arm -> one value a seed, in the order to show from the top.
    path: PNG to write.
    label: what the values are.
    baseline: arm whose mean is continued as a dashed line.
    limits: of the value axis; None fits the values.
    title: headline.

  Returns:
    arm -> mean and interval (bounds nan for one seed).

  Raises:
    ValueError: no arm, a baseline that is none, or a value not finite.
  """
  if not results or (baseline is not None and baseline not in results):
    raise ValueError(
      f'Wanted at least one arm, and a baseline among them; got the arms'
      f' {list(results)} and the baseline {baseline!r}.'
    )
  intervals = {arm: metrics.mean_interval(v) for arm, v in results.items()}
  figure = figure_lib.Figure(
    figsize=(7.2, 0.52 * len(results) + 1.3), layout='constrained'
  )
  axes = figure.add_subplot()
  if baseline is not None:
    axes.axvline(
      intervals[baseline].mean, lw=0.9, ls='--', color='#8a8a8a', zorder=1
    )
  for at, (arm, interval) in enumerate(intervals.items()):
    colour = COLOURS[1] if arm == baseline else COLOURS[0]
    axes.plot([interval.low, interval.high], [at, at], color=colour, lw=2.2)
    axes.plot(interval.mean, at, 'o', ms=7.5, color=colour)
    seeds = np.asarray(results[arm], float)
    axes.plot(seeds, np.full(seeds.size, at + 0.22), '|', ms=6, color='#777777')
  names = [f'{arm}  (n={i.n})' for arm, i in intervals.items()]
  axes.set_yticks(range(len(names)), names)
  axes.set_ylim(len(names) - 0.4, -0.6)
  if limits is not None:
    axes.set_xlim(*limits)
  tidy(axes)
  axes.grid(axis='y', visible=False)
  axes.grid(axis='x', color=_GRID, lw=0.8)
  axes.tick_params(axis='y', labelsize=9.5)
  axes.set_xlabel(
    f'{label}: mean, 95 % t-interval, ticks are seeds', fontsize=8.5
  )
  if title:
    axes.set_title(title, loc='left', fontsize=11, color=_INK)
  figure.savefig(path, dpi=130, facecolor='white')
  return intervals
