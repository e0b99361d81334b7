"""Whether the answer in a reply equals the answer that was wanted.

Two implementations. `own` needs the standard library alone: exact arithmetic,
polynomials and roots by their values at points, tuples, sets, intervals,
choices, words. `math_verify` is the package of that name (extra `reasoning`), in
a process that is killed when its time is over. By default `own` decides whatever
it can read, so that most verdicts do not depend on what is installed, and
math-verify is asked about the rest.
"""

import dataclasses
import functools
import importlib.util
import pathlib

from jaxagent import registry
from jaxagent.answers import (
  child,
  choices,
  intervals,
  notation,
  values,
)
from jaxagent.answers import extract as extract_lib

extract = extract_lib.extract

KINDS = ('auto', 'number', 'set', 'tuple', 'interval', 'choice', 'text')
IMPLEMENTATIONS = ('own', 'math_verify')
# Characters of an answer that are compared; longer ones are wrong, unless the
# wanted one is half as long itself.
LONGEST = 1000


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What was found in a reply, and how it was judged.

  Attributes:
    correct: whether it is the answer wanted.
    extracted: the answer in the reply, None if there is none.
    method: 'none' (no answer), 'length', 'same' (as text), 'choice', 'interval',
      'value', 'math_verify' or 'words'.
    reason: one sentence for a person.
  """

  correct: bool
  extracted: str | None
  method: str
  reason: str


def verify(
  reply: str,
  gold: str,
  *,
  kind: str = 'auto',
  prompt: str = '',
  places: int = 0,
  timeout: float = 5.0,
  implementation: str | None = None,
) -> Verdict:
  """Judges a reply; never raises on what a model wrote.

  Args:
    reply: all that the model wrote.
    gold: the answer wanted.
    kind: what the answer is, one of `KINDS`; 'auto' asks `gold`. 'set' ignores
      order and brackets, 'tuple' brackets; 'choice' is one letter or several.
    prompt: what was asked, so that an echo of it does not count as an answer.
    places: decimals to which numbers are rounded before they are compared; 0
      compares exactly.
    timeout: seconds that math-verify may take, beside its start and waiting for
      other threads' calls.
    implementation: 'own', 'math_verify', or None, see the module.

  Returns:
    The verdict.

  Raises:
    ValueError: an unknown kind or implementation.
    ImportError: math-verify was asked for by name and is not installed.
  """
  registry.one_of('kind of answer', kind, KINDS)
  if implementation is not None:
    registry.one_of('implementation', implementation, IMPLEMENTATIONS)
  wanted = notation.mathematics(gold)
  kind = kind_of(gold) if kind == 'auto' else kind
  answer = extract(reply, kind=kind, prompt=prompt)
  if answer is None:
    return Verdict(False, None, 'none', 'The reply has no answer.')
  verdict = functools.partial(_verdict, answer, gold)
  if len(answer) > max(LONGEST, 2 * len(gold)):
    return verdict(False, 'length')
  given = notation.mathematics(answer)
  if notation.squeezed(wanted) == notation.squeezed(given):
    return verdict(True, 'same')
  if kind == 'choice':
    return verdict(choices.letters(gold) == choices.letters(answer), 'choice')
  if kind != 'text':
    if implementation != 'math_verify':
      equal = _own(wanted, given, kind, places)
      if equal is not None:
        return verdict(equal, 'interval' if kind == 'interval' else 'value')
    if implementation != 'own' and _installed(implementation):
      equal = _math_verify(gold, answer, timeout)
      if isinstance(equal, str):
        return Verdict(False, answer, 'math_verify', equal)
      if equal is not None:
        return verdict(equal, 'math_verify')
  same = notation.words(gold) == notation.words(answer) != ''
  return verdict(same, 'words')


def kind_of(gold: str) -> str:
  """The kind of a wanted answer, by how it is written.

  Mathematics that `own` cannot read counts as a number.
  """
  if choices.is_key(gold):
    return 'choice'
  text = notation.mathematics(gold)
  if intervals.looks_like_one(text) and intervals.equal(text, text):
    return 'interval'
  if values.readable(text) and not _is_word(text):
    return 'number'
  mathematical = any(mark in text for mark in ('\\', '=', '^', '+', '*'))
  return 'number' if mathematical else 'text'


def _is_word(text: str) -> bool:
  return text.isalpha() and len(text) > 1


def _own(wanted: str, given: str, kind: str, places: int) -> bool | None:
  if kind == 'interval':
    return intervals.equal(wanted, given, places=places)
  ordered = {'set': False, 'tuple': True}.get(kind)
  return values.equal(wanted, given, places=places, ordered=ordered)


def _installed(implementation: str | None) -> bool:
  found = importlib.util.find_spec('math_verify') is not None
  if not found and implementation == 'math_verify':
    raise ImportError(
      "implementation='math_verify' needs the package math-verify; install it"
      " with `pip install 'jaxagent[reasoning]'`, or leave `implementation` None."
    )
  return found


@functools.cache
def _children() -> child.Children:
  return child.Children(pathlib.Path(__file__).with_name('math_worker.py'))


def _math_verify(gold: str, reply: str, timeout: float) -> bool | str | None:
  """Equal or not, None if it cannot read one of them, or what went wrong."""
  request = {'gold': notation.unicode(gold), 'reply': notation.unicode(reply)}
  try:
    return _children().ask(request, timeout)['equal']
  except (TimeoutError, child.ChildError) as error:
    return f'math-verify gave no verdict: {error}'


def _verdict(answer: str, gold: str, correct: bool, method: str) -> Verdict:
  relation = 'is' if correct else 'is not'
  reason = f'{answer[:80]!r} {relation} {gold[:80]!r} ({method}).'
  return Verdict(correct, answer, method, reason)
