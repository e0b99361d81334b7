"""What can be proved about a Pallas kernel on a machine with no accelerator.

Three gates, from cheap to strict:
  `lowered`: the kernel's StableHLO for a platform; finds missing primitives.
  `run_strict`: TPU interpret mode that raises on races, on reads out of bounds
    and leaves NaN in memory that was never written.
  `tpu_compile`, `tpu_compile_all`: Mosaic's own compiler for a TPU generation,
    ahead of time, in a child process; finds alignment that is not proven,
    memory that overflows and layouts that do not exist.

None of them says anything about speed. Cases for the compile gate are data:

    CASES = (Case('softmax forward float32', softmax.forward, (aval,)), ...)
    results = testing.tpu_compile_all(CASES, 'v5e')
"""

from collections.abc import Callable, Iterable, Sequence
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax
from jax import export
from jax.experimental.pallas import tpu as pltpu

# TPU generation -> the smallest topology of it that libtpu describes.
TOPOLOGIES = {
  'v5e': 'v5e:2x2',
  'v6e': 'v6e:2x2',
  'tpu7x': 'tpu7x:2x2x1',
}

# A GPU of compute capability 9.0, from public specifications; `tpu_compile_all`
# takes its name as a generation where the CUDA plugin of jax is installed.
GPU = 'h100'
GPU_CONFIG = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3350000000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 85899345920
}
platform_name: "CUDA"
dnn_version_info { major: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# jax -> the libtpu that it was released with and that the tables were made by.
PINS = {
  '0.10.2': '0.0.42.1',
  '0.12.0.1': '0.0.50.1',
}

# Pallas kernels in an executable's text.
KERNEL = r'custom_call_target="(?:tpu_custom_call|__gpu\$xla\.gpu\.triton)"'

# Before jax is imported: no TPU is looked for, and two processes may compile.
ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu',
  'JAX_ENABLE_COMPILATION_CACHE': 'false',
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}

STRICT = pltpu.InterpretParams(
  detect_races=True,
  uninitialized_memory='nan',
  out_of_bounds_reads='raise',
  dma_execution_mode='on_wait',
)
TWO_CORES = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)


class Case(NamedTuple):
  """One program of the compile gate.

  Attributes:
    name: unique among the cases.
    function: a module-level function, or a `functools.partial` of one; the
      child process imports it by its name.
    avals: its arguments, `jax.ShapeDtypeStruct` or trees of them.
  """

  name: str
  function: Callable
  avals: tuple[Any, ...]


class Kernel(NamedTuple):
  """Static counts of one compiled kernel; no measure of time.

  Attributes:
    name: the custom call.
    bundles: scheduled instruction bundles, each loop body once, every branch.
    spills: vector registers stored because registers ran out.
    vmem_bytes: windows, scratch and the compiler's own scratch.
  """

  name: str
  bundles: int
  spills: int
  vmem_bytes: int


class Compiled(NamedTuple):
  """What became of a case.

  Attributes:
    case: name of the case.
    generation: key of `TOPOLOGIES`.
    error: None, or what the compiler said.
    kernels: Pallas kernels in the executable; 0 means a fallback was compiled.
    hbm_bytes: of arguments and results, which cross HBM at least once.
    temp_bytes: HBM that the executable needs besides.
    seconds: wall time of lowering and compiling.
    schedule: one `Kernel` each, where `schedule=True` was asked for.
  """

  case: str
  generation: str
  error: str | None = None
  kernels: int = 0
  hbm_bytes: int = 0
  temp_bytes: int = 0
  seconds: float | int = 0.0
  schedule: tuple[Kernel, ...] = ()


class RaceError(RuntimeError):
  """Two accesses of one buffer, at least one a write, in no order."""


def unavailable(generation: str = 'v5e') -> str | None:
  """Why nothing can be compiled for a generation here, or None if it can."""
  if generation == GPU:
    plugins = [f'jax_cuda{n}_plugin' for n in (12, 13)]
    if not any(map(importlib.util.find_spec, plugins)):
      return (
        "jax's CUDA plugin is not installed; `pip install jax[cuda12-local]"
        '==0.10.2 absl-py` into an environment of its own brings it.'
      )
    return None
  if importlib.util.find_spec('libtpu') is None:
    return (
      'libtpu is not installed; `pip install libtpu=='
      f'{PINS.get(jax.__version__, "<the release of your jax>")}` (Linux, '
      'x86-64) brings it.'
    )
  return None


