"""Tasks from reasoning-gym (arXiv:2505.24760): generated, each with its scorer.

Generators and scorers run in a process that can be killed, since scorers may
evaluate what a reply says; see `reasoning_worker`. There a question is a
function of its dataset, options, seed and index.

Most generators seed a question by seed + index, so that neighbouring seeds give
the same questions one place further. The splits are therefore seeded 2^20 apart,
and questions that are equal nevertheless are left out: of 'test' those of
'validation', of 'train' those of both.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import importlib.util
import json
import pathlib
from typing import Any

from jaxagent import registry
from jaxagent.answers import child, extract
from jaxagent.envs import questions

SPLITS = ('validation', 'test', 'train')
SIZES = {'train': 1000, 'validation': 100, 'test': 100}
_APART = 2**20
_MISSING = (
  'The environment "reasoning" needs the package reasoning-gym, which is not'
  " installed. Install it with `pip install 'jaxagent[reasoning]'` (a C compiler"
  ' is needed for one of its dependencies).'
)
# What cannot be asked by seed and index.
_REFUSED = {
  'codeio': 'its questions depend on those asked before',
  'composite': 'name its parts in `datasets` instead',
}
_BATCH = 16  # questions that are generated at once
_PATIENCE = 300.0  # seconds that generating them may take
_SECONDS = 10.0  # that scoring a reply may take


@dataclasses.dataclass(frozen=True)
class Task:
  """One question of a dataset; `subject` is the dataset."""

  id: str
  question: str
  subject: str
  index: int


@dataclasses.dataclass(frozen=True)
class Stream:
  """A dataset as one split sees it: `size` questions and as many to spare."""

  dataset: str
  options: str  # JSON
  seed: int
  size: int

  def ask(self, timeout: float, **request: Any) -> dict[str, Any]:
    """Asks the worker; raises as `child.Children.ask` does."""
    return _children().ask(
      {
        'dataset': self.dataset,
        'options': json.loads(self.options),
        'seed': self.seed,
        'size': 2 * self.size,
        **request,
      },
      timeout,
    )

  def questions(self, indices: Sequence[int]) -> list[str]:
    """Generates questions.

    Raises:
      ValueError: the dataset refuses its options or size.
    """
    try:
      return self.ask(_PATIENCE, questions=list(indices))['questions']
    except child.ChildError as error:
      raise ValueError(
        f'Dataset {self.dataset!r} with options {self.options} and'
        f' {2 * self.size} questions: {error}'
      ) from error


class Tasks(Sequence[Task]):
  """The questions of a split, those of several datasets in turn.

  Args:
    datasets: names of datasets of reasoning-gym.
    split: 'train', 'validation' or 'test'.
    sizes: how many questions each split has, over all datasets; those of other
      splits matter, for what they ask is left out.
    seed: another one gives other questions in all splits.
    options: of a dataset, by its name, such as {'chain_sum': {'max_terms': 3}}.

  Raises:
    ValueError: a name, split or option is unknown, or a dataset has too few
      different questions.
    ImportError: reasoning-gym is not installed.
  """

  def __init__(
    self,
    datasets: Sequence[str],
    *,
    split: str = 'train',
    sizes: Mapping[str, int] = SIZES,
    seed: int = 0,
    options: Mapping[str, Mapping[str, Any]] | None = None,
  ):
    if importlib.util.find_spec('reasoning_gym') is None:
      raise ImportError(_MISSING)
    registry.one_of('split of reasoning tasks', split, SPLITS)
    for name in sizes:
      registry.one_of('split in sizes', name, SPLITS)
    options = dict(options or {})
    for name in options:
      registry.one_of('dataset in options', name, tuple(datasets))
    self._datasets = _checked(datasets)
    self._sizes = {**SIZES, **sizes}
    self._split = split
    self.streams = {
      (name, other): _stream(
        name,
        json.dumps(options.get(name, {})),
        other,
        self._count(k, other),
        seed,
      )
      for k, name in enumerate(self._datasets)
      for other in SPLITS
    }
    for name in self._datasets:  # says at once what is wrong with them
      for k, other in enumerate(SPLITS[:2], start=1):
        if split in (other, 'train'):
          _chosen(*self._until(name)[:k])
    self.names = [
      f'{name}/{split}/{position}'
      for name, position in map(self._place, range(len(self)))
    ]

  def __len__(self) -> int:
    return self._sizes[self._split]

  def __getitem__(self, index: int) -> Task:
    if not -len(self) <= index < len(self):
      raise IndexError(f'Task {index} of {len(self)}.')
    index %= len(self)
    name, position = self._place(index)
    streams = self._until(name)
    if self._split == 'train':
      at, question = _training(position, *streams)
    else:
      at, question = _chosen(*streams)[position]
    return Task(self.names[index], question, name, at)

  def score(self, task: Task, asked: str, reply: str) -> questions.Grade:
    """What the dataset's own scorer says of a reply.

    It is given the content of the last box or of `<answer>` tags, else all of
    the reply that is not thinking. A scorer that fails or hangs gives 0.

    Raises:
      RuntimeError: the dataset does not give the same question again.
    """
    stream = self.streams[task.subject, self._split]
    submitted = extract.submitted(reply, prompt=asked)
    if not submitted:
      return questions.Grade(0.0, 'The reply has no answer.')
    try:
      answer = stream.ask(
        _SECONDS, score=task.index, question=task.question, reply=submitted
      )
    except (TimeoutError, child.ChildError) as error:
      return questions.Grade(0.0, f'The scorer gave no verdict: {error}')
    if 'changed' in answer:
      raise RuntimeError(
        f'{task.subject!r} asked something else when it was asked for'
        f' {task.id} again; leave this dataset out.'
      )
    reward = min(max(answer['score'], 0.0), 1.0)
    return questions.Grade(reward, f'{task.subject} scores {reward:g}.')

  def _count(self, k: int, split: str) -> int:
    """How many questions dataset number k has in a split."""
    return -(-(self._sizes[split] - k) // len(self._datasets))

  def _place(self, index: int) -> tuple[str, int]:
    position, k = divmod(index, len(self._datasets))
    return self._datasets[k], position

  def _until(self, name: str) -> tuple[Stream, ...]:
    """The streams up to the own split, whose questions it leaves out."""
    last = SPLITS.index(self._split)
    return tuple(self.streams[name, split] for split in SPLITS[: last + 1])


def _checked(datasets: Sequence[str]) -> tuple[str, ...]:
  known = _children().ask({'names': True}, _PATIENCE)['names']
  for name in datasets:
    registry.one_of('dataset of reasoning-gym', name, known)
    if name in _REFUSED:
      raise ValueError(f'Dataset {name!r} is not supported: {_REFUSED[name]}.')
  if not datasets or len(set(datasets)) < len(datasets):
    raise ValueError(
      f'datasets={list(datasets)}; wanted different names, at least one.'
    )
  return tuple(datasets)


def _stream(
  name: str, options: str, split: str, size: int, seed: int
) -> Stream:
  first = (3 * seed + SPLITS.index(split)) * _APART
  if not 0 <= first < 2**32 or 2 * size > _APART:
    raise ValueError(
      f'seed={seed} and size={size} of {split!r}; wanted a seed from 0 to'
      f' {2**32 // _APART // 3 - 1} and at most {_APART // 2} questions.'
    )
  return Stream(name, options, first, size)


@functools.lru_cache(maxsize=1024)
def _chosen(*streams: Stream) -> tuple[tuple[int, str], ...]:
  """(index, question) of the last stream, different from all before it."""
  *earlier, stream = streams
  seen = {
    question
    for k in range(len(earlier))
    for _, question in _chosen(*earlier[: k + 1])
  }
  chosen: list[tuple[int, str]] = []
  for index, question in _generated(stream):
    if len(chosen) == stream.size:
      break
    if question not in seen:
      seen.add(question)
      chosen.append((index, question))
  if len(chosen) < stream.size:
    raise ValueError(
      f'{stream.dataset!r} gave {len(chosen)} different questions in'
      f' {2 * stream.size}, of which {stream.size} were wanted; lower `sizes`, or'
      ' make it ask for more by `options`.'
    )
  return tuple(chosen)


def _generated(stream: Stream) -> Iterator[tuple[int, str]]:
  for start in range(0, 2 * stream.size, _BATCH):
    indices = range(start, min(start + _BATCH, 2 * stream.size))
    yield from zip(indices, stream.questions(indices), strict=True)


@functools.lru_cache(maxsize=2**14)
def _training(position: int, *streams: Stream) -> tuple[int, str]:
  """The question at a position, a spare one where it is held out.

  It is generated when it is played; only the held-out ones are known before.
  """
  *held_out, stream = streams
  taken = {
    question
    for k in range(len(held_out))
    for _, question in _chosen(*held_out[: k + 1])
  }
  for index in (position, *range(stream.size, 2 * stream.size)):
    (question,) = stream.questions([index])
    if question not in taken:
      return index, question
  raise ValueError(
    f'{stream.dataset!r} has no question that is not held out; lower `sizes`.'
  )


@functools.cache
def _children() -> child.Children:
  return child.Children(pathlib.Path(__file__).with_name('reasoning_worker.py'))


def make(
  *, instruction: str = questions.INSTRUCTION, **options: Any
) -> questions.QuestionEnv:
  """What `gymnasium.make('jaxagent/Reasoning-v0', …)` calls.

  Args:
    instruction: as in `questions.QuestionEnv`.
    **options: arguments of `Tasks`.
  """
  return _environment(Tasks(**options), instruction)


def from_config(
  config: Mapping[str, Any],
) -> tuple[Tasks, Callable[[], questions.QuestionEnv]]:
  """Opens reasoning tasks; options: `instruction` and the arguments of `Tasks`.

  Raises:
    ValueError, ImportError: as `Tasks` does, or an option is unknown.
  """
  options = {k: v for k, v in config.items() if k != 'name'}
  for name in options:
    registry.one_of('option of reasoning tasks', name, _OPTIONS)
  instruction = options.pop('instruction', questions.INSTRUCTION)
  for name in ('sizes', 'options'):
    if name in options:
      options[name] = dict(options[name])
  tasks = Tasks(**options)
  return tasks, functools.partial(_environment, tasks, instruction)


def _environment(tasks: Tasks, instruction: str) -> questions.QuestionEnv:
  return questions.QuestionEnv(
    tasks, grade=tasks.score, instruction=instruction
  )


_OPTIONS = ('datasets', 'split', 'sizes', 'seed', 'options', 'instruction')
