"""`bench sparse`: block-sparse against dense attention, on one CPU core.

  python -m experiments.bench sparse --lengths=1024,4096,8192,16384
  python -m experiments.bench sparse --lengths= --static

One process, pinned to a core, whose CPU time counts. All arms of a row take
turns. Before a row is timed, `sparse` with a budget of all blocks is compared
with dense attention, gradients too. Dense attention is timed in three forms:
`masked` (XLA softmax under a causal mask), `tiled` (a tile of queries against
the keys up to its end: no work above the diagonal, and the softmax recomputed
in the backward pass), and our own op with all blocks. A row is one length and
direction; finished rows are kept in experiments/results/bench_sparse.json, and
the same command goes on where it was stopped.

`--static` compiles our TPU kernels and jax's splash attention ahead of time and
lists what the compiler scheduled. That is no measure of time, and neither is
the time of a kernel in interpret mode, which is therefore not taken.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import functools
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments import run
from kernels_pallas import testing
from kernels_pallas.sparse_attention import aot, sparse_attention

RESULTS = pathlib.Path(__file__).parent / 'results' / 'bench_sparse.json'
TILE = 512
LONGEST_MASKED = 4096  # its logits take 4 * heads * length ** 2 bytes
SECONDS = 0.06  # of one repetition, at least
TOLERANCE = 1e-4  # of the largest value
ALL = 1 << 30


def add_arguments(parser: argparse.ArgumentParser):
  """The options of `sparse`."""
  parser.add_argument('--lengths', default='1024,4096,8192,16384')
  parser.add_argument('--budgets', default='1,2,4,8,16,32,64')
  parser.add_argument('--block-size', type=int, default=64)
  parser.add_argument('--heads', type=int, default=4)
  parser.add_argument('--key-heads', type=int, default=2)
  parser.add_argument('--width', type=int, default=64)
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--core', type=int, help='default: the last one')
  parser.add_argument('--static', action='store_true')
  parser.add_argument('--fresh', action='store_true', help='forget old rows')


def masked(q, k, v):
  """Dense causal attention with all logits in memory."""
  return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def tiled(q, k, v, *, tile: int = TILE):
  """Dense causal attention, tile after tile; nothing above the diagonal."""
  b, length, h, width = q.shape
  groups, tile = k.shape[2], min(tile, max(64, length // 8))
  q = jnp.moveaxis(q.reshape(b, length, groups, -1, width), 1, 3)
  k, v = (jnp.swapaxes(x, 1, 2) for x in (k, v))

  @jax.checkpoint
  def attend(q, k, v):
    rows = q.reshape(b, groups, -1, width) * width**-0.5
    logits = jnp.einsum('bgsk,bgtk->bgst', rows, k)
    at = jnp.arange(k.shape[2] - q.shape[3], k.shape[2])
    mask = at[:, None] >= jnp.arange(k.shape[2])[None]
    mask = jnp.tile(mask, (q.shape[2], 1))[None, None]
    weights = jax.nn.softmax(jnp.where(mask, logits, -1e30))
    out = jnp.einsum('bgst,bgtv->bgsv', weights, v)
    return out.reshape(*q.shape[:-1], -1)

  parts = []
  for i in range(0, length, tile):
    end = min(i + tile, length)
    parts.append(attend(q[:, :, :, i:end], k[:, :, :end], v[:, :, :end]))
  out = jnp.concatenate(parts, axis=3)
  return jnp.moveaxis(out, 3, 1).reshape(b, length, h, -1)


def programs(block_size: int, *, backward: bool) -> dict[str, Callable]:
  """Jitted `(q, k, v, weight, budget) -> arrays` of each form."""

  def sparse(q, k, v, budget):
    return sparse_attention(
      q,
      k,
      v,
      budget=budget,
      block_size=block_size,
      implementation='chunked',
    )

  forms = {
    'masked': lambda q, k, v, _: masked(q, k, v),
    'tiled': lambda q, k, v, _: tiled(q, k, v),
    'sparse': sparse,
  }

  def program(form, q, k, v, weight, budget):
    if not backward:
      return (form(q, k, v, budget),)
    out, pull = jax.vjp(lambda *x: form(*x, budget), q, k, v)
    return out, *pull(weight)

  return {
    name: jax.jit(functools.partial(program, form))
    for name, form in forms.items()
  }


def rows(
  *,
  length: int,
  budgets: Sequence[int],
  block_size: int = 64,
  heads: int = 4,
  key_heads: int = 2,
  width: int = 64,
  repeats: int = 7,
  backward: bool = False,
) -> dict[str, Any]:
  """Times one length and direction.

  Args:
    length: tokens of the one row.
    budgets: of the sparse arm; those of more blocks than there are drop out,
      and all blocks come last.
    block_size: tokens a block.
    heads: query heads.
    key_heads: key heads.
    width: of a head.
    repeats: of each arm, after two that do not count.
    backward: forward and backward, or forward.

  Returns:
    `arms`, from 'masked', 'tiled', 'sparse 1' … 'sparse all' to the CPU
    milliseconds of every repetition; `error` of 'sparse all' against 'tiled',
    relative; and the arguments.

  Raises:
    AssertionError: they differ by more than `TOLERANCE`.
  """
  sizes = {'length': length, 'block_size': block_size, 'heads': heads}
  sizes |= {'key_heads': key_heads, 'width': width, 'backward': backward}
  key = jax.random.split(jax.random.key(0), 4)
  counts = (heads, key_heads, key_heads, heads)
  inputs = [
    jax.random.normal(key[i], (1, length, counts[i], width)) for i in range(4)
  ]
  forms = programs(block_size, backward=backward)
  got = forms['sparse'](*inputs, jnp.int32(ALL))
  want = forms['tiled'](*inputs, jnp.int32(ALL))
  error = max(
    float(jnp.abs(x - y).max() / jnp.abs(y).max())
    for x, y in zip(got, want, strict=True)
  )
  if not error <= TOLERANCE:
    raise AssertionError(f'All blocks differ from dense by {error:.1e}.')
  blocks = -(-length // block_size)
  arms = {
    f'sparse {budget}': ('sparse', budget)
    for budget in budgets
    if budget < blocks
  }
  arms = {'tiled': ('tiled', ALL), **arms, 'sparse all': ('sparse', ALL)}
  if length <= LONGEST_MASKED:
    arms = {'masked': ('masked', ALL), **arms}
  calls = {
    name: functools.partial(forms[form], *inputs, jnp.int32(budget))
    for name, (form, budget) in arms.items()
  }
  return {**sizes, 'error': error, 'arms': take_turns(calls, repeats)}


def take_turns(
  calls: Mapping[str, Callable], repeats: int
) -> dict[str, list[float]]:
  """CPU milliseconds of each; the order turns from repetition to repetition."""
  names, times = list(calls), {name: [] for name in calls}
  often = {}
  for name, call in calls.items():
    jax.block_until_ready(call())
    often[name] = max(1, round(SECONDS / max(_cpu(call, 1), 1e-4)))
  for repeat in range(-1, repeats):  # the first does not count
    turn = (repeat + 1) % len(names)
    for name in names[turn:] + names[:turn]:
      took = _cpu(calls[name], often[name]) / often[name]
      if repeat >= 0:
        times[name].append(1e3 * took)
  return times


def _cpu(call, times):
  begin = time.process_time()
  for _ in range(times):
    jax.block_until_ready(call())
  return time.process_time() - begin


def static_rows(generations: Sequence[str] = tuple(testing.TOPOLOGIES)):
  """Static figures of our kernels and of splash attention's, a row a kernel."""
  wanted = [
    case
    for case in (*aot.CASES, *aot.MORE_CASES)
    if case.avals[0].shape[1] == 1024 and 'block=128' in case.name
  ]
  found = []
  for generation in generations:
    for result in testing.tpu_compile_all(
      wanted, generation, seconds=300, schedule=True
    ):
      found += [
        {
          'program': result.case,
          'tpu': generation,
          'error': result.error,
          'kernel': kernel.name.strip('_0123456789.'),
          'bundles': kernel.bundles,
          'spills': kernel.spills,
          'vmem_kib': kernel.vmem_bytes // 1024,
          'program_temp_kib': result.temp_bytes // 1024,
        }
        for kernel in result.schedule
      ] or [{'program': result.case, 'tpu': generation, 'error': result.error}]
  return found


