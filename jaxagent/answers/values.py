r"""Reads an answer as numbers, tuples, sets and intervals, and compares two.

`equal` says True, False, or None where these rules cannot tell.
"""

from collections.abc import Sequence
import dataclasses
from fractions import Fraction
import random
import re

from jaxagent.answers import expression, units

_OPEN = {'(': ')', '[': ']', '{': '}', '⦃': '⦄'}
_TUPLES = ('()', '[]', '(]', '[)')
_CLOSERS = frozenset(_OPEN.values())
_CONJUNCTION = re.compile(r'(?<=[\s\d)}\]⦄])(?:and|or)(?=[\s\d({\[⦃\\-])')
_THOUSANDS = re.compile(r'[-+$ ]*\d{1,3}(?:,\d{3})+(?!\d)')
_LEFT_SIDE = re.compile(r'[A-Za-z](?:_\{?\w+\}?)?(?:\([A-Za-z]\))?')
_CURRENCY = re.compile(r'[$€£¥]')
_MOST_ITEMS = 64
_POINTS = 6
_TOLERANCE = Fraction(1, 10**40)


@dataclasses.dataclass(frozen=True)
class Scalar:
  """One quantity: `text` is an expression, `unit` canonical or ''."""

  text: str
  percent: bool = False
  unit: str = ''
  left: str = ''  # of an equality sign


@dataclasses.dataclass(frozen=True)
class Group:
  """Several quantities; the brackets around them, '' if there are none."""

  brackets: str
  items: tuple[str, ...]


def split(text: str, separators: str = ',') -> list[str]:
  """Parts between separators that are in no bracket.

  Raises:
    expression.UnreadableError: the brackets do not close.
  """
  parts, depth, start = [], 0, 0
  for at, char in enumerate(text):
    if char in _OPEN:
      depth += 1
    elif char in _CLOSERS:
      depth -= 1
    elif char in separators and not depth:
      parts.append(text[start:at])
      start = at + 1
    if depth < 0:
      break
  if depth:
    raise expression.UnreadableError('brackets that do not close')
  return [part.strip() for part in [*parts, text[start:]]]


def enclosed(text: str) -> str:
  """The pair of brackets around all of a text, or ''."""
  if len(text) < 2 or text[0] not in _OPEN or text[-1] not in _CLOSERS:
    return ''
  depth = 0
  for at, char in enumerate(text):
    depth += (char in _OPEN) - (char in _CLOSERS)
    if not depth:
      return text[0] + text[-1] if at == len(text) - 1 else ''
  return ''


def group(text: str) -> Group:
  """Reads what `notation.mathematics` gave as a list of quantities."""
  text = re.sub(r'^[A-Za-z]\s*\\in\b', '', text).strip()
  brackets = enclosed(text)
  if brackets:
    items = split(text[1:-1])
    if len(items) == 1 and brackets != '⦃⦄':
      brackets, items = '', [text]
  elif _THOUSANDS.match(text):
    # 1,234 is one number; 1,234, 5 is two.
    items = re.split(r',\s+|;', _CONJUNCTION.sub(', ', text))
  else:
    items = split(_CONJUNCTION.sub(',', text), ',;')
  items = tuple(item.strip() for item in items if item.strip())
  if brackets == '{}':
    brackets = '⦃⦄'
  return Group(brackets, items)


def scalar(text: str) -> Scalar:
  """Takes what stands around a quantity away: 'x =', a currency, a unit.

  Raises:
    expression.UnreadableError: it is an equation, or has words in it.
  """
  left, value = '', text
  sides = [s.strip() for s in re.split(r'=|\\approx\b', text)]
  if len(sides) > 1:
    left, value = sides[0], sides[-1]
    if not _LEFT_SIDE.fullmatch(left):
      if expression.names(left):
        raise expression.UnreadableError('an equation')
      left = ''
  money = _CURRENCY.search(value)
  value, unit, scale = units.split(_CURRENCY.sub(' ', value).strip())
  if money and not unit:
    unit = units.canonical(money[0])
  percent = value.endswith('%')
  value = value.rstrip('%').strip() if percent else value
  if unit in ('percent', 'percentage'):
    percent, unit = True, ''
  if scale != 1:
    value = f'({value})*{scale}'
  if not value or any(
    len(name) > 1 and '_' not in name and name[0] != '\\'
    for name in expression.names(value)
  ):
    raise expression.UnreadableError('words, not a quantity')
  return Scalar(value, percent, unit, left)


def readable(text: str) -> bool:
  """Whether the text is a quantity, or several, by these rules."""
  try:
    items = group(text).items
    return 0 < len(items) <= _MOST_ITEMS and all(map(_has_value, items))
  except expression.UnreadableError:
    return False


