"""Tables and figure of the synthetic study of `claims.rdpo`, from its files."""

from collections.abc import Mapping
import json
import pathlib

from matplotlib import figure as figure_lib
import numpy as np

from experiments.claims import paired, rdpo_synthetic
from jaxagent.report import curves, markdown
from jaxagent.training import metrics

# Shown along the dials: measure -> (what it is, reference line).
_SHOWN = {
  'aspects': ('correlation with aspects', None),
  'rewards': ('correlation with rewards', None),
  'first': ('share of aspect 1', 1 / 3),
  'participation': ('participation', None),
}
_OF_STRESS = ('min_weight', 'wrong_order', 'rewards', 'aspects')
_SEVERE = list(rdpo_synthetic.DIALS['together'][1])[-1]
SAME = 1e-5  # rounding of float32


def _claims(text, arm, other, *of, expected='more'):
  """A claim at several places: (dial or stress, label, measure)."""
  return [
    paired.Claim(
      f'{text}; {" = ".join(filter(None, (where, label)))}, {measure}',
      arm,
      other,
      expected,
      f'{where}|{label}|{measure}',
    )
    for where, label, measure in of
  ]


_PAIR = next(iter(rdpo_synthetic.STRESSES))
CLAIMS = [
  *_claims(
    '(a) RDPO spreads scores over more of a group than GDPO', 'rdpo', 'gdpo',
    ('tail', '0', 'participation'), ('tail', '1', 'participation'),
    ('success', '0.1', 'participation'),
  ),
  *_claims(
    '(a) RDPO is less dominated than GDPO', 'rdpo', 'gdpo',
    ('tail', '0', 'domination'), ('tail', '1', 'domination'), expected='less',
  ),
  *_claims(
    '(a) what RDPO sums is less correlated than with GDPO', 'rdpo', 'gdpo',
    ('rho', '0', 'eta_corr'), ('rho', '0.8', 'eta_corr'),
  ),
  *_claims(
    '(b) GDPO is better than GRPO', 'gdpo', 'grpo',
    ('scale', '1', 'aspects'), ('scale', '10', 'aspects'),
  ),
  *_claims(
    '(b) RDPO is better than GRPO', 'rdpo', 'grpo',
    ('scale', '1', 'aspects'), ('scale', '10', 'aspects'),
    ('together', _SEVERE, 'aspects'),
  ),
  *_claims(
    '(b) RDPO is better than GDPO', 'rdpo', 'gdpo',
    ('scale', '10', 'aspects'), ('together', _SEVERE, 'aspects'),
  ),
  *_claims(
    '(c) quantiles are better than z-scores', 'quantile', 'gdpo',
    ('tail', '0', 'aspects'), ('tail', '1', 'aspects'),
    ('success', '0.1', 'aspects'),
  ),
  *_claims(
    '(c) whitening is better than none', 'whitening', 'gdpo',
    ('rho', '0', 'aspects'), ('rho', '0.6', 'aspects'),
    ('rho', '0.95', 'aspects'), ('rho', '0.95', 'rewards'),
  ),
  *_claims(
    '(e) literal whitening reverses pairs', 'whitened', 'sum',
    (_PAIR, '', 'wrong_order'),
  ),
  *_claims(
    '(e) guarded whitening reverses none', 'whitened, guarded', 'sum',
    (_PAIR, '', 'wrong_order'), expected='equal',
  ),
  *_claims(
    '(e) literal whitening is worse than the sum', 'whitened', 'sum',
    (_PAIR, '', 'rewards'), (_PAIR, '', 'aspects'), expected='less',
  ),
  *_claims(
    '(e) guarded is better than literal', 'whitened, guarded', 'whitened',
    (_PAIR, '', 'rewards'), (_PAIR, '', 'aspects'),
  ),
  *_claims(
    'ours: RDPO is better with centred quantiles', 'rdpo_centred', 'rdpo',
    ('tail', '0', 'aspects'), ('tail', '1', 'aspects'),
    ('success', '0.1', 'aspects'), ('together', _SEVERE, 'aspects'),
  ),
  *_claims(
    'ours: centred quantiles are better than z-scores, both whitened',
    'rdpo_centred', 'whitening', ('tail', '0', 'aspects'),
    ('tail', '1', 'aspects'), ('success', '0.1', 'aspects'),
  ),
]  # fmt: skip


def load(folder: pathlib.Path) -> dict[str, dict]:
  """File name without suffix -> what `rdpo_synthetic.run` wrote.

  Raises:
    FileNotFoundError: a part is not there.
  """
  names = [*rdpo_synthetic.DIALS, 'stress', 'control']
  missing = [n for n in names if not (folder / f'{n}.json').exists()]
  if missing:
    raise FileNotFoundError(f'No result of {missing} in {folder} yet.')
  return {n: json.loads((folder / f'{n}.json').read_text()) for n in names}


