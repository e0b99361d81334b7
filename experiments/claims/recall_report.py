"""Tables and the figure of `claims.fg2_gdn`, from its result files alone."""

from collections.abc import Mapping, Sequence
import json
import pathlib

from matplotlib import figure as figure_lib

from experiments.claims import paired
from jaxagent.report import curves, markdown
from jaxagent.training import metrics

BASELINE = 'kda'


def load(folder: pathlib.Path) -> dict[str, dict[str, list[dict]]]:
  """setting -> arm -> the runs at the arm's best learning rate.

  The best rate is that of the lowest validation loss on seed 0.

  Raises:
    FileNotFoundError: there is no result yet.
  """
  found = {}
  for path in sorted(folder.glob('*.json')):
    result = json.loads(path.read_text())
    arms = found.setdefault(result['setting'], {})
    arms.setdefault(result['arm'], []).append(result)
  if not found:
    raise FileNotFoundError(f'No result in {folder} yet.')
  return {
    setting: {arm: _best(runs) for arm, runs in arms.items()}
    for setting, arms in found.items()
  }


def _best(runs):
  swept = [r for r in runs if r['seed'] == 0 and not r['diverged']]
  if not swept:
    return []
  rate = min(swept, key=lambda r: r['validation']['loss'])['learning_rate']
  return [r for r in runs if r['learning_rate'] == rate]


def write(folder: pathlib.Path, arms: Sequence[str], settings: Mapping) -> str:
  """Writes `FOLDER.md` and `FOLDER.png` beside the folder; returns the text."""
  results = load(folder)
  names = [name for name in settings if name in results]
  figure = folder.with_suffix('.png')
  _draw(results, names, arms, figure)
  lines = [
    '# FG²-GDN and its relatives',
    'Test rows at the learning rate that is best on validation rows; mean and'
    ' 95 % t-interval over seeds, which share their data. Parameters are equal'
    ' within 1 %.',
    f'![Each arm in each setting]({figure.name})',
  ]
  for name in names:
    sizes = next(iter(results[name].values()))[0]['sizes']
    lines += [f'## {name}', _about(sizes), _rows(results[name], arms, sizes)]
  lines += ['## Where it was run', _where(results)]
  text = '\n\n'.join(lines) + '\n'
  folder.with_suffix('.md').write_text(text)
  return text


def _about(sizes):
  keys = f', {sizes["pairs"]} keys' if sizes['pairs'] else ''
  return (
    f'{sizes["task"]}: rows of {sizes["length"]} tokens{keys}, K = V ='
    f' {sizes["width"]}, {sizes["steps"]} updates.'
  )


def _measure(sizes):
  """What is compared: nats a token of text, else the share answered right."""
  return 'loss' if sizes['task'] == 'text' else 'accuracy'


def _values(runs, sizes):
  return {r['seed']: r['test'][_measure(sizes)] for r in runs}


def _rows(by_arm, arms, sizes):
  of_baseline = _values(by_arm.get(BASELINE, []), sizes)
  body = []
  for arm in arms:
    runs = by_arm.get(arm)
    if not runs:
      continue
    values = _values(runs, sizes)
    shared = sorted(values.keys() & of_baseline.keys())
    difference = '–'
    if arm != BASELINE and shared:
      difference = _interval(
        [values[seed] - of_baseline[seed] for seed in shared], sizes, '+'
      )
    body.append(
      [
        arm,
        str(len(values)),
        _interval(list(values.values()), sizes, ''),
        difference,
        f'{runs[0]["learning_rate"]:g}',
        f'{runs[0]["parameters"]:,}',
        f'{sum(r["seconds"] for r in runs) / len(runs) / 60:.1f}',
      ]
    )
  what = 'nats a token' if _measure(sizes) == 'loss' else 'answered right'
  head = ['arm', 'seeds', what, f'minus {BASELINE}', 'learning rate']
  return markdown.table(head + ['parameters', 'minutes a run'], body)


def _interval(values, sizes, sign):
  got = metrics.mean_interval(values)
  if _measure(sizes) == 'loss':
    return paired.text(got, sign=sign, scale=1, digits=4, unit='')
  return paired.text(got, sign=sign)


def _where(results):
  rows = sorted(
    {
      (r['commit'][:12], r['hardware'], r['python'], r['versions']['jax'])
      for arms in results.values()
      for runs in arms.values()
      for r in runs
    }
  )
  return markdown.table(['commit', 'hardware', 'Python', 'jax'], rows)


def _draw(results, names, arms, path):
  figure = figure_lib.Figure(
    figsize=(3.1 * len(names), 3.0), layout='constrained'
  )
  for axes, name in zip(
    figure.subplots(1, len(names), squeeze=False)[0], names, strict=True
  ):
    shown = [arm for arm in arms if results[name].get(arm)]
    for at, arm in enumerate(shown):
      runs = results[name][arm]
      sizes = runs[0]['sizes']
      values = list(_values(runs, sizes).values())
      got = metrics.mean_interval(values)
      colour = curves.COLOURS[arms.index(arm) % len(curves.COLOURS)]
      axes.plot([at, at], [got.low, got.high], color=colour, lw=2)
      axes.plot(at, got.mean, 'o', color=colour, ms=6)
      axes.plot([at + 0.2] * len(values), values, '_', color='#777777', ms=6)
    axes.set_xticks(range(len(shown)), shown, rotation=40, fontsize=8)
    axes.set_title(name, fontsize=9, loc='left')
    if _measure(sizes) == 'accuracy':
      axes.set_ylim(-0.03, 1.03)
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color='#e4e4e4', lw=0.8)
    label = 'nats a token' if _measure(sizes) == 'loss' else 'answered right'
    axes.set_ylabel(label, fontsize=8)
  figure.savefig(path, dpi=130, facecolor='white')
