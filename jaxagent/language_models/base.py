"""What everything that writes text on the host has in common."""

from collections.abc import Mapping, Sequence
import hashlib
import json
from typing import Protocol, runtime_checkable

from jaxagent.agents import protocol


@runtime_checkable
class LanguageModel(Protocol):
  """Text in, text out: a function from a conversation to a reply."""

  def __call__(
    self, messages: Sequence[Mapping[str, str]], *, max_new: int
  ) -> protocol.Completion:
    """Writes the next message of the assistant.

    Args:
      messages: the conversation, ending with a user's message.
      max_new: bound on the reply, in the model's own tokens.

    Returns:
      The reply; `truncated` where the bound cut it.

    Raises:
      LanguageModelError: no reply can be had.
    """
    ...


class LanguageModelError(RuntimeError):
  """A model gave no reply; the message says why and what to do."""


def key(messages: Sequence[Mapping[str, str]], *, max_new: int) -> str:
  """Names a request, equally on every machine: hex digits of a hash."""
  request = [sorted(message.items()) for message in messages], max_new
  return hashlib.sha256(json.dumps(request).encode()).hexdigest()


def last_line(messages: Sequence[Mapping[str, str]]) -> str:
  """The end of a conversation, short enough for an error message."""
  return repr(messages[-1]['content'][-80:]) if messages else 'nothing'