def versions() -> tuple[str, str]:
  """`(jax, libtpu)` as installed, to be compared with `PINS`."""
  return jax.__version__, importlib.metadata.version('libtpu')


def lowered(function: Callable, *avals: Any, platform: str = 'tpu') -> str:
  """StableHLO of `function` for 'tpu' or 'cuda', made on any machine.

  Raises:
    Exception: what the lowering raises, e.g. for a primitive that it lacks.
  """
  checks = [
    export.DisabledSafetyCheck.custom_call(name)
    for name in ('__gpu$xla.gpu.triton', 'triton_kernel_call', 'mosaic_gpu_v2')
  ]
  exporter = export.export(
    jax.jit(function), platforms=[platform], disabled_checks=checks
  )
  with _abstract(None) if platform == 'cuda' else contextlib.nullcontext():
    return exporter(*avals).mlir_module()


def run_strict(function: Callable, *args: Any) -> Any:
  """Runs `function`, whose kernels use `STRICT` or `TWO_CORES`, to its end.

  Returns:
    What it returns.

  Raises:
    RaceError: the interpreter found a race.
    Exception: a read out of bounds, as the interpreter raises it.
  """
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call

  try:
    out = jax.block_until_ready(function(*args))
    jax.effects_barrier()
  except Exception as error:
    if 'RACE DETECTED' in str(error).upper():
      raise RaceError(str(error)) from error
    raise
  # The older jax only prints what it found.
  races = getattr(interpret_pallas_call, 'races', None)
  if races is not None and races.races_found:
    raise RaceError('RACE DETECTED; the accesses are on standard output.')
  return out


def tpu_compile(
  function: Callable,
  *avals: Any,
  generation: str,
  seconds: float | int = 120.0,
  schedule: bool = False,
) -> Compiled:
  """Compiles one function for a TPU generation; see `tpu_compile_all`."""
  name = getattr(function, '__name__', 'function')
  case = Case(name, function, avals)
  return tpu_compile_all(
    [case], generation, seconds=seconds, schedule=schedule
  )[0]


def tpu_compile_all(
  cases: Iterable[Case],
  generation: str,
  *,
  seconds: float | int = 60.0,
  schedule: bool = False,
) -> list[Compiled]:
  """Compiles cases for a TPU generation in one child process.

  A case that kills its child or runs out of time is reported so, and a new
  child goes on with the next.

  Args:
    cases: the programs.
    generation: key of `TOPOLOGIES`, or `GPU`.
    seconds: time limit for each case, summed over the cases of a child.
    schedule: also count bundles, spills and VMEM (slower).

  Returns:
    One result a case, in order.

  Raises:
    RuntimeError: nothing can be compiled here; call `unavailable` first.
  """
  if (why := unavailable(generation)) is not None:
    raise RuntimeError(why)
  left, results = list(cases), []
  while left:
    done, fate = _child(left, generation, seconds * len(left) + 30, schedule)
    results += done
    left = left[len(done) :]
    if left:
      results.append(Compiled(left[0].name, generation, error=fate))
      left = left[1:]
  return results


def _child(cases, generation, limit, schedule):
  """Results of the cases that finished, and what happened to the next one."""
  order = {
    'path': sys.path,
    'cases': pickle.dumps(cases),
    'generation': generation,
    'schedule': schedule,
  }
  environment = {**os.environ, **ENVIRONMENT}
  with tempfile.TemporaryDirectory() as folder:
    if schedule:
      environment['LIBTPU_INIT_ARGS'] = (
        f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true'
      )
      order['folder'] = folder
    try:
      ended = subprocess.run(
        [sys.executable, '-m', 'kernels_pallas.testing'],
        input=pickle.dumps(order),
        capture_output=True,
        env=environment,
        timeout=limit,
      )
    except subprocess.TimeoutExpired as error:
      return _read(error.stdout), f'not compiled within {limit:.0f} s'
  fate = (
    f'the compiling process ended with code {ended.returncode}:\n'
    + ended.stderr.decode(errors='replace')[-2000:]
  )
  return _read(ended.stdout), fate


def _read(lines: bytes | None) -> list[Compiled]:
  results = []
  for line in (lines or b'').splitlines(keepends=True):
    if line.endswith(b'\n'):
      fields = json.loads(line)
      kernels = tuple(Kernel(*kernel) for kernel in fields.pop('schedule'))
      results.append(Compiled(**fields, schedule=kernels))
  return results


