"""What the policy reads and how its reply is understood.

Two styles. `compact` is for small models trained here: the goal, the names of
the places, nothing else; the reply is a bare command. `instruct` is for language
models that were taught to follow instructions: rules, admissible commands, the
reply between tags. Skills always stand in front of the goal, so that the only
difference between a prompt with and one without them is a block of text.
"""

from collections.abc import Sequence
import re
from typing import Literal, NamedTuple

from jaxagent.agents import protocol

Style = Literal['compact', 'instruct']
STYLES: tuple[Style, ...] = ('compact', 'instruct')

_RULES = """\
You are an agent in a household that is described in text. Reach the goal with \
one command a turn. First think about what to do next, briefly; then give the \
command, exactly as it is listed among the admissible commands, between \
<action> and </action>. You have {turns} turns."""
_TAG = re.compile(r'<action>(.*?)</action>', re.DOTALL | re.IGNORECASE)
_LABEL = re.compile(r'^\W*action\W*:(.*)$', re.MULTILINE | re.IGNORECASE)
_ROOM = re.compile(r'looking quickly around you, you see (.*?)\.(?:\s|$)', re.I)
_BANNER = re.compile(r'^-=.*?=-\s*', re.DOTALL)
_TASK = re.compile(r'\s*your task is to:.*$', re.DOTALL | re.IGNORECASE)


class Action(NamedTuple):
  """A command as the environment reads it."""

  command: str
  well_formed: bool


class Step(NamedTuple):
  """One turn that has been played: what was seen, and done about it."""

  observation: str
  command: str


def parse_action(text: str, *, style: Style = 'compact') -> Action:
  """Finds the command in a reply.

  Reads `<action>…</action>` (the last one), else a line 'Action: …' (the last
  one), else the first line that is not blank.

  Args:
    text: The reply.
    style: 'instruct' asks for one of the first two forms.

  Returns:
    The command, lower case, with single spaces, without a full stop or quotes;
    and whether the reply had the form that was asked for.
  """
  tagged = _TAG.findall(text) or _LABEL.findall(text)
  lines = [line for line in text.splitlines() if line.strip()]
  found = tagged[-1] if tagged else (lines or [''])[0]
  command = ' '.join(found.lower().split()).strip('`\'"*. ')
  plain = style == 'compact' and '<' not in command
  return Action(command, bool(command) and (bool(tagged) or plain))


def reply(command: str, *, style: Style = 'compact') -> str:
  """A reply with this command, as a demonstration would write it."""
  return command if style == 'compact' else f'<action>{command}</action>'


def room(observation: str) -> str:
  """The first observation without its ceremony: 'bed 1, drawer 2, drawer 1'.

  A text in which no list of places is found is kept but for banner and task.
  """
  match = _ROOM.search(observation)
  if match is None:
    return _TASK.sub('', _BANNER.sub('', observation)).strip()
  names = re.split(r',\s*(?:and\s+)?|\s+and\s+', match[1])
  return ', '.join(re.sub(r'^an?\s+', '', name.strip()) for name in names)


def opening(
  goal: str,
  place: str,
  *,
  style: Style = 'compact',
  skills: str = '',
  history: Sequence[Step] = (),
  observation: str = '',
  admissible: Sequence[str] = (),
  max_turns: int = 0,
  max_chars: int | None = None,
) -> list[protocol.Message]:
  """The messages that open a row.

  Args:
    goal: The goal sentence.
    place: What `room` makes of the first observation.
    style: See the top of this file.
    skills: A block of text in front of all else; '' for none.
    history: Turns already played, oldest first.
    observation: The newest one; '' on the first turn, as is the first step's,
      since `place` says it.
    admissible: Commands to list ('instruct' only).
    max_turns: Told to the policy ('instruct' only).
    max_chars: Bound on the length of the user's message. What does not fit is
      taken from the history, oldest first: never from the skills.

  Returns:
    Messages, the last of them the user's.
  """
  if style not in STYLES:
    raise ValueError(f'Prompt style {style!r}; the styles are {STYLES}.')
  history = list(history)
  while True:
    parts = [skills, f'Goal: {goal}', f'Room: {place}']
    for step in history:
      parts += [step.observation, f'> {step.command}']
    parts.append(observation)
    if style == 'instruct' and admissible:
      parts.append('Admissible commands: ' + '; '.join(admissible))
    content = '\n'.join(part for part in parts if part)
    if not history or max_chars is None or len(content) <= max_chars:
      break
    history.pop(0)
  user = protocol.user(content)
  if style == 'compact':
    return [user]
  return [protocol.system(_RULES.format(turns=max_turns)), user]


def observed(
  observation: str, *, style: Style = 'compact', admissible: Sequence[str] = ()
) -> str:
  """The environment's answer as it continues a row."""
  if style == 'compact' or not admissible:
    return observation.strip()
  return f'{observation.strip()}\nAdmissible commands: ' + '; '.join(admissible)
