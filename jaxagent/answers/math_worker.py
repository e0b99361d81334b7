"""Asks math-verify whether two answers are equal; run by `child.Children`.

Only its LaTeX parser is used: the other one hands the text to Python's eval.
"""

import logging

import_error = None
try:
  import math_verify
except ImportError as error:
  import_error = error


def answer(request):
  """{'gold': text, 'reply': text} to {'equal': bool or None}."""
  if import_error is not None:
    raise import_error
  logging.disable()
  gold, reply = (_parsed(request[name]) for name in ('gold', 'reply'))
  if not gold or not reply:
    return {'equal': None}
  equal = math_verify.verify(gold, reply, timeout_seconds=None)
  return {'equal': bool(equal)}


def _parsed(text):
  return math_verify.parse(
    f'\\boxed{{{text}}}',
    extraction_config=[math_verify.LatexExtractionConfig()],
    parsing_timeout=None,
  )
