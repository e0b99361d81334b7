"""Replies of a scripted player, to be imitated.

A demonstration is a run of the very program that the policy will run, so that
its rows have the prompts the policy will see.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxagent.agents import prompts, protocol


class Demonstration(NamedTuple):
  """What the player replied, request by request, and how it ended."""

  replies: tuple[str, ...]
  outcome: protocol.Outcome


def demonstrate(
  program: protocol.Program,
  policy: Callable[[str], str],
  *,
  style: prompts.Style = 'compact',
) -> Demonstration:
  """Runs a program with a scripted player in the place of the policy.

  Args:
    program: A fresh program, such as `react`. It has to name the states it is
      in (`Generate.anchor`).
    policy: Takes the opening as the policy reads it, skills included, then each
      observation; returns commands.
    style: How replies are written.

  Returns:
    The replies; sent to the same program again they lead to the same end.
  """
  replies = []
  request = next(program)
  text = request.open[-1]['content']
  try:
    while True:
      replies.append(prompts.reply(policy(text), style=style))
      request = program.send(protocol.Completion(replies[-1]))
      # The line below the observation says what is held.
      text = request.anchor.rpartition('\n')[0]
  except StopIteration as stop:
    return Demonstration(tuple(replies), stop.value)
