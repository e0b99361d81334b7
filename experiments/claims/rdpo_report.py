"""Tables and figure of the training study of `claims.rdpo`, from its files."""

from collections.abc import Mapping, Sequence
import pathlib

from matplotlib import figure as figure_lib
import numpy as np

from experiments.claims import paired
from jaxagent.report import curves, markdown
from jaxagent.training import metrics

BASELINE = 'grpo'
# Measures of success, see `measured`.
SUCCESS = {
  'test/instruction': 'instructions, held out',
  'train/sum': 'sums, of training',
  'train/both': 'sums with style, of training',
  'test/sum': 'sums, held out',
  'reward/success': 'all, while training',
}
DIAGNOSTICS = {
  'scores/participation': 'participation',
  'scores/domination': 'domination',
  'summed/eta_proj': 'eta_proj',
  'summed/eta_corr': 'eta_corr',
  'summed/eta_eff': 'eta_eff',
  'whitening/min_weight': 'least weight',
  'whitening/negative': 'rows with a negative weight',
  'whitening/floored': 'rows with a floored eigenvalue',
}
PAIRS = (
  'correct~length',
  'correct~style',
  'length~style',
  'constraints~style',
)
# Panels of the figure: curves of the metrics.
_PANELS = {
  'reward/correct': 'correct (sums)',
  'reward/length': 'length (sums)',
  'reward/constraints': 'constraints (instructions)',
  'reward/style': 'style',
  'reward/success': 'success of all tasks',
  'scores/participation': 'participation',
  'summed/eta_corr': 'eta_corr of what is summed',
}
_GRID = np.linspace(0, 1, 101)  # of a run


def measured(result: Mapping, of: str) -> float:
  """One number of a run.

  Args:
    result: what `rdpo.run_arm` writes.
    of: 'SPLIT/KIND', the success after training of a kind of task, or the
      name of a curve: its mean over the run.
  """
  split, _, kind = of.partition('/')
  after = result['evaluations']['after']
  if split in after:
    return after[split]['by_type'][kind]['success']
  return float(np.mean(result['curves'][of]))


def shown(interval: metrics.Interval, of: str, sign: str = '+') -> str:
  """Successes in percent, other measures as they are."""
  if of in SUCCESS:
    return paired.text(interval, sign=sign, unit='' if sign else ' %')
  return paired.text(interval, sign=sign, scale=1, digits=3, unit='')


def report(
  results: Sequence[Mapping],
  *,
  title: str,
  about: str,
  arms: Sequence[str],
  claims: Sequence[paired.Claim],
  figure: pathlib.Path,
) -> str:
  """Markdown of everything that the result files say; draws the figure.

  Args:
    results: what `rdpo.run_arm` writes.
    title: headline.
    about: what the setting is.
    arms: in the order to show; those without a result are left out.
    claims: judged by paired differences of `measured`.
    figure: PNG to write.
  """
  of_arm = {a: [r for r in results if r['arm'] == a] for a in arms}
  of_arm = {a: runs for a, runs in of_arm.items() if runs}
  _draw(of_arm, figure, title)
  lines = [
    f'# {title}',
    about,
    _start(results),
    f'![Rewards while training]({figure.name})',
    '## Success',
    'After training, of replies sampled at temperature 1; and the mean over'
    ' all updates. Means over seeds with 95 % t-intervals.',
    _table(of_arm, SUCCESS),
    f'Differences to {BASELINE}, paired by seed, in points:',
    _differences(of_arm, results),
    '## Rewards after training, held-out tasks',
    _rewards(of_arm),
    '## What was summed, means over a run',
    _table(of_arm, DIAGNOSTICS),
    '## Correlations of rewards',
    'As they come, as scores before whitening (where there is one), and as'
    ' they are summed; means over a run.',
    _correlations(of_arm),
  ]
  rows = paired.judge(claims, results, measured, shown)
  if rows:
    lines += [
      '## The claims, one by one',
      f'{_noise(results)} Of these {len(rows)} intervals one in twenty misses'
      ' the truth by chance.',
      markdown.table(['claim', 'difference [95 % t]', 'here'], rows),
    ]
  lines += ['## Where it was run', paired.where(results)]
  return '\n\n'.join(lines) + '\n'


def _start(results):
  before = results[0]['evaluations']['before']
  parts = [
    f'{label} {100 * before[split]["by_type"][kind]["success"]:.1f} %'
    f' (n = {before[split]["by_type"][kind]["n"]})'
    for of, label in SUCCESS.items()
    for split, kind in [of.split('/')]
    if split in before
  ]
  return f'Before RL: {"; ".join(parts)}.'


