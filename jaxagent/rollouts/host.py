"""The host's half of a rollout: agent programs in slots, numpy and Python only.

No JAX in here: it runs inside a callback of the device loop, where a jitted
call can deadlock on a machine with one core.
"""

import collections
from collections.abc import Callable, Sequence
import dataclasses
import threading
import time
import traceback

import numpy as np

from jaxagent import types
from jaxagent.agents import protocol
from jaxagent.rollouts import rows as rows_lib

IDLE, OPEN, EXTEND = range(3)  # what a slot does in a round
# An observation of more characters than this per token of context is an
# environment gone wild; it is not even tokenised.
MAX_CHARS_PER_TOKEN = 32


@dataclasses.dataclass(frozen=True)
class Limits:
  """Static sizes of a rollout.

  Attributes:
    slots: S, episodes that run at the same time.
    max_new: N, the longest reply in tokens.
    cache_lengths: ascending; the last one, M, is the longest context.
    timeout: seconds that an environment may take for one step, or None.
  """

  slots: int
  max_new: int
  cache_lengths: tuple[int, ...]
  timeout: float | None = None

  def __post_init__(self):
    lengths = tuple(self.cache_lengths)
    if not lengths or list(lengths) != sorted(set(lengths)):
      raise ValueError(f'cache_lengths must ascend; got {lengths}.')
    if self.max_new >= lengths[-1]:
      raise ValueError(
        f'max_new={self.max_new} leaves no room for a prompt in a context of'
        f' {lengths[-1]} tokens; raise cache_lengths.'
      )


@dataclasses.dataclass(frozen=True)
class Episode:
  """A finished episode: its task, how it ended, and the rows it wrote."""

  task: protocol.Task
  outcome: protocol.Outcome
  rows: tuple[rows_lib.Row, ...]


@dataclasses.dataclass
class _Slot:
  program: protocol.Program | None = None
  task: protocol.Task | None = None
  rows: list[rows_lib.Row] = dataclasses.field(default_factory=list)
  cached: int = 0

  @property
  def pending(self):
    return self.rows[-1].ids[self.cached :]