def write(folder: pathlib.Path, stem: pathlib.Path) -> str:
  """Writes STEM.md and STEM.png from the results in a folder; the text."""
  found = load(folder)
  figure = stem.with_suffix('.png')
  _draw(found, figure)
  lines = [
    '# RDPO: rewards of known quality',
    'No model: three rewards of a reply show three independent aspects of it,'
    ' and a dial distorts reward 1 or makes reward 2 follow it'
    ' (`rdpo_synthetic.py` has the definitions). An advantage is as good as its'
    ' correlation with the sum of the aspects, where each counts once, or with'
    ' the sum of the undistorted rewards. Means over seeds with 95 %'
    ' t-intervals. Whitened arms are dashed.',
    f'![Advantages along the dials]({figure.name})',
  ]
  rows = paired.judge(CLAIMS, _records(found), _value, _show) + _control(found)
  rows.sort(key=lambda row: row[0][:3])  # the letter
  lines += [
    '## The claims, one by one',
    markdown.table(['claim', 'difference [95 % t]', 'here'], rows),
    '## Where whitening has negative weights',
  ]
  for name, arms in found['stress'].items():
    lines += [f'{name[0].upper()}{name[1:]}:', _stress(arms)]
  for measure, (what, _) in _SHOWN.items():
    lines.append(f'## {what[0].upper()}{what[1:]}')
    for dial, (label, _) in rdpo_synthetic.DIALS.items():
      lines += [f'Dial: {label}', _along(found[dial], measure)]
  text = '\n\n'.join(lines) + '\n'
  stem.with_suffix('.md').write_text(text)
  return text


def _interval(values):
  got = metrics.mean_interval(values)
  return paired.text(got, scale=1, digits=3, unit='')


def _along(by_label, measure):
  arms = next(iter(by_label.values()))
  rows = [
    [arm, *(_interval(by_label[label][arm][measure]) for label in by_label)]
    for arm in arms
  ]
  return markdown.table(['arm', *by_label], rows)


def _stress(arms):
  rows = [
    [arm, *(_interval(of[m]) if m in of else '–' for m in _OF_STRESS)]
    for arm, of in arms.items()
  ]
  return markdown.table(['arm', *_OF_STRESS], rows)


def _control(found: Mapping[str, Mapping]) -> list[list[str]]:
  """Claim (d): the largest difference of any advantage."""
  isotropic, chance = (max(v) for v in found['control'].values())
  said = 'shown' if isotropic < SAME else 'contradicted'
  return [
    [
      '(d) RDPO is GDPO for balanced groups of 0 and 1 without correlation:'
      ' largest difference of an advantage',
      f'{isotropic:.1e}',
      said,
    ],
    ['(d) the same with correlations by chance', f'{chance:.1e}', 'no claim'],
  ]


def _records(found):
  """One result an arm and seed, as `paired` reads them."""
  records = {}
  for dial in (*rdpo_synthetic.DIALS, 'stress'):
    for label, arms in found[dial].items():
      where = f'{label}|' if dial == 'stress' else f'{dial}|{label}'
      for arm, of in arms.items():
        for measure, values in of.items():
          for seed, value in enumerate(values):
            record = records.setdefault(
              (arm, seed), {'arm': arm, 'seed': seed, 'values': {}}
            )
            record['values'][f'{where}|{measure}'] = value
  return list(records.values())


def _value(record, of):
  return record['values'][of]


def _show(interval, of):
  del of
  return paired.text(interval, sign='+', scale=1, digits=3, unit='')


def _draw(found, path):
  dials = rdpo_synthetic.DIALS
  figure = figure_lib.Figure(
    figsize=(3.0 * len(dials), 2.4 * len(_SHOWN)), layout='constrained'
  )
  grid = figure.subplots(len(_SHOWN), len(dials), sharey='row')
  for axes, (label, _) in zip(grid[0], dials.values(), strict=True):
    axes.set_title(label, loc='left', fontsize=9)
  for row, (measure, (what, reference)) in zip(
    grid, _SHOWN.items(), strict=True
  ):
    for axes, dial in zip(row, dials, strict=True):
      _lines(axes, found[dial], measure)
      if reference is not None:
        axes.axhline(reference, lw=0.9, ls='--', color='#8a8a8a', zorder=1)
      curves.tidy(axes)
    row[0].set_ylabel(what, fontsize=9)
  handles, labels = grid[0, 0].get_legend_handles_labels()
  figure.legend(
    handles, labels, loc='outside lower center', ncols=len(labels), fontsize=9,
    frameon=False,
  )  # fmt: skip
  figure.savefig(path, dpi=110, facecolor='white')


def _lines(axes, by_label, measure):
  at = np.arange(len(by_label))
  arms = next(iter(by_label.values()))
  for index, arm in enumerate(arms):
    intervals = [
      metrics.mean_interval(of[arm][measure]) for of in by_label.values()
    ]
    mean, low, high = np.array([i[:3] for i in intervals]).T
    colour = curves.COLOURS[index % len(curves.COLOURS)]
    whitened = 'min_weight' in arms[arm]
    style = '--' if whitened else '-'  # they often lie on the others
    axes.plot(at, mean, style, marker='o', ms=3.5, color=colour, label=arm)
    axes.fill_between(at, low, high, color=colour, alpha=0.15, lw=0)
  labels = [label.replace(', ', '\n') for label in by_label]
  axes.set_xticks(at, labels)