def _has_value(item: str) -> bool:
  if len(inner := group(item).items) > 1:
    return all(map(_has_value, inner))
  quantity = scalar(item)
  expression.evaluate(quantity.text, _point(expression.names(quantity.text), 0))
  return True


def equal(
  gold: str, reply: str, *, places: int = 0, ordered: bool | None = None
) -> bool | None:
  """Compares two answers in the spelling of `notation.mathematics`.

  Order counts in tuples, not in sets and lists without brackets; a set of one
  is its element. Brackets of pairs must agree, for they may be intervals.

  Args:
    gold: the answer wanted.
    reply: the answer given.
    places: decimals to which both are rounded, half away from zero; 0 is
      exact equality.
    ordered: whether order counts, whatever the brackets; None asks them.

  Returns:
    None where one of the two cannot be read.
  """
  try:
    return _equal(gold, reply, places, 0, ordered)
  except expression.UnreadableError:
    return None


def _equal(
  gold: str,
  reply: str,
  places: int,
  depth: int,
  ordered: bool | None = None,
) -> bool:
  wanted, given = group(gold), group(reply)
  if depth > 4 or max(len(wanted.items), len(given.items)) > _MOST_ITEMS:
    raise expression.UnreadableError('too many items')
  if not wanted.items or not given.items:
    raise expression.UnreadableError('nothing')
  if len(wanted.items) == 1 and len(given.items) == 1:
    one, other = wanted.items[0], given.items[0]
    if enclosed(one) and len(group(one).items) > 1 and one != gold:
      return _equal(one, other, places, depth + 1)
    return same_quantity(scalar(one), scalar(other), places)
  if ordered is None:
    both = wanted.brackets and given.brackets
    pair = len(wanted.items) == 2 and both
    if pair and wanted.brackets != given.brackets:
      return False
    ordered = not {wanted.brackets, given.brackets}.isdisjoint(_TUPLES)
  if ordered:
    return len(wanted.items) == len(given.items) and all(
      _equal(a, b, places, depth + 1)
      for a, b in zip(wanted.items, given.items, strict=True)
    )
  return _covers(wanted.items, given.items, places, depth) and _covers(
    given.items, wanted.items, places, depth
  )


def _covers(
  some: Sequence[str], others: Sequence[str], places: int, depth: int
) -> bool:
  return all(any(_equal(a, b, places, depth + 1) for b in others) for a in some)


def same_quantity(wanted: Scalar, given: Scalar, places: int) -> bool:
  """Equality of values; units and left sides only count where both have one.

  A percent sign divides by 100. Where only one side has it, as it is when a
  question asks 'how many percent', the bare numbers may agree instead.
  """
  if wanted.left and given.left and wanted.left != given.left:
    return False
  if units.clash(wanted.unit, given.unit):
    return False
  both = (100 if wanted.percent else 1, 100 if given.percent else 1)
  scales = {both} if wanted.percent == given.percent else {both, (1, 1)}
  return any(
    _same_values(wanted.text, given.text, scale, places) for scale in scales
  )


def _same_values(
  gold: str, reply: str, scales: tuple[int, int], places: int
) -> bool:
  """Equal at points where both have a value: an identity, almost surely."""
  unknowns = expression.names(gold) | expression.names(reply)
  compared = 0
  for k in range(_POINTS if unknowns else 1):
    values = []
    for text, scale in zip((gold, reply), scales, strict=True):
      try:
        value = expression.evaluate(text, _point(unknowns, k))
      except expression.UnreadableError:
        if not unknowns:
          raise
        continue
      values.append(expression.exact(value) / scale)
    if len(values) == 2:
      compared += 1
      if not close(*values, places):
        if 'i' in unknowns:  # it may be the imaginary unit
          raise expression.UnreadableError('perhaps complex')
        return False
  if not compared:
    raise expression.UnreadableError('no value')
  return True


def close(a: Fraction, b: Fraction, places: int) -> bool:
  """Equality; of roots and pi, to the digits that were computed."""
  if places:
    return rounded(a, places) == rounded(b, places)
  if a == b:
    return True
  # What a person writes has a shorter denominator than cut digits have.
  limit = _TOLERANCE * max(abs(a), 1)
  irrational = max(a.denominator, b.denominator) > 10**45
  return irrational and abs(a - b) <= limit


def rounded(value: Fraction, places: int) -> Fraction:
  """Rounds half away from zero."""
  size = 10**places
  whole = (abs(value) * size + Fraction(1, 2)).__floor__()
  return Fraction(-whole if value < 0 else whole, size)


def _point(unknowns, k: int) -> dict[str, Fraction]:
  out = {}
  for name in sorted(unknowns):
    draw = random.Random(f'{name}/{k}')
    value = Fraction(draw.randint(2, 97), draw.randint(2, 97))
    out[name] = -value if k % 2 else value
  return out
