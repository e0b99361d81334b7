"""Games from disk: the official ALFWorld folders, and packed files.

Official games (arXiv:2010.03768; `pip install alfworld`, `alfworld-download`)
are files `$ALFWORLD_DATA/json_2.1.1/<split>/<task>/<trial>/game.tw-pddl`: JSON
with the keys pddl_domain, grammar, pddl_problem, solvable and walkthrough. A
packed file holds a split in one `.jsonl.xz`: id, task, problem and walkthrough a
line.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import hashlib
import json
import lzma
import os
import pathlib
import re
from typing import Any
import zlib

from jaxagent import registry
from jaxagent.envs.alfworld import game as game_lib
from jaxagent.envs.alfworld import pddl

_FOLDER = 'json_2.1.1'
_FILE = 'game.tw-pddl'
_KEYS = ('pddl_domain', 'grammar', 'pddl_problem')
# Fingerprints of the rules that `world.py` implements, comments and layout
# aside: the domain of the released games and that of alfworld 0.4.2, which
# differ in a kind of sink that no game has; likewise the two grammars, which
# print the same.
_DOMAINS = frozenset(['54e29bce2933d7dc', 'da18d44ab1bcf831'])
_GRAMMARS = frozenset(['315ad9d4601d5409', '2acda914034f15b9'])
_TASK = re.compile(r'Your task is to: ((?:[^"\\]|\\.)*)"')
_SOLVABLE = re.compile(rb'"solvable"\s*:\s*(true|false)')
_HOW = (
  'Get the games with `pip install alfworld` and `alfworld-download`, and point'
  ' ALFWORLD_DATA or `path` at the folder that has json_2.1.1. Or play generated'
  ' games, which need no data: source="generated".'
)


class Games(Sequence):
  """Named games that are read when asked for; the latest are kept.

  Args:
    names: Ids of the games.
    read: Index to game.
    keep: How many games to keep in memory (about 50 kB each).
  """

  def __init__(
    self,
    names: Sequence[str],
    read: Callable[[int], game_lib.Game],
    *,
    keep: int = 512,
  ):
    self.names = tuple(names)
    self._read = read
    self._keep = keep
    self._kept: dict[int, game_lib.Game] = {}

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> game_lib.Game:
    if not -len(self) <= index < len(self):
      raise IndexError(f'Game {index} of {len(self)}.')
    index %= len(self)
    if index not in self._kept:
      if len(self._kept) >= self._keep:
        del self._kept[next(iter(self._kept))]
      self._kept[index] = self._read(index)
    return self._kept[index]


def load(
  path: str | os.PathLike | None = None,
  *,
  split: str = 'train',
  task_types: Sequence[str] = game_lib.TASK_TYPES,
  check: bool = True,
) -> Games:
  """Opens a split, in whichever form it is on disk.

  Args:
    path: Folder of the official download (the one that has json_2.1.1, or that
      itself), folder of packed files, or one packed file. None is the folder in
      the environment variable ALFWORLD_DATA.
    split: 'train', 'valid_seen', 'valid_unseen', or what else is there.
    task_types: The task types to keep.
    check: Whether the rules inside an official file must be the ones that the
      simulator implements. Packed files have no rules inside.

  Returns:
    The games, in the order of their names. As in the original loader, games
    marked as not solvable, with sliced things or with movable receptacles are
    left out.

  Raises:
    FileNotFoundError: if there is no data; it says how to get some.
    ValueError: if the split or a task type is unknown, or a file is broken.
  """
  for task_type in task_types:
    registry.one_of('task type', task_type, game_lib.TASK_TYPES)
  root = _root(path)
  if root.is_file():
    return packed(root, task_types=task_types)
  packs = {
    file.name.split('.')[0].removeprefix('alfworld_'): file
    for file in sorted(root.glob('*.jsonl.xz'))
  }
  folder = root / _FOLDER if (root / _FOLDER).is_dir() else root
  splits = _splits(folder)
  if not packs and not splits:
    raise FileNotFoundError(
      f'{root} has no games: neither {_FOLDER}/<split>/<task>/<trial>/{_FILE}'
      f' nor <split>.jsonl.xz. {_HOW}'
    )
  if not splits:
    registry.one_of(f'split in {root}', split, tuple(packs))
    return packed(packs[split], task_types=task_types)
  files = find(root, split=split, task_types=task_types)

  def read(index: int) -> game_lib.Game:
    return read_official(files[index], id=files.names[index], check=check)

  return Games(files.names, read)


@dataclasses.dataclass(frozen=True)
class Files(Sequence):
  """Game files of one split of the official download, and their ids."""

  paths: tuple[pathlib.Path, ...]
  names: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> pathlib.Path:
    return self.paths[index]


def find(
  path: str | os.PathLike | None = None,
  *,
  split: str = 'train',
  task_types: Sequence[str] = game_lib.TASK_TYPES,
) -> Files:
  """Finds the files of a split of the official download; see `load`."""
  root = _root(path)
  folder = root / _FOLDER if (root / _FOLDER).is_dir() else root
  splits = _splits(folder)
  if not splits:
    raise FileNotFoundError(
      f'{folder} has no official games <split>/<task>/<trial>/{_FILE}. {_HOW}'
    )
  registry.one_of(f'split in {folder}', split, splits)
  paths = tuple(
    file
    for file in sorted((folder / split).glob(f'*/*/{_FILE}'))
    if _plain(file, task_types) and _solvable(file)
  )
  if not paths:
    raise FileNotFoundError(
      f'{folder / split} has no solvable game of the task types'
      f' {", ".join(task_types)}. {_HOW}'
    )
  names = (file.parent.relative_to(folder).as_posix() for file in paths)
  return Files(paths, tuple(names))


def read_official(
  file: str | os.PathLike, *, id: str | None = None, check: bool = True
) -> game_lib.Game:
  """Reads one `game.tw-pddl`.

  Args:
    file: The file.
    id: Name for the game; None is split/task/trial from the path.
    check: As in `load`.

  Returns:
    The game.

  Raises:
    ValueError: if the file is broken or its rules are not the known ones.
  """
  file = pathlib.Path(file)
  content = _json(file.read_bytes(), file)
  missing = [key for key in _KEYS if not isinstance(content.get(key), str)]
  if missing:
    raise ValueError(
      f'Broken game file {file}: it lacks the text(s) {missing}. Download it'
      ' again.'
    )
  task = _TASK.search(content['grammar'])
  if task is None:
    raise ValueError(
      f'Broken game file {file}: its grammar has no "Your task is to: …", so'
      ' there is no goal sentence. Download it again.'
    )
  if check:
    _check_rules(
      file, content['pddl_domain'], _TASK.sub('', content['grammar'])
    )
  try:
    return pddl.parse(
      content['pddl_problem'],
      id=id or '/'.join(file.parts[-4:-1]),
      task=json.loads(f'"{task[1]}"').removesuffix('.'),
      walkthrough=content.get('walkthrough'),
    )
  except ValueError as error:
    raise ValueError(f'Broken game file {file}: {error}') from error


def packed(
  file: str | os.PathLike,
  *,
  task_types: Sequence[str] = game_lib.TASK_TYPES,
) -> Games:
  """Opens a packed split: JSON lines, compressed with xz; see `load`."""
  file = pathlib.Path(file)
  names, blobs = [], []
  for number, line in _lines(file):
    row = _json(line, f'{file}, line {number}')
    missing = [
      key
      for key in ('id', 'task', 'problem')
      if not isinstance(row.get(key), str)
    ]
    if missing:
      raise ValueError(
        f'Broken game file {file}, line {number}: it lacks the text(s)'
        f' {missing}.'
      )
    names.append(row['id'])
    blobs.append(zlib.compress(line, 1))
  kept = [
    i
    for i, name in enumerate(names)
    if _type_in_path(name) in (*task_types, '')
  ]

  def read(index: int) -> game_lib.Game:
    row = json.loads(zlib.decompress(blobs[kept[index]]))
    return pddl.parse(
      row['problem'],
      id=row['id'],
      task=row['task'],
      walkthrough=row.get('walkthrough'),
    )

  return Games([names[i] for i in kept], read)


def _root(path: str | os.PathLike | None) -> pathlib.Path:
  if path is None and not os.environ.get('ALFWORLD_DATA'):
    raise FileNotFoundError(
      f'No `path` was given and ALFWORLD_DATA is not set. {_HOW}'
    )
  root = pathlib.Path(path or os.environ['ALFWORLD_DATA']).expanduser()
  if not root.exists():
    raise FileNotFoundError(f'The data folder {root} does not exist. {_HOW}')
  return root


def _splits(folder: pathlib.Path) -> tuple[str, ...]:
  return tuple(
    entry.name
    for entry in sorted(folder.iterdir())
    if any(entry.glob(f'*/*/{_FILE}'))
  )


def _lines(file: pathlib.Path) -> Iterator[tuple[int, bytes]]:
  try:
    with lzma.open(file, 'rb') as stream:
      yield from enumerate(stream, start=1)
  except (lzma.LZMAError, EOFError) as error:
    raise ValueError(
      f'Broken game file {file}: not a complete xz file ({error}). Download it'
      ' again.'
    ) from error


def _json(content: bytes, where: Any) -> dict[str, Any]:
  try:
    value = json.loads(content)
  except ValueError as error:
    raise ValueError(
      f'Broken game file {where}: not JSON ({error}). Download it again.'
    ) from error
  if not isinstance(value, dict):
    raise ValueError(
      f'Broken game file {where}: a JSON {type(value).__name__}, not an object.'
      ' Download it again.'
    )
  return value


def _type_in_path(name: str) -> str:
  """The task type in 'split/type-thing-…/trial', or '' if there is none."""
  return next(
    (kind for kind in game_lib.TASK_TYPES if f'/{kind}-' in f'/{name}'), ''
  )


def _plain(file: pathlib.Path, task_types: Sequence[str]) -> bool:
  name = file.parent.parent.name
  return (
    _type_in_path(name) in task_types
    and 'Sliced' not in name
    and 'movable' not in name
  )


def _solvable(file: pathlib.Path) -> bool:
  """Whether the file says so; it says it near its end."""
  with file.open('rb') as stream:
    stream.seek(max(0, file.stat().st_size - 8192))
    found = _SOLVABLE.search(stream.read())
  if found is None:
    return bool(_json(file.read_bytes(), file).get('solvable', False))
  return found[1] == b'true'


def _check_rules(file: pathlib.Path, domain: str, grammar: str):
  foreign = [
    what
    for what, known in (
      ('PDDL domain', _fingerprint(domain, ';') in _DOMAINS),
      ('text grammar', _fingerprint(grammar, None) in _GRAMMARS),
    )
    if not known
  ]
  if foreign:
    raise ValueError(
      f'{file} has its own {" and ".join(foreign)}, other than those of the'
      ' released games (json_2.1.1) that this simulator implements. Play it'
      ' with the original engine (source="engine"), or pass check=False if'
      ' you know that it plays the same.'
    )


@functools.lru_cache(maxsize=16)
def _fingerprint(text: str, comment: str | None) -> str:
  if comment is not None:
    text = re.sub(rf'{comment}[^\n]*', '', text).lower()
  text = ' '.join(text.split())
  return hashlib.sha256(text.encode()).hexdigest()[:16]
