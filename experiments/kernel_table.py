"""Static figures of the TPU kernels: compiled ahead of time, never run.

    python -m experiments.kernel_table           # docs/kernels_static.md
    python -m experiments.kernel_table --peers   # docs/kernels_static_peers.md

Compiles every registered program for every TPU generation. Bundles are
instruction words that the compiler scheduled for one grid step, loop bodies
once and every branch; they compare two kernels on one generation, and are no
measure of time. `--peers` puts tokamax's Kimi delta attention and jax's splash
attention beside ours, at the same sizes; tokamax (0.0.17) wants Python 3.12:

    pip install -e '.[dev,tpu]' tokamax==0.0.17
"""

import argparse
import importlib
import importlib.util
import math
import pathlib

import jax
import jax.numpy as jnp

from experiments import kernel_peers
from jaxagent.report import markdown
from kernels_pallas import testing

# Packages whose `aot` module holds CASES, and MORE_CASES if there are more.
PACKAGES = (
  'kernels_pallas.fg2_gdn.aot',
  'kernels_pallas.sparse_attention.aot',
)
DOCS = pathlib.Path(__file__).parents[1] / 'docs'
TITLES = ('program', 'TPU', 'result', 'kernel', 'bundles', 'spills')
TITLES += ('VMEM KiB', 'HBM B', 'temporary B')

HEADER = """\
# TPU kernels: static figures{title}

Made by `python -m experiments.kernel_table{flags}` with jax {jax} and libtpu
{libtpu}. Compiled ahead of time; numerics are checked in interpret mode;
nothing here was run on an accelerator.

Bundles are the instruction words scheduled for one grid step (loop bodies once,
every branch counted) and spills the vector registers stored because registers
ran out. They compare variants of a kernel on one generation. They are no times:
waits for memory are not in them. VMEM is windows, scratch and the compiler's
own scratch.

HBM is what crosses memory at least once, arguments and results of the program;
both it and temporaries are in bytes a token and query head. The least that a
bfloat16 forward of a gated delta rule can do with is 12 d = 1,536 at d = 128
(scaled keys and values, float32 decays); a training step of chunk C keeps
4 d d / C = 1,024 more for the states.
"""

OF_PEERS = """
tokamax's op is given ready log decays and `lower_bound=-5`, its limit; ours take
any. Its programs are [H, B, T, K] like its kernels.
"""


def cases(every: bool) -> list[testing.Case]:
  """The registered programs."""
  found = []
  for name in PACKAGES:
    module = importlib.import_module(name)
    found += module.CASES
    found += module.MORE_CASES if every else ()
  return found


def peer_cases() -> list[testing.Case]:
  """Programs of peers, after ours of the same sizes.

  Raises:
    SystemExit: tokamax is not there.
  """
  if importlib.util.find_spec('tokamax') is None:
    raise SystemExit(
      'tokamax is not installed, and wants Python 3.12: in an environment of'
      " its own, pip install -e '.[dev,tpu]' tokamax==0.0.17"
    )
  known = {case.name: case for case in cases(every=True)}
  found = []
  for dtype in ('float32', 'bfloat16'):
    x = jax.ShapeDtypeStruct((2, 2, 512, 128), jnp.dtype(dtype))
    wide = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    beta = jax.ShapeDtypeStruct(x.shape[:3], jnp.float32)
    for what in ('forward', 'gradient'):
      function = getattr(kernel_peers, f'tokamax_{what}')
      found += [
        known[f'fg2_gdn {what} {dtype} C=64'],
        testing.Case(
          f'tokamax KDA {what} {dtype}', function, (x, x, x, wide, beta)
        ),
        known[f'sparse_attention {what} {dtype} block=128'],
        known[f'splash_{what} {dtype} block=128'],
      ]
  return found


def rows(case: testing.Case, result: testing.Compiled) -> list[list[str]]:
  """One row a kernel of a compiled program, or one that says what failed."""
  head = [result.case, result.generation]
  if result.error is not None:
    return [[*head, result.error.splitlines()[0][:80], *[''] * 6]]
  heads = math.prod(case.avals[0].shape[:3])
  memory = [f'{x / heads:,.0f}' for x in (result.hbm_bytes, result.temp_bytes)]
  return [
    [
      *head,
      'compiles',
      kernel.name.strip('_0123456789.'),
      str(kernel.bundles),
      str(kernel.spills),
      f'{kernel.vmem_bytes / 1024:.0f}',
      *memory,
    ]
    for kernel in result.schedule
  ] or [[*head, 'compiles', 'no kernel in it', '', '', '', *memory]]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--only', default='', help='part of a program name')
  parser.add_argument('--every', action='store_true', help='the slow ones too')
  parser.add_argument('--peers', action='store_true', help='ours beside others')
  parser.add_argument('--generations', nargs='*', default=testing.TOPOLOGIES)
  parser.add_argument('--target', type=pathlib.Path)
  args = parser.parse_args()
  if (why := testing.unavailable()) is not None:
    raise SystemExit(why)
  found = peer_cases() if args.peers else cases(args.every)
  wanted = [case for case in found if args.only in case.name]
  body = []
  for generation in args.generations:
    results = testing.tpu_compile_all(
      wanted, generation, seconds=300, schedule=True
    )
    for case, result in zip(wanted, results, strict=True):
      body += rows(case, result)
      print(*body[-1], sep=' | ', flush=True)
  jax_version, libtpu = testing.versions()
  text = HEADER.format(
    title=' beside peers' if args.peers else '',
    flags=' --peers' if args.peers else '',
    jax=jax_version,
    libtpu=libtpu,
  )
  name = 'kernels_static_peers.md' if args.peers else 'kernels_static.md'
  target = args.target or DOCS / name
  text += OF_PEERS if args.peers else ''
  target.write_text(f'{text}\n{markdown.table(TITLES, body)}\n')
  print(f'Wrote {target}.')


if __name__ == '__main__':
  main()
