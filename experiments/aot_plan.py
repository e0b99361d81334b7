"""Plans a pod run on a laptop: compiles the training step with no TPU there.

  python -m experiments.aot_plan --config=qwen3-8b --topology=v5e:16x16
  python -m experiments.aot_plan --config=hybrid-1.3b --topology=v6e:4x4 \
    --mesh=data:1,fsdp:16,tensor:1 --config.rollout.cache_lengths="(8192,)"
  python -m experiments.aot_plan --topology=tpu7x:2x2x1 --suggest \
    --config=experiments/configs/sdar_alfworld.py --config.model.init=smollm2-1.7b

CONFIG is a preset of `jaxagent.models.config`, trained by SDAR at the sizes of
`plan_config`, or a file with `get_config`, as `experiments.train` takes it; any
field is changed by `--config.FIELD=VALUE`. The two programs of a step, `fixed`
(teacher and reference passes) and `update`, go through the TPU compiler of
`pip install 'jaxagent[tpu]'`. Printed are the compiler's estimate of memory a
device and what stays there beside the program, parameters, operations,
collectives, whether all of it fits and what to change if not; `--suggest`
compiles the suggestions too. `--save` adds the plan to docs/aot_plans.md.
Nothing here is a measurement.
"""

import argparse
import ast
from collections.abc import Mapping, Sequence
from importlib import metadata
import importlib.util
import json
import math
import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import time
from typing import Any

import ml_collections

from experiments import aot_report
from experiments.configs import sdar_alfworld

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'experiments' / 'results' / 'aot_plans.json'
DOCUMENT = ROOT / 'docs' / 'aot_plans.md'
PROGRAMS = ('fixed', 'update')

# GiB of memory of one JAX device by published sizes; TPU7x has two a chip.
HBM = {'v5e': 16, 'v5p': 95, 'v6e': 32, 'tpu7x': 96}

_ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu',
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


def plan_config(name: str) -> ml_collections.ConfigDict:
  """The config to plan with.

  Args:
    name: a preset, for SDAR on 128 rows of 4096 tokens, bfloat16 products and
      float32 weights, layers compiled once and recomputed backward, and
      microbatches of one row a way; or FILE[:ARG] of a training config.
  """
  path, _, arg = name.partition(':')
  preset = not path.endswith('.py')
  config = (
    sdar_alfworld.get_config()
    if preset
    else runpy.run_path(path)['get_config'](arg)
  )
  if preset:
    config.name = f'sdar_{name}'
    config.tokenizer = 'model'
    config.model.update(init=name, dtype='bfloat16', scan=True, remat=True)
    config.batch.update(tasks=16, group=8, teacher_extra=512, chunk=4096)
    config.rollout.update(cache_lengths=(4096,), max_new=512)
    config.train.microbatch = 0  # `complete` fills it in
  return config