def _serve() -> None:
  """The child: an order on standard input, one line of JSON a case."""
  out = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # libtpu may print
  order = pickle.load(sys.stdin.buffer)
  sys.path[:] = order['path']
  folder = pathlib.Path(order['folder']) if order['schedule'] else None
  for case in pickle.loads(order['cases']):
    result = _compile(case, order['generation'], folder)
    print(json.dumps(result._asdict()), file=out, flush=True)


def _compile(case, generation, folder) -> Compiled:
  device = _device(generation)
  sharding = jax.sharding.SingleDeviceSharding(device)
  avals = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
    case.avals,
  )
  start = time.perf_counter()
  try:
    with _abstract(None if generation == GPU else device):
      lowered = jax.jit(case.function).lower(*avals)
    compiled = lowered.compile()
  except Exception as error:
    text = f'{type(error).__name__}: {error}'[:4000]
    return Compiled(case.name, generation, error=text)
  memory = compiled.memory_analysis()
  return Compiled(
    case.name,
    generation,
    kernels=len(re.findall(KERNEL, compiled.as_text())),
    hbm_bytes=int(memory.argument_size_in_bytes + memory.output_size_in_bytes),
    temp_bytes=int(memory.temp_size_in_bytes),
    seconds=round(time.perf_counter() - start, 2),
    schedule=() if folder is None else _schedule(folder),
  )


def _device(generation):
  """A device that is not there."""
  from jax.experimental import topologies

  if generation == GPU:
    described = topologies.get_topology_desc(
      *('', 'cuda'), target_config=GPU_CONFIG, topology='1x1x1'
    )
  else:
    described = topologies.get_topology_desc(TOPOLOGIES[generation], 'tpu')
  return described.devices[0]


def _schedule(folder: pathlib.Path) -> tuple[Kernel, ...]:
  """Reads the compiler's dumps of one executable and removes them."""
  kernels = []
  for path in sorted(folder.glob('*schedule-analysis_final_bundles.txt')):
    text = path.read_text(errors='replace')
    stem = re.match(r'(.*)-\d+-schedule-analysis', path.name)[1]
    if 'tpu_custom_call' not in text or stem.endswith('-TLP'):  # whole program
      continue
    total = re.search(r'total scheduled bundles:\s*(\d+)', text)
    kernels.append(
      Kernel(
        stem.split('-', 1)[1],
        int(total[1]),
        _spills(next(folder.glob(f'{stem}-*-final_hlo-static-per*'), None)),
        _vmem(next(folder.glob(f'{stem}-*-original.txt'), None)),
      )
    )
  for path in folder.iterdir():
    path.unlink()
  return tuple(kernels)


def _spills(path: pathlib.Path | None) -> int:
  """Sum of the VSTORE:SPILL column of a per-bundle utilization file."""
  if path is None:
    return -1
  lines = path.read_text().splitlines()
  start = next(i for i, x in enumerate(lines) if x.startswith('== UTIL'))
  names = [name.strip() for name in lines[1].split(',')]
  column = names.index('VSTORE:SPILL')
  rows: Sequence[str] = lines[start + 1 :]
  return sum(int(row.split()[column]) for row in rows if row.strip())


def _vmem(path: pathlib.Path | None) -> int:
  if path is None:
    return -1
  found = re.findall(
    r'space=vmem, size = (0x[0-9a-f]+)', path.read_text(errors='replace')
  )
  return sum(int(size, 16) for size in found)


def _abstract(tpu):
  """A mesh of one device that is not there; newer jax lowers kernels for it.

  Programs that ask what they are lowered for, as some libraries' do, get it for
  an answer.

  Args:
    tpu: the device; None is an H100.
  """
  try:
    from jax.sharding import AbstractDevice
  except ImportError:
    return contextlib.nullcontext()
  if tpu is None:
    device = AbstractDevice(
      device_kind='NVIDIA H100 80GB HBM3', platform='cuda', num_cores=132
    )
  else:
    device = AbstractDevice(
      device_kind=tpu.device_kind, platform='tpu', num_cores=tpu.num_cores
    )
  return jax.sharding.use_abstract_mesh(
    jax.sharding.AbstractMesh((1,), ('x',), abstract_device=device)
  )


if __name__ == '__main__':
  _serve()
