r"""Which part of a reply is its answer.

The rule, in order; the later of two always counts, empty ones do not:

1. What a model thinks does not count: only what follows the last `</think>`,
   nothing if `<think>` was never closed.
2. The last `\boxed{…}`.
3. The last `<answer>…</answer>`.
4. What follows the last 'answer is', 'answer:' or '####', up to the end of its
   sentence or line.
5. The last line that is not blank and has no empty `\boxed{}`, which is an
   instruction.

Where a number or a choice is wanted, 4 and 5 are narrowed to it: the first number
of 4, the last of 5. A reply that says several things is thereby one answer.
"""

from collections.abc import Callable
import re

from jaxagent.answers import choices, notation, values

# An answer stands at the end; what is before these characters is not read.
TAIL = 50_000
_BRACE = re.compile(r'\\[{}\\]|\\(?:boxed|fbox)\s*\{|[{}]')
_TAG = re.compile(r'<answer>(.{0,4000}?)</answer>', re.DOTALL | re.IGNORECASE)
_MARK = re.compile(
  r'####|\banswers?\W{0,4}\s(?:is|are)\b|\banswers?\s*(?:\*\*)?\s*:'
  r'|答案\s*(?:是|为|:)?',
  re.IGNORECASE,
)
_SENTENCE = re.compile(r'(?<=[^\s.])[.。!?](?:\s|$)')
_ONLY_MARKS = re.compile(r'[\s*_`$:#\\\[\]()=-]*')
_EMPTY = re.compile(r'\\boxed\s*\{\s*\}')
_NUMBER = re.compile(
  r'(?:(?<![\w)}\]])\s*[-+])?\s*'
  r'(?:\\frac\{-?\d+\}\{\d+\}'
  r'|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+)'
  r'(?:\s?/\s?\d+(?!\d*/))?(?:\s?%)?'
)


def extract(reply: str, *, kind: str = 'auto', prompt: str = '') -> str | None:
  """The answer in a reply, see the module; None if there is none.

  Args:
    reply: whatever a model wrote, of any length.
    kind: what is wanted; 'number' and 'choice' narrow a sentence to one.
    prompt: what was asked; where a reply repeats it, or a whole line of it, that
      is no answer.
  """
  reply = _final(notation.unicode, reply, prompt)
  enclosed = _enclosed(reply)
  if enclosed is not None:
    return enclosed
  marked = _marked(reply)
  if marked is not None:
    return _narrow(marked, kind, 0)
  lines = [line.strip() for line in reply.splitlines()]
  line = next((x for x in reversed(lines) if _says_something(x)), '')
  return _narrow(line, kind, -1) if line else None


def submitted(reply: str, *, prompt: str = '') -> str:
  """What to hand to a scorer that reads text itself, '' if there is nothing.

  Rules 1 to 3, else all that was not thinking; in the characters of the reply.
  """
  reply = _final(str, reply, prompt)
  enclosed = _enclosed(reply)
  return reply.strip() if enclosed is None else enclosed


def _final(spelling: Callable[[str], str], reply: str, prompt: str) -> str:
  """What is neither thinking nor an echo, at most its last `TAIL` characters."""
  start = reply.rfind('<think>')
  end = reply.rfind('</think>')
  if start > end:
    return ''
  if end >= 0:
    reply = reply[end + len('</think>') :]
  reply = spelling(reply[-TAIL:])
  return _without_echo(reply, spelling(prompt[-TAIL:])) if prompt else reply


def _enclosed(reply: str) -> str | None:
  """What is in the last box, else between the last tags."""
  found = boxed(reply)
  if found is not None:
    return found
  tagged = [text.strip() for text in _TAG.findall(reply)]
  return next((text for text in reversed(tagged) if text), None)


def _without_echo(reply: str, prompt: str) -> str:
  reply = reply.replace(prompt, '\n')
  asked = {line.strip() for line in prompt.splitlines()}
  asked = {line for line in asked if len(line.split()) > 2}
  return '\n'.join(x for x in reply.splitlines() if x.strip() not in asked)


def _says_something(line: str) -> bool:
  return not (_ONLY_MARKS.fullmatch(line) or _EMPTY.search(line))


def boxed(text: str) -> str | None:
  """The content of the last box that is closed and not empty; None without."""
  opened: list[int | None] = []
  found = (-1, '')
  for match in _BRACE.finditer(text):
    token = match[0]
    if token == '}':
      start = opened.pop() if opened else None
      if start is not None and start > found[0]:
        content = text[start : match.start()].strip()
        found = (start, content) if content else found
    elif token == '{':
      opened.append(None)
    elif len(token) > 2:
      opened.append(match.end())
  return found[1] or None


def _marked(text: str) -> str | None:
  """What follows the last mark that something follows."""
  marks = list(_MARK.finditer(text))
  for mark in reversed(marks[-8:]):
    rest = text[mark.end() : mark.end() + 4000]
    rest = re.sub(r'^\W{0,3}\b(?:is|are)\b', '', rest)
    lines = (line.strip() for line in rest.splitlines())
    line = next((x for x in lines if _says_something(x)), '')
    line = line.lstrip(':= ')
    sentence = _SENTENCE.split(line)[0].strip()
    if sentence:
      return sentence
  return None


def _narrow(text: str, kind: str, which: int) -> str:
  """The number or choice in a sentence: `which` of them, 0 or -1."""
  if kind == 'choice':
    found = choices.mentioned(text)
    return found[which] if found and choices.letters(text) is None else text
  if kind != 'number' or values.readable(notation.mathematics(text)):
    return text
  numbers = _NUMBER.findall(text)
  return numbers[which].strip() if numbers else text
