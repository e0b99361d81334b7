"""What every training script does around `training.loop.run`."""

from importlib import metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys

from absl import logging
import jax
import ml_collections

from jaxagent import report
from jaxagent.models import weights
from jaxagent.training import build, loop

ROOT = pathlib.Path(__file__).resolve().parents[1]
_PACKAGES = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def run(
  config: ml_collections.ConfigDict, workdir, *, label: str | None = None
) -> pathlib.Path:
  """Trains by a config, then writes the model and the report.

  Args:
    config: see `configs/sdar_alfworld.py`.
    workdir: of the run; one that was cut short goes on.
    label: of the progress bar; None is the config's name.

  Returns:
    The folder of the trained model, in Hugging Face's layout, with its
    tokenizer.
  """
  logging.set_verbosity(logging.WARNING)  # jax tells of absent backends
  workdir = pathlib.Path(workdir).resolve()
  workdir.mkdir(parents=True, exist_ok=True)
  _remember(config, workdir)
  setup = build.from_config(config.to_dict())
  _announce(config, setup, workdir)
  state = loop.run(setup, workdir, label=label or config.name)
  folder = workdir / 'model'
  params = loop.local(state.params, setup.mesh)  # every process takes part
  if jax.process_index() == 0:
    weights.save(folder, setup.passes.policy.config, params)
    setup.tokenizer.save(folder)
    report.write(workdir)
  return folder


def _remember(config, workdir):
  """Saves config and circumstances; refuses a workdir of another config."""
  path = workdir / 'config.json'
  text = config.to_json(indent=1, sort_keys=True)
  if path.exists() and path.read_text() != text:
    raise ValueError(
      f'{workdir} belongs to a run with another config (see its config.json).'
      ' Choose another --workdir, or repeat the command that made it.'
    )
  if jax.process_index() == 0:
    path.write_text(text)
    (workdir / 'meta.json').write_text(json.dumps(circumstances(), indent=1))


def circumstances() -> dict:
  """Command, commit, versions and hardware: what a result needs beside it."""
  return {
    'command': shlex.join([*_program(), *sys.argv[1:]]),
    'commit': commit(),
    'python': platform.python_version(),
    'versions': {name: metadata.version(name) for name in _PACKAGES},
    'hardware': hardware(),
  }


def _program() -> list[str]:
  spec = sys.modules['__main__'].__spec__
  if spec is None:
    return [pathlib.Path(sys.argv[0]).name]
  return ['python', '-m', spec.name]


def commit() -> str:
  """The checkout's commit, with '+' where files differ; '' outside git."""
  git = ['git', '-C', str(ROOT)]
  try:
    head = subprocess.run(
      [*git, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=True
    ).stdout.strip()
    dirty = subprocess.run(
      [*git, 'status', '--porcelain', '--untracked-files=no'],
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return ''
  return head + ('+' if dirty else '')


def hardware() -> str:
  """Such as '2 CPU cores (x86_64)' or '8 x TPU v5e'."""
  device = jax.devices()[0]
  if device.platform == 'cpu':
    cores = len(os.sched_getaffinity(0))
    return f'{cores} CPU cores ({platform.machine()})'
  return f'{jax.device_count()} x {device.device_kind}'


def _announce(config, setup, workdir):
  if jax.process_index() != 0:
    return
  print(config)
  count = sum(x.size for x in jax.tree.leaves(setup.params))
  batch = config.batch
  print(
    f'{config.name}: {count:,} parameters, {batch.tasks} tasks x {batch.group}'
    f' episodes an update, microbatches of {config.train.microbatch} rows,'
    f' {config.train.steps} updates, on {hardware()}. Workdir: {workdir}'
  )
