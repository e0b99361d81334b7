"""The original TextWorld engine behind the interface of `world.World`.

It runs in a process of its own, because it holds global state, cannot be
interrupted from within, and may be installed for another interpreter. It is a
hundred times slower than `world.py`: a second to start a game, 10 to 150 ms for
a step.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import select
import subprocess
import sys
from typing import Any

from jaxagent.envs.alfworld import game as game_lib

_WORKER = pathlib.Path(__file__).with_name('engine_worker.py')
_MISSING = (
  'The original ALFWorld engine is not installed for {python}: {reason}. Install'
  " it with `pip install 'jaxagent[alfworld]'`, or pass `python`, an interpreter"
  ' that has alfworld and textworld.'
)


@dataclasses.dataclass(frozen=True)
class OriginalGame:
  """What is known of a game without understanding its rules."""

  id: str
  task: str
  task_type: str
  walkthrough: tuple[str, ...] | None
  homes: dict[str, str] = dataclasses.field(default_factory=dict)


class Engine:
  """A process that plays one game at a time.

  Args:
    python: The interpreter that has alfworld and textworld.
    time_limit: Seconds that an answer may take. Starting the process and
      loading a game count as one answer.
  """

  def __init__(self, *, python: str = sys.executable, time_limit: float = 60.0):
    self._python = python
    self.time_limit = time_limit
    self._process: subprocess.Popen | None = None

  def open(self, file: str | os.PathLike) -> 'EngineWorld':
    """Opens a `game.tw-pddl`; a world opened earlier can no longer be used."""
    return EngineWorld(self, pathlib.Path(file))

  def ask(self, request: dict[str, Any]) -> dict[str, Any]:
    """Sends a request to the process and waits for its answer.

    Raises:
      ImportError: if the engine is not installed for the interpreter.
      TimeoutError: if there is no answer in time. The process is ended; the
        next game starts a new one.
      RuntimeError: if the engine failed, with its message.
    """
    if self._process is None:
      self._process = subprocess.Popen(
        [self._python, str(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
      )
    with contextlib.suppress(BrokenPipeError):  # reading finds that it ended
      self._process.stdin.write(json.dumps(request).encode() + b'\n')
    answer = self._answer(request)
    if 'missing' in answer:
      self.close()
      raise ImportError(
        _MISSING.format(python=self._python, reason=answer['missing'])
      )
    if 'error' in answer:
      raise RuntimeError(f'The engine failed on {request}: {answer["error"]}')
    return answer

  def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
    line, out = b'', self._process.stdout
    while not line.endswith(b'\n'):
      if not select.select([out], [], [], self.time_limit)[0]:
        self.close()
        raise TimeoutError(
          f'The engine did not answer {request} within {self.time_limit} s and'
          ' was ended. Reset the environment to go on, with a higher'
          ' `time_limit` if the machine is slow.'
        )
      piece = os.read(out.fileno(), 2**16)
      if not piece:
        self.close()
        raise RuntimeError(f'The engine ended without an answer to {request}.')
      line += piece
    return json.loads(line)

  def close(self):
    """Ends the process."""
    process, self._process = self._process, None
    if process is not None:
      process.kill()
      process.wait()
      process.stdin.close()
      process.stdout.close()


class EngineWorld:
  """One game in the engine; the interface is that of `world.World`."""

  def __init__(self, engine: Engine, file: pathlib.Path):
    self._engine = engine
    self._file = file
    names = '/'.join(file.parts[-4:-1])
    content = json.loads(file.read_text())
    walkthrough = content.get('walkthrough')
    observation = self._load()
    self._opening: str | None = observation
    self.game = OriginalGame(
      id=names,
      task=observation.rsplit('task is to: ', 1)[-1].removesuffix('.'),
      task_type=next(
        (kind for kind in game_lib.TASK_TYPES if f'/{kind}-' in f'/{names}'), ''
      ),
      walkthrough=None if walkthrough is None else tuple(walkthrough),
    )

  def reset(self) -> str:
    """Starts over; returns the first observation."""
    opening, self._opening = self._opening, None
    return self._load() if opening is None else opening

  def _load(self) -> str:
    return self._show(self._engine.ask({'load': str(self._file)}))

  def step(self, command: str) -> str:
    """Does what a command says; returns what there is to see."""
    self._opening = None
    return self._show(self._engine.ask({'step': command}))

  def close(self):
    """Ends the engine's process."""
    self._engine.close()

  def _show(self, answer: dict[str, Any]) -> str:
    self.admissible = tuple(answer['admissible'])
    self.won: bool = answer['won']
    return answer['observation']
