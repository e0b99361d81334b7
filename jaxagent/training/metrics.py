"""Numbers of a run: written as they come, read back, and given intervals.

`metrics.jsonl` is the record: one JSON object a line with `step`, `time`
(seconds since the epoch) and any `group/name` columns. TensorBoard shows the
same numbers. A number that is not finite is stored as `null`, read as nan.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import io
import json
import math
import os
import pathlib
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console
import rich.table
from scipy import stats
import tensorboardX
import tqdm

FILE = 'metrics.jsonl'


class Interval(NamedTuple):
  """An estimate with its confidence bounds, and the sample size behind it."""

  mean: float
  low: float
  high: float
  n: int

  def __str__(self) -> str:
    return f'{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n})'


class Writer:
  """Appends rows to `WORKDIR/metrics.jsonl` and to TensorBoard events.

  Every row is handed to the operating system before `write` returns, so that
  a killed run loses none. Only process 0 writes; elsewhere it does nothing.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    step: int = 0,
    primary: bool | None = None,
  ):
    """Opens for rows from `step` on and drops what stands there already.

    Args:
      workdir: folder of the run; made where it is absent.
      step: first step that will be written. A resumed run passes the step of
        its checkpoint, so that no step is recorded twice.
      primary: whether this process writes; None asks `jax.process_index()`.
    """
    self._file = self._events = None
    if not (jax.process_index() == 0 if primary is None else primary):
      return
    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    if path.exists():
      _drop_from(path, step)
    self._file = path.open('a')
    self._events = tensorboardX.SummaryWriter(
      str(folder / 'tensorboard'), purge_step=step
    )

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Records scalars (anything `float` takes) under their column names."""
    if self._file is None:
      return
    row = {name: float(value) for name, value in values.items()}
    clash = sorted({'step', 'time'} & row.keys())
    if clash:
      raise ValueError(
        f'The columns {clash} are the writer\'s own; name yours "group/name".'
      )
    for name, value in row.items():
      if math.isfinite(value):
        self._events.add_scalar(name, value, step)
    record = {'step': int(step), 'time': round(time.time(), 3)}
    record |= {k: v if math.isfinite(v) else None for k, v in row.items()}
    self._file.write(json.dumps(record, allow_nan=False) + '\n')
    self._file.flush()

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
      self._events.close()
      self._file = self._events = None

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *_) -> None:
    self.close()


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads `metrics.jsonl`, or the one in a workdir, as columns.

  Returns:
    column name -> f64[rows], nan where a row lacks the column; `step` is i64.
    A last line cut short by a kill is left out.

  Raises:
    ValueError: another line is no JSON object with a `step`.
  """
  rows = list(_rows(_metrics_path(path)))
  names = dict.fromkeys(name for row in rows for name in row)
  columns = {
    name: np.array(
      [math.nan if row.get(name) is None else row[name] for row in rows], float
    )
    for name in names
  }
  columns['step'] = np.array([row['step'] for row in rows], np.int64)
  return columns


def _metrics_path(path: str | os.PathLike) -> pathlib.Path:
  path = pathlib.Path(path)
  return path / FILE if path.is_dir() else path


def _rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  lines = path.read_text().split('\n')
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      int(row['step'])
    except (ValueError, KeyError, TypeError):
      if number == len(lines):  # no newline after it: the writer was killed
        return
      raise ValueError(
        f'{path}, line {number}: wanted a JSON object with an integer "step",'
        f' got {line[:80]!r}. Delete the line, or the file.'
      ) from None
    yield row


def _drop_from(path: pathlib.Path, step: int) -> None:
  """Keeps the rows before `step`; the file is replaced in one go."""
  kept = [json.dumps(row) for row in _rows(path) if row['step'] < step]
  fresh = path.with_suffix('.tmp')
  fresh.write_text(''.join(line + '\n' for line in kept))
  os.replace(fresh, path)