class Host:
  """Feeds `S` slots with the requests of agent programs, one round a call.

  A slot whose program ends takes the next task at once. Exceptions, hangs and
  endless output of an environment end only their own episode.
  """

  def __init__(
    self,
    limits: Limits,
    tokenizer,
    make_program: Callable[[protocol.Task], protocol.Program],
  ):
    self.limits = limits
    self.tokenizer = tokenizer
    self.make_program = make_program
    self.start(())

  def start(
    self,
    tasks: Sequence[protocol.Task],
    on_episode: Callable[[Episode], None] | None = None,
  ) -> None:
    """Queues tasks for the next rollout; forgets the last one.

    Raises:
      ValueError: two tasks share an episode number, so their keys would repeat.
    """
    numbers = [task.episode for task in tasks]
    if len(set(numbers)) != len(numbers):
      raise ValueError('Each task of a rollout needs its own episode number.')
    self._queue = collections.deque(tasks)
    self._slots = [_Slot() for _ in range(self.limits.slots)]
    self._on_episode = on_episode
    self._interrupted = False
    self._num_tasks = len(tasks)
    self._done: list[Episode] = []
    self.error: BaseException | None = None
    self.tracebacks: list[str] = []
    self.metrics = collections.Counter()

  def interrupt(self) -> None:
    """Makes the next round the last one."""
    self._interrupted = True

  def episodes(self) -> list[Episode]:
    """The finished episodes in the order of their numbers.

    Raises:
      whatever ended the rollout early, with its own type.
      RuntimeError: the environment failed in every single episode.
    """
    if self.error is not None:
      raise self.error
    assert self._interrupted or len(self._done) == self._num_tasks
    failed = [
      e for e in self._done if e.outcome.status == types.Status.ENV_ERROR
    ]
    if failed and len(failed) == len(self._done):
      raise RuntimeError(
        f'The environment failed in all {len(failed)} episodes. The first'
        f' failure:\n{self.tracebacks[0]}'
      )
    return sorted(self._done, key=lambda e: e.task.episode)

  def __call__(self, tokens, logprobs, num) -> tuple[np.ndarray, ...]:
    """Takes what was sampled, answers with the fields of a `round.Command`.

    Args:
      tokens: i32[S, N]. logprobs: f32[S, N]. num: i32[S], how many are valid.

    Returns:
      mode i32[S], ids i32[S, M], num i32[S], uid i32[S], bucket i32[],
      alive bool[].
    """
    start = time.perf_counter()
    try:
      self._advance(np.asarray(tokens), np.asarray(logprobs), np.asarray(num))
    except BaseException as error:  # noqa: BLE001  raised again by episodes()
      self.error = error
      self._slots = [_Slot() for _ in range(self.limits.slots)]
    command = self._command()
    self.metrics['rounds'] += 1
    self.metrics['host_seconds'] += time.perf_counter() - start
    return command

  def _advance(self, tokens, logprobs, num):
    if self._interrupted:
      raise KeyboardInterrupt('The rollout was interrupted.')
    replies = {
      i: self._receive(slot, tokens[i, : num[i]], logprobs[i, : num[i]])
      for i, slot in enumerate(self._slots)
      if slot.program is not None
    }
    for i, slot in enumerate(self._slots):
      if slot.program is None and self._next_task(slot):
        replies[i] = None
    while replies:
      answers = step_programs(
        {i: (self._slots[i].program, reply) for i, reply in replies.items()},
        self.limits.timeout,
      )
      replies = {}
      for i, answer in answers.items():
        slot = self._slots[i]
        outcome = self._handle(slot, answer)
        if outcome is not None:
          self._finish(slot, outcome)
          if self._next_task(slot):
            replies[i] = None

  def _next_task(self, slot) -> bool:
    slot.program, slot.rows, slot.cached = None, [], 0
    if not self._queue:
      return False
    slot.task = self._queue.popleft()
    slot.program = self.make_program(slot.task)
    return True

  def _receive(self, slot, tokens, logprobs) -> protocol.Completion:
    tokens, logprobs = tokens.tolist(), logprobs.tolist()
    row = slot.rows[-1]
    row.act(tokens, logprobs)
    slot.cached = len(row.ids) - 1
    self.metrics['sampled_tokens'] += len(tokens)
    return protocol.Completion(
      text=self.tokenizer.completion(tokens),
      tokens=tuple(tokens),
      logprobs=tuple(logprobs),
      truncated=tokens[-1] not in self.tokenizer.stop_ids,
    )

  def _handle(self, slot, answer) -> protocol.Outcome | None:
    """Queues a request into the slot, or returns how the episode ended."""
    if isinstance(answer, Exception):
      self.tracebacks.append(''.join(traceback.format_exception(answer)))
      return protocol.Outcome({}, types.Status.ENV_ERROR)
    if isinstance(answer, protocol.Outcome):
      return answer
    if not isinstance(answer, protocol.Generate):
      raise TypeError(
        'An agent program yields Generate and returns Outcome; got'
        f' {answer!r} in task {slot.task}.'
      )
    text = answer.extend or ''.join(m['content'] for m in answer.open or ())
    if len(text) > MAX_CHARS_PER_TOKEN * self.limits.cache_lengths[-1]:
      slot.program.close()
      self.tracebacks.append(f'Observation of {len(text)} characters.')
      return protocol.Outcome({}, types.Status.ENV_ERROR)
    self._write(slot, answer)
    limit = self.limits.cache_lengths[-1] - self.limits.max_new
    if len(slot.rows[-1].ids) > limit:
      return _context_limit(slot.program)
    return None

  def _write(self, slot, request):
    if request.open is not None:
      slot.rows.append(
        rows_lib.open_row(
          request,
          episode=slot.task.episode,
          index=len(slot.rows),
          tokenizer=self.tokenizer,
        )
      )
      slot.cached = 0
    elif not slot.rows:
      raise TypeError(
        f'The program of {slot.task} extends a row before it opened one.'
      )
    else:
      rows_lib.extend_row(slot.rows[-1], request, self.tokenizer)

  def _finish(self, slot, outcome):
    if slot.rows:
      slot.rows[-1].turns[-1].reward += outcome.reward
    episode = Episode(slot.task, outcome, tuple(slot.rows))
    self._done.append(episode)
    if self._on_episode is not None:
      self._on_episode(episode)

  def _command(self):
    slots, longest = self.limits.slots, self.limits.cache_lengths[-1]
    mode, num, uid = (np.zeros(slots, np.int32) for _ in range(3))
    ids = np.zeros((slots, longest), np.int32)
    needed = 0
    for i, slot in enumerate(self._slots):
      if slot.program is None:
        continue
      pending = slot.pending
      mode[i] = EXTEND if slot.cached else OPEN
      num[i], uid[i] = len(pending), slot.rows[-1].uid
      ids[i, : len(pending)] = pending
      needed = max(needed, len(slot.rows[-1].ids) + self.limits.max_new)
    self.metrics['slot_rounds'] += int((mode != IDLE).sum())
    bucket = np.searchsorted(self.limits.cache_lengths, needed)
    alive = np.asarray((mode != IDLE).any())
    return mode, ids, num, uid, np.asarray(bucket, np.int32), alive


def step_programs(jobs, timeout: float | None) -> dict:
  """Sends each program its reply and returns what it answered.

  Args:
    jobs: `{slot: (program, completion or None)}`.
    timeout: seconds until a program that has not answered is abandoned; its
      daemon thread cannot keep the interpreter from exiting.

  Returns:
    `{slot: Generate | Outcome | Exception}`.
  """
  answers: dict = {}

  def send(i, program, reply):
    try:
      answers[i] = program.send(reply)
    except StopIteration as stop:
      answers[i] = stop.value
    except BaseException as error:  # noqa: BLE001  sorted out below
      answers[i] = error

  if timeout is None:
    for i, (program, reply) in jobs.items():
      send(i, program, reply)
  else:
    threads = {
      i: threading.Thread(target=send, args=(i, *job), daemon=True)
      for i, job in jobs.items()
    }
    for thread in threads.values():
      thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads.values():
      thread.join(max(deadline - time.monotonic(), 0))
  late = TimeoutError(f'The environment took more than {timeout} s for a step.')
  results = {i: answers.get(i, late) for i in jobs}
  for answer in results.values():
    if isinstance(answer, BaseException) and not isinstance(answer, Exception):
      raise answer
  return results


def _context_limit(program) -> protocol.Outcome:
  """Tells a program that its context is full, and takes its last word."""
  outcome = protocol.Outcome({})
  try:
    program.throw(protocol.ContextLimit())
  except StopIteration as stop:
    if isinstance(stop.value, protocol.Outcome):
      outcome = stop.value
  except protocol.ContextLimit:
    pass
  except Exception:  # noqa: BLE001  of the environment, on its way out
    return protocol.Outcome({}, types.Status.ENV_ERROR)
  finally:
    program.close()
  return dataclasses.replace(outcome, status=types.Status.CONTEXT_LIMIT)
