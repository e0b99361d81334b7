"""Tables and figure of `claims.aopd`, from its result files alone."""

from collections.abc import Callable, Mapping, Sequence
import json
import math
import pathlib
from typing import NamedTuple

from matplotlib import figure as figure_lib
import numpy as np

from experiments.claims import paired, runs
from jaxagent.report import curves, markdown
from jaxagent.training import metrics

BASELINE = 'opd'
SUMS, PRODUCTS = 'test_sum', 'test_product'
EARLY = 4  # evaluations, from the one before training on
FOUND = 0.1  # share of ';' at which a student has found it
STEPS_APART = 10  # between evaluations


class Measure(NamedTuple):
  """One number of a run.

  Attributes:
    title: of its column.
    of: the number, from a result.
    share: whether it is shown in percent.
  """

  title: str
  of: Callable[[Mapping], float]
  share: bool = True


def _after(split, field):
  return lambda r: r['evaluations']['after'][split][field]


def _change(split, field):
  def of(result):
    before, after = (result['evaluations'][w] for w in ('before', 'after'))
    return after[split][field] - before[split][field]

  return of


def _dip(result):
  """How far the first evaluations of sums fall below the start; at most 0."""
  seen = result['curves'][f'evaluation/{SUMS}/success'][:EARLY]
  return min(seen) - seen[0]


def _mean(column):
  return lambda r: float(np.mean(r['curves'][column]))


MEASURES = {
  'sums': Measure('sums, Pass@1', _after(SUMS, 'success')),
  'sums_4': Measure('sums, Pass@4', _after(SUMS, 'pass_at_k')),
  'dip': Measure('early dip', _dip),
  'entropy': Measure('entropy, nats', _mean('policy/entropy'), False),
  'gradient': Measure('gradient norm', _mean('gradient/norm'), False),
  'products': Measure('products, Pass@1', _after(PRODUCTS, 'success')),
  'kept': Measure('sums, change of Pass@1', _change(SUMS, 'success')),
  'kept_4': Measure('sums, change of Pass@4', _change(SUMS, 'pass_at_k')),
}
SHOWN = {
  'first': ('sums', 'sums_4', 'dip', 'entropy', 'gradient'),
  'second': ('products', 'kept', 'kept_4'),
}
# (start, stage) -> what the card expects.
CLAIMS = {
  ('weak', 'first'): (
    paired.Claim('(a) AOPD beats GKD', 'aopd', 'gkd', of='sums'),
    paired.Claim('(a) GKD beats OPD', 'gkd', 'opd', of='sums'),
    paired.Claim('(d) AOPD dips less', 'aopd', 'opd', of='dip'),
    paired.Claim('(e) smaller gradients', 'aopd', 'opd', 'less', of='gradient'),
    paired.Claim('(e) higher entropy', 'aopd', 'opd', of='entropy'),
  ),
  ('strong', 'first'): (
    paired.Claim('(b) AOPD beats OPD', 'aopd', 'opd', of='sums'),
    paired.Claim('(b) GKD is as good as OPD', 'gkd', 'opd', 'equal', of='sums'),
  ),
  ('weak', 'second'): (
    paired.Claim('(f) AOPD forgets less', 'aopd', 'opd', of='kept'),
  ),
  ('strong', 'second'): (
    paired.Claim('(f) AOPD forgets less', 'aopd', 'opd', of='kept'),
  ),
}


def measured(result: Mapping, of: str) -> float:
  """A number of a run; `of` is a name of `MEASURES`."""
  return MEASURES[of].of(result)


def write(
  folder: pathlib.Path, arms: Sequence[str], starts: Sequence[str]
) -> str:
  """Writes `FOLDER.md` and `FOLDER.png` beside the folder; returns the text.

  Raises:
    FileNotFoundError: there is no result yet.
  """
  found = {
    (start, stage): at_best_rate(runs.load(path))
    for start in starts
    for stage in SHOWN
    if (path := folder / f'{start}_{stage}').is_dir()
  }
  if not found:
    raise FileNotFoundError(f'No result in {folder} yet.')
  figure = folder.with_suffix('.png')
  _draw({s: r for (s, stage), r in found.items() if stage == 'first'}, arms,
        figure)  # fmt: skip
  lines = [
    '# AOPD and its baselines',
    'Pass@1 and Pass@4 at temperature 1 on held-out chains; mean and 95 %'
    ' t-interval over seeds, which share teacher and student; the learning'
    ' rate is that which did best in training on seed 0.',
    f'![Sums while they are distilled]({figure.name})',
  ]
  for (start, stage), results in found.items():
    lines += _section(start, stage, results, arms)
    path = folder / f'signal_{start}.json'
    if stage == 'first' and path.exists():
      lines += _signal(json.loads(path.read_text()))
  lines += ['## The claims, one by one', _claims(found)]
  everything = [r for results in found.values() for r in results]
  lines += ['## Where it was run', paired.where(everything)]
  text = '\n\n'.join(lines) + '\n'
  folder.with_suffix('.md').write_text(text)
  return text


