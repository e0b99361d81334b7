"""One spelling for what is written in many ways: Unicode, LaTeX, Markdown."""

import re
import unicodedata

_SUPERSCRIPTS = '⁰¹²³⁴⁵⁶⁷⁸⁹'
_SPELLED = {
  **dict.fromkeys('−–—‐‑‒﹣－', '-'),
  **dict.fromkeys('×⋅·∙', '*'),
  **dict.fromkeys('\u00a0\u2009\u202f\u2007\u2008', ' '),
  **dict.fromkeys('“”„«»', '"'),
  **dict.fromkeys('‘’′', "'"),
  '÷': '/',
  '∕': '/',
  '√': r'\sqrt ',
  'π': r'\pi ',
  '∞': r'\infty ',
  '∪': r'\cup ',
  '∈': r'\in ',
  '≤': r'\le ',
  '≥': r'\ge ',
  '±': r'\pm ',
  '≈': r'\approx ',
  '°': r'\degree ',
  '。': '.',
  '、': ',',
}
_TABLE = str.maketrans(_SPELLED)
# What LaTeX writes for people's eyes only, and names for one thing.
_SYNONYMS = {
  **dict.fromkeys(
    ('left', 'right', 'displaystyle', 'textstyle', 'limits', 'bigl', 'bigr'), ''
  ),
  **dict.fromkeys(('quad', 'qquad', 'space', 'thinspace'), ' '),
  **dict.fromkeys(('dfrac', 'tfrac', 'cfrac'), r'\frac'),
  **dict.fromkeys(('cdot', 'times', 'ast'), '*'),
  **dict.fromkeys(('lbrace',), '⦃'),
  **dict.fromkeys(('rbrace',), '⦄'),
  **dict.fromkeys(('lbrack',), '['),
  **dict.fromkeys(('rbrack',), ']'),
  'div': '/',
  'leq': r'\le ',
  'leqslant': r'\le ',
  'geq': r'\ge ',
  'geqslant': r'\ge ',
  'lt': '<',
  'gt': '>',
  'circ': r'\degree ',
}
_COMMAND = re.compile(r'\\([A-Za-z]+)')
_WORDS = re.compile(
  r'\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt)|mbox|hbox'
  r'|operatorname)\s*\{([^{}]*)\}'
)
_SPACING = re.compile(r'\\[,;:! ]|~')
_DELIMITERS = re.compile(r'\\[()\[\]]|\$')
_SHORT_FRACTION = re.compile(r'\\frac\s*(\d)\s*(\d)')
_HALF_FRACTION = re.compile(r'\\frac\s*(\d)\s*\{')
_SHORT_ROOT = re.compile(r'\\sqrt\s*(\d+)')
_DEGREE = re.compile(r'\^\s*\{?\s*\\degree\s*\}?')
_SPACED_THOUSANDS = re.compile(r'(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d/])')
_ARTICLES = re.compile(r'\b(?:a|an|the)\b')


def _characters(text: str) -> str:
  """Powers, fractions and digits of all scripts in ASCII."""
  out, raised = [], False
  for char in text:
    power = _SUPERSCRIPTS.find(char)
    if (power >= 0) != raised:
      out.append('^{' if power >= 0 else '}')
      raised = not raised
    if power >= 0:
      out.append(str(power))
    elif unicodedata.decomposition(char).startswith('<fraction>'):
      over = unicodedata.normalize('NFKC', char).replace('\u2044', '/')
      out.append(f' {over}')
    elif not char.isascii() and unicodedata.decimal(char, None) is not None:
      out.append(str(unicodedata.decimal(char)))
    else:
      out.append(char)
  return ''.join(out) + ('}' if raised else '')


def unicode(text: str) -> str:
  """Unicode as its ASCII or LaTeX spelling, without invisible characters."""
  if text.isascii():
    return text
  text = unicodedata.normalize('NFKC', _characters(text).translate(_TABLE))
  text = text.translate(_TABLE).replace('\u2044', '/')
  return ''.join(c for c in text if unicodedata.category(c) != 'Cf')


def mathematics(text: str) -> str:
  r"""Text as the parser of values reads it.

  Set braces `\{` and `\}` become ⦃ and ⦄, so that the plain ones are LaTeX's
  groups.
  """
  text = unicode(text).strip().strip('`').strip()
  text = _emphasis(text)
  text = text.replace(r'\{', '⦃').replace(r'\}', '⦄')
  text = text.replace('{,}', ',').replace(r'\%', '%').replace(r'\$', '$')
  text = re.sub(r'(?<=\d)\\[,;:! ](?=\d{3})', '', text)
  text = _DELIMITERS.sub(' ', _SPACING.sub(' ', text))
  text = _WORDS.sub(r' \1 ', text)
  text = _COMMAND.sub(lambda m: _SYNONYMS.get(m[1], m[0]), text)
  text = _SHORT_FRACTION.sub(r'\\frac{\1}{\2}', text)
  text = _HALF_FRACTION.sub(r'\\frac{\1}{', text)
  text = _SHORT_ROOT.sub(r'\\sqrt{\1}', text)
  text = _DEGREE.sub(r' \\degree ', text)
  text = _SPACED_THOUSANDS.sub(lambda m: m[0].replace(' ', ''), text)
  return ' '.join(text.split()).rstrip('.;,').strip()


def squeezed(text: str) -> str:
  """Text without any space, in which the same expression is the same."""
  return ''.join(text.split())


def words(text: str) -> str:
  """Text for comparing words: no case, punctuation, article or mark-up."""
  text = _WORDS.sub(r' \1 ', unicode(text))
  text = _DELIMITERS.sub(' ', _SPACING.sub(' ', text)).casefold()
  text = ''.join(c if c.isalnum() or c in "+-/%'" else ' ' for c in text)
  return ' '.join(_ARTICLES.sub(' ', text).split())


def _emphasis(text: str) -> str:
  """Without the Markdown around it."""
  for mark in ('***', '**', '__', '*', '_'):
    if len(text) > 2 * len(mark) and text.startswith(mark):
      text = text.removeprefix(mark).removesuffix(mark).strip()
  return text
