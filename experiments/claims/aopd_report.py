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
LEARNED = 0.1  # share of ';' at which a student has found it
STEPS_APART = 10  # between evaluations

Value = Callable[[Mapping], float]


def write(
  folder: pathlib.Path, arms: Sequence[str], starts: Sequence[str]
) -> str:
  """Writes `FOLDER.md` and `FOLDER.png` beside the folder; returns the text.

  Raises:
    FileNotFoundError: there is no result yet.
  """
  found = {
    start: {
      stage: at_best_rate(runs.load(folder / f'{start}_{stage}'))
      for stage in ('first', 'second')
      if (folder / f'{start}_{stage}').is_dir()
    }
    for start in starts
  }
  found = {start: stages for start, stages in found.items() if stages}
  if not found:
    raise FileNotFoundError(f'No result in {folder} yet.')
  figure = folder.with_suffix('.png')
  _draw({s: stages['first'] for s, stages in found.items()}, arms, figure)
  lines = [
    '# AOPD and its baselines',
    'Pass@1 and Pass@4 at temperature 1 on held-out chains; mean and 95 %'
    ' t-interval over seeds, which share teacher and student.'
    f' Differences to {BASELINE} are paired by seed.',
    f'![Sums while they are distilled]({figure.name})',
  ]
  for start, stages in found.items():
    lines += _start(start, stages, arms)
  lines += ['## What the paper claims', _claims(found)]
  for start in found:
    path = folder / f'signal_{start}.json'
    if path.exists():
      lines += _signal(start, json.loads(path.read_text()))
  everything = [
    r for stages in found.values() for s in stages.values() for r in s
  ]
  lines += ['## Where it was run', paired.where(everything)]
  text = '\n\n'.join(lines) + '\n'
  folder.with_suffix('.md').write_text(text)
  return text


def at_best_rate(results):
  """Of each arm the runs at the rate that did best in training, on seed 0."""
  kept = []
  for arm in {r['arm'] for r in results}:
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


def pass_at_1(split: str, when: str = 'after') -> Value:
  """Of a result: mean success on a split."""
  return lambda r: r['evaluations'][when][split]['success']


def pass_at_4(split: str, when: str = 'after') -> Value:
  """Of a result: tasks of a split that one of four episodes solves."""
  return lambda r: r['evaluations'][when][split]['pass_at_k']


def change(of: Callable[..., Value], split: str) -> Value:
  """Of a result: what its run added."""
  return lambda r: of(split)(r) - of(split, 'before')(r)


def dip(result: Mapping) -> float:
  """How far the first evaluations of sums fall below the start; at most 0."""
  seen = result['curves'][f'evaluation/{SUMS}/success'][:EARLY]
  return min(seen) - seen[0]


def mean_of(column: str) -> Value:
  """Of a result: mean of a curve over its run."""
  return lambda r: float(np.mean(r['curves'][column]))


def updates_to_hole(result: Mapping) -> float:
  """Updates until ';' is more than LEARNED of the separators; inf: never."""
  share = curves.running_mean(result['curves']['reward/rare'], window=5)
  found = np.flatnonzero(share > LEARNED)
  return float(found[0]) if len(found) else math.inf


def _start(start, stages, arms):
  first, second = stages['first'], stages.get('second', [])
  before = first[0]['evaluations']['before']
  lines = [
    f'## {start.capitalize()} start',
    f'Before: sums {_percent(before[SUMS]["success"])} (Pass@4'
    f' {_percent(before[SUMS]["pass_at_k"])}), products'
    f' {_percent(before[PRODUCTS]["success"])}. This student, not trained'
    " further, is the paper's SFT arm.",
    _table(
      first,
      arms,
      {
        'sums, Pass@1': (pass_at_1(SUMS), 100),
        'sums, Pass@4': (pass_at_4(SUMS), 100),
        'early dip': (dip, 100),
        'entropy, nats': (mean_of('policy/entropy'), 1),
        'gradient norm': (mean_of('gradient/norm'), 1),
      },
    )
    + '\n\n'
    + _holes(first, arms),
  ]
  if second:
    lines += [
      'After products were distilled too:',
      _table(
        second,
        arms,
        {
          'products, Pass@1': (pass_at_1(PRODUCTS), 100),
          'sums, change of Pass@1': (change(pass_at_1, SUMS), 100),
          'sums, change of Pass@4': (change(pass_at_4, SUMS), 100),
        },
      ),
    ]
  return lines


