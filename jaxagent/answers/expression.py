r"""The value of an arithmetic expression, exactly and within bounds.

Reads numbers (1,234.5, 1e3, 3 1/2), + - * / ^ !, implied products, brackets,
percent signs, \frac, \sqrt and pi; names stand for values that are given. There
is no eval, and no number grows past `MAX_BITS`: 9^9^9^9 is refused at once.
Rational values are Fractions. Others are Decimals of 60 digits, which decide
equality of what a person writes, though they prove nothing.
"""

from collections.abc import Mapping
import decimal
from fractions import Fraction
import math
import re

Number = Fraction | decimal.Decimal

MAX_BITS = 20_000
_DEPTH = 40
_DIGITS = 60
_EXPONENT = 6000  # of ten, about as far as MAX_BITS reach
_TOKEN = re.compile(
  r'\s*(?:'
  r'(?P<mixed>\d+ +\d+ ?/ ?\d+(?![\d.]))'
  r'|(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)'
  r'(?P<exponent>[eE][+-]?\d+)?'
  r'|(?P<command>\\[A-Za-z]+)'
  r'|(?P<word>[^\W\d_]+(?:_\{?\w+\}?)?)'
  r'|(?P<operator>\*\*|!!|[-+*/^!%(){}\[\]])'
  r'|(?P<other>\S))'
)
_PI = decimal.Decimal(
  '3.14159265358979323846264338327950288419716939937510582097494459'
)
_GREEK = re.compile(
  r'\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|rho|sigma|tau|phi'
  r'|varphi|chi|psi|omega)'
)


class UnreadableError(ValueError):
  """The text is no expression of this grammar, or has no real value."""


def context() -> decimal.Context:
  """The arithmetic of Decimals, bounded in size."""
  return decimal.Context(
    prec=_DIGITS,
    Emax=_EXPONENT,
    Emin=-_EXPONENT,
    traps=[
      decimal.Overflow,
      decimal.Underflow,
      decimal.InvalidOperation,
      decimal.DivisionByZero,
    ],
  )


def evaluate(text: str, values: Mapping[str, Fraction] = {}) -> Number:
  """The value of an expression in the spelling of `notation.mathematics`.

  Args:
    text: the expression.
    values: of the names in it.

  Raises:
    UnreadableError: it is none, it has no real value, or it grows too large.
  """
  try:
    with decimal.localcontext(context()):
      value = _Parser(tokens(text), values).value()
  except (ArithmeticError, RecursionError) as error:
    raise UnreadableError(f'{text[:80]!r}: {error}') from error
  if isinstance(value, decimal.Decimal) and not value.is_finite():
    raise UnreadableError('no finite value')
  return value


def names(text: str) -> frozenset[str]:
  """The unknowns of an expression; pi and e are none."""
  found = set()
  for kind, token in tokens(text):
    if _GREEK.fullmatch(token) or (
      kind == 'word' and token not in ('e', 'pi', 'sqrt')
    ):
      found.add(token)
  return frozenset(found)


def tokens(text: str) -> list[tuple[str, str]]:
  """Kinds and texts; a word is a unit or an unknown, 'xy' is x times y."""
  out = []
  for match in _TOKEN.finditer(text):
    kind = next(k for k, v in match.groupdict().items() if v is not None)
    token = match[kind]
    if kind == 'number':
      token = token.replace(',', '') + (match['exponent'] or '')
    if kind == 'word' and len(token) < 4 and set(token) <= set('abcxyz'):
      out += [('word', letter) for letter in token]
    else:
      out.append((kind, token))
  return out


def exact(value: Number) -> Fraction:
  """A number as a Fraction: of a Decimal, its 60 digits."""
  return value if isinstance(value, Fraction) else Fraction(value)


