"""Table and figure of `claims.sdar`, from its result files alone."""

from collections.abc import Mapping, Sequence
import pathlib

import numpy as np

from experiments.claims import paired
from jaxagent.report import curves, markdown
from jaxagent.training import metrics


def final(result: Mapping, split: str, when: str = 'after') -> float:
  """Success of one result on a split."""
  return result['evaluations'][when][split]['success']


def lost(result: Mapping, split: str) -> float:
  """What taking the skills away costs after training."""
  return final(result, f'{split}+skills') - final(result, split)


# What a claim may be of.
MEASURES = {'success': final, 'loss': lost}


def report(
  results: Sequence[Mapping],
  *,
  title: str,
  splits: Sequence[str],
  baseline: str,
  arms: Sequence[str],
  gate: float,
  figure: pathlib.Path,
  claims: Sequence[paired.Claim] = (),
) -> str:
  """Markdown of everything that the result files say; draws the figure.

  Args:
    results: what `sdar.run_arm` writes.
    title: headline.
    splits: evaluated without skills; the figure shows the first.
    baseline: arm that the others are compared with.
    arms: in the order to show; those without a result are left out.
    gate: least worth of the skills before RL.
    figure: PNG to write.
    claims: judged on the first split, each by its paired difference; of a
      key of `MEASURES`.
  """
  arms = [a for a in arms if any(r['arm'] == a for r in results)]
  of_arm = {a: [r for r in results if r['arm'] == a] for a in arms}
  first = splits[0]
  curves.compare(
    {
      'no RL': [final(r, first, 'before') for r in of_arm[arms[0]]],
      **{a: [final(r, first) for r in of_arm[a]] for a in arms},
    },
    figure,
    label=f'success without skills, {first}',
    baseline=baseline if baseline in arms else None,
    title=title,
  )
  lines = [
    f'# {title}',
    _start(results[0], first, gate),
    f'![Success of each arm]({figure.name})',
    '## Success after training, evaluated without skills',
    _success(of_arm, splits, baseline, results),
    *_verdicts(claims, results, first),
    '## With skills in the prompt, and what training did',
    _mechanism(of_arm, first),
    '## Where it was run',
    paired.where(results),
  ]
  return '\n\n'.join(lines) + '\n'


def _start(result, split, gate):
  before = result['evaluations']['before']
  plain = before[split]
  shown = before.get(f'{split}+skills')
  text = (
    f'Before RL: {_percent(plain["success"])} without skills'
    f' (n = {plain["n"]} held-out games)'
  )
  if shown is None:
    return text + '.'
  gap = shown['success'] - plain['success']
  verdict = 'passed' if gap >= gate else 'NOT passed'
  return (
    f'{text}, {_percent(shown["success"])} with. Start gate (skills are worth'
    f' at least {_percent(gate)}): {_percent(gap)}, {verdict}.'
  )


def _success(of_arm, splits, baseline, results):
  head = ['arm', 'seeds']
  for split in splits:
    head += [f'{split}: mean [95 % t]', f'{split}: minus {baseline} [95 % t]']
  rows = []
  for arm, runs in of_arm.items():
    row = [arm, str(len(runs))]
    for split in splits:
      row.append(
        paired.text(metrics.mean_interval([final(r, split) for r in runs]))
      )
      difference = paired.difference(results, arm, baseline, split, final)
      shown = '–' if arm == baseline or difference is None else None
      row.append(shown or paired.points(difference))
    rows.append(row)
  return markdown.table(head, rows)


def _verdicts(claims, results, split):
  """A section, or nothing where no claim has results."""
  rows = paired.judge(
    claims, results, lambda result, of: MEASURES[of](result, split)
  )
  if not rows:
    return []
  head = ['claim', f'difference, {split} [95 % t]', 'here']
  return ['## The claims, one by one', markdown.table(head, rows)]


def _mechanism(of_arm, split):
  head = [
    'arm', 'with skills, before', 'with skills, after',
    'gap first → last', 'gate first → last', 'gate > 0.5 first → last',
    'live groups first → last', 'success in training, last 10',
    'minutes a run',
  ]  # fmt: skip
  rows = []
  for arm, runs in of_arm.items():
    shown = f'{split}+skills'
    rows.append(
      [
        arm,
        _mean([final(r, shown, 'before') for r in runs]),
        _mean([final(r, shown) for r in runs]),
        _ends(runs, '/gap'),
        _ends(runs, '/gate'),
        _ends(runs, '/gate_open'),
        _ends(runs, 'groups/live'),
        _mean([np.mean(r['curves']['reward/success'][-10:]) for r in runs]),
        f'{np.mean([r["seconds"] for r in runs]) / 60:.1f}',
      ]
    )
  return markdown.table(head, rows)


def _ends(runs, ending):
  """Mean of the first and of the last ten steps of a curve."""
  pairs = []
  for run in runs:
    for name, values in run['curves'].items():
      if name.endswith(ending) and values:
        pairs.append((np.mean(values[:10]), np.mean(values[-10:])))
        break
  if not pairs:
    return '–'
  first, last = np.mean(pairs, axis=0)
  return f'{first:.2f} → {last:.2f}'


def _percent(value):
  return f'{100 * value:.1f} %'


def _mean(values):
  return _percent(float(np.mean(values)))