def _noise(results):
  one = results[0]['evaluations']['after']['test']['by_type']['instruction']
  error = (one['success'] * (1 - one['success']) / one['n']) ** 0.5
  return (
    f'A success after training is of {one["n"]} replies, which alone leaves it'
    f' a standard error of {100 * error:.1f} points; with few seeds an interval'
    ' can be narrower than that by luck.'
  )


def _table(of_arm, measures):
  rows = []
  for arm, runs in of_arm.items():
    row = [arm, str(len(runs))]
    for of in measures:
      row.append('–')
      if _has(runs[0], of):
        values = metrics.mean_interval([measured(r, of) for r in runs])
        row[-1] = shown(values, of, sign='')
    rows.append(row)
  return markdown.table(['arm', 'seeds', *measures.values()], rows)


def _has(result, of):
  return (
    of in result['curves']
    or of.partition('/')[0] in (result['evaluations']['after'])
  )


def _differences(of_arm, results):
  rows = []
  for arm in of_arm:
    if arm == BASELINE:
      continue
    row = [arm]
    for of in SUCCESS:
      got = paired.difference(results, arm, BASELINE, of, measured)
      row.append('–' if got is None else shown(got, of))
    rows.append(row)
  return markdown.table(['arm', *SUCCESS.values()], rows)


def _rewards(of_arm):
  names = ('correct', 'length', 'constraints', 'style')
  rows = []
  for arm, runs in of_arm.items():
    row = [arm]
    for name in names:
      scale = runs[0]['scales'].get(name, 1)
      values = [
        r['evaluations']['after']['test']['rewards'][name] / scale for r in runs
      ]
      got = metrics.mean_interval(values)
      row.append(paired.text(got, scale=1, digits=3, unit=''))
    rows.append(row)
  return markdown.table(['arm', *names], rows)


def _correlations(of_arm):
  rows = []
  for arm, runs in of_arm.items():
    row = [arm]
    for pair in PAIRS:
      names = [
        f'{side}/correlation/{pair}'
        for side in ('rewards', 'whitening', 'summed')
      ]
      means = [
        np.mean([measured(r, name) for r in runs])
        for name in names
        if all(name in r['curves'] for r in runs)
      ]
      row.append(' → '.join(f'{mean:.2f}' for mean in means))
    rows.append(row)
  return markdown.table(['arm', *PAIRS], rows)


def _draw(of_arm, path, title):
  figure = figure_lib.Figure(figsize=(13, 5.6), layout='constrained')
  *panels, last = figure.subplots(2, 4).flat
  for axes, (name, label) in zip(panels, _PANELS.items(), strict=True):
    for index, (arm, runs) in enumerate(of_arm.items()):
      scale = runs[0]['scales'].get(name.removeprefix('reward/'), 1)
      lines = [_line(r['curves'][name]) / scale for r in runs]
      at = _GRID * len(runs[0]['curves']['reward/success'])
      curves.over_seeds(axes, at, lines, index, label=arm)
    axes.set_title(label, loc='left', fontsize=9.5)
    axes.set_xlabel('update', fontsize=8)
  _dots(last, of_arm, 'test/instruction')
  for axes in figure.axes:
    curves.tidy(axes)
  handles, labels = figure.axes[0].get_legend_handles_labels()
  figure.legend(
    handles, labels, loc='outside lower center', ncols=len(labels), fontsize=9,
    frameon=False,
  )  # fmt: skip
  figure.suptitle(
    f'{title}: mean over seeds and their range', x=0.01, ha='left', fontsize=11
  )
  figure.savefig(path, dpi=120, facecolor='white')


def _line(values):
  """A curve on `_GRID`; an update without such a task is left out of it."""
  smooth = curves.running_mean(values)
  return np.interp(_GRID, np.linspace(0, 1, len(smooth)), smooth)


def _dots(axes, of_arm, of):
  for index, runs in enumerate(of_arm.values()):
    colour = curves.COLOURS[index % len(curves.COLOURS)]
    values = [measured(r, of) for r in runs]
    got = metrics.mean_interval(values)
    axes.plot([index, index], [got.low, got.high], color=colour, lw=2)
    axes.plot(index, got.mean, 'o', color=colour, ms=6)
    axes.plot([index + 0.2] * len(values), values, '_', color='#777777', ms=6)
  axes.set_ylim(0, 1)
  axes.set_xticks(range(len(of_arm)), list(of_arm), rotation=35, fontsize=8)
  axes.set_title(f'{SUCCESS[of]}: success, 95 % t', loc='left', fontsize=9.5)
