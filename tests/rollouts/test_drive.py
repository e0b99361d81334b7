import pytest

from jaxagent import types
from jaxagent.agents import protocol
from jaxagent.language_models import base, scripted
from jaxagent.rollouts import drive


def guess(secret, *, turns):
  """Guess a word; after two turns a fresh row asks for a summary."""
  reply = yield protocol.Generate(open=[protocol.user('guess')], anchor='s')
  for _ in range(turns):
    if reply.text == secret:
      summary = yield protocol.Generate(
        open=[protocol.system('brief'), protocol.user('sum up')],
        part=types.Part.SUMMARIZE,
      )
      return protocol.Outcome(
        rewards={'success': 1.0}, info={'summary': summary.text}
      )
    reply = yield protocol.Generate(extend=f'not {reply.text}', reward=-1.0)
  return protocol.Outcome({'success': 0.0}, types.Status.TURN_LIMIT)


def test_rows_and_outcome_by_hand():
  transcript = drive.drive(
    guess('b', turns=3), scripted.scripted(['a', 'b', 'found b']), max_new=4
  )
  acted, summed = transcript.rows
  assert acted.messages == (
    {'role': 'user', 'content': 'guess'},
    {'role': 'assistant', 'content': 'a'},
    {'role': 'user', 'content': 'not a'},
    {'role': 'assistant', 'content': 'b'},
  )
  assert acted.part == types.Part.ACT
  assert [r.reward for r in acted.requests] == [0.0, -1.0]
  assert summed.messages == (
    {'role': 'system', 'content': 'brief'},
    {'role': 'user', 'content': 'sum up'},
    {'role': 'assistant', 'content': 'found b'},
  )
  assert summed.part == types.Part.SUMMARIZE
  assert transcript.outcome == protocol.Outcome(
    {'success': 1.0}, info={'summary': 'found b'}
  )


def test_the_model_sees_exactly_the_row():
  seen = []

  def write(messages):
    seen.append([message['content'] for message in messages])
    return 'b' if len(seen) == 3 else 'a'

  drive.drive(guess('b', turns=3), scripted.scripted(write), max_new=4)
  assert seen == [
    ['guess'],
    ['guess', 'a', 'not a'],
    ['guess', 'a', 'not a', 'a', 'not a'],
    ['brief', 'sum up'],
  ]


def test_max_new_reaches_the_model_and_cut_replies_the_program():
  def model(messages, *, max_new):
    return protocol.Completion(text='x' * max_new, truncated=True)

  def program():
    reply = yield protocol.Generate(open=[protocol.user('write')])
    return protocol.Outcome({'length': float(len(reply.text))}, info={
      'truncated': reply.truncated
    })  # fmt: skip

  outcome = drive.drive(program(), model, max_new=7).outcome
  assert outcome == protocol.Outcome({'length': 7.0}, info={'truncated': True})


def test_environment_errors_end_the_episode():
  def program():
    yield protocol.Generate(open=[protocol.user('go')])
    raise KeyError('lost')

  transcript = drive.drive(program(), scripted.scripted(['x']), max_new=4)
  assert transcript.outcome.status == types.Status.ENV_ERROR
  assert transcript.outcome.info == {'error': "KeyError: 'lost'"}
  assert transcript.outcome.rewards == {}
  assert len(transcript.rows) == 1


def test_interrupts_are_not_environment_errors():
  def program():
    yield protocol.Generate(open=[protocol.user('go')])
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    drive.drive(program(), scripted.scripted(['x']), max_new=4)


def test_errors_of_the_model_close_the_program():
  closed = []

  def program():
    try:
      yield protocol.Generate(open=[protocol.user('go')])
    finally:
      closed.append(True)

  with pytest.raises(base.LanguageModelError, match='has 0 replies'):
    drive.drive(program(), scripted.scripted([]), max_new=4)
  assert closed == [True]


def small(messages):
  return sum(len(message['content']) for message in messages) < 12


def test_context_limit_ends_the_episode_and_keeps_the_row():
  transcript = drive.drive(
    guess('b', turns=9), scripted.scripted(lambda _: 'a'), max_new=4, fits=small
  )
  assert transcript.outcome == protocol.Outcome({}, types.Status.CONTEXT_LIMIT)
  assert [len(row.messages) for row in transcript.rows] == [4]


def test_a_program_may_catch_the_context_limit():
  def program():
    reply = yield protocol.Generate(open=[protocol.user('go')])
    try:
      yield protocol.Generate(extend='a long observation')
    except protocol.ContextLimit:
      return protocol.Outcome({'success': 0.5}, info={'last': reply.text})
    raise AssertionError('the observation fitted')

  outcome = drive.drive(
    program(), scripted.scripted(['x']), max_new=4, fits=small
  ).outcome
  assert outcome == protocol.Outcome(
    {'success': 0.5}, types.Status.CONTEXT_LIMIT, info={'last': 'x'}
  )


def test_a_program_that_goes_on_after_the_context_limit_is_closed():
  def program():
    try:
      yield protocol.Generate(open=[protocol.user('a long observation')])
    except protocol.ContextLimit:
      yield protocol.Generate(open=[protocol.user('short')])

  transcript = drive.drive(
    program(), scripted.scripted([]), max_new=4, fits=small
  )
  assert transcript.rows == ()
  assert transcript.outcome.status == types.Status.CONTEXT_LIMIT


def no_outcome():
  yield protocol.Generate(open=[protocol.user('go')])


def no_request():
  yield 'go'


def no_row():
  yield protocol.Generate(extend='go')


@pytest.mark.parametrize(
  'program, message',
  [
    (no_outcome, 'None where Outcome is due'),
    (no_request, "'go' where Generate is due"),
    (no_row, "extends with 'go' before any row"),
  ],
)
def test_programs_that_break_the_protocol(program, message):
  with pytest.raises(TypeError, match=message):
    drive.drive(program(), scripted.scripted(['x', 'y']), max_new=4)
