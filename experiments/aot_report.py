"""Plans of `aot_plan` as markdown."""

from collections.abc import Mapping
from typing import Any

GIB = 2**30
HEADROOM = 0.08  # left free: the runtime's own, fragments, estimates that err


def verdict(outcome: Mapping[str, Any]) -> str:
  """One line: fits or not, and by how much."""
  words = []
  for name, result in outcome['programs'].items():
    if 'failed' in result:
      words.append(f'{name} did not compile ({result["failed"]})')
    else:
      need, room = result['need'] / GIB, result['room'] / GIB
      words.append(f'{name} {need:.2f} of {room:.0f} GiB')
  return ('fits: ' if outcome['fits'] else 'does not fit: ') + ', '.join(words)


def sentence(outcome: Mapping[str, Any]) -> str:
  """`verdict` with a capital."""
  words = verdict(outcome)
  return words[0].upper() + words[1:]


def render(outcome: Mapping[str, Any]) -> str:
  """A plan as markdown."""
  mesh = ', '.join(f'{k} {v}' for k, v in outcome['mesh'].items())
  title = f'{outcome["model"]} on {outcome["topology"]}'
  lines = [
    f'### {title}',
    '',
    f'{sentence(outcome)}. Mesh: {mesh}. A step:'
    f' {outcome["rows"]} rows of {outcome["length"]} tokens in microbatches of'
    f' {outcome["microbatch"]}, products in {outcome["dtype"] or "float32"},'
    f' remat {"on" if outcome["remat"] else "off"},'
    f' {"" if outcome["kernels"] else "no "}TPU kernels,'
    f' {outcome["chunk"]} positions at once against the vocabulary.',
    '',
  ]
  for name, result in outcome['programs'].items():
    if 'failed' in result:
      lines += [f'`{name}` did not compile: {result["failed"]}', '']
      continue
    lines += [_program(name, result), '']
  if tried := outcome.get('tried'):
    lines += ['Tried, one upon the other:', '']
    lines += [f'- {t["words"]}: {verdict(t["plan"])}' for t in tried] + ['']
  return '\n'.join(lines)


def _program(name: str, result: Mapping[str, Any]) -> str:
  def mib(key):
    return f'{result[key] / 2**20:,.0f}'

  work = result['flops'] / result['devices']
  lines = [
    f'`{name}`: {result["parameters"]:,} parameters,'
    f' {result["tokens"]:,} tokens, {work / 1e12:,.1f} TFLOP a device'
    ' (matrix products, recomputation included, all tokens taken as actions);'
    f' calls of TPU kernels: {result.get("kernel_calls", 0)}.',
    '',
  ]
  if 'refused' in result:
    return '\n'.join(
      [*lines, 'Refused by the compiler: ' + result['refused'].split('\n')[0]]
    )
  lines += [
    '| MiB a device | arguments | outputs | of these aliased | temporary'
    ' | code | compiler\'s peak | resident beside it | need |',
    '|---|---|---|---|---|---|---|---|---|',
    '| '
    + ' | '.join(
      ['', *map(mib, (
        'arguments', 'outputs', 'aliased', 'temporary', 'code', 'peak',
        'resident', 'need',
      ))]
    )
    + ' |',
    '',
    '| collective | in the program | runs a step | MiB of results a device |',
    '|---|---|---|---|',
  ]  # fmt: skip
  for kind, numbers in sorted(result['collectives'].items()):
    count, runs = numbers['count'], numbers['runs']
    size = numbers['bytes'] / 2**20
    lines.append(f'| {kind} | {count} | {runs:,} | {size:,.0f} |')
  return '\n'.join(lines)


def document(results: Mapping[str, Mapping[str, Any]]) -> str:
  """The markdown of all plans, by the commands that made them."""
  parts = [
    '# Plans of pod runs',
    '',
    'Written by `python -m experiments.aot_plan --save`, from compilations with'
    ' no TPU. Sizes and counts are the estimates of the TPU compiler (libtpu'
    ' and jax as named below), nothing was run, and nothing here speaks of'
    f' time. A plan fits if {HEADROOM:.0%} of the memory of a device stay free.'
    ' `resident` is what the training loop keeps on the device beside the'
    ' arguments of the program: the optimiser state during `fixed`, the'
    ' reference weights during `update`.',
    '',
  ]
  for command, outcome in results.items():
    parts += [
      render(outcome),
      f'`{command}` (jax {outcome["versions"]["jax"]}, libtpu'
      f' {outcome["versions"]["libtpu"]})',
      '',
    ]
  return '\n'.join(parts)
