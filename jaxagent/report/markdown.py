"""`report.md`: one run on one page, from the files of its workdir.

Read, each where it is there:
  config.json        the configuration; `name` and `seed` are shown on top
  meta.json          command, commit, versions, hardware, and what else there is
  metrics.jsonl      as of `training.metrics`
  evaluations.json   {'before': {SPLIT: result}, 'after': {SPLIT: result}} with
                     result = {'success', 'low', 'high', 'n', 'by_type'?};
                     `by_type` is {task type: result, or the mean alone}
  trajectories/      as of `report.trajectories`
"""

from collections.abc import Iterable, Mapping, Sequence
import json
import math
import pathlib
import random
from typing import Any

import numpy as np

from jaxagent.report import curves, trajectories
from jaxagent.training import metrics

_HEALTH = {
  'live (mixed outcomes)': '*/live',
  'all fail': '*/all_fail',
  'all pass': '*/all_pass',
}
_GATE = {
  'mean gate': '*/gate',
  'share of tokens with gate > 0.5': '*/gate_open',
  'mean teacher gap (nats)': '*/gap',
}
_REWARDS = {
  'participation': 'scores/participation',
  'domination': 'scores/domination',
  'projection efficiency': 'summed/eta_proj',
  'correlation efficiency': 'summed/eta_corr',
  'least weight after whitening': 'whitening/min_weight',
}


def render(
  *,
  config: Mapping[str, Any] | None = None,
  meta: Mapping[str, Any] | None = None,
  evaluations: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
  columns: Mapping[str, np.ndarray] | None = None,
  rows: Sequence[Mapping[str, Any]] = (),
  files: Sequence[str] = (),
  missing: Sequence[str] = (),
) -> str:
  """The report as Markdown. What is not given is left out.

  Args:
    config: the run's configuration.
    meta: where, when and how it ran.
    evaluations: name, such as 'before' -> split -> result.
    columns: metrics, as of `metrics.read`.
    rows: trajectories, as of `trajectories.load`.
    files: what stands beside the report, of `curves.png`, `correlations.png`
      and `trajectories.html`.
    missing: a line for each thing that could not be shown.
  """
  config, meta, columns = config or {}, meta or {}, columns or {}
  parts = [f'# {config.get("name", "Run")}', _run(config, meta, columns)]
  if evaluations:
    parts += ['## Result', _results(evaluations)]
  if 'curves.png' in files:
    parts += ['## Curves', '![Curves of the run](curves.png)']
  if 'correlations.png' in files:
    parts += [
      '## Correlation of rewards',
      'Means over the second half of the run, of the reward columns in a batch.',
      '![Correlation of rewards](correlations.png)',
    ]
  for title, patterns, note in (
    (
      'Groups',
      _HEALTH,
      'Share of task groups. Only live ones give group-relative advantages.',
    ),
    ('Distillation gate', _GATE, 'Means over sampled tokens.'),
    (
      'Rewards',
      _REWARDS,
      'Of 1: how evenly a group shares its scores, and what the sum of columns'
      ' keeps of them.',
    ),
  ):
    if phases := _phases(columns, patterns):
      parts += [f'## {title}', note, phases]
  if timings := _timings(columns):
    parts += ['## Time', timings]
  if rows:
    parts += ['## Example episodes', _examples(rows)]
  if 'trajectories.html' in files:
    parts.append(
      'All recorded trajectories, with a colour for every token:'
      ' [trajectories.html](trajectories.html).'
    )
  if missing:
    parts += ['## Missing', '\n'.join(f'- {line}' for line in missing)]
  if config:
    parts += ['## Configuration', _details('config.json', config)]
  return '\n\n'.join(part for part in parts if part) + '\n'


def difference(
  before: Mapping[str, Any], after: Mapping[str, Any]
) -> metrics.Interval:
  """Change of a proportion with Newcombe's 95 % interval.

  It takes the two samples as independent; on the same tasks it is therefore
  somewhat too wide.

  Args:
    before: result with `success` and its Wilson bounds `low`, `high`.
    after: likewise.
  """
  p, q = before['success'], after['success']
  down = math.hypot(q - after['low'], before['high'] - p)
  up = math.hypot(after['high'] - q, p - before['low'])
  return metrics.Interval(
    q - p, q - p - down, q - p + up, min(before['n'], after['n'])
  )


def _run(
  config: Mapping[str, Any],
  meta: Mapping[str, Any],
  columns: Mapping[str, np.ndarray],
) -> str:
  facts = {k: v for k, v in meta.items() if k != 'command'}
  if 'seed' in config:
    facts = {'seed': config['seed']} | facts
  if 'step' in columns and columns['step'].size:
    facts['last step'] = int(columns['step'].max())
    if 'time' in columns:
      facts['first to last row'] = f'{np.ptp(columns["time"]) / 60:.1f} min'
  command = meta.get('command', '')
  if not isinstance(command, str):
    command = ' '.join(map(str, command))
  rows = table(
    ['', ''], [[name, _flat(value)] for name, value in facts.items()]
  )
  code = f'```sh\n{command}\n```' if command else ''
  return '\n\n'.join(part for part in (code, rows if facts else '') if part)


