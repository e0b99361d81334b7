"""Questions prepared once by tfds, then read by index without TensorFlow.

Files are array_record: a split of any size opens at once and takes no memory.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any

from jaxagent import registry
from jaxagent.data import questions as questions_lib

_NAME = 'questions'
_VERSION = '1.0.0'
_FIELDS = tuple(
  field.name for field in dataclasses.fields(questions_lib.Question)
)


class Prepared(Sequence[questions_lib.Question]):
  """One split on disk; a question is read when it is asked for."""

  def __init__(self, data: Sequence[Mapping[str, bytes]], split: str):
    self._data = data
    self._split = split

  @property
  def names(self) -> list[str]:
    """Ids by position; those of the questions would take reading them."""
    return [f'{self._split}/{index}' for index in range(len(self))]

  def __len__(self) -> int:
    return len(self._data)

  def __getitem__(self, index: int) -> questions_lib.Question:
    if not -len(self) <= index < len(self):
      raise IndexError(f'Question {index} of {len(self)}.')
    record = self._data[index % len(self)]
    return questions_lib.Question(
      **{name: record[name].decode() for name in _FIELDS}
    )


def write(
  splits: Mapping[str, Sequence[questions_lib.Question]],
  folder: str | os.PathLike,
) -> pathlib.Path:
  """Prepares questions, once: what is already there is left as it is.

  Args:
    splits: the questions of each split.
    folder: where to write; the data is in `questions/1.0.0` below it.

  Returns:
    The folder for `load`.
  """
  import tensorflow_datasets as tfds

  text = tfds.features.Text()
  with tfds.core.registered.skip_registration():

    class Questions(tfds.core.GeneratorBasedBuilder):
      """The questions that `write` was given."""

      name = _NAME
      VERSION = tfds.core.Version(_VERSION)
      # It is asked for checksums of downloads, of which there are none, and
      # finding it imports importlib_resources, which tfds 4.9.10 does not bring.
      code_path = None

      def _info(self) -> Any:
        return tfds.core.DatasetInfo(
          builder=self,
          features=tfds.features.FeaturesDict(dict.fromkeys(_FIELDS, text)),
          disable_shuffling=True,
        )

      def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {
          split: self._generate_examples(questions)
          for split, questions in splits.items()
        }

      def _generate_examples(self, questions: Any) -> Any:
        for index, question in enumerate(questions):
          yield index, dataclasses.asdict(question)

  builder = Questions(data_dir=str(folder), file_format='array_record')
  builder.download_and_prepare()
  return pathlib.Path(builder.data_dir)


def is_prepared(folder: str | os.PathLike) -> bool:
  """Whether a folder holds what `write` wrote."""
  file = pathlib.Path(folder) / 'dataset_info.json'
  return file.is_file() and json.loads(file.read_text()).get('name') == _NAME


def load(folder: str | os.PathLike, *, split: str) -> Prepared:
  """Opens a split of what `write` wrote.

  Raises:
    FileNotFoundError: the folder holds no prepared questions.
    ValueError: the split is unknown.
  """
  if not is_prepared(folder):
    raise FileNotFoundError(
      f'{folder} holds no prepared questions (no dataset_info.json of them);'
      ' make it with jaxagent.data.prepared.write.'
    )
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(str(folder))
  registry.one_of(f'split in {folder}', split, tuple(builder.info.splits))
  return Prepared(builder.as_data_source(split), split)