def sparse(options: argparse.Namespace) -> dict[str, Any]:
  """CPU speed of block-sparse attention against dense, by length and budget."""
  core = options.core
  core = max(os.sched_getaffinity(0)) if core is None else core
  os.sched_setaffinity(0, {core})  # before XLA counts the cores
  path = getattr(options, 'out', None) or RESULTS
  result = {'rows': {}, 'static': []}
  if path.exists() and not options.fresh:
    result |= json.loads(path.read_text())
  budgets = [int(x) for x in options.budgets.split(',') if x]
  for length in [int(x) for x in options.lengths.split(',') if x]:
    for backward in (False, True):
      sizes = {
        'length': length,
        'block_size': options.block_size,
        'heads': options.heads,
        'key_heads': options.key_heads,
        'width': options.width,
        'backward': backward,
      }
      name = ', '.join(f'{key}={value}' for key, value in sizes.items())
      if name in result['rows']:
        continue
      print(f'{name} ...', file=sys.stderr, flush=True)
      row = rows(**sizes, budgets=budgets, repeats=options.repeats)
      row |= {'load': os.getloadavg()[0], 'commit': run.commit()}
      result['rows'][name] = row
      _write(path, result)
  if options.static:
    result['static'] = static_rows()
    _write(path, result)
  return result


