"""Runs agent programs against a `LanguageModel`, one at a time, on the host.

The definition of what a program's run is: no slots, no ids, no cache. The
rollout under jit must give the same rows and outcomes for the same replies.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from jaxagent import types
from jaxagent.agents import protocol
from jaxagent.language_models import base

Fits = Callable[[Sequence[protocol.Message]], bool]


@dataclasses.dataclass(frozen=True)
class Row:
  """One context: what was asked in it, and each reply. Equal in number."""

  requests: tuple[protocol.Generate, ...]
  replies: tuple[protocol.Completion, ...]

  @property
  def part(self) -> types.Part:
    return self.requests[0].part

  @property
  def messages(self) -> tuple[protocol.Message, ...]:
    """The conversation, replies as the assistant's messages."""
    messages = []
    for request, reply in zip(self.requests, self.replies, strict=True):
      messages += asked(request)
      messages.append(assistant(reply.text))
    return tuple(messages)


@dataclasses.dataclass(frozen=True)
class Transcript:
  """A finished program: its rows in the order of opening, and its end."""

  rows: tuple[Row, ...]
  outcome: protocol.Outcome


def assistant(content: str) -> protocol.Message:
  """An assistant's message."""
  return {'role': 'assistant', 'content': content}


def asked(request: protocol.Generate) -> tuple[protocol.Message, ...]:
  """The messages that a request adds to its row."""
  if request.open is not None:
    return tuple(request.open)
  return (protocol.user(request.extend),)


def drive(
  program: protocol.Program,
  language_model: base.LanguageModel,
  *,
  max_new: int,
  fits: Fits | None = None,
) -> Transcript:
  """Runs a program to its end.

  Args:
    program: a fresh generator.
    language_model: writes the replies.
    max_new: bound on each reply, in the model's tokens.
    fits: whether a conversation leaves room for a reply; where it does not,
      the request is dropped and the program is thrown `ContextLimit`. By
      default everything fits.

  Returns:
    Rows and outcome. An exception of the program, that is of its environment,
    ends it with `Status.ENV_ERROR` and stands in the outcome's info.

  Raises:
    TypeError: the program yields no `Generate`, returns no `Outcome`, or
      extends before it opened a row.
    Exception: whatever the language model raises; the program is closed.
  """
  rows: list[Row] = []
  reply = None
  try:
    while True:
      try:
        request = program.send(reply)
      except StopIteration as end:
        return Transcript(tuple(rows), _checked(end.value, protocol.Outcome))
      except Exception as error:
        return Transcript(tuple(rows), _failed(error))
      row = _row_of(_checked(request, protocol.Generate), rows)
      conversation = (*row.messages, *asked(request))
      if fits is not None and not fits(conversation):
        return Transcript(tuple(rows), _out_of_context(program))
      reply = language_model(conversation, max_new=max_new)
      if row.requests:
        rows.pop()
      rows.append(Row((*row.requests, request), (*row.replies, reply)))
  finally:
    program.close()


def _row_of(request: protocol.Generate, rows: Sequence[Row]) -> Row:
  if request.open is not None:
    return Row((), ())
  if not rows:
    raise TypeError(
      f'The program extends with {request.extend!r} before any row is open.'
      ' Its first request must be Generate(open=...).'
    )
  return rows[-1]


def _out_of_context(program: protocol.Program) -> protocol.Outcome:
  outcome = protocol.Outcome(rewards={})
  try:
    program.throw(protocol.ContextLimit())
  except StopIteration as end:
    outcome = _checked(end.value, protocol.Outcome)
  except protocol.ContextLimit:
    pass
  except Exception as error:
    return _failed(error)
  return dataclasses.replace(outcome, status=types.Status.CONTEXT_LIMIT)


def _failed(error: Exception) -> protocol.Outcome:
  return protocol.Outcome(
    rewards={},
    status=types.Status.ENV_ERROR,
    info={'error': f'{type(error).__name__}: {error}'},
  )


def _checked(value: object, wanted: type) -> Any:
  if not isinstance(value, wanted):
    raise TypeError(
      'An agent program yields Generate and returns Outcome; got'
      f' {value!r} where {wanted.__name__} is due.'
    )
  return value
