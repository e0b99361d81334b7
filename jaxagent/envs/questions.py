r"""Questions that are answered once, from files, judged by `answers.verify`.

`QuestionEnv` asks whatever has an `id`, a `question` and a `subject`; who
grades the reply is an argument, so that other sources share it.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import os
import pathlib
from typing import Any

import gymnasium
from gymnasium import error

from jaxagent import registry
from jaxagent.answers import verify
from jaxagent.data import prepared
from jaxagent.data import questions as questions_lib
from jaxagent.envs import base

SAMPLE = pathlib.Path(__file__).parents[1] / 'assets' / 'questions'
INSTRUCTION = 'Put the final answer in \\boxed{}.'


@dataclasses.dataclass(frozen=True)
class Grade:
  """A reward from 0 to 1, why, and further ones by their name."""

  reward: float
  reason: str = ''
  rewards: Mapping[str, float] = dataclasses.field(default_factory=dict)


class QuestionEnv(gymnasium.Env[str, str]):
  """Asks one question; `options={'game': index or id}` chooses which.

  The action is the whole reply; the episode ends with it. `info` after reset has
  `task`, `task_type`, `game` and, where the question has one, `answer`; after
  the step `won` (a reward of 1), `reason` and `rewards`. The spaces are of
  printable ASCII, as everywhere here, though a question may have other
  characters.

  Args:
    questions: what to ask.
    grade: from a question, what was asked in full, and the reply.
    instruction: added to each question.
  """

  metadata: dict[str, Any] = {'render_modes': []}

  def __init__(
    self,
    questions: Sequence | base.Source,
    *,
    grade: Callable[[Any, str, str], Grade],
    instruction: str = INSTRUCTION,
  ):
    if not len(questions):
      raise ValueError('QuestionEnv needs at least one question; got none.')
    self.questions = questions
    self.observation_space = base.text_space(2**16)
    self.action_space = base.text_space(2**16)
    self._grade = grade
    self._instruction = instruction
    self._question: Any = None

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    wanted = (options or {}).get('game')
    if wanted is None:
      wanted = self.np_random.integers(len(self.questions))
    elif isinstance(wanted, str):
      names = list(self.questions.names)
      wanted = names.index(registry.one_of('question', wanted, names))
    self._question = self.questions[int(wanted)]
    self._asked = '\n'.join(
      filter(None, (self._question.question.strip(), self._instruction))
    )
    info = {
      'task': self._question.question,
      'task_type': self._question.subject,
      'game': self._question.id,
    }
    if hasattr(self._question, 'answer'):
      info['answer'] = self._question.answer
    return self._asked, info

  def step(self, action: str):
    if self._question is None:
      raise error.ResetNeeded(base.OVER)
    grade = self._grade(self._question, self._asked, action)
    self._question = None
    won = grade.reward >= 1
    return (
      'Right.' if won else 'Wrong.',
      grade.reward,
      True,
      False,
      {'won': won, 'reason': grade.reason, 'rewards': dict(grade.rewards)},
    )


def grade(
  question: questions_lib.Question, asked: str, reply: str, **options: Any
) -> Grade:
  """1 where `answers.verify` finds the wanted answer in a reply, else 0.

  Args:
    question: with its answer.
    asked: the text that the reply may repeat.
    reply: all that was written.
    **options: of `verify.verify`.
  """
  verdict = verify.verify(reply, question.answer, prompt=asked, **options)
  return Grade(float(verdict.correct), verdict.reason)


def open_questions(
  path: str | os.PathLike = '',
  *,
  split: str = 'train',
  question: str = '',
  answer: str = '',
) -> base.Source:
  """Opens a split of a folder of questions.

  Args:
    path: a folder with a file `SPLIT.jsonl` or `SPLIT.parquet` for each split,
      or one that `data.prepared.write` made. '' is the sample that comes with
      this project: 'train' and 'test', for trying things out.
    split: which.
    question: field of the file, see `data.questions.read`.
    answer: field of the file.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: the split is unknown, or a file is broken.
  """
  folder = pathlib.Path(path or SAMPLE).expanduser()
  if not folder.is_dir():
    raise FileNotFoundError(
      f'{folder} is no folder. Put one file a split into a folder'
      ' (train.jsonl, test.jsonl; or .parquet) and give that as `path`.'
    )
  if prepared.is_prepared(folder):
    return prepared.load(folder, split=split)
  files = {
    file.stem: file
    for suffix in questions_lib.SUFFIXES
    for file in sorted(folder.glob(f'*{suffix}'))
  }
  registry.one_of(f'split in {folder}', split, tuple(files))
  return questions_lib.read(files[split], question=question, answer=answer)


def make(
  *, instruction: str = INSTRUCTION, verifier: str = '', **options: Any
) -> QuestionEnv:
  """What `gymnasium.make('jaxagent/Questions-v0', …)` calls.

  Args:
    instruction: as in `QuestionEnv`.
    verifier: `implementation` of `verify.verify`; '' is its default.
    **options: arguments of `open_questions`.
  """
  return _environment(open_questions(**options), instruction, verifier)


def from_config(
  config: Mapping[str, Any],
) -> tuple[base.Source, Callable[[], QuestionEnv]]:
  """Opens questions; options: those of `make`.

  Raises:
    ValueError, FileNotFoundError: as `open_questions` does, or an option is
      unknown.
  """
  options = {k: v for k, v in config.items() if k != 'name'}
  for name in options:
    registry.one_of('option of questions', name, _OPTIONS)
  instruction = options.pop('instruction', INSTRUCTION)
  verifier = options.pop('verifier', '')
  if verifier:
    registry.one_of('verifier', verifier, verify.IMPLEMENTATIONS)
  source = open_questions(**options)
  return source, functools.partial(_environment, source, instruction, verifier)


def _environment(
  source: base.Source, instruction: str, verifier: str
) -> QuestionEnv:
  return QuestionEnv(
    source,
    grade=functools.partial(grade, implementation=verifier or None),
    instruction=instruction,
  )


_OPTIONS = ('path', 'split', 'question', 'answer', 'instruction', 'verifier')
