"""Record what a language model wrote, and have it written again for nothing.

The file is JSONL, a line a reply:
`{"key", "max_new", "messages", "text", "truncated"}`. Lines with equal keys
are several samples for one request and are given back in their order.
"""

import collections
from collections.abc import Mapping, Sequence
import json
import pathlib
import threading

from jaxagent.agents import protocol
from jaxagent.language_models import base


def record(
  language_model: base.LanguageModel, path: str | pathlib.Path
) -> base.LanguageModel:
  """The same model; every reply is also appended to the file at once."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  lock = threading.Lock()

  def recording(
    messages: Sequence[Mapping[str, str]], *, max_new: int
  ) -> protocol.Completion:
    reply = language_model(messages, max_new=max_new)
    line = json.dumps(
      {
        'key': base.key(messages, max_new=max_new),
        'max_new': max_new,
        'messages': [dict(message) for message in messages],
        'text': reply.text,
        'truncated': reply.truncated,
      }
    )
    with lock, path.open('a') as file:
      file.write(line + '\n')
    return reply

  return recording


def replay(path: str | pathlib.Path) -> base.LanguageModel:
  """Gives recorded replies; raises where a request was not recorded.

  Args:
    path: of a file that `record` wrote.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line is not a recorded reply.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(
      f'No recording at {str(path)!r}. Make one with'
      ' `replay.record(language_model, path)`.'
    )
  recorded = collections.defaultdict(collections.deque)
  for number, line in enumerate(path.read_text().splitlines(), start=1):
    try:
      entry = json.loads(line)
      reply = protocol.Completion(
        text=entry['text'], truncated=entry['truncated']
      )
      recorded[entry['key']].append(reply)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
      raise ValueError(
        f'{str(path)!r}, line {number}: not a recorded reply'
        f' ({type(error).__name__}: {error}). Delete the line, e.g. the last'
        ' one of an interrupted recording, and record it again.'
      ) from error
  lock = threading.Lock()

  def replaying(
    messages: Sequence[Mapping[str, str]], *, max_new: int
  ) -> protocol.Completion:
    key = base.key(messages, max_new=max_new)
    with lock:
      if recorded.get(key):
        return recorded[key].popleft()
    raise base.LanguageModelError(
      f'{str(path)!r} holds no further reply to {base.last_line(messages)}'
      f' ({len(messages)} messages, max_new {max_new}, key {key[:12]}). The'
      ' program or its prompts changed since: record again.'
    )

  return replaying