def _write(path: pathlib.Path, result) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(result, indent=1) + '\n')


def wins(row: Mapping[str, Any]) -> str | None:
  """The largest budget that is faster than the best dense form."""
  times = {name: statistics.median(x) for name, x in row['arms'].items()}
  dense = min(times[name] for name in ('masked', 'tiled') if name in times)
  faster = [
    name.removeprefix('sparse ')
    for name, took in times.items()
    if name.startswith('sparse') and took < dense
  ]
  return faster[-1] if faster else None


def table(result: Mapping[str, Any]) -> str:
  """Medians, the ratio to the best dense form, and static figures."""
  parts = [
    'CPU milliseconds of one core, medians; in brackets best dense / it.'
  ]
  for backward in (False, True):
    chosen = [
      row for row in result['rows'].values() if row['backward'] == backward
    ]
    if not chosen:
      continue
    arms = list(dict.fromkeys(arm for row in chosen for arm in row['arms']))
    arms.sort(key=lambda arm: (arm.startswith('sparse'), arm == 'sparse all'))
    lines = [['', *(f'T={row["length"]}' for row in chosen)]]
    lines += [['---'] * len(lines[0])]
    lines += [[arm, *(_cell(row, arm) for row in chosen)] for arm in arms]
    lines += [['**wins up to a budget of**', *(str(wins(r)) for r in chosen)]]
    parts.append('**forward and backward**' if backward else '**forward**')
    parts.append('\n'.join('| ' + ' | '.join(x) + ' |' for x in lines))
  if result['static']:
    parts.append('**static figures of TPU kernels: compiled, never run**')
    names = ('program', 'tpu', 'kernel', 'bundles', 'spills', 'vmem_kib')
    names += ('program_temp_kib', 'error')
    lines = [names, ['---'] * len(names)]
    lines += [
      [_text(row.get(name)) for name in names] for row in result['static']
    ]
    parts.append('\n'.join('| ' + ' | '.join(x) + ' |' for x in lines))
  return '\n\n'.join(parts)


def _text(value) -> str:
  return '' if value is None else str(value).splitlines()[0][:70]


def _cell(row, arm):
  if arm not in row['arms']:
    return '-'
  times = {name: statistics.median(x) for name, x in row['arms'].items()}
  dense = min(times[name] for name in ('masked', 'tiled') if name in times)
  return f'{times[arm]:.4g} ({dense / times[arm]:.2f}x)'
