"""Units of measure behind a number."""

import re

_SAME = (
  'm meter metre',
  'cm centimeter centimetre',
  'mm millimeter millimetre',
  'km kilometer kilometre',
  'in inch inches',
  'ft foot feet',
  'yd yard',
  'mi mile',
  'g gram gramme',
  'kg kilogram kilo',
  'mg milligram',
  'lb pound',
  'oz ounce',
  's sec second',
  'min minute',
  'h hr hour',
  'day',
  'week',
  'month',
  'yr year',
  'l liter litre',
  'ml milliliter millilitre',
  'degree deg',
  'radian rad',
  'percent percentage',
  'dollar usd $',
  'cent',
  'euro eur €',
  'pence penny',
  'gbp £',
  'yen jpy ¥',
  'mph',
  'km/h kph kmh',
  'm/s',
)
_CANONICAL = {
  name: names.split()[0] for names in _SAME for name in names.split()
}
_SCALES = {
  'hundred': 10**2,
  'thousand': 10**3,
  'million': 10**6,
  'billion': 10**9,
  'trillion': 10**12,
  'dozen': 12,
}
_KNOWN = frozenset(_CANONICAL.values())
# A number or closing bracket, then words: a unit, perhaps with a power.
_POWER = r'(?:\s?\^?\{?-?\d\}?)?'
_UNIT = re.compile(
  r'(?P<value>.*?[\d)}%!.])'
  r'(?P<unit>\s*\\degree(?:\s*[A-Za-z]+)?'
  rf'|(?:\s+[A-Za-z]|\s*[A-Za-z]{{2,}}){_POWER}'
  rf'(?:[ /*]+[A-Za-z]+{_POWER})*)',
  re.DOTALL,
)
# Words behind a number that make it another one.
_NO_UNIT = re.compile(
  r'\b(?:pi|sqrt|e|i|sin|cos|tan|cot|sec|csc|log|ln|exp|mod|choose|plus|minus'
  r'|times|over|divided|to|or|and|not|but|if)\b'
)
_MOST_WORDS = 4


def split(text: str) -> tuple[str, str, int]:
  """(value, canonical unit, scale) of '5 cm', '3 million dollars', '90 °'.

  What is behind a number counts as a unit even if it is not known ('5 red
  apples'), up to four words.
  """
  match = _UNIT.fullmatch(text)
  if not match:
    return text, '', 1
  scale, names = 1, match['unit'].replace('\\degree', ' degree ').split()
  if len(names) > _MOST_WORDS or _NO_UNIT.search(match['unit']):
    return text, '', 1
  if set(names[0]) <= set('abcxyz') and len(names[0]) < 4:
    return text, '', 1  # a product of unknowns
  while names and names[0].lower() in _SCALES:
    scale *= _SCALES[names.pop(0).lower()]
  unit = canonical(' '.join(names))
  if len(unit) == 1 and unit not in _KNOWN:
    return text, '', 1  # an unknown, as in '5 x'
  return match['value'].strip(), unit, scale


def canonical(unit: str) -> str:
  """One name for a unit; others in lower case, singular."""
  unit = ' '.join(unit.split()).rstrip('.').lower()
  if unit in _CANONICAL:
    return _CANONICAL[unit]
  return _CANONICAL.get(unit.removesuffix('s'), unit)


def clash(one: str, other: str) -> bool:
  """Whether both are known and are not the same."""
  return one != other and one in _KNOWN and other in _KNOWN
