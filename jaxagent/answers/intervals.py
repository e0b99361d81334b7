r"""Sets of real numbers: [1, 2) \cup \{5\}, x > 3, -1 < x \le 2."""

from fractions import Fraction
import math
import re
from typing import NamedTuple

from jaxagent.answers import expression, notation, values

_RELATION = re.compile(r'(<=|>=|\\le\b|\\ge\b|<|>)')
_INFINITY = re.compile(r'([-+]?)(?:\\infty|inf|infinity|oo)', re.IGNORECASE)
_NAME = re.compile(r'[A-Za-z]')
_UNION = re.compile(r'\\cup\b|\bor\b|(?<=[\])}⦄])\s*(?:U|u|,)\s*(?=[\[({⦃])')
_TURNED = {'<': '>', '<=': '>=', '>': '<', '>=': '<='}


class Interval(NamedTuple):
  """Ends are Fractions or infinite; an infinite end is open."""

  low: Fraction | float
  low_closed: bool
  high: Fraction | float
  high_closed: bool


def looks_like_one(text: str) -> bool:
  """Whether only intervals are written so; (1, 2) may be a pair."""
  around = values.enclosed(text)
  return (
    around in ('[)', '(]')
    or r'\cup' in text
    or bool(_RELATION.search(text))
    or (bool(around) and bool(_INFINITY.search(text)))
  )


def equal(gold: str, reply: str, *, places: int = 0) -> bool | None:
  """Compares unions of intervals, merged; None if one cannot be read.

  Args:
    gold: in the spelling of `notation.mathematics`, as `reply`.
    reply: the answer given.
    places: as in `values.equal`, for the ends.
  """
  try:
    wanted, given = union(gold), union(reply)
  except expression.UnreadableError:
    return None
  return len(wanted) == len(given) and all(
    a.low_closed == b.low_closed
    and a.high_closed == b.high_closed
    and _same_end(a.low, b.low, places)
    and _same_end(a.high, b.high, places)
    for a, b in zip(wanted, given, strict=True)
  )


def union(text: str) -> list[Interval]:
  """Reads a union of intervals, sorted, with touching ones merged.

  Raises:
    expression.UnreadableError: it is none.
  """
  text = re.sub(r'^[A-Za-z]\s*\\in\b', '', text).strip()
  parts = [part for piece in _UNION.split(text) for part in _points(piece)]
  merged: list[Interval] = []
  for part in sorted(parts, key=lambda i: (i.low, not i.low_closed)):
    last = merged[-1] if merged else None
    if last and (
      part.low < last.high
      or (part.low == last.high and (part.low_closed or last.high_closed))
    ):
      high, closed = max(
        (last.high, last.high_closed), (part.high, part.high_closed)
      )
      merged[-1] = last._replace(high=high, high_closed=closed)
    else:
      merged.append(part)
  return merged


def _points(text: str) -> list[Interval]:
  """An interval, an inequality, or a set of single numbers."""
  text = text.strip()
  if _RELATION.search(text):
    return _proper(_inequality(text))
  around = values.enclosed(text)
  if around not in ('()', '[]', '(]', '[)'):
    items = values.split(text[1:-1]) if around else [text]
    return [Interval(x, True, x, True) for x in map(_end, items)]
  ends = values.split(text[1:-1], ',;')
  if len(ends) != 2:
    raise expression.UnreadableError('an interval has two ends')
  low, high = map(_end, ends)
  return _proper(Interval(low, around[0] == '[', high, around[1] == ']'))


def _proper(interval: Interval) -> list[Interval]:
  low, low_closed, high, high_closed = interval
  interval = Interval(
    low, low_closed and low != -math.inf, high, high_closed and high != math.inf
  )
  empty = low > high or (low == high and not (low_closed and high_closed))
  return [] if empty else [interval]


def _inequality(text: str) -> Interval:
  parts = [part.strip() for part in _RELATION.split(text)]
  signs = [{r'\le': '<=', r'\ge': '>='}.get(sign, sign) for sign in parts[1::2]]
  sides = parts[::2]
  unknown = [k for k, side in enumerate(sides) if _NAME.fullmatch(side)]
  if len(unknown) != 1 or len(sides) > 3:
    raise expression.UnreadableError('no inequality of one unknown')
  low, high = (-math.inf, False), (math.inf, False)
  for k, sign in enumerate(signs):
    if unknown[0] not in (k, k + 1):
      raise expression.UnreadableError('the unknown stands outside')
    left = unknown[0] == k
    sign = sign if left else _TURNED[sign]
    end = (_end(sides[k + 1 if left else k]), '=' in sign)
    if sign[0] == '>':
      low = end
    else:
      high = end
  return Interval(*low, *high)


def _end(text: str) -> Fraction | float:
  infinite = _INFINITY.fullmatch(notation.squeezed(text))
  if infinite:
    return -math.inf if infinite[1] == '-' else math.inf
  return expression.exact(expression.evaluate(text))


def _same_end(a, b, places: int) -> bool:
  if isinstance(a, float) or isinstance(b, float):
    return a == b
  return values.close(a, b, places)