class _Parser:
  """Recursive descent; one pass reads and computes."""

  def __init__(self, tokens, values):
    self.tokens, self.values = tokens, values
    self.at = self.depth = 0

  def value(self) -> Number:
    value = self.sum()
    if self.at < len(self.tokens):
      raise UnreadableError(f'{self.peek()!r} is not understood')
    return value

  def peek(self) -> str:
    return self.tokens[self.at][1] if self.at < len(self.tokens) else ''

  def kind(self) -> str:
    return self.tokens[self.at][0] if self.at < len(self.tokens) else ''

  def take(self, *wanted) -> str:
    token = self.peek()
    if not token or (wanted and token not in wanted):
      raise UnreadableError(f'{token!r} instead of {wanted}')
    self.at += 1
    return token

  def sum(self) -> Number:
    self.depth += 1
    if self.depth > _DEPTH:
      raise UnreadableError('nested too deeply')
    value = self.product()
    while self.peek() in ('+', '-'):
      sign = 1 if self.take() == '+' else -1
      value = _add(value, _multiply(Fraction(sign), self.product()))
    self.depth -= 1
    return value

  def product(self) -> Number:
    value = self.signed()
    while token := self.peek():
      if token == '*':
        self.take()
        value = _multiply(value, self.signed())
      elif token == '/':
        self.take()
        value = _multiply(value, _power(self.signed(), Fraction(-1)))
      elif self.kind() in ('command', 'word') or token in ('(', '{', '['):
        value = _multiply(value, self.power())
      else:
        break
    return value

  def signed(self) -> Number:
    sign = 1
    while self.peek() in ('+', '-'):
      sign *= 1 if self.take() == '+' else -1
    return _multiply(Fraction(sign), self.power())

  def power(self) -> Number:
    base = self.postfix()
    if self.peek() not in ('^', '**'):
      return base
    self.take()
    self.depth += 1
    if self.depth > _DEPTH:
      raise UnreadableError('nested too deeply')
    value = _power(base, self.signed())
    self.depth -= 1
    return value

  def postfix(self) -> Number:
    value = self.atom()
    while self.peek() in ('!', '%'):
      if self.take() == '!':
        value = _factorial(value)
      else:
        value = _multiply(value, Fraction(1, 100))
    return value

  def atom(self) -> Number:
    kind, token = self.kind(), self.take()
    if kind == 'mixed':
      whole, over, under = map(int, re.findall(r'\d+', token))
      return _add(Fraction(whole), _divided(over, under))
    if kind == 'number':
      value = _literal(token)
      if self.peek() == r'\frac' and value.denominator == 1:
        return self.mixed(value)
      return value
    if token in '([{':
      value = self.sum()
      self.take({'(': ')', '[': ']', '{': '}'}[token])
      return value
    if token == r'\frac':
      over = self.group()
      return _multiply(over, _power(self.group(), Fraction(-1)))
    if token in (r'\sqrt', 'sqrt'):
      return self.root()
    if token in (r'\pi', 'pi'):
      return _PI
    if token in self.values:
      return self.values[token]
    if token == 'e':
      return decimal.Decimal(1).exp()
    raise UnreadableError(f'{token!r} is not understood')

  def group(self) -> Number:
    self.take('{')
    value = self.sum()
    self.take('}')
    return value

  def mixed(self, whole: Fraction) -> Number:
    r"""3\frac{1}{2} is a sum, 3\frac{x}{2} a product."""
    plain = [kind for kind, _ in self.tokens[self.at + 1 : self.at + 7]]
    part = self.atom()
    digits = ['operator', 'number', 'operator'] * 2
    return _add(whole, part) if plain == digits else _multiply(whole, part)

  def root(self) -> Number:
    degree = Fraction(2)
    if self.peek() == '[':
      self.take()
      degree = exact(self.sum())
      self.take(']')
    inside = self.group() if self.peek() == '{' else self.atom()
    return _power(inside, _power(degree, Fraction(-1)))


def _literal(token: str) -> Fraction:
  mantissa, _, exponent = token.lower().partition('e')
  if len(mantissa) > 1000 or len(exponent) > 5:
    raise UnreadableError('a number too long')
  shift = int(exponent or 0)
  if abs(shift) > _EXPONENT:
    raise UnreadableError('a number too large')
  return Fraction(mantissa.rstrip('.') or '0') * Fraction(10) ** shift


def _divided(over: int, under: int) -> Fraction:
  if not under:
    raise UnreadableError('division by zero')
  return Fraction(over, under)


def _bits(value: Fraction) -> int:
  return max(value.numerator.bit_length(), value.denominator.bit_length())


def _checked(value: Number) -> Number:
  if isinstance(value, Fraction) and _bits(value) > MAX_BITS:
    raise UnreadableError('a number too large')
  return value


def _decimal(value: Number) -> decimal.Decimal:
  if isinstance(value, decimal.Decimal):
    return value
  return decimal.Decimal(value.numerator) / decimal.Decimal(value.denominator)


def _add(a: Number, b: Number) -> Number:
  if isinstance(a, Fraction) and isinstance(b, Fraction):
    return _checked(a + b)
  return _decimal(a) + _decimal(b)


def _multiply(a: Number, b: Number) -> Number:
  if isinstance(a, Fraction) and isinstance(b, Fraction):
    return _checked(a * b)
  return _decimal(a) * _decimal(b)


def _factorial(value: Number) -> Number:
  if not isinstance(value, Fraction) or value.denominator != 1:
    raise UnreadableError('a factorial of no integer')
  if not 0 <= value <= 1000:
    raise UnreadableError('a factorial too large')
  return Fraction(math.factorial(int(value)))


def _power(base: Number, exponent: Number) -> Number:
  sign = Fraction(1)
  if isinstance(exponent, Fraction) and isinstance(base, Fraction):
    if base < 0 and exponent.denominator % 2:
      sign = Fraction(-1 if exponent.numerator % 2 else 1)
      base = -base
    value = _rational_power(base, exponent)
    if value is not None:
      return _multiply(sign, value)
  base, exponent = _decimal(base), _decimal(exponent)
  if abs(exponent) > 10**6:
    raise UnreadableError('an exponent too large')
  return _multiply(sign, base**exponent)  # of a negative base: an error


def _rational_power(base: Fraction, exponent: Fraction) -> Fraction | None:
  """The power if it is rational; None leaves it to Decimals."""
  if not base and exponent <= 0:
    raise UnreadableError('division by zero, or 0^0')
  if exponent.denominator > 1:
    if base < 0 or exponent.denominator > 64:
      return None
    over = _integer_root(base.numerator, exponent.denominator)
    under = _integer_root(base.denominator, exponent.denominator)
    if over is None or under is None:
      return None
    base = Fraction(over, under)
  if abs(exponent.numerator) * max(_bits(base) - 1, 0) > MAX_BITS:
    raise UnreadableError('a power too large')
  return _checked(base**exponent.numerator)


def _integer_root(number: int, degree: int) -> int | None:
  """The exact root, None if it is no integer."""
  low, high = 0, 1 << (number.bit_length() // degree + 1)
  while low < high:
    middle = (low + high + 1) // 2
    if middle**degree <= number:
      low = middle
    else:
      high = middle - 1
  return low if low**degree == number else None
