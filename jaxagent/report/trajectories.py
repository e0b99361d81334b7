"""Trajectories for a person: rows on disk, and one HTML page to read them.

A run leaves `trajectories/SET_STEP.jsonl` in its workdir: `step_000040.jsonl`
of training, `eval_seen_000100.jsonl` of an evaluation. One row a line, flat:

  step, episode, group, row   integers; rows of a group share a task
  part, status                names of `types.Part` and `types.Status`
  game, goal, task_type       text of the environment
  rewards                     {name: number}
  advantage                   number, of the row
  tokens                      [n] readable pieces
  action                      [n] 1 where the policy sampled the token
  turn                        [n] index of the turn
  logprob, advantages, gate, gap
                              [n] numbers; null where there is none
  privileged                  what only the teacher saw, or null

The page needs no server and makes no request: data, style and code are inside.
"""

from collections.abc import Iterable, Mapping, Sequence
import itertools
import json
import math
import os
import pathlib
import re
from typing import Any

import jinja2
import markupsafe

TOKEN_FIELDS = ('logprob', 'advantages', 'gate', 'gap')
_REQUIRED = (
  'step',
  'episode',
  'group',
  'row',
  'part',
  'status',
  'rewards',
  'tokens',
  'action',
  'turn',
)
_TEMPLATE = pathlib.Path(__file__).with_name('trajectories.html')


def save(
  path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]
) -> pathlib.Path:
  """Writes rows (see the module) as JSON lines; nan and inf become null.

  The file appears in one go, so that a killed run leaves none half written.

  Args:
    path: file to write, `WORKDIR/trajectories/step_000040.jsonl` by custom.
    rows: flat records; numpy numbers and arrays are welcome.

  Raises:
    ValueError: a row lacks a field, or a list per token has another length.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [
    json.dumps(_plain(_checked(row, f'row {i}')), ensure_ascii=False)
    for i, row in enumerate(rows)
  ]
  fresh = path.with_suffix('.tmp')
  text = ''.join(line + '\n' for line in lines)
  fresh.write_text(text, encoding='utf-8', errors='replace')
  os.replace(fresh, path)
  return path


def load(
  source: str | os.PathLike, *, limit: int | None = None
) -> list[dict[str, Any]]:
  """Reads rows of a file, or of all `trajectories/*.jsonl` of a workdir.

  Args:
    source: a `.jsonl` file, a workdir, or its `trajectories` folder.
    limit: at most so many rows, of the latest files; None is all.

  Returns:
    Rows by the step in the files' names, each with `set`: `training` of
    `step_*.jsonl`, else its file's name without the step; none where there is no file.

  Raises:
    ValueError: a line is no row.
  """
  rows: list[dict[str, Any]] = []
  for path in reversed(_files(pathlib.Path(source))):
    rows = _read(path) + rows
    if limit is not None and len(rows) >= limit:
      return rows[-limit:]
  return rows


def _files(source: pathlib.Path) -> list[pathlib.Path]:
  if source.is_file():
    return [source]
  inner = source / 'trajectories'
  paths = (inner if inner.is_dir() else source).glob('*.jsonl')
  return sorted(paths, key=lambda path: _set_and_step(path)[::-1])


def _set_and_step(path: pathlib.Path) -> tuple[str, int]:
  name, step = re.fullmatch(r'(.*?)_?(\d*)', path.stem).groups()
  return 'training' if name == 'step' else name, int(step or 0)


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
  rows = []
  lines = path.read_text(encoding='utf-8').split('\n')
  for number, line in enumerate(lines, 1):
    if line.strip():
      where = f'{path}, line {number}'
      try:
        row = json.loads(line)
      except ValueError as error:
        raise ValueError(
          f'{where} is no JSON ({error}). Delete the line, or the file.'
        ) from None
      rows.append({'set': _set_and_step(path)[0]} | _checked(row, where))
  return rows


def _checked(row: Any, where: str) -> dict[str, Any]:
  if not isinstance(row, Mapping):
    raise ValueError(f'{where}: wanted an object, got {type(row).__name__}.')
  missing = [name for name in _REQUIRED if name not in row]
  if missing:
    raise ValueError(f'{where} lacks {missing}. A row needs {list(_REQUIRED)}.')
  count = len(row['tokens'])
  wrong = {
    name: len(row[name])
    for name in ('action', 'turn', *TOKEN_FIELDS)
    if row.get(name) is not None and len(row[name]) != count
  }
  if wrong:
    raise ValueError(
      f'{where}: {count} tokens, but the lists per token are {wrong} long.'
      ' Give one value a token, null where there is none.'
    )
  return dict(row)


def _plain(value: Any) -> Any:
  """Plain JSON values of numpy's, with None for what is not finite."""
  if isinstance(value, float):
    return float(f'{value:.5g}') if math.isfinite(value) else None
  if value is None or isinstance(value, str | int):
    return value
  if isinstance(value, Mapping):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  return _plain(value.tolist()) if hasattr(value, 'tolist') else value


