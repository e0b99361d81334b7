"""Rows of `bench_kernels` as tables and as a figure."""

from collections.abc import Iterator, Mapping
import pathlib
import statistics
from typing import Any

Rows = Mapping[str, Mapping[str, Any]]


def median(row: Mapping[str, Any], name: str) -> float | None:
  """Milliseconds of an arm, None where it was not run."""
  times = row['arms'].get(name, {}).get('cpu_ms')
  return statistics.median(times) if times else None


def lead(row: Mapping[str, Any]) -> float | None:
  """Time of the best peer over ours; None without either."""
  ours = median(row, 'ours')
  peers = [median(row, name) for name in row['arms'] if name != 'ours']
  peers = [time for time in peers if time is not None]
  return min(peers) / ours if ours and peers else None


def tables(rows: Rows) -> str:
  """All tables, in markdown."""
  parts = ['CPU time of one core, medians.']
  for decay in ('scalar', 'channel'):
    chosen = _chosen(rows, f'{decay} decay')
    if chosen:
      parts += [
        f'**Milliseconds, {decay} decay**',
        _table(chosen, _milliseconds, last=('best peer / ours', _times(lead))),
        f'**Microseconds a token, {decay} decay**',
        _table(chosen, _microseconds),
        f'**Peak MiB beside the inputs, {decay} decay**',
        _table(chosen, _memory),
      ]
  scaling = _chosen(rows, 'FG2-GDN+ over KDA')
  if scaling:
    parts += ['**FG2-GDN+ with its scaling over KDA**', _scaling(scaling)]
  parts += list(_notes(rows))
  return '\n\n'.join(parts)


def _chosen(rows, what):
  chosen = [row for row in rows.values() if row['what'] == what]
  return sorted(chosen, key=lambda row: (row['backward'], row['length']))


def _table(rows, cell, last=None) -> str:
  heads = [
    f'{"fwd+bwd" if row["backward"] else "fwd"} {row["length"]}' for row in rows
  ]
  names = dict.fromkeys(name for row in rows for name in row['arms'])
  lines = [[name, *(cell(row, name) for row in rows)] for name in names]
  if last:
    lines.append([f'**{last[0]}**', *(last[1](row) for row in rows)])
  head = ['', *heads]
  lines = [head, ['---'] * len(head), *lines]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _milliseconds(row, name):
  time = median(row, name)
  return '-' if time is None else f'{time:.4g}'


def _microseconds(row, name):
  time = median(row, name)
  return '-' if time is None else f'{1e3 * time / row["length"]:.3g}'


def _memory(row, name):
  arm = row['arms'].get(name, {})
  return f'{arm["peak_mib"]:,.0f}' if 'cpu_ms' in arm else '-'


def _times(function):
  def cell(row):
    value = function(row)
    return '-' if value is None else f'**{value:.2f}x**'

  return cell


def _scaling(rows) -> str:
  lines = ['| | ratio | 95 % | repetitions |', '|---|---|---|---|']
  for row in rows:
    direction = 'fwd+bwd' if row['backward'] else 'fwd'
    if 'ratio' in row:
      r = row['ratio']
      count = len(row['arms']['kda']['cpu_ms'])
      lines.append(
        f'| {direction} {row["length"]} | {r["ratio"]:.3f} |'
        f' {r["low"]:.3f} to {r["high"]:.3f} | {count} |'
      )
  return '\n'.join(lines)


def _notes(rows) -> Iterator[str]:
  errors = [
    error
    for row in rows.values()
    for arm in row['arms'].values()
    for error in arm.get('error', {}).values()
  ]
  if errors:
    yield f'Largest relative difference from the reference: {max(errors):.1e}.'
  for key, row in rows.items():
    for arm in row['arms'].values():
      if 'failed' in arm:
        yield f'{key}: {arm["failed"]}'
  versions = {}
  for row in rows.values():
    for name, arm in row['arms'].items():
      if 'versions' in arm:
        versions[name] = arm['versions']
  for name, found in versions.items():
    said = ', '.join(f'{k} {v}' for k, v in found.items())
    yield f'{name}: {said}'
  yield from sorted({row['machine'] for row in rows.values()})


def plot(rows: Rows, path: pathlib.Path):
  """Microseconds a token, and the best peer over ours, against the length."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(2, 3, figsize=(12, 6), squeeze=False)
  for line, decay in enumerate(('scalar', 'channel')):
    chosen = _chosen(rows, f'{decay} decay')
    names = dict.fromkeys(name for row in chosen for name in row['arms'])
    for column, backward in enumerate((False, True)):
      axis = axes[line][column]
      part = [row for row in chosen if row['backward'] == backward]
      for name in names:
        points = [
          (row['length'], 1e3 * time / row['length'])
          for row in part
          if (time := median(row, name)) is not None
        ]
        if points:
          width = 2.5 if name == 'ours' else 1
          axis.plot(*zip(*points, strict=True), 'o-', label=name, lw=width)
      words = 'forward and backward' if backward else 'forward'
      axis.set(title=f'{decay} decay, {words}', ylabel='µs a token')
      leads = [(r['length'], x) for r in part if (x := lead(r)) is not None]
      if leads:
        axes[line][2].plot(*zip(*leads, strict=True), 'o-', label=words)
      axis.set(yscale='log')
    axes[line][2].axhline(1, color='gray', lw=0.8)
    axes[line][2].set(title=f'{decay} decay', ylabel='best peer / ours')
    for axis in axes[line]:
      axis.set(xscale='log', xlabel='tokens')
      axis.legend(fontsize=7)
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  pyplot.close(figure)