def at_best_rate(results: Sequence[Mapping]) -> list[Mapping]:
  """Of each arm the runs at the rate that did best in training, on seed 0.

  A later stage has one rate alone, that of the stage before.
  """
  kept = []
  for arm in dict.fromkeys(r['arm'] for r in results):
    of_arm = [r for r in results if r['arm'] == arm]
    swept = [r for r in of_arm if r['seed'] == 0]
    rate = max(swept, key=_trained)['rate'] if swept else None
    kept += [r for r in of_arm if rate in (None, r['rate'])]
  return kept


def trained(path: pathlib.Path) -> float:
  """Success in the last 20 updates of the run of a result file."""
  return _trained(json.loads(path.read_text()))


def _trained(result):
  return float(np.mean(result['curves']['reward/success'][-20:]))


def updates_to_hole(result: Mapping) -> float:
  """Updates until ';' is more than FOUND of the separators; inf: never."""
  share = curves.running_mean(result['curves']['reward/rare'], window=5)
  above = np.flatnonzero(share > FOUND)
  return float(above[0]) if len(above) else math.inf


def _section(start, stage, results, arms):
  before = results[0]['evaluations']['before']
  if stage == 'second':
    title = f'## {start.capitalize()} start, after products were distilled too'
    return [title, _table(results, arms, SHOWN[stage])]
  return [
    f'## {start.capitalize()} start',
    f'Before: sums {before[SUMS]["success"]:.1%} (Pass@4'
    f' {before[SUMS]["pass_at_k"]:.1%}), products'
    f' {before[PRODUCTS]["success"]:.1%}. This student, not trained further,'
    " is the paper's SFT arm.",
    _table(results, arms, SHOWN[stage]),
    _holes(results, arms),
  ]


def _table(results, arms, names):
  head = ['arm', 'seeds', 'rate']
  for name in names:
    head += [MEASURES[name].title, f'minus {BASELINE}']
  body = []
  for arm in arms:
    of_arm = [r for r in results if r['arm'] == arm]
    if not of_arm:
      continue
    row = [arm, str(len(of_arm)), f'{of_arm[0]["rate"]:g}']
    for name in names:
      values = [measured(r, name) for r in of_arm]
      got = paired.difference(results, arm, BASELINE, name, measured)
      row += [
        shown(metrics.mean_interval(values), name),
        shown(got, name, '+') if got and arm != BASELINE else '–',
      ]
    body.append(row)
  return markdown.table(head, body)


def shown(interval: metrics.Interval, of: str, sign: str = '') -> str:
  """An interval of a measure, or of a difference of it."""
  if MEASURES[of].share:
    return paired.text(interval, sign=sign, unit='' if sign else ' %')
  return paired.text(interval, sign=sign, scale=1, digits=2, unit='')


def _holes(results, arms):
  body = []
  for arm in arms:
    of_arm = [r for r in results if r['arm'] == arm]
    if of_arm:
      found = sorted(updates_to_hole(r) for r in of_arm)
      last = [r['curves']['reward/rare'][-10:] for r in of_arm]
      body.append(
        [
          arm,
          ', '.join('never' if n == math.inf else f'{n:.0f}' for n in found),
          f'{np.mean(last):.2f}',
        ]
      )
  head = [
    'arm',
    f"updates until ';' is {FOUND:.0%} of the separators, each seed",
    'share in the last 10',
  ]
  return markdown.table(head, body)