def write_html(
  rows: Sequence[Mapping[str, Any]],
  path: str | os.PathLike,
  *,
  title: str = 'Trajectories',
  note: str = '',
) -> pathlib.Path:
  """Writes the page that shows rows, as one file.

  The page lists rows (filter, sort, full-text search) and shows the chosen
  one, its sampled tokens coloured by advantage, gate, teacher gap or
  log-probability. Its address may say what to show:
  `#q=apple&color=gate&set=training&step=40&episode=3`.

  Args:
    rows: as of `load`; several thousand are fine.
    path: HTML file to write.
    title: name of the run.
    note: a line below it, such as which rows were left out.
  """
  path = pathlib.Path(path)
  data = json.dumps(
    [_packed(row) for row in rows],
    ensure_ascii=False,
    separators=(',', ':'),
    allow_nan=False,
  )
  # Inside a script element only these can end it or confuse a parser.
  for character in '<>&\u2028\u2029':
    data = data.replace(character, f'\\u{ord(character):04x}')
  template = jinja2.Environment(autoescape=True).from_string(
    _TEMPLATE.read_text(encoding='utf-8')
  )
  html = template.render(title=title, note=note, data=markupsafe.Markup(data))
  path.write_text(html, encoding='utf-8', errors='replace')
  return path


def _packed(row: Mapping[str, Any]) -> dict[str, Any]:
  """A row with its tokens as blocks: text, or sampled tokens with numbers.

  Only sampled tokens have numbers, so everything else is joined: this keeps
  the page small.
  """
  lists = ('action', 'turn', 'tokens', *TOKEN_FIELDS)
  packed = {k: v for k, v in row.items() if k not in lists}
  packed['length'] = len(row['tokens'])
  blocks = []
  at = 0
  for (turn, action), run in itertools.groupby(
    zip(row['turn'], map(bool, row['action']), strict=True)
  ):
    part = slice(at, at := at + len(list(run)))
    tokens = row['tokens'][part]
    if not action:
      if text := ''.join(tokens).strip('\n'):
        blocks.append({'turn': turn, 'text': text})
      continue
    block = {'turn': turn, 'tokens': tokens}
    for name in TOKEN_FIELDS:
      values = () if row.get(name) is None else row[name][part]
      if any(v is not None for v in values):
        block[name] = values
    blocks.append(block)
  return _plain(packed | {'blocks': blocks})


def as_text(row: Mapping[str, Any], *, width: int = 2000) -> str:
  """A row as plain text: what the policy wrote stands after `>`.

  Args:
    row: as of `load`.
    width: at most so many characters a block.
  """
  lines = []
  for block in _packed(row)['blocks']:
    said = 'tokens' in block
    content = ''.join(block['tokens']) if said else block['text']
    content = content.strip()
    if len(content) > width:
      content = content[:width] + f' … ({len(content) - width} more characters)'
    mark = '> ' if said else '  '
    lines += [mark + line for line in content.split('\n')]
  return '\n'.join(lines)


def success(row: Mapping[str, Any]) -> float | int | None:
  """The reward by which rows are told apart: `success`, else the first."""
  rewards = row['rewards']
  return rewards.get('success', next(iter(rewards.values()), None))
