"""Options of a multiple choice, by their letters."""

import re

from jaxagent.answers import notation

_LETTER = r'[(\[]?\s*([A-Z])\s*[)\]]?'
_ONE = re.compile(
  rf'(?:option|choice|answer)?\s*{_LETTER}\s*(?:[.:)\-]\s*\S.*)?',
  re.IGNORECASE | re.DOTALL,
)
_SEVERAL = re.compile(
  rf'(?:options|choices|answers)?\s*{_LETTER}'
  rf'(?:(?:\s*(?:,|;|&|/|and)\s*)+{_LETTER})+',
  re.IGNORECASE,
)
_COMPACT = re.compile(r'[A-Z]{2,10}')
_STANDING = re.compile(r'(?<![A-Za-z])([A-Z])(?![A-Za-z\'])')
_PARENTHESES = re.compile(r'\(([A-Z])\)')
_KEY = re.compile(
  r'\(?[A-J]\)?\.?(?:\s*(?:,|;|and)\s*\(?[A-J]\)?\.?)*', re.DOTALL
)


def is_key(gold: str) -> bool:
  """Whether an answer is one of the letters A to J, or several."""
  return bool(_KEY.fullmatch(gold.strip()))


def letters(text: str) -> frozenset[str] | None:
  """The options that an answer is; None if it is something else.

  Reads 'B', '(b)', 'B. Paris', 'Option B', 'A, C', 'A and C', 'CA'.
  """
  text = notation.mathematics(text).strip(' *_."\'')
  if _SEVERAL.fullmatch(text):
    text = re.sub(r'options|choices|answers|and', ' ', text, flags=re.I)
    return frozenset(re.findall(r'[A-Z]', text.upper()))
  if one := _ONE.fullmatch(text):
    return frozenset(one[1].upper())
  if _COMPACT.fullmatch(text) and len(set(text)) == len(text):
    return frozenset(text)
  return None


def mentioned(text: str) -> list[str]:
  """Letters that stand alone in a sentence; in parentheses if any are.

  'A' and 'I' are words, unless they end the sentence.
  """
  if found := _PARENTHESES.findall(text):
    return found
  end = text.rstrip(' .*!')
  return [
    match[1]
    for match in _STANDING.finditer(text)
    if match[1] not in 'AI' or match.end() == len(end)
  ]
