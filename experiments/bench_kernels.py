"""`bench kernels`: gated delta rules on one CPU core, ours against peers'.

  python -m experiments.bench kernels --lengths=1024,4096,16384
  python -m experiments.bench kernels --peers=scan,maxtext,tokamax,fla,transformers \
    --peer-envs=DIR --maxtext=CHECKOUT

Every implementation is a process of its own with one thread, all pinned to the
same core; they take turns, and the process's CPU time counts. Before a row is
timed every output and every gradient is compared with the plain scan's. A row
is one length, decay and direction: forward, or forward and backward. Finished
rows are kept in experiments/results/bench_kernels.json; the same command goes
on where it was stopped. `--peer-envs` makes environments for the peers that
need other packages (torch, tokamax; Python 3.12); MaxText's function is read
out of a checkout of its repository.
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from experiments import bench_tables, run

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'experiments' / 'results' / 'bench_kernels.json'
SERVER = ROOT / 'experiments' / 'bench_peers.py'
TOLERANCE = 1e-4  # of the largest value
DECAYS = ('scalar', 'channel')
SECONDS = 0.06  # of one repetition, at least
SCALING = ('kda', 'fg2_plus')


@dataclasses.dataclass(frozen=True)
class Arm:
  """An implementation.

  Attributes:
    packages: of its environment; () runs in this one.
    decays: that it knows.
    longest: (decay, backward) to the length beyond which it takes minutes or
      more memory than small machines have.
  """

  packages: tuple[str, ...] = ()
  decays: tuple[str, ...] = DECAYS
  longest: Mapping[tuple[str, bool], int] = dataclasses.field(
    default_factory=dict
  )


_TORCH = ('torch==2.13.0', 'transformers==5.23.0', 'flash-linear-attention')
_SCAN = {('scalar', True): 4096, ('channel', True): 4096}
# Their backward passes take time as the square of the length.
_SLOW = {('scalar', True): 4096, ('channel', True): 1024}
ARMS = {
  'scan': Arm(longest=_SCAN),
  'ours': Arm(),
  'maxtext': Arm(decays=('scalar',)),
  'tokamax': Arm(packages=('tokamax==0.0.17',), decays=('channel',)),
  'fla': Arm(packages=_TORCH, longest={**_SLOW, ('channel', False): 4096}),
  'transformers': Arm(
    packages=_TORCH, longest={**_SLOW, ('channel', False): 1024}
  ),
}
ENVIRONMENTS = {('tokamax==0.0.17',): 'tokamax', _TORCH: 'torch'}


def add_arguments(parser: argparse.ArgumentParser):
  """The options of `kernels`."""
  parser.add_argument('--lengths', default='1024,4096,16384')
  parser.add_argument(
    '--peers', default='scan', help=f'some of {",".join(ARMS)}'
  )
  parser.add_argument('--peer-envs', type=pathlib.Path)
  parser.add_argument('--peer-python', default='python3.12')
  parser.add_argument('--maxtext', help='a checkout of its repository')
  parser.add_argument('--implementation', help='of ours; default: its choice')
  parser.add_argument('--heads', type=int, default=4)
  parser.add_argument('--width', type=int, default=128)
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument(
    '--scaling-repeats', type=int, default=31, help='of FG2-GDN+ over KDA'
  )
  parser.add_argument('--core', type=int, help='default: the last one')
  parser.add_argument(
    '--retry', action='store_true', help='measure rows again that had failures'
  )
  parser.add_argument('--fresh', action='store_true', help='forget old rows')


def make_inputs(
  length: int, heads: int, width: int, decay: str, seed: int = 0
) -> dict[str, np.ndarray]:
  """Normal queries, keys (both of length one), values; mild decay.

  Returns:
    What `bench_peers` wants, float32.
  """
  rng = np.random.default_rng(seed)
  shape = (1, length, heads, width)

  def normal(shape):
    return rng.standard_normal(shape).astype(np.float32)

  def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))

  x = normal(shape if decay == 'channel' else shape[:-1]) - 4
  arrays = {
    'q': unit(normal(shape)),
    'k': unit(normal(shape)),
    'v': normal(shape),
    'x': x,
    'g': -5 * sigmoid(x),
    'beta': sigmoid(normal(shape[:-1])),
    'beta_k': sigmoid(normal(shape)),
    'beta_v': sigmoid(normal(shape)),
    'do': normal(shape),
  }
  return {name: np.float32(array) for name, array in arrays.items()}


class Server:
  """A process that runs implementations, one thread on one core."""

  def __init__(self, python: str, core: int):
    threads = ('OMP', 'OPENBLAS', 'MKL', 'NUMEXPR')
    alone = {f'{name}_NUM_THREADS': '1' for name in threads}
    alone |= {'JAX_PLATFORMS': 'cpu', 'TOKENIZERS_PARALLELISM': 'false'}
    alone['XLA_FLAGS'] = '--xla_cpu_multi_thread_eigen=false'
    if python == sys.executable:
      alone['PYTHONPATH'] = str(ROOT)
    # -P: the modules beside the file are not for the peers to import.
    self._process = subprocess.Popen(
      [python, '-P', str(SERVER), str(core)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env=os.environ | alone,
      text=True,
    )

  def ask(self, op: str, name: str, **request) -> dict[str, Any]:
    """One request of `bench_peers.answer`.

    Raises:
      RuntimeError: the implementation failed, or its process died.
    """
    line = json.dumps({'op': op, 'name': name, **request})
    try:
      self._process.stdin.write(line + '\n')
      self._process.stdin.flush()
      reply = self._process.stdout.readline()
    except BrokenPipeError:
      reply = ''
    if not reply:
      raise RuntimeError(f'the process of {name} died (memory?)')
    reply = json.loads(reply)
    if 'error' in reply:
      raise RuntimeError(f'{name}: {reply["error"]}')
    return reply

  def close(self):
    """Ends the process."""
    self._process.stdin.close()
    try:
      self._process.wait(timeout=20)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()


def python_of(name: str, options: argparse.Namespace) -> str:
  """The interpreter of an arm; makes its environment where that is missing."""
  packages = ARMS[name].packages if name in ARMS else ()
  if not packages:
    return sys.executable
  if options.peer_envs is None:
    raise SystemExit(
      f'{name} needs {list(packages)}: give --peer-envs=DIR, where'
      ' environments for the peers are or shall be made.'
    )
  folder = options.peer_envs.resolve() / ENVIRONMENTS[packages]
  python, done = folder / 'bin' / 'python', folder / 'installed'
  if not done.exists():
    subprocess.run([options.peer_python, '-m', 'venv', folder], check=True)
    subprocess.run([python, '-m', 'pip', 'install', *packages], check=True)
    done.touch()
  return str(python)


def measure(
  names: Sequence[str],
  inputs: Mapping[str, np.ndarray],
  options: argparse.Namespace,
  *,
  backward: bool,
  repeats: int,
  shared: bool = False,
  compare: bool = True,
) -> dict[str, dict[str, Any]]:
  """Times arms by turns on the same inputs.

  Args:
    names: of arms; with `compare`, the first that runs is what the others are
      compared with.
    inputs: of `make_inputs`.
    options: of the command.
    backward: forward and backward, or forward.
    repeats: of each arm, after two that do not count.
    shared: all arms in one process.
    compare: check outputs and gradients before timing.

  Returns:
    For each name `cpu_ms` and `wall_ms` of every repetition, `calls` in each,
    `peak_mib`, `error` (of each output, relative to its largest value) and
    `versions`; or `failed`.
  """
  core = options.core
  core = max(os.sched_getaffinity(0)) if core is None else core
  out, servers, reference = {name: {} for name in names}, {}, None
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'inputs.npz')
    np.savez(path, **inputs)
    extra = {
      'maxtext': str(pathlib.Path(options.maxtext or '.').resolve()),
      'implementation': options.implementation,
    }
    try:
      for name in names:
        if shared and servers:
          servers[name] = next(iter(servers.values()))
        else:
          servers[name] = Server(python_of(name, options), core)
        try:
          reference = _load(
            *(servers[name], name, path, backward, extra, out[name]),
            reference=reference,
            inputs=inputs,
            compare=compare,
          )
        except RuntimeError as error:
          out[name] = {'failed': str(error)}
      _take_turns(servers, out, repeats)
    finally:
      for server in set(servers.values()):
        server.close()
  return out


def _load(
  server, name, path, backward, extra, out, *, reference, inputs, compare
):
  """Builds an arm and compares it; returns what to compare with."""
  loaded = server.ask(
    'load', name, inputs=str(path), backward=backward, options=extra
  )
  out['versions'] = loaded['versions']
  if compare:
    saved = path.with_name(f'{name}.npz')
    server.ask('save', name, path=str(saved))
    got = dict(np.load(saved))
    saved.unlink()
    out['error'] = errors(got, reference or got, inputs)
    reference = reference or got
    worst = max(out['error'].values())
    if not worst <= TOLERANCE:
      raise RuntimeError(f'{name} differs by {worst:.1e}: {out["error"]}')
  out['peak_mib'] = server.ask('peak', name)['bytes'] / 2**20
  return reference


def errors(
  got: Mapping[str, np.ndarray],
  want: Mapping[str, np.ndarray],
  inputs: Mapping[str, np.ndarray],
) -> dict[str, float]:
  """Largest difference of each array, relative to its largest value.

  A gradient of the raw gate x, where g = -5 sigmoid(x), is compared with that
  of g by the chain rule.
  """
  got, want = dict(got), dict(want)
  if 'd_x' in got | want:
    for grads in (got, want):
      if 'd_g' in grads:
        g = inputs['g']
        grads['d_x'] = grads.pop('d_g') * g * (1 + g / 5)
  if got.keys() != want.keys():
    raise RuntimeError(f'got {sorted(got)}, wanted {sorted(want)}')
  return {
    name: float(np.abs(got[name] - want[name]).max() / np.abs(want[name]).max())
    for name in want
  }


def _take_turns(servers, out, repeats):
  """Fills in the times; the order turns by one from repetition to repetition."""
  names = [name for name in out if 'failed' not in out[name]]
  for name in names:
    first = servers[name].ask('time', name, calls=1)
    out[name]['calls'] = max(1, math.ceil(SECONDS / max(first['cpu'], 1e-3)))
    out[name] |= {'cpu_ms': [], 'wall_ms': []}
  for repeat in range(-1, repeats):  # the first does not count
    turn = (repeat + 1) % max(len(names), 1)
    for name in names[turn:] + names[:turn]:
      calls = out[name]['calls']
      took = servers[name].ask('time', name, calls=calls)
      if repeat >= 0:
        out[name]['cpu_ms'].append(1e3 * took['cpu'] / calls)
        out[name]['wall_ms'].append(1e3 * took['wall'] / calls)


def ratio(
  over: Sequence[float], under: Sequence[float], draws: int = 10_000
) -> dict[str, float]:
  """Ratio of medians, with a bootstrap interval of 95 %."""
  rng = np.random.default_rng(0)

  def medians(x):
    x = np.asarray(x)
    return np.median(x[rng.integers(0, len(x), (draws, len(x)))], axis=1)

  low, high = np.quantile(medians(over) / medians(under), (0.025, 0.975))
  value = np.median(over) / np.median(under)
  return {'ratio': float(value), 'low': float(low), 'high': float(high)}


def kernels(options: argparse.Namespace) -> dict[str, Any]:
  """CPU speed of the gated delta rules, ours and peers'."""
  peers = [name for name in options.peers.split(',') if name]
  if unknown := sorted(set(peers) - ARMS.keys()):
    raise SystemExit(f'--peers: {unknown} are none of {sorted(ARMS)}.')
  if 'maxtext' in peers and not options.maxtext:
    raise SystemExit('maxtext: give --maxtext=CHECKOUT of its repository.')
  # The first that runs is the reference: never ours while there is another.
  arms = [name for name in ARMS if name in peers and name != 'ours'] + ['ours']
  path = options.out or RESULTS
  rows = {}
  if path.exists() and not options.fresh:
    rows = json.loads(path.read_text())['rows']
  for length in map(int, options.lengths.split(',')):
    for backward in (False, True):
      for decay in DECAYS:
        _row(rows, arms, length, decay, backward, options)
        _write(path, rows)
      _row(rows, SCALING, length, 'channel', backward, options)
      _write(path, rows)
  bench_tables.plot(rows, path.with_suffix('.png'))
  return {'rows': rows}