def _table(results, arms, columns):
  head = ['arm', 'seeds']
  for name in columns:
    head += [name, f'minus {BASELINE}']
  body = []
  for arm in arms:
    of_arm = [r for r in results if r['arm'] == arm]
    if not of_arm:
      continue
    row = [arm, str(len(of_arm))]
    for value, scale in columns.values():
      got = metrics.mean_interval([value(r) for r in of_arm])
      row += [_shown(got, scale), '–']
      difference = _difference(results, arm, BASELINE, value)
      if arm != BASELINE and difference:
        row[-1] = _shown(difference, scale, '+')
    body.append(row)
  return markdown.table(head, body)


def _holes(results, arms):
  body = [
    [
      arm,
      ', '.join(f'{n:.0f}' if n < math.inf else 'never' for n in sorted(found)),
      f'{np.mean([r["curves"]["reward/rare"][-10:] for r in of_arm]):.2f}',
    ]
    for arm in arms
    if (of_arm := [r for r in results if r['arm'] == arm])
    for found in [[updates_to_hole(r) for r in of_arm]]
  ]
  head = [
    'arm',
    f"updates until ';' is {LEARNED:.0%} of the separators, each seed",
    'share in the last 10',
  ]
  return markdown.table(head, body)


def _difference(results, arm, other, value):
  return paired.paired_difference(
    results, arm, other, '', lambda r, _: value(r)
  )


class _Claim(NamedTuple):
  """What the card expects of two arms; `better`: 1 more, -1 less, 0 equal."""

  text: str
  start: str
  stage: str
  arm: str
  other: str
  value: Value
  better: int = 1


_FORGOTTEN = change(pass_at_1, SUMS)
CLAIMS = (
  _Claim(
    '(a) AOPD beats GKD', 'weak', 'first', 'aopd', 'gkd', pass_at_1(SUMS)
  ),
  _Claim('(a) GKD beats OPD', 'weak', 'first', 'gkd', 'opd', pass_at_1(SUMS)),
  _Claim(
    '(b) AOPD beats OPD', 'strong', 'first', 'aopd', 'opd', pass_at_1(SUMS)
  ),
  _Claim('(b) GKD is OPD', 'strong', 'first', 'gkd', 'opd', pass_at_1(SUMS), 0),
  _Claim('(d) the dip is smaller', 'weak', 'first', 'aopd', 'opd', dip),
  _Claim(
    '(e) gradients are smaller', 'weak', 'first', 'aopd', 'opd',
    mean_of('gradient/norm'), -1,
  ),
  _Claim(
    '(e) entropy is higher', 'weak', 'first', 'aopd', 'opd',
    mean_of('policy/entropy'),
  ),
  _Claim('(f) less is forgotten', 'weak', 'second', 'aopd', 'opd', _FORGOTTEN),
  _Claim('(f) less is forgotten', 'strong', 'second', 'aopd', 'opd', _FORGOTTEN),
)  # fmt: skip


def _claims(found):
  body = []
  for claim in CLAIMS:
    results = found.get(claim.start, {}).get(claim.stage, [])
    got = _difference(results, claim.arm, claim.other, claim.value)
    if got:
      body.append(
        [
          f'{claim.text}, {claim.start} start',
          f'{claim.arm} - {claim.other}',
          _shown(got, 1, '+', digits=3),
          verdict(got, claim.better),
        ]
      )
  gap = _gap_of_starts(found)
  if gap:
    body.append(
      [
        '(c) AOPD gains more on OPD from the weak start', 'weak - strong',
        _shown(gap, 1, '+', digits=3), verdict(gap, 1),
      ]
    )  # fmt: skip
  return markdown.table(['claim', 'of', 'mean [95 % t]', 'here'], body)


def _gap_of_starts(found):
  """AOPD minus OPD from the weak start, minus the same from the strong."""
  gains = {}
  for start in ('weak', 'strong'):
    of = {
      (r['arm'], r['seed']): pass_at_1(SUMS)(r)
      for r in found.get(start, {}).get('first', [])
    }
    gains[start] = {
      seed: of['aopd', seed] - of['opd', seed]
      for arm, seed in of
      if arm == 'aopd' and ('opd', seed) in of
    }
  seeds = sorted(gains['weak'].keys() & gains['strong'].keys())
  if not seeds:
    return None
  return metrics.mean_interval(
    [gains['weak'][seed] - gains['strong'][seed] for seed in seeds]
  )


def verdict(got: metrics.Interval, better: int) -> str:
  """What an interval says of a claim; `better` as in `_Claim`."""
  if got.n < 2:
    return 'one seed: open'
  if got.low <= 0 <= got.high:
    return 'not told apart' + ('' if better else ', as expected')
  return 'shown' if got.mean * better > 0 else 'contradicted'