def _claims(found):
  body = []
  for (start, stage), claims in CLAIMS.items():
    rows = paired.judge(
      claims,
      found.get((start, stage), []),
      measured,
      lambda got, of: shown(got, of, '+'),
    )
    body += [[f'{text}, {start} start', *rest] for text, *rest in rows]
  gap = _gap_of_starts(found)
  if gap:
    text = '(c) AOPD gains more on OPD from the weak start than from the strong'
    body.append([text, shown(gap, 'sums', '+'), paired.verdict('more', gap)])
  head = ['claim', 'difference [95 % t]', 'here']
  return markdown.table(head, body)


def _gap_of_starts(found):
  """AOPD minus OPD from the weak start, minus the same from the strong."""

  def gains(start):
    of = {
      (r['arm'], r['seed']): measured(r, 'sums')
      for r in found.get((start, 'first'), [])
    }
    return {
      seed: of['aopd', seed] - of['opd', seed]
      for arm, seed in of
      if arm == 'aopd' and ('opd', seed) in of
    }

  weak, strong = gains('weak'), gains('strong')
  seeds = sorted(weak.keys() & strong.keys())
  return seeds and metrics.mean_interval([weak[s] - strong[s] for s in seeds])


def _signal(signal):
  advantage, zero, hole = signal['advantage'], signal['zero'], signal['hole']
  low, high = (advantage['quantiles'][q] for q in ('0.001', '0.999'))
  rows = [
    [
      name,
      f'{x["signal"]:.3g}',
      f'{x["noise"]:.3g}',
      _or_dash(x['noise_over_signal'], '.2f'),
      _or_dash(x['towards_hole'], '+.3f'),
    ]
    for name, x in signal['terms'].items()
  ]
  head = [
    'gradient of', 'mean', 'noise of a batch', 'noise / mean',
    "cosine with raising ';'",
  ]  # fmt: skip
  return [
    f'Before the first update, {signal["rows"]:,} rows,'
    f' {signal["tokens"]:,} tokens. *Noise*: {advantage["negative_share"]:.0%}'
    ' of the tokens have no positive advantage, and'
    f' {advantage["negative_share_of_squares"]:.0%} of the sum of squares; the'
    f' 0.1 % and 99.9 % quantiles are {low:.1f} and {high:.1f} nats. *Zero*:'
    f' {zero["share"]:.0%} of the tokens have an advantage within 0.05 nats,'
    f' {zero["share_of_advantage"]:.1%} of all advantage and'
    f' {zero["share_of_forward_kl"]:.1%} of the forward KL. *Hole*: at'
    f" {hole['positions']:,} separators the student gives ';'"
    f' {_or_dash(hole["geometric_mean_probability"], ".1e")} (geometric mean),'
    ' the teacher 0.7.',
    markdown.table(head, rows),
  ]


def _or_dash(value, form):
  return '–' if value is None else format(value, form)


# column -> title, and whether it is measured every STEPS_APART updates.
_PANELS = {
  f'evaluation/{SUMS}/success': ('sums, Pass@1', True),
  'policy/entropy': ('entropy, nats', False),
  'gradient/norm': ('gradient norm', False),
  'reward/rare': ("share of ';'", False),
}


def _draw(by_start, arms, path):
  """A row of panels for each start."""
  figure = figure_lib.Figure(
    figsize=(3.3 * len(_PANELS), 2.6 * len(by_start) + 0.7),
    layout='constrained',
  )
  grid = figure.subplots(len(by_start), len(_PANELS), squeeze=False)
  for row, (start, results) in zip(grid, by_start.items(), strict=True):
    for axes, (column, (title, evaluated)) in zip(
      row, _PANELS.items(), strict=True
    ):
      for at, arm in enumerate(arms):
        lines = [r['curves'][column] for r in results if r['arm'] == arm]
        if not evaluated:
          lines = [curves.running_mean(line) for line in lines]
        if lines:
          steps = np.arange(len(lines[0])) * (STEPS_APART if evaluated else 1)
          curves.over_seeds(axes, steps, lines, at, label=arm)
      if column == 'gradient/norm':
        axes.set_yscale('log')
      axes.set_title(f'{start}: {title}', fontsize=9.5, loc='left')
      curves.tidy(axes)
  for axes in grid[-1]:
    axes.set_xlabel('update', fontsize=8)
  handles, labels = grid[0, 0].get_legend_handles_labels()
  figure.legend(
    handles, labels, loc='outside lower center', ncols=len(labels), fontsize=9,
    frameon=False,
  )  # fmt: skip
  figure.savefig(path, dpi=120, facecolor='white')
