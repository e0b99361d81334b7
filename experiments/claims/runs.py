"""Runs of arms that share a warm start: one result file each."""

from collections.abc import Callable, Mapping
import fnmatch
import json
import pathlib

import ml_collections

from experiments import run
from jaxagent.training import metrics


def warm_start(
  config: Callable[[], ml_collections.ConfigDict], folder: pathlib.Path
) -> pathlib.Path:
  """The folder of a warm model, which is trained unless it is there.

  Args:
    config: makes the run's config; called only where it is to be trained.
    folder: workdir of the run.
  """
  if not (folder / 'report.md').exists():  # written last
    run.run(config(), folder)
  return folder / 'model'


def record(
  path: pathlib.Path,
  config: ml_collections.ConfigDict,
  folder: pathlib.Path,
  *,
  curves: tuple[str, ...],
  **about,
) -> pathlib.Path:
  """Runs a config and writes its result file.

  Args:
    path: of the result, JSON.
    config: of the run; one that was cut short goes on.
    folder: workdir of the run.
    curves: patterns as of `fnmatch`, the columns of the metrics to keep.
    **about: what the result is of, such as its arm and seed.

  Returns:
    `path`.
  """
  run.run(config, folder)
  columns = metrics.read(folder)
  result = {
    **about,
    'evaluations': json.loads((folder / 'evaluations.json').read_text()),
    'curves': {
      name: [round(float(x), 5) for x in columns[name] if x == x]
      for name in sorted(columns)
      if any(fnmatch.fnmatchcase(name, pattern) for pattern in curves)
    },
    'seconds': float(columns['time'][-1] - columns['time'][0]),
    **json.loads((folder / 'meta.json').read_text()),  # from its start
  }
  return write(path, result)


def write(path: pathlib.Path, result: Mapping) -> pathlib.Path:
  """Writes a result file, and its folder where that is absent."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(result, indent=1))
  return path


def load(folder: pathlib.Path) -> list[dict]:
  """The results in a folder.

  Raises:
    FileNotFoundError: there is none yet.
  """
  results = [
    json.loads(path.read_text()) for path in sorted(folder.glob('*.json'))
  ]
  if not results:
    raise FileNotFoundError(f'No result in {folder} yet.')
  return results
