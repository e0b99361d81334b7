r"""Questions with their answers from files: JSON lines and Parquet.

One record a line or row, with a field for the question and one for the answer.
The answer may stand at the end of a worked solution, as in GSM8K
(`… #### 42`, arXiv:2110.14168) and MATH (`… \boxed{42}`, arXiv:2103.03874).
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any

from jaxagent import registry
from jaxagent.answers import extract

SUFFIXES = ('.jsonl', '.parquet')
QUESTION_FIELDS = ('question', 'problem', 'prompt')
ANSWER_FIELDS = ('answer', 'final_answer', 'solution')
# A worked solution is longer than an answer; it has to mark where that is.
_WORKED = 200


@dataclasses.dataclass(frozen=True)
class Question:
  """What is asked, and the answer wanted, without its solution."""

  id: str
  question: str
  answer: str
  subject: str = ''


@dataclasses.dataclass(frozen=True)
class Questions(Sequence[Question]):
  """Questions in the order of their file."""

  items: tuple[Question, ...]

  @property
  def names(self) -> list[str]:
    return [item.id for item in self.items]

  def __len__(self) -> int:
    return len(self.items)

  def __getitem__(self, index: int) -> Question:
    return self.items[index]


def read(
  path: str | os.PathLike, *, question: str = '', answer: str = ''
) -> Questions:
  """Reads a file of questions.

  Args:
    path: a `.jsonl` or `.parquet` file.
    question: the field that asks; '' takes the first of `QUESTION_FIELDS`.
    answer: the field that answers; '' takes the first of `ANSWER_FIELDS`.

  Returns:
    The questions. Ids are the file's field 'id' where every record has one of
    its own, else the stem of the file and the line.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: naming file and line where something is missing or wrong.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} is no file. Give a file of questions, one JSON object a line'
      ' (.jsonl) or a Parquet table (.parquet).'
    )
  if path.suffix not in SUFFIXES:
    raise ValueError(
      f'{path} ends in {path.suffix!r}; questions are read from'
      f' {" and ".join(SUFFIXES)} files.'
    )
  records = _json_lines if path.suffix == '.jsonl' else _parquet
  items, given = [], []
  for where, number, record in records(path):
    items.append(
      Question(
        id=f'{path.stem}/{number}',
        question=_field(record, 'question', question, QUESTION_FIELDS, where),
        answer=final_answer(
          _field(record, 'answer', answer, ANSWER_FIELDS, where), where
        ),
        subject=str(record.get('subject') or record.get('type') or ''),
      )
    )
    given.append(record.get('id'))
  if not items:
    raise ValueError(f'{path} has no questions: it is empty.')
  if None not in given and len(set(map(str, given))) == len(items):
    items = [
      dataclasses.replace(item, id=str(name))
      for item, name in zip(items, given, strict=True)
    ]
  return Questions(tuple(items))


def final_answer(text: str, where: str = 'The record') -> str:
  r"""The answer in an answer or worked solution.

  What follows the last '####', else the last `\boxed{…}`, else the text.

  Raises:
    ValueError: a long text marks no answer; `where` names it.
  """
  head, mark, last = text.rpartition('####')
  if mark and last.strip():
    return last.strip()
  if '\\boxed' in text or '\\fbox' in text:
    boxed = extract.boxed(text)
    if boxed is not None:
      return boxed
  text = text.strip()
  if len(text) > _WORKED:
    raise ValueError(
      f'{where}: the answer has {len(text)} characters and marks none of them'
      f' by #### or \\boxed{{…}}: {text[:40]!r}… Name the field that holds the'
      ' answer alone.'
    )
  return text


def _field(
  record: Mapping[str, Any],
  what: str,
  named: str,
  known: Sequence[str],
  where: str,
) -> str:
  if named:
    try:
      registry.one_of(f'field for the {what}', named, tuple(record))
    except ValueError as error:
      raise ValueError(f'{where}: {error}') from None
  name = named or next((name for name in known if name in record), '')
  if not name:
    raise ValueError(
      f'{where} has the fields {sorted(record)}, none of {list(known)}. Name the'
      f' one that holds the {what}.'
    )
  value = record[name]
  if isinstance(value, list) and len(value) == 1:
    value = value[0]
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    raise ValueError(
      f'{where}: {name!r} is {value!r:.60}; wanted a text or a number.'
    )
  if not str(value).strip():
    raise ValueError(f'{where}: {name!r} is empty.')
  return str(value)


def _json_lines(
  path: pathlib.Path,
) -> Iterator[tuple[str, int, dict[str, Any]]]:
  with path.open('rb') as stream:
    for number, line in enumerate(stream, start=1):
      where = f'{path}, line {number}'
      if not line.strip():
        continue
      try:
        record = json.loads(line.decode('utf-8-sig'))
      except ValueError as error:  # of JSON, or of UTF-8
        raise ValueError(f'{where} is no JSON: {error}.') from error
      if not isinstance(record, dict):
        raise ValueError(
          f'{where} is a JSON {type(record).__name__}; wanted an object with a'
          ' question and an answer.'
        )
      yield where, number, record


def _parquet(path: pathlib.Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
  try:
    from pyarrow import parquet
  except ImportError as error:
    raise ImportError(
      f'Reading {path} needs pyarrow, which comes with tensorflow-datasets:'
      ' `pip install pyarrow`, or convert the file to JSON lines.'
    ) from error
  try:
    file = parquet.ParquetFile(path)
  except (ValueError, OSError) as error:
    raise ValueError(f'{path} is no Parquet file: {error}') from error
  number = 0
  for batch in file.iter_batches(batch_size=1024):
    for record in batch.to_pylist():
      number += 1
      yield f'{path}, row {number}', number, record