def _results(
  evaluations: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> str:
  arms = list(evaluations)
  change = {'before', 'after'} <= set(arms)
  splits = _ordered(split for arm in evaluations.values() for split in arm)
  head = ['split', *arms] + (['change'] if change else [])
  body = []
  for split in splits:
    results = {arm: evaluations[arm].get(split) for arm in arms}
    line = [split, *(_result(result) for result in results.values())]
    if change:
      line.append(_change(results['before'], results['after']))
    body.append(line)
  parts = [
    'Share of episodes that succeed, with 95 % intervals and the number of'
    ' episodes.' + (' Change in points.' if change else ''),
    table(head, body),
  ]
  for split in splits:
    types = {
      arm: evaluations[arm].get(split, {}).get('by_type') or {} for arm in arms
    }
    names = sorted(_ordered(name for by in types.values() for name in by))
    if names:
      body = [
        [name, *(_result(types[arm].get(name)) for arm in arms)]
        for name in names
      ]
      parts += [f'By task type, {split}:', table(['task type', *arms], body)]
  return '\n\n'.join(parts)


def _ordered(names: Iterable[str]) -> list[str]:
  return list(dict.fromkeys(names))


def _result(result: Mapping[str, Any] | float | int | None) -> str:
  if result is None:
    return '–'
  if not isinstance(result, Mapping):
    return f'{100 * result:.1f} %'
  text = f'{100 * result["success"]:.1f} %'
  if result.get('low') is not None:
    text += f' [{100 * result["low"]:.1f}, {100 * result["high"]:.1f}]'
  return text + (f' ({result["n"]})' if 'n' in result else '')


def _change(
  before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> str:
  wanted = {'success', 'low', 'high', 'n'}
  if not before or not after or not wanted <= before.keys() & after.keys():
    return '–'
  d = difference(before, after)
  return f'{100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]'


def _phases(
  columns: Mapping[str, np.ndarray], patterns: Mapping[str, str]
) -> str:
  """Means over the first tenth, all, and the last tenth of the run."""
  body = []
  for label, pattern in patterns.items():
    name = curves.find(columns, pattern)
    if name is None:
      continue
    values = columns[name][np.isfinite(columns[name])]
    tenth = max(1, values.size // 10)
    means = (values[:tenth].mean(), values.mean(), values[-tenth:].mean())
    body.append([label, *(f'{mean:.3f}' for mean in means)])
  head = ['', 'first tenth', 'whole run', 'last tenth']
  return table(head, body) if body else ''


def _timings(columns: Mapping[str, np.ndarray]) -> str:
  spent = {}
  for name in sorted(columns):
    values = columns[name][np.isfinite(columns[name])]
    if name.startswith('seconds/') and values.size:
      spent[name.removeprefix('seconds/')] = values
  total = sum(values.sum() for values in spent.values())
  body = [
    [
      phase,
      f'{np.median(values):.3f}',
      f'{values.sum():.1f}',
      f'{100 * values.sum() / max(total, 1e-9):.0f} %',
    ]
    for phase, values in sorted(spent.items(), key=lambda kv: -kv[1].sum())
  ]
  head = ['phase', 'median seconds a step', 'seconds', 'share']
  return table(head, body) if body else ''


def _examples(rows: Sequence[Mapping[str, Any]]) -> str:
  last = max(row['step'] for row in rows)
  pool = [row for row in rows if row['step'] == last]
  pool.sort(key=lambda r: (trajectories.success(r) or 0, -len(r['tokens'])))
  chosen = {
    'Best': pool[-1],
    'Worst': pool[0],
    'Random': random.Random(0).choice(pool),
  }
  parts = [f'From step {last}. Lines after `>` were written by the policy.']
  for label, row in chosen.items():
    rewards = ', '.join(f'{k} {v:g}' for k, v in row['rewards'].items())
    text = trajectories.as_text(row, width=1200)
    parts.append(
      f'**{label}**: {_cell(row.get("goal") or row.get("game") or "")}'
      f' ({row.get("set", "")} episode {row["episode"]}, {row["status"]},'
      f' {rewards})'
    )
    parts.append(_fenced(text))
  return '\n\n'.join(parts)


def _fenced(text: str, language: str = 'text') -> str:
  """A code block whose fence no line of the text can close."""
  fence = '```'
  while fence in text:
    fence += '`'
  return f'{fence}{language}\n{text}\n{fence}'


def _details(summary: str, value: Mapping[str, Any]) -> str:
  text = _fenced(json.dumps(value, indent=2, default=str), 'json')
  return f'<details><summary>{summary}</summary>\n\n{text}\n\n</details>'


def _flat(value: Any) -> str:
  if isinstance(value, Mapping):
    return ', '.join(f'{k} {v}' for k, v in value.items())
  return str(value)


def _cell(value: Any) -> str:
  text = ' '.join(str(value).split())
  for character in '\\|<*`':
    text = text.replace(character, f'\\{character}')
  return text


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
  """A Markdown table; what could end a cell is escaped."""
  rule = ['---'] + ['---:' if len(head) > 2 else '---'] * (len(head) - 1)
  lines = [
    [_cell(cell) for cell in head],
    rule,
    *([_cell(cell) for cell in row] for row in body),
  ]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def read_json(path: pathlib.Path, missing: list[str]) -> Any:
  """The content of a JSON file; where there is none, a line in `missing`."""
  if not path.exists():
    missing.append(f'`{path.name}`: not in the workdir')
    return None
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    missing.append(f'`{path.name}`: no JSON ({error})')
    return None
