"""Episodes to arrays: the line between text and `Trajectory`."""

from collections.abc import Sequence
import zlib

import numpy as np

from jaxagent import types
from jaxagent.rollouts import host as host_lib
from jaxagent.rollouts import rows as rows_lib


def bucket(size: int, sizes: Sequence[int]) -> int:
  """The smallest of the ascending `sizes` that holds `size`.

  Raises:
    ValueError: none does.
  """
  for candidate in sizes:
    if size <= candidate:
      return candidate
  raise ValueError(
    f'{size} exceeds every bucket {tuple(sizes)}; add a larger one.'
  )


def round_up(size: int, multiple: int) -> int:
  """The smallest positive multiple that holds `size`."""
  return max(-(-size // multiple), 1) * multiple


def assemble(
  episodes: Sequence[host_lib.Episode],
  *,
  reward_names: Sequence[str],
  length: int,
  rows: int,
  teacher_length: int | None = None,
) -> types.Trajectory:
  """Pads the rows of episodes into one batch, in the order of their uids.

  Rows of an episode that ended in `Status.ENV_ERROR` keep their tokens but
  have no action and no active reward. Padding rows have group and episode -1.

  Args:
    episodes: from a rollout.
    reward_names: the `R` columns; a name that an outcome lacks is inactive,
      but 0 and active where the context limit ended the episode.
    length: T, at least the longest row.
    rows: B, at least the number of rows.
    teacher_length: U; None leaves the teacher's view out.

  Returns:
    A `Trajectory` of numpy arrays.

  Raises:
    ValueError: the rows do not fit.
  """
  flat = [(e, row) for e in episodes for row in e.rows]
  flat.sort(key=lambda pair: pair[1].uid)
  longest = max((len(row.ids) for _, row in flat), default=0)
  if len(flat) > rows or longest > length:
    raise ValueError(
      f'{len(flat)} rows of up to {longest} tokens do not fit [{rows},'
      f' {length}]; raise the row or length buckets.'
    )

  def grid(dtype):
    return np.zeros((rows, length), dtype)

  out = {
    'tokens': grid(np.int32),
    'action_mask': grid(bool),
    'logprobs': grid(np.float32),
    'turn': grid(np.int32),
    'anchor': grid(np.int32),
    'step_reward': grid(np.float32),
    'rewards': np.zeros((rows, len(reward_names)), np.float32),
    'active': np.zeros((rows, len(reward_names)), bool),
    'group': np.full(rows, -1, np.int32),
    'episode': np.full(rows, -1, np.int32),
    'part': np.zeros(rows, np.int32),
    'status': np.zeros(rows, np.int32),
  }
  for b, (episode, row) in enumerate(flat):
    _fill_row(out, b, episode, row, reward_names)
  teacher = None
  if teacher_length is not None:
    teacher = _teacher_view([row for _, row in flat], rows, teacher_length)
  return types.Trajectory(**out, teacher=teacher)


def _fill_row(out, b, episode, row, reward_names):
  status = episode.outcome.status
  trained = status != types.Status.ENV_ERROR
  n = len(row.ids)
  turn = np.asarray(row.turn, np.int32)
  out['tokens'][b, :n] = row.ids
  out['action_mask'][b, :n] = np.asarray(row.mask, bool) & trained
  out['logprobs'][b, :n] = row.logprobs
  out['turn'][b, :n] = turn
  out['anchor'][b, :n] = np.asarray([_name(t.anchor) for t in row.turns])[turn]
  out['step_reward'][b, :n] = np.asarray(
    [t.reward for t in row.turns], np.float32
  )[turn]
  for r, name in enumerate(reward_names):
    known = name in episode.outcome.rewards
    cut = status == types.Status.CONTEXT_LIMIT
    out['rewards'][b, r] = episode.outcome.rewards.get(name, 0.0)
    out['active'][b, r] = trained and (known or cut)
  out['group'][b], out['episode'][b] = episode.task.group, row.episode
  out['part'][b], out['status'][b] = row.part, status


def teacher_ids(row: rows_lib.Row) -> list[int]:
  """The row as the teacher sees it: only the opening differs."""
  if row.privileged is None:
    return row.ids
  return row.privileged + row.ids[row.prompt :]


def _teacher_view(flat, rows, length):
  tokens = np.zeros((rows, length), np.int32)
  shift = np.zeros(rows, np.int32)
  available = np.zeros(rows, bool)
  for b, row in enumerate(flat):
    ids = teacher_ids(row)
    if len(ids) > length:
      raise ValueError(
        f'A row has {len(ids)} tokens with its privileged text, over the'
        f" teacher's {length}; raise the teacher length. It is never cut, since"
        ' that would lose the skill or the actions.'
      )
    tokens[b, : len(ids)] = ids
    shift[b] = len(ids) - len(row.ids)
    available[b] = row.privileged is not None
  return types.TeacherView(tokens, shift, available)


def _name(anchor: str | None) -> int:
  """A stable 31-bit name of an anchor; -1 where there is none."""
  if anchor is None:
    return -1
  return zlib.crc32(anchor.encode()) & 0x7FFFFFFF
