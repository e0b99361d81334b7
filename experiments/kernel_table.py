"""Static figures of the TPU kernels: compiled ahead of time, never run.

    python -m experiments.kernel_table

Compiles every registered program for every TPU generation and writes
`docs/kernels_static.md`. Bundles are instruction words that the compiler
scheduled for one grid step, loop bodies once and every branch; they compare two
kernels on one generation, and are no measure of time.
"""

import argparse
import importlib
import pathlib

from jaxagent.report import markdown
from kernels_pallas import testing

# Packages whose `aot` module holds CASES, and MORE_CASES if there are more.
PACKAGES = (
  'kernels_pallas.fg2_gdn.aot',
  'kernels_pallas.sparse_attention.aot',
)
TARGET = pathlib.Path(__file__).parents[1] / 'docs' / 'kernels_static.md'

HEADER = """\
# TPU kernels: static figures

Made by `python -m experiments.kernel_table` with jax {jax} and libtpu {libtpu}.
Compiled ahead of time for v5e, v6e and TPU7x; numerics are checked in interpret
mode; nothing here was run on an accelerator.

Bundles are the instruction words scheduled for one grid step (loop bodies once,
every branch counted) and spills the vector registers stored because registers
ran out. They compare variants of a kernel on one generation. They are no times:
waits for memory are not in them. VMEM is windows, scratch and the compiler's
own scratch.

"""


def cases(every: bool) -> list[testing.Case]:
  """The registered programs."""
  found = []
  for name in PACKAGES:
    try:
      module = importlib.import_module(name)
    except ModuleNotFoundError as error:
      if error.name != name:
        raise
      continue
    found += module.CASES
    found += getattr(module, 'MORE_CASES', ()) if every else ()
  return found


def rows(result: testing.Compiled) -> list[list[str]]:
  """One row a kernel of a compiled program, or one that says what failed."""
  head = [result.case, result.generation]
  if result.error is not None:
    return [[*head, result.error.splitlines()[0][:80], '', '', '', '']]
  return [
    [
      *head,
      'compiles',
      kernel.name.strip('_0123456789.'),
      str(kernel.bundles),
      str(kernel.spills),
      f'{kernel.vmem_bytes / 1024:.0f}',
    ]
    for kernel in result.schedule
  ] or [[*head, 'compiles', 'no kernel in it', '', '', '']]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--only', default='', help='part of a program name')
  parser.add_argument('--every', action='store_true', help='the slow ones too')
  parser.add_argument('--generations', nargs='*', default=testing.TOPOLOGIES)
  parser.add_argument('--target', type=pathlib.Path, default=TARGET)
  args = parser.parse_args()
  if (why := testing.unavailable()) is not None:
    raise SystemExit(why)
  wanted = [case for case in cases(args.every) if args.only in case.name]
  body = []
  for generation in args.generations:
    for result in testing.tpu_compile_all(
      wanted, generation, seconds=300, schedule=True
    ):
      body += rows(result)
      print(*body[-1], sep=' | ', flush=True)
  jax, libtpu = testing.versions()
  titles = ['program', 'TPU', 'result', 'kernel', 'bundles', 'spills', 'KiB']
  text = HEADER.format(jax=jax, libtpu=libtpu)
  args.target.write_text(text + markdown.table(titles, body) + '\n')
  print(f'Wrote {args.target}.')


if __name__ == '__main__':
  main()