def complete(config: ml_collections.ConfigDict, topology: str, mesh: str = ''):
  """Sets the mesh, and the smallest microbatch that splits over it.

  Args:
    config: changed in place.
    topology: such as 'v5e:16x16'.
    mesh: such as 'data:1,fsdp:16,tensor:16'; '' is fsdp x tensor as the chips
      lie in two dimensions, and fsdp alone in three, but for a config that has
      a mesh of as many devices.

  Raises:
    SystemExit: the topology is not one that can be planned for.
  """
  kind, _, dims = topology.partition(':')
  if kind not in HBM or not re.fullmatch(r'\d+(x\d+){1,2}', dims):
    raise SystemExit(
      f'--topology={topology!r}: write GENERATION:AxB or GENERATION:AxBxC with'
      f' one of {sorted(HBM)}, such as v5e:16x16, v6e:4x4 or tpu7x:2x2x1.'
    )
  sizes = [int(size) for size in dims.split('x')]
  count = math.prod(sizes) * (2 if kind == 'tpu7x' else 1)
  if mesh:
    axes = dict(part.split(':') for part in mesh.split(','))
    config.mesh.update({name: int(size) for name, size in axes.items()})
  elif not config.mesh.data:
    config.mesh.data = count // (config.mesh.fsdp * config.mesh.tensor)
  elif math.prod(config.mesh.values()) != count:
    tensor = sizes[1] if len(sizes) == 2 else 1
    config.mesh.update(data=1, fsdp=count // tensor, tensor=tensor)
  if not config.train.microbatch:
    config.train.microbatch = config.mesh.data * config.mesh.fsdp


def change(config: ml_collections.ConfigDict, field: str, value: Any):
  """Sets `a.b.c`; fields of a preset in `model.overrides` may be new.

  Raises:
    SystemExit: there is no such field, or it has another type.
  """
  *path, name = field.split('.')
  section = config
  for part in path:
    section = section.get(part) if _is_section(section) else None
  new = path == ['model', 'overrides']
  if not _is_section(section) or not (new or name in section):
    raise SystemExit(f'--config.{field}: the config has no such field.')
  try:
    with config.unlocked():
      section[name] = value
  except TypeError as error:
    raise SystemExit(f'--config.{field}: {error}') from error


def _is_section(value: Any) -> bool:
  return isinstance(value, ml_collections.ConfigDict)


def compile_program(
  config: Mapping[str, Any],
  topology: str,
  program: str,
  *,
  limit: float,
  kernels: bool = True,
) -> dict[str, Any]:
  """Compiles 'fixed' or 'update' in a child process.

  Args:
    config: as a plain mapping.
    topology: such as 'v5e:16x16'.
    program: one of `PROGRAMS`.
    limit: seconds.
    kernels: choose as on a TPU; False takes plain XLA forms.

  Returns:
    The record of `aot_compile.run`; {'failed': reason} where there is none.
  """
  with tempfile.TemporaryDirectory() as folder:
    source, target = (pathlib.Path(folder, n) for n in ('ask', 'answer'))
    request = {
      'config': config,
      'topology': topology,
      'program': program,
      'kernels': kernels,
    }
    source.write_text(json.dumps(request))
    words = [sys.executable, '-m', 'experiments.aot_compile', source, target]
    begin = time.monotonic()
    with open(pathlib.Path(folder, 'log'), 'w+') as log:
      child = subprocess.Popen(
        [str(word) for word in words],
        cwd=ROOT,
        env=os.environ | _ENVIRONMENT,
        stdout=log,
        stderr=log,
      )
      while child.poll() is None:
        spent = time.monotonic() - begin
        _progress(f'{program} for {topology}: {spent:.0f} s of {limit:.0f}')
        if spent > limit:
          child.kill()
          child.wait()
          return {'failed': f'no result in {limit:.0f} s; raise --limit'}
        time.sleep(0.2)
      _progress('')
      if child.returncode:
        log.seek(0)
        return {'failed': log.read().strip().splitlines()[-1]}
    return json.loads(target.read_text())


def _progress(text: str):
  if sys.stderr.isatty():
    print(f'\r\033[K{text}', end='', file=sys.stderr, flush=True)


def judge(result: Mapping[str, Any], topology: str) -> dict[str, Any]:
  """Adds what a device needs and whether it has it.

  Args:
    result: of `compile_program`.
    topology: such as 'v5e:16x16'.

  Returns:
    `result` with `need` and `room` in bytes, and `fits`.
  """
  if 'failed' in result:
    return {**result, 'fits': False}
  room = HBM[topology.partition(':')[0]] * 2**30
  if 'refused' in result:
    own = _asked(result['refused'], result['inputs'])
  else:
    # Both of the compiler's numbers err, each in its direction.
    parts = result['arguments'] + result['outputs'] - result['aliased']
    own = max(parts + result['temporary'], result['peak']) + result['code']
  need = own + result['resident']
  fits = 'refused' not in result and need <= room * (1 - aot_report.HEADROOM)
  return {**result, 'need': need, 'room': room, 'fits': fits}


def _asked(words: str, inputs: float) -> float:
  """Bytes that a refused program asked for, by the compiler's words."""
  for pattern, more in (
    (r'Used ([\d.]+)([KMGT]) of', 0),
    (r'temporaries \(([\d.]+)([KMGT])\) exceeds', inputs),
  ):
    if match := re.search(pattern, words):
      scale = 1024 ** (1 + 'KMGT'.index(match.group(2)))
      return float(match.group(1)) * scale + more
  return math.nan


def plan(
  config: ml_collections.ConfigDict, topology: str, **options
) -> dict[str, Any]:
  """Compiles both programs of a step.

  Args:
    config: complete, see `complete`.
    topology: such as 'v5e:16x16'.
    **options: of `compile_program`.

  Returns:
    The records of the programs by name, `fits`, and what was planned.
  """
  plain = json.loads(config.to_json_best_effort())
  programs = {
    name: judge(compile_program(plain, topology, name, **options), topology)
    for name in PROGRAMS
  }
  return {
    'model': config.model.init,
    'topology': topology,
    'kernels': options.get('kernels', True),
    'mesh': dict(config.mesh),
    'dtype': config.model.dtype,
    'rows': config.batch.tasks * config.batch.group,
    'length': max(config.rollout.cache_lengths),
    'microbatch': config.train.microbatch,
    'remat': config.model.remat,
    'chunk': config.batch.chunk,
    'programs': programs,
    'fits': all(result['fits'] for result in programs.values()),
  }


def suggestions(
  config: ml_collections.ConfigDict,
) -> list[tuple[str, dict[str, Any]]]:
  """What may bring memory down, cheapest first: words, and fields to set."""
  mesh, out = config.mesh, []
  ways = mesh.data * mesh.fsdp
  if not config.model.remat:
    words = 'recompute the layers backward (remat)'
    out.append((words, {'model.remat': True, 'model.scan': True}))
  if config.train.microbatch > ways:
    words = f'microbatches of {ways} rows, one a way'
    out.append((words, {'train.microbatch': ways}))
  if mesh.data > 1:
    words = 'split the weights over the data axis too (fsdp)'
    sizes = {'mesh.data': 1, 'mesh.fsdp': mesh.data * mesh.fsdp}
    out.append((words, sizes))
  if config.model.dtype != 'bfloat16':
    out.append(('products in bfloat16', {'model.dtype': 'bfloat16'}))
  if config.batch.chunk > 512:
    words = (
      f'{config.batch.chunk // 4} positions at once against the vocabulary'
    )
    out.append((words, {'batch.chunk': config.batch.chunk // 4}))
  if config.model.overrides.get('param_dtype') != 'bfloat16':
    words = (
      'weights and optimiser state in bfloat16 (halves the state; small'
      ' learning rates round away)'
    )
    out.append((words, {'model.overrides.param_dtype': 'bfloat16'}))
  length = max(config.rollout.cache_lengths)
  if length > 256:
    words = f'rows of at most {length // 2} tokens'
    out.append((words, {'rollout.cache_lengths': (length // 2,)}))
  return out


def try_suggestions(
  config: ml_collections.ConfigDict, topology: str, **options
) -> list[dict[str, Any]]:
  """Compiles one suggestion upon the other until the step fits.

  Returns:
    For each: its `words`, the `fields` set so far, and the `plan`.
  """
  config, fields, tried = config.copy_and_resolve_references(), {}, []
  for words, changes in suggestions(config):
    for field, value in changes.items():
      change(config, field, value)
    fields |= changes
    outcome = plan(config, topology, **options)
    tried.append({'words': words, 'fields': dict(fields), 'plan': outcome})
    print(f'- with {words}: {aot_report.verdict(outcome)}', flush=True)
    if outcome['fits']:
      break
  return tried


def save(outcome: Mapping[str, Any], command: str):
  """Adds a plan to the results and writes the document from all of them."""
  results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
  results[command] = outcome
  RESULTS.parent.mkdir(parents=True, exist_ok=True)
  RESULTS.write_text(json.dumps(results, indent=1) + '\n')
  DOCUMENT.write_text(aot_report.document(results))


def _versions() -> dict[str, str]:
  return {name: metadata.version(name) for name in ('jax', 'libtpu')}


def main(arguments: Sequence[str] | None = None):
  """Plans, prints and saves."""
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--config', '--preset', required=True)
  parser.add_argument('--topology', required=True)
  parser.add_argument('--mesh', default='', help='data:1,fsdp:16,tensor:16')
  parser.add_argument('--limit', type=float, default=1200, help='seconds')
  parser.add_argument(
    '--no-kernels', action='store_true', help='plain XLA instead of Pallas'
  )
  parser.add_argument(
    '--suggest', action='store_true', help='compile what may help, too'
  )
  parser.add_argument(
    '--save', action='store_true', help='add the plan to docs/aot_plans.md'
  )
  options, rest = parser.parse_known_args(arguments)
  if importlib.util.find_spec('libtpu') is None:
    raise SystemExit(
      'The TPU compiler, libtpu, is not installed (no TPU is needed for it):'
      " pip install 'jaxagent[tpu]'"
    )
  config = plan_config(options.config)
  for word in rest:
    match = re.fullmatch(r'--config\.([\w.]+)=(.*)', word)
    if not match:
      parser.error(f'{word!r}: expected --config.FIELD=VALUE')
    change(config, match.group(1), _literal(match.group(2)))
  complete(config, options.topology, options.mesh)
  how = {'limit': options.limit, 'kernels': not options.no_kernels}
  outcome = plan(config, options.topology, **how)
  outcome['versions'] = _versions()
  if any('need' in r and not r['fits'] for r in outcome['programs'].values()):
    print(aot_report.sentence(outcome) + '. What may help:')
    for words, fields in suggestions(config):
      flags = ' '.join(f'--config.{k}="{v}"' for k, v in fields.items())
      print(f'- {words}: {flags}')
    if options.suggest:
      print('Tried, one upon the other:')
      outcome['tried'] = try_suggestions(config, options.topology, **how)
  print(aot_report.render(outcome))
  if options.save:
    words = [word for word in arguments if word != '--save']
    save(outcome, shlex.join(['python', '-m', 'experiments.aot_plan', *words]))


def _literal(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


if __name__ == '__main__':
  main()
