"""One row: a context in which a policy generated, kept as token ids.

Sampled ids are appended as they were sampled and never re-tokenised; only text
of the environment is encoded.
"""

from collections.abc import Sequence
import dataclasses

from jaxagent import types
from jaxagent.agents import protocol

# Rows of an episode; the sampling key of a row is folded from
# episode * MAX_ROWS + index, whatever slot it runs in.
MAX_ROWS = 64


@dataclasses.dataclass
class Turn:
  """Bookkeeping of one request and its completion inside a row."""

  anchor: str | None
  reward: float = 0.0


@dataclasses.dataclass
class Row:
  """Token ids of one context with, per token, who wrote it.

  `ids`, `mask`, `logprobs` and `turn` have one entry a token. `prompt` is the
  number of tokens of the opening, and `privileged` the ids of the opening that
  a teacher sees instead (None where there is none).
  """

  uid: int
  episode: int
  part: types.Part
  prompt: int
  privileged: list[int] | None
  ids: list[int]
  mask: list[bool]
  logprobs: list[float]
  turn: list[int]
  turns: list[Turn]

  def observe(self, ids: Sequence[int]) -> None:
    """Appends tokens that the policy did not choose."""
    self._append(ids, False, [0.0] * len(ids))

  def act(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
    """Appends tokens that the policy sampled."""
    self._append(ids, True, logprobs)

  def _append(self, ids, mask, logprobs):
    self.ids += ids
    self.mask += [mask] * len(ids)
    self.logprobs += logprobs
    self.turn += [len(self.turns) - 1] * len(ids)


def open_row(
  request: protocol.Generate, *, episode: int, index: int, tokenizer
) -> Row:
  """The row that an opening request starts; `index` counts in its episode.

  Raises:
    ValueError: the episode opened more than `MAX_ROWS` rows.
  """
  if index >= MAX_ROWS:
    raise ValueError(
      f'Episode {episode} opened more than {MAX_ROWS} rows; sampling keys would'
      ' repeat. Raise rows.MAX_ROWS or end the episode earlier.'
    )
  privileged = None
  if request.privileged is not None:
    privileged = tokenizer.chat(request.privileged)
  row = Row(
    uid=episode * MAX_ROWS + index,
    episode=episode,
    part=request.part,
    prompt=0,
    privileged=privileged,
    ids=[],
    mask=[],
    logprobs=[],
    turn=[],
    turns=[Turn(request.anchor)],
  )
  row.observe(tokenizer.chat(request.open))
  row.prompt = len(row.ids)
  return row


def extend_row(row: Row, request: protocol.Generate, tokenizer) -> None:
  """Appends the environment's answer and opens the next turn.

  A reply that was cut has no stop token: one is added that is not trained on.
  """
  row.turns[-1].reward += request.reward
  ids = [] if row.ids[-1] in tokenizer.stop_ids else [tokenizer.stop_id]
  row.turns.append(Turn(request.anchor))
  row.observe(ids + tokenizer.extend(request.extend))
