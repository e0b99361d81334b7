"""Calls that may hang or grow, in processes that can be killed.

`Children(script).ask(request, timeout)` runs `answer(request)` of a script in a
process of its own, which stays for the next request. It works from any thread,
where signals do not, and stops code that never returns to the interpreter. A
child also ends itself: when its time is over, even if the parent is gone, and
when it asks for too much memory.
"""

from collections.abc import Mapping
import contextlib
import json
import os
import pathlib
import queue
import runpy
import selectors
import signal
import subprocess
import sys
import threading
import time
from typing import Any

_START = 600.0  # seconds that a script may take to be imported
_MEMORY = 4 * 2**30  # bytes of address space of a child


class ChildError(RuntimeError):
  """The child failed, with its message, or ended without an answer."""


class Children:
  """Processes that run one script.

  Args:
    script: a Python file that defines `answer(request) -> answer`, both JSON
      objects. It imports nothing of this project.
    most: how many run at once; further callers wait for their turn.
  """

  def __init__(self, script: pathlib.Path, *, most: int | None = None):
    self._script = script
    self._turn = threading.BoundedSemaphore(most or min(4, os.cpu_count() or 1))
    self._idle: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()

  def ask(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Sends a request to a child and waits for its answer.

    Args:
      request: JSON; what `answer` is called with.
      timeout: seconds for the answer, once the child has started.

    Raises:
      TimeoutError: no answer in time; the child was killed.
      ChildError: the child raised, or ended.
    """
    with self._turn:
      child = self._get()
      try:
        line = json.dumps({'timeout': timeout, 'request': request})
        with contextlib.suppress(BrokenPipeError):  # reading finds the end
          child.stdin.write(line.encode() + b'\n')
        answer = _read(child, timeout)
      except BaseException:
        _end(child)
        raise
      self._idle.put(child)
    if 'error' in answer:
      raise ChildError(answer['error'])
    return answer['answer']

  def close(self):
    """Ends the children that wait for work."""
    with contextlib.suppress(queue.Empty):
      while True:
        _end(self._idle.get_nowait())

  def _get(self) -> subprocess.Popen:
    with contextlib.suppress(queue.Empty):
      while True:
        child = self._idle.get_nowait()
        if child.poll() is None:
          return child
        _end(child)
    child = subprocess.Popen(
      [sys.executable, '-P', '-B', __file__, str(self._script)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      bufsize=0,
      env={
        **os.environ,
        'PYTHONPATH': os.pathsep.join(filter(None, sys.path)),
        'PYTHONHASHSEED': '0',  # what iterates over sets is the same in all
      },
    )
    try:
      started = _read(child, _START)
      if 'error' in started:
        raise ChildError(started['error'])
    except (TimeoutError, ChildError) as error:
      _end(child)
      raise type(error)(f'{self._script.name} did not start: {error}') from None
    except BaseException:
      _end(child)
      raise
    return child


def _read(child: subprocess.Popen, timeout: float) -> dict[str, Any]:
  """A line of JSON from a child."""
  end, line = time.monotonic() + timeout, b''
  with selectors.DefaultSelector() as selector:
    selector.register(child.stdout, selectors.EVENT_READ)
    while not line.endswith(b'\n'):
      left = end - time.monotonic()
      if left <= 0 or not selector.select(left):
        raise TimeoutError(f'No answer within {timeout} s.')
      piece = os.read(child.stdout.fileno(), 2**16)
      if not piece:
        raise ChildError('The child ended: out of memory, or killed.')
      line += piece
  return json.loads(line)


def _end(child: subprocess.Popen):
  child.kill()
  child.wait()
  child.stdin.close()
  child.stdout.close()


def _limit():
  """Bounds memory, and files to nothing, where the system knows how."""
  with contextlib.suppress(ImportError, ValueError, OSError):
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def main(script: str):
  """Answers requests until stdin ends; runs in the child."""
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # whatever is printed must not mix with answers

  def tell(**answer):
    answers.write(json.dumps(answer) + '\n')
    answers.flush()

  try:
    answer = runpy.run_path(script)['answer']
  except BaseException as error:
    return tell(error=f'{type(error).__name__}: {error}')
  tell(ready=True)
  _limit()
  for line in sys.stdin:
    message = json.loads(line)
    signal.alarm(int(message['timeout']) + 2)  # ends the process
    try:
      tell(answer=answer(message['request']))
    except BaseException as error:  # the parent reports it and decides
      tell(error=f'{type(error).__name__}: {error}')
    signal.alarm(0)


if __name__ == '__main__':
  main(sys.argv[1])
