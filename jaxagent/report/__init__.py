"""What a person sees of a run: curves, a page of trajectories, a report.

`python -m jaxagent.report WORKDIR` writes all three from a workdir's files.
"""

from collections.abc import Callable
import os
import pathlib
from typing import Any

from jaxagent.report import correlations, curves, markdown, trajectories
from jaxagent.training import metrics


def write(
  workdir: str | os.PathLike, *, limit: int = 4000
) -> dict[str, pathlib.Path]:
  """Writes `curves.png`, `trajectories.html` and `report.md` into a workdir.

  A run with several rewards also gets `correlations.png`.

  A file that is absent or broken costs its own part of the report only; the
  report says which, under "Missing".

  Args:
    workdir: folder of the run; `markdown` lists what it may hold.
    limit: show at most so many rows of trajectories, the latest.

  Returns:
    Name -> path of each file written.

  Raises:
    FileNotFoundError: there is no such folder.
  """
  folder = pathlib.Path(workdir)
  if not folder.is_dir():
    raise FileNotFoundError(
      f'{folder} is no folder. Pass the --workdir of a run.'
    )
  missing: list[str] = []
  config, meta, evaluations = (
    markdown.read_json(folder / name, missing) or {}
    for name in ('config.json', 'meta.json', 'evaluations.json')
  )
  title = config.get('name', folder.name)
  columns = _attempt(missing, 'metrics.jsonl', lambda: metrics.read(folder))
  rows = _attempt(missing, 'trajectories', lambda: trajectories.load(folder))
  if rows == []:
    missing.append('`trajectories`: no `trajectories/*.jsonl` in the workdir')
  made = {}
  if columns and _attempt(
    missing, 'curves.png', lambda: curves.plot(folder, title=title)
  ):
    made['curves.png'] = folder / 'curves.png'
  if columns and correlations.plot(columns, folder / 'correlations.png'):
    made['correlations.png'] = folder / 'correlations.png'
  if rows:
    kept = rows[-limit:]
    note = f'the latest {len(kept)} of {len(rows)} rows'
    made['trajectories.html'] = trajectories.write_html(
      kept,
      folder / 'trajectories.html',
      title=title,
      note=note if len(kept) < len(rows) else '',
    )
  text = markdown.render(
    config=config,
    meta=meta,
    evaluations=evaluations,
    columns=columns or {},
    rows=rows or [],
    files=list(made),
    missing=missing,
  )
  made['report.md'] = folder / 'report.md'
  made['report.md'].write_text(text)
  return made


def _attempt(missing: list[str], name: str, function: Callable[[], Any]) -> Any:
  try:
    return function()
  except FileNotFoundError:
    missing.append(f'`{name}`: not in the workdir')
  except ValueError as error:
    missing.append(f'`{name}`: {error}')
  return None
