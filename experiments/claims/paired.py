"""Arms that share seeds: paired differences, and verdicts on claims."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from jaxagent.report import markdown
from jaxagent.training import metrics

Value = Callable[[Mapping, str], float]  # of a result, by the measure's name


class Claim(NamedTuple):
  """What a paper leads one to expect of two arms.

  Attributes:
    text: the claim.
    arm: should have more of the measure, or less, or as much.
    other: than this.
    expected: of the first beside the second.
    of: name of the measure.
  """

  text: str
  arm: str
  other: str
  expected: Literal['more', 'less', 'equal'] = 'more'
  of: str = 'success'


def difference(
  results: Sequence[Mapping], arm: str, other: str, of: str, value: Value
) -> metrics.Interval | None:
  """Mean over seeds of arm minus other, with its t-interval.

  Args:
    results: with 'arm' and 'seed' each.
    arm: one of them.
    other: another one.
    of: name of the measure.
    value: the measure of one result.

  Returns:
    None where no seed has both.
  """
  by_seed = {
    name: {r['seed']: value(r, of) for r in results if r['arm'] == name}
    for name in (arm, other)
  }
  seeds = sorted(by_seed[arm].keys() & by_seed[other].keys())
  if not seeds:
    return None
  return metrics.mean_interval(
    [by_seed[arm][seed] - by_seed[other][seed] for seed in seeds]
  )


def verdict(expected: str, got: metrics.Interval) -> str:
  """What a difference says of a claim: nothing where its interval has 0."""
  if got.n < 2:
    return 'one seed: open'
  if got.low <= 0 <= got.high:
    return 'not told apart' + (', as expected' if expected == 'equal' else '')
  found = 'more' if got.mean > 0 else 'less'
  return 'shown' if found == expected else 'contradicted'


def points(interval: metrics.Interval, of: str = '') -> str:
  """A difference of shares as points of percent, whatever they are of."""
  del of
  return text(interval, sign='+', unit='')


def judge(
  claims: Sequence[Claim],
  results: Sequence[Mapping],
  value: Value,
  show: Callable[[metrics.Interval, str], str] = points,
) -> list[list[str]]:
  """Rows of a table: claim, difference, verdict.

  Args:
    claims: those without results are left out.
    results: see `difference`.
    value: the measure of one result.
    show: writes a difference of a measure.
  """
  rows = []
  for claim in claims:
    got = difference(results, claim.arm, claim.other, claim.of, value)
    if got is not None:
      said = verdict(claim.expected, got)
      rows.append([claim.text, show(got, claim.of), said])
  return rows


def text(
  interval: metrics.Interval,
  *,
  sign: str = '',
  scale: int = 100,
  digits: int = 1,
  unit: str = ' %',
) -> str:
  """Such as '12.3 % [10.0, 14.6]'; of one seed the mean alone.

  Args:
    sign: '+' also shows that of positive numbers.
    scale: what numbers are multiplied by.
    digits: behind the point.
    unit: behind the mean.
  """
  form = f'{{:{sign}.{digits}f}}'
  mean, low, high = (form.format(scale * x) for x in interval[:3])
  return f'{mean}{unit}' + (f' [{low}, {high}]' if interval.n > 1 else '')


def where(results: Sequence[Mapping]) -> str:
  """A table of the circumstances in which the results came about."""
  rows = sorted(
    {
      (
        r['commit'][:12],
        r['hardware'],
        r['python'],
        r['versions']['jax'],
        r['command'],
      )
      for r in results
    }
  )
  return markdown.table(
    ['commit', 'hardware', 'Python', 'jax', 'command'], rows
  )
