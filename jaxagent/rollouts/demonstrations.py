"""Rows from replies that somebody else wrote: what a warm start imitates."""

from collections.abc import Iterable

from jaxagent import types
from jaxagent.agents import protocol
from jaxagent.rollouts import host as host_lib
from jaxagent.rollouts import rows as rows_lib


def demonstrate(
  task: protocol.Task,
  program: protocol.Program,
  replies: Iterable[str],
  *,
  tokenizer,
  max_length: int,
) -> host_lib.Episode:
  """Drives a program with written replies, as if they had been sampled.

  The rows are those of a rollout in which the policy chose these replies; their
  log-probabilities are 0.

  Args:
    task: what is played.
    program: the agent program to drive.
    replies: one text for each request, without stop token.
    tokenizer: a `tokens.Tokenizer`.
    max_length: tokens; an episode that grows longer ends before the request
      that does not fit.

  Returns:
    The episode; its status is TURN_LIMIT where the replies ran out first.
  """
  rows, reply = [], None
  replies = iter(replies)
  while True:
    try:
      request = program.send(reply)
    except StopIteration as stop:
      return _episode(task, stop.value, rows)
    text = next(replies, None)
    if text is None:
      program.close()
      outcome = protocol.Outcome({}, types.Status.TURN_LIMIT)
      return _episode(task, outcome, rows)
    ids = [*tokenizer.encode(text), tokenizer.stop_id]
    if request.open is not None:
      rows.append(
        rows_lib.open_row(
          request, episode=task.episode, index=len(rows), tokenizer=tokenizer
        )
      )
      size = len(rows[-1].ids)
    else:
      size = len(rows[-1].ids) + len(tokenizer.extend(request.extend))
    if size + len(ids) > max_length:
      program.close()
      outcome = protocol.Outcome({}, types.Status.CONTEXT_LIMIT)
      return _episode(task, outcome, rows)
    if request.open is None:
      rows_lib.extend_row(rows[-1], request, tokenizer)
    rows[-1].act(ids, [0.0] * len(ids))
    reply = protocol.Completion(text=text, tokens=tuple(ids))


def _episode(task, outcome, rows) -> host_lib.Episode:
  # A last row that was opened but never acted in is nothing to imitate.
  return host_lib.Episode(
    task, outcome, tuple(row for row in rows if any(row.mask))
  )
