"""Programs and worlds in which a rollout can go right and wrong."""

import time

from jaxagent import types
from jaxagent.agents import protocol


def echo(task, *, turns=4):
  """One row; the answer of the world depends on what was written.

  Turn limits differ by task, so that slots are refilled at different rounds.
  """
  limit = 1 + (task.seed % turns)
  opening = [protocol.user(f'find thing {task.seed}')]
  hint = [protocol.user(f'hint: {task.seed % 7}\nfind thing {task.seed}')]
  reply = yield protocol.Generate(
    open=opening, privileged=hint, anchor=f'start {task.seed}'
  )
  score = 0
  for turn in range(1, limit + 1):
    score = (score * 31 + sum(map(ord, reply.text))) % 1009
    if turn == limit:
      break
    reply = yield protocol.Generate(
      extend=f'you see {score} and {"a cup, " * (score % 5)}',
      anchor=str(score),
      reward=-1.0 if score % 2 else 0.0,
    )
  status = types.Status.DONE if score % 2 else types.Status.TURN_LIMIT
  return protocol.Outcome(
    {'success': float(score % 2)}, status, info={'score': score}
  )


def map_then_act(task):
  """Two or three rows an episode, of different parts."""
  note = None
  for _ in range(1 + task.seed % 2):
    note = yield protocol.Generate(
      open=[protocol.user('map ' + 'shelf ' * (task.seed % 9))],
      part=types.Part.MAP,
    )
  reply = yield protocol.Generate(open=[protocol.user(note.text[:8])])
  reply = yield protocol.Generate(extend=reply.text[:4])
  return protocol.Outcome({'success': float(len(reply.text) % 2)})


def raises(task):
  """An environment that breaks in its second turn, every third task."""
  yield protocol.Generate(open=[protocol.user('go')])
  if task.seed % 3 == 0:
    raise OSError('the simulator went away')
  yield protocol.Generate(extend='fine')
  return protocol.Outcome({'success': 1.0})


def hangs(task):
  """An environment that does not answer, every third task."""
  yield protocol.Generate(open=[protocol.user('go')])
  if task.seed % 3 == 0:
    time.sleep(30)
  yield protocol.Generate(extend='fine')
  return protocol.Outcome({'success': 1.0})


def floods(task):
  """An environment that answers without end, every third task."""
  yield protocol.Generate(open=[protocol.user('go')])
  yield protocol.Generate(extend='x' * 10**6 if task.seed % 3 == 0 else 'fine')
  return protocol.Outcome({'success': 1.0})


def endless(task):
  """Never stops by itself: the context limit has to."""
  del task
  yield protocol.Generate(open=[protocol.user('go')])
  while True:
    yield protocol.Generate(extend='you see a shelf, a drawer and a desk')


def counts_turns(task):
  """Catches the context limit to say how far it came."""
  turns = 1
  try:
    yield protocol.Generate(open=[protocol.user('go')])
    while True:
      turns += 1
      yield protocol.Generate(extend='you see a shelf, a drawer and a desk')
  except protocol.ContextLimit:
    return protocol.Outcome({'success': 0.25}, info={'turns': turns})


def tasks(count, *, seed=0):
  return [
    protocol.Task(
      episode=i, group=i // 2, seed=(i * 7919 + seed) % 1000, game=str(i)
    )
    for i in range(count)
  ]
