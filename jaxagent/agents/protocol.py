"""What an agent program and whoever runs it say to each other.

A program is a Python generator: it yields `Generate` requests, receives a
`Completion` for each, and returns an `Outcome`. It never sees a token, a slot
or a device, so that one program runs inside the jitted rollout, against a
hosted model, and under a scripted model in a test.
"""

from collections.abc import Generator, Mapping, Sequence
import dataclasses
from typing import Any

from jaxagent import types

Message = Mapping[str, str]  # {'role': 'system' | 'user', 'content': text}


@dataclasses.dataclass(frozen=True)
class Task:
  """One episode to run. `group` is shared by the repetitions of one task."""

  episode: int
  group: int
  seed: int
  game: int | str  # what to play: a position, or the environment's own name
  training: bool = True


@dataclasses.dataclass(frozen=True)
class Generate:
  """Asks the policy to write. Exactly one of `open` and `extend` is given."""

  open: Sequence[Message] | None = None  # a fresh context: starts a row
  extend: str | None = None  # the environment's answer, in the current row
  part: types.Part = types.Part.ACT
  # The opening as the teacher sees it; None where nothing was retrieved.
  privileged: Sequence[Message] | None = None
  anchor: str | None = None  # names the state acted in, for step-level groups
  reward: float = 0.0  # earned since the previous request

  def __post_init__(self):
    if (self.open is None) == (self.extend is None):
      raise ValueError(
        'Generate takes exactly one of `open` (a new row) and `extend` (the'
        f' next observation); got open={self.open!r}, extend={self.extend!r}.'
      )


@dataclasses.dataclass(frozen=True)
class Completion:
  """What the policy wrote; `text` is without the stop token."""

  text: str
  tokens: tuple[int, ...] = ()
  logprobs: tuple[float, ...] = ()
  truncated: bool = False  # cut at the token limit, no stop token


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How an episode ended. A reward that was not observed is left out.

  `reward` is what the last action earned by itself (see `Generate.reward`).
  `info` is for a person to read and must be JSON-serialisable.
  """

  rewards: Mapping[str, float]
  status: types.Status = types.Status.DONE
  reward: float = 0.0
  info: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class ContextLimit(Exception):  # noqa: N818
  """Thrown into a program whose next request would not fit the context.

  A program may catch it to return an `Outcome` of its own; otherwise its
  episode ends with `Status.CONTEXT_LIMIT` and every reward 0.
  """


Program = Generator[Generate, Completion, Outcome]


def user(content: str) -> Message:
  """A user message."""
  return {'role': 'user', 'content': content}


def system(content: str) -> Message:
  """A system message."""
  return {'role': 'system', 'content': content}
