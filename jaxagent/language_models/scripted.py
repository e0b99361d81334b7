"""A language model that says what it was told to: for tests and experts."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from jaxagent.agents import protocol
from jaxagent.language_models import base

Write = Callable[[Sequence[Mapping[str, str]]], str]


def scripted(replies: Iterable[str] | Write) -> base.LanguageModel:
  """Replies from a list, one a call, or from a function of the messages.

  Replies are never cut: `max_new` is ignored.

  Args:
    replies: texts in the order of the calls, or what computes one.
  """
  if callable(replies):
    write = replies
  else:
    write = _in_order(replies)

  def language_model(
    messages: Sequence[Mapping[str, str]], *, max_new: int
  ) -> protocol.Completion:
    del max_new
    return protocol.Completion(text=write(messages))

  return language_model


def _in_order(replies: Iterable[str]) -> Write:
  numbered = enumerate(replies)
  given = 0

  def write(messages: Sequence[Mapping[str, str]]) -> str:
    nonlocal given
    for index, reply in numbered:
      given = index + 1
      return reply
    raise base.LanguageModelError(
      f'The script has {given} replies and was asked for one more, to'
      f' {base.last_line(messages)}. Lengthen the script, or stop the program'
      ' earlier.'
    )

  return write