def _signal(start, signal):
  advantage, zero, hole = signal['advantage'], signal['zero'], signal['hole']
  low, high = (advantage['quantiles'][q] for q in ('0.001', '0.999'))
  rows = [
    [
      name,
      f'{x["signal"]:.3g}',
      f'{x["noise"]:.3g}',
      _or_dash(x['noise_over_signal'], '.2f'),
      f'{x["largest_over_median_norm"]:.2f}',
      _or_dash(x['towards_hole'], '+.3f'),
    ]
    for name, x in signal['terms'].items()
  ]
  head = [
    'gradient of', 'mean', 'noise of a batch', 'noise / mean',
    'largest / median norm', "cosine with raising ';'",
  ]  # fmt: skip
  return [
    f'## What the first gradients are made of, {start} start',
    f'{signal["rows"]:,} rows, {signal["tokens"]:,} tokens. Noise:'
    f' {advantage["negative_share"]:.0%} of the tokens have a negative'
    f' advantage, and {advantage["negative_share_of_squares"]:.0%} of the sum of'
    f' squares; 0.1 % and 99.9 % quantiles {low:.2f} and {high:.2f} nats, excess'
    f' kurtosis {advantage["excess_kurtosis"]:.1f}. Zero: {zero["share"]:.0%} of'
    ' the tokens have an advantage below 0.05 nats and'
    f' {zero["share_of_advantage"]:.1%} of its sum, but'
    f' {zero["share_of_forward_kl"]:.1%} of the forward KL. Hole: at'
    f" {hole['positions']:,} separators the student gives ';'"
    f' {_or_dash(hole["geometric_mean_probability"], ".1e")} (geometric mean), the teacher'
    ' 0.7.',
    markdown.table(head, rows),
  ]


def _or_dash(value, form):
  return '–' if value is None else format(value, form)


def _percent(value):
  return f'{100 * value:.1f} %'


def _shown(got, scale, sign='', digits=None):
  digits = digits or (1 if scale == 100 else 2)
  form = f'{{:{sign}.{digits}f}}'
  unit = ' %' if scale == 100 else ''
  text = form.format(scale * got.mean) + unit
  if got.n == 1:
    return text
  low, high = (form.format(scale * x) for x in (got.low, got.high))
  return f'{text} [{low}, {high}]'


# title -> column, and whether it is measured every STEPS_APART updates.
_PANELS = {
  'sums, Pass@1': (f'evaluation/{SUMS}/success', True),
  'entropy, nats': ('policy/entropy', False),
  'gradient norm': ('gradient/norm', False),
  "share of ';'": ('reward/rare', False),
}


def _draw(by_start, arms, path):
  """A row of panels for each start: mean over seeds, and their range."""
  figure = figure_lib.Figure(
    figsize=(3.3 * len(_PANELS), 2.6 * len(by_start) + 0.4),
    layout='constrained',
  )
  grid = figure.subplots(len(by_start), len(_PANELS), squeeze=False)
  for row, (start, results) in zip(grid, by_start.items(), strict=True):
    for axes, (title, (column, evaluated)) in zip(
      row, _PANELS.items(), strict=True
    ):
      for at, arm in enumerate(arms):
        lines = [
          r['curves'][column]
          for r in results
          if r['arm'] == arm and column in r['curves']
        ]
        if not lines:
          continue
        if not evaluated:
          lines = [curves.running_mean(line) for line in lines]
        steps = np.arange(len(lines[0])) * (STEPS_APART if evaluated else 1)
        colour = curves.COLOURS[at % len(curves.COLOURS)]
        axes.plot(steps, np.mean(lines, 0), color=colour, lw=1.6, label=arm)
        axes.fill_between(
          steps, np.min(lines, 0), np.max(lines, 0), color=colour, alpha=0.15,
          lw=0,
        )  # fmt: skip
      if column == 'gradient/norm':
        axes.set_yscale('log')
      axes.set_title(f'{title}, {start}', fontsize=9, loc='left')
      axes.spines[['top', 'right']].set_visible(False)
      axes.grid(axis='y', color='#e4e4e4', lw=0.8)
      axes.tick_params(labelsize=8)
  grid[0, 0].legend(frameon=False, fontsize=8)
  for axes in grid[-1]:
    axes.set_xlabel('update', fontsize=8)
  figure.savefig(path, dpi=130, facecolor='white')