@contextlib.contextmanager
def progress(
  total: int,
  *,
  start: int = 0,
  label: str = 'train',
  every: float | int = 5,
  file: io.TextIOBase | None = None,
) -> Iterator[Callable[..., None]]:
  """A progress bar; plain lines where the output is no terminal.

  Args:
    total: number of steps of the whole run.
    start: steps done before, by the run that this one resumes.
    label: what stands in front.
    every: without a terminal, a line each `every` percent of `total`.
    file: where to show it; None is standard error.

  Yields:
    `advance(n=1, **shown)`: n more steps are done; `shown` are numbers such as
    `success=0.4` to show beside them.
  """
  file = sys.stderr if file is None else file
  if file.isatty():
    bar = tqdm.tqdm(
      total=total, initial=start, desc=label, file=file, dynamic_ncols=True
    )

    def advance(n: int = 1, **shown: Any) -> None:
      bar.set_postfix_str(_shown(shown), refresh=False)
      bar.update(n)

    with bar:
      yield advance
  else:
    yield _lines(total, start, label, every, file)


def _lines(
  total: int, start: int, label: str, every: float | int, file: io.TextIOBase
) -> Callable[..., None]:
  began, done, last = time.monotonic(), start, None

  def advance(n: int = 1, **shown: Any) -> None:
    nonlocal done, last
    done += n
    tick = int(100 * done / max(total, 1) / every)
    if tick == last and done < total:
      return
    last = tick
    spent = time.monotonic() - began
    left = spent / max(done - start, 1) * (total - done)
    text = (
      f'{label} {done}/{total} ({100 * done / max(total, 1):.0f} %)'
      f' {_clock(spent)} spent, {_clock(left)} left'
    )
    print(text + (f' | {_shown(shown)}' if shown else ''), file=file)
    file.flush()

  return advance


def _shown(values: Mapping[str, Any]) -> str:
  return ', '.join(
    f'{name} {float(value):.3g}' for name, value in values.items()
  )


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (
    f'{hours}:{minutes:02}:{seconds:02}'
    if hours
    else (f'{minutes}:{seconds:02}')
  )


def print_table(
  title: str,
  rows: Sequence[Mapping[str, Any]],
  *,
  console: rich.console.Console | None = None,
) -> None:
  """Prints records as a table; the keys of all rows are its columns."""
  console = console or rich.console.Console()
  names = list(dict.fromkeys(name for row in rows for name in row))
  table = rich.table.Table(title=title, title_justify='left')
  for name in names:
    numeric = all(isinstance(row.get(name, 0), int | float) for row in rows)
    table.add_column(name, justify='right' if numeric else 'left')
  for row in rows:
    table.add_row(*(_cell(row.get(name, '')) for name in names))
  console.print(table)


def _cell(value: Any) -> str:
  return f'{value:.4g}' if isinstance(value, float) else str(value)


def mean_interval(
  values: Sequence | np.ndarray, *, level: float = 0.95
) -> Interval:
  """Mean of independent values (seeds, say) with a t-interval.

  Values that are not finite are an error: leave a failed run out by name. With
  one value the bounds are nan: its spread is not known.
  """
  values = np.asarray(values, float)
  n = values.size
  if n == 0 or not np.isfinite(values).all():
    raise ValueError(
      f'An interval needs finite values, got {values.tolist()}. Leave out, by'
      ' name, what has no value.'
    )
  mean = float(values.mean())
  if n == 1:
    return Interval(mean, math.nan, math.nan, 1)
  half = stats.t.ppf((1 + level) / 2, n - 1) * stats.sem(values)
  return Interval(mean, mean - float(half), mean + float(half), n)


def proportion_interval(
  successes: int | np.integer, n: int | np.integer, *, level: float = 0.95
) -> Interval:
  """Share of successes in n independent trials with its Wilson interval.

  Unlike the normal interval it stays in [0, 1] and has a width at 0 and n.
  With no trial the mean is nan and the bounds are [0, 1].
  """
  if not 0 <= successes <= n:
    raise ValueError(f'Wanted 0 <= successes <= n, got {successes} of {n}.')
  if n == 0:
    return Interval(math.nan, 0.0, 1.0, 0)
  z = float(stats.norm.ppf((1 + level) / 2))
  share = float(successes / n)
  scale = 1 + z * z / n
  centre = (share + z * z / (2 * n)) / scale
  half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
  return Interval(
    share, max(0.0, centre - half), min(1.0, centre + half), int(n)
  )