def _row(rows, arms, length, decay, backward, options):
  """Measures a row, unless it is there with all of the arms."""
  scaling = arms is SCALING
  direction = 'forward and backward' if backward else 'forward'
  what = 'FG2-GDN+ over KDA' if scaling else f'{decay} decay'
  key = f'{what}, {direction}, T={length}, H={options.heads}, d={options.width}'
  skipped = {}
  for name in arms:
    known = ARMS.get(name, Arm())
    limit = known.longest.get((decay, backward), math.inf)
    if decay not in known.decays:
      skipped[name] = f'has no {decay} decay'
    elif length > limit:
      skipped[name] = f'not run beyond {limit} tokens: memory or minutes'
  if key in rows and _complete(rows[key], arms, retry=options.retry):
    return
  print(f'{key} ...', file=sys.stderr, flush=True)
  load = os.getloadavg()[0]
  measured = measure(
    [name for name in arms if name not in skipped],
    make_inputs(length, options.heads, options.width, decay),
    options,
    backward=backward,
    repeats=options.scaling_repeats if scaling else options.repeats,
    shared=scaling,
    compare=not scaling,
  )
  rows[key] = {
    'what': what,
    'decay': decay,
    'backward': backward,
    'length': length,
    'heads': options.heads,
    'width': options.width,
    'arms': measured,
    'skipped': skipped,
    'machine': _processor(),
    'load': load,
    'commit': run.commit(),
  }
  if scaling and not any('failed' in arm for arm in measured.values()):
    kda, plus = (measured[name]['cpu_ms'] for name in SCALING)
    rows[key]['ratio'] = ratio(plus, kda)


def _complete(row, arms, *, retry: bool) -> bool:
  failed = any('failed' in arm for arm in row['arms'].values())
  there = row['arms'].keys() | row['skipped'].keys()
  return set(arms) <= there and not (failed and retry)


def _write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  fresh = path.with_suffix('.tmp')
  fresh.write_text(json.dumps({'rows': rows}, indent=1) + '\n')
  fresh.replace(path)


def _processor() -> str:
  for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
    if line.startswith('model name'):
      return f'{line.partition(":")[2].strip()}, one core'
  return 'unknown processor, one core'
