"""What all text environments share: their type, their spaces, their sources.

A text environment is a `gymnasium.Env[str, str]`: it shows text and is sent
text. What it can be asked to play comes from a `Source`, so that official
downloads, packed files and generated data go through one door.
"""

from collections.abc import Sequence
import string
from typing import Any, Protocol, runtime_checkable

from gymnasium import spaces

OVER = 'Call reset() first: nothing was started yet, or it has ended.'


@runtime_checkable
class Source(Protocol):
  """Games or tasks to play, made or read when asked for.

  `names` are the ids of the items, in order and without repetition. A source
  may also have `demonstrate(index, seed)`: replies to that item, one a turn,
  for a warm start to imitate.
  """

  names: Sequence[str]

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Any: ...


def text_space(max_length: int) -> spaces.Text:
  """Printable text up to a length, the empty text included."""
  return spaces.Text(
    max_length=max_length, min_length=0, charset=string.printable
  )
