import os
import signal
import threading

import chex
import jax
import numpy as np
import pytest
import worlds

from jaxagent import tokens, types
from jaxagent.agents import protocol
from jaxagent.models import config as config_lib
from jaxagent.models import logprobs, sampler
from jaxagent.models import policy as policy_lib
from jaxagent.rollouts import assemble, collect
from jaxagent.rollouts import host as host_lib

TOKENIZER = tokens.default()
POLICY = policy_lib.build(
  config_lib.ModelConfig(
    family='qwen3',
    vocab=TOKENIZER.vocab_size,
    hidden=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    intermediate=64,
    qk_norm=True,
    init_std=0.3,
  )
)
PARAMS = POLICY.init(jax.random.key(0))
KEY = jax.random.key(7)


def make(
  program=worlds.echo,
  *,
  slots=4,
  chunk=8,
  lengths=(256,),
  driver='python',
  timeout=None,
  max_new=6,
  **sampling,
):
  limits = host_lib.Limits(slots, max_new, lengths, timeout)
  settings = sampler.Sampling(
    max_new=max_new, stop_ids=TOKENIZER.stop_ids, chunk=chunk, **sampling
  )
  return collect.Rollout(
    POLICY, TOKENIZER, program, limits, settings, driver=driver
  )


def contents(episodes, logprobs=False):
  return [
    (row.uid, row.ids, row.mask, row.turn)
    + ((row.logprobs,) if logprobs else ())
    for episode in episodes
    for row in episode.rows
  ]


@pytest.mark.parametrize('program', [worlds.echo, worlds.map_then_act])
def test_drivers_are_bit_identical(program):
  tasks = worlds.tasks(9)
  python, counted = make(program)(PARAMS, KEY, tasks)
  jitted, also = make(program, driver='jit')(PARAMS, KEY, tasks)
  assert contents(python, logprobs=True) == contents(jitted, logprobs=True)
  assert [e.outcome for e in python] == [e.outcome for e in jitted]
  for name in ('rounds', 'decode_steps', 'sampled_tokens', 'slot_use'):
    assert counted[name] == also[name]


def test_tokens_depend_on_neither_slots_chunk_cache_nor_order():
  tasks = worlds.tasks(20)
  want = contents(make()(PARAMS, KEY, tasks)[0])
  for slots in (1, 16, 64):
    assert contents(make(slots=slots)(PARAMS, KEY, tasks)[0]) == want
  for chunk in (3, 64):
    assert contents(make(chunk=chunk)(PARAMS, KEY, tasks)[0]) == want
  buckets = make(lengths=(48, 96, 256))
  assert contents(buckets(PARAMS, KEY, tasks)[0]) == want
  assert contents(make()(PARAMS, KEY, tasks[::-1])[0]) == want
  other = contents(make()(PARAMS, jax.random.key(8), tasks)[0])
  assert not any(a[1] == b[1] for a, b in zip(want, other, strict=True))


@pytest.mark.parametrize('driver', ['python', 'jit'])
def test_one_compilation_over_rollouts(driver):
  rollout = make(driver=driver)
  rows = set()
  for seed, count in enumerate((3, 11, 6)):
    episodes, _ = rollout(PARAMS, KEY, worlds.tasks(count, seed=seed))
    rows.add(len(contents(episodes)))
  assert rows == {3, 11, 6}
  assert rollout.compiled._cache_size() == 1


@pytest.mark.parametrize('top_p,temperature', [(1.0, 1.0), (0.8, 0.7)])
def test_sampler_and_trainer_agree(top_p, temperature):
  rollout = make(lengths=(64, 256), top_p=top_p, temperature=temperature)
  episodes, _ = rollout(PARAMS, KEY, worlds.tasks(12))
  batch = assemble.assemble(
    episodes, reward_names=('success',), length=256, rows=12
  )
  hidden = POLICY.apply(PARAMS, batch.tokens)
  scores = logprobs.score(
    hidden,
    POLICY.unembed(PARAMS),
    batch.tokens,
    batch.action_mask,
    budget=1024,
    temperature=temperature,
  )
  assert batch.action_mask.sum() > 100
  chex.assert_trees_all_close(scores.logprobs, batch.logprobs, atol=1e-5)


def statuses(program, **kwargs):
  episodes, _ = make(program, **kwargs)(PARAMS, KEY, worlds.tasks(12))
  assert [e.task.episode for e in episodes] == list(range(12))
  return episodes


@pytest.mark.parametrize(
  'program,timeout',
  [(worlds.raises, None), (worlds.floods, None), (worlds.hangs, 0.5)],
)
def test_a_broken_environment_ends_only_its_episode(program, timeout):
  episodes = statuses(program, timeout=timeout)
  for episode in episodes:
    broken = episode.task.seed % 3 == 0
    assert (episode.outcome.status == types.Status.ENV_ERROR) == broken
  assert 0 < sum(e.task.seed % 3 == 0 for e in episodes) < 12
  batch = assemble.assemble(
    episodes, reward_names=('success',), length=256, rows=12
  )
  failed = batch.status == types.Status.ENV_ERROR
  assert not batch.action_mask[failed].any() and not batch.active[failed].any()
  assert batch.action_mask[~failed].any(1).all() and batch.active[~failed].all()


def test_failures_do_not_change_other_episodes():
  with_failures = statuses(worlds.raises)
  tasks = [t for t in worlds.tasks(12) if t.seed % 3]
  alone, _ = make(worlds.raises)(PARAMS, KEY, tasks)
  kept = [e for e in with_failures if e.task.seed % 3]
  assert contents(kept) == contents(alone)


def test_context_limit_has_its_own_status():
  episodes = statuses(worlds.endless)
  assert {e.outcome.status for e in episodes} == {types.Status.CONTEXT_LIMIT}
  batch = assemble.assemble(
    episodes, reward_names=('success',), length=512, rows=12
  )
  assert batch.active.all() and not batch.rewards.any()
  assert batch.action_mask.any()


def test_a_program_may_catch_the_context_limit():
  episodes = statuses(worlds.counts_turns)
  for episode in episodes:
    assert episode.outcome.status == types.Status.CONTEXT_LIMIT
    assert episode.outcome.rewards == {'success': 0.25}
    assert episode.outcome.info['turns'] > 2


def test_failure_of_every_episode_is_an_error():
  def broken(task):
    raise OSError('no simulator')
    yield

  with pytest.raises(RuntimeError, match='(?s)all 4 episodes.*no simulator'):
    make(broken)(PARAMS, KEY, worlds.tasks(4))


@pytest.mark.parametrize('driver', ['python', 'jit'])
def test_host_errors_keep_their_type_and_poison_nothing(driver):
  def faulty(task):
    if task.episode == 2:
      raise LookupError('no game of that name')
    return worlds.echo(task)

  rollout = make(faulty, driver=driver)
  with pytest.raises(LookupError, match='no game of that name'):
    rollout(PARAMS, KEY, worlds.tasks(3))
  episodes, _ = rollout(PARAMS, KEY, worlds.tasks(2))
  want, _ = make()(PARAMS, KEY, worlds.tasks(2))
  assert contents(episodes) == contents(want)


@pytest.mark.parametrize('driver', ['python', 'jit'])
def test_interrupt_ends_the_rollout(driver):
  started = threading.Event()

  def signalling(task):
    if task.episode == 40:
      started.set()
    return worlds.echo(task)

  def interrupt():
    started.wait()
    os.kill(os.getpid(), signal.SIGINT)

  rollout = make(signalling, driver=driver)
  rollout(PARAMS, KEY, worlds.tasks(2))
  thread = threading.Thread(target=interrupt)
  # A shell starts what it puts in the background with the signal ignored.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    thread.start()
    with pytest.raises(KeyboardInterrupt):
      rollout(PARAMS, KEY, worlds.tasks(4000))
    thread.join()
  finally:
    signal.signal(signal.SIGINT, before)
  assert len(rollout.host._done) < 4000
  episodes, _ = rollout(PARAMS, KEY, worlds.tasks(2))
  assert len(episodes) == 2


def test_misuse_is_explained():
  with pytest.raises(ValueError, match='own episode number'):
    make()(PARAMS, KEY, [protocol.Task(0, 0, 0, 'a')] * 2)
  with pytest.raises(ValueError, match='driver'):
    make(driver='rust')
  with pytest.raises(ValueError, match='no room'):
    host_lib.Limits(4, 64, (32,))
  with pytest.raises(ValueError, match='ascend'):
    host_lib.Limits(4, 6, (64, 32))
  with pytest.raises(ValueError, match='exactly one'):
    protocol.Generate(open=[], extend='x')

  def extends_first(task):
    yield protocol.Generate(extend='hello')

  with pytest.raises(TypeError, match='before it opened'):
    make(extends_first)(PARAMS, KEY, worlds.tasks(1))


def test_metrics_count_what_happened():
  episodes, metrics = make(slots=2)(PARAMS, KEY, worlds.tasks(5))
  sampled = sum(sum(row.mask) for e in episodes for row in e.rows)
  turns = sum(len(row.turns) for e in episodes for row in e.rows)
  assert metrics['sampled_tokens'] == sampled
  # The last call, which ends the loop, is a round without slots.
  assert metrics['slot_use'] * metrics['rounds'] * 2 == pytest.approx(turns)
  assert 0 < metrics['host_share'] < 1 and metrics['host_ms_per_round'] > 0


def test_rows_keep_ids_and_grow_as_prefixes():
  seen = []

  def watching(task):
    program = worlds.echo(task)
    request, reply = next(program), None
    while True:
      reply = yield request
      seen.append(reply)
      try:
        request = program.send(reply)
      except StopIteration as stop:
        return stop.value

  episodes, _ = make(watching, slots=1)(PARAMS, KEY, worlds.tasks(4))
  sampled = [list(reply.tokens) for reply in seen]
  rows = [row for e in episodes for row in e.rows]
  from_rows = []
  for row in rows:
    for turn in range(len(row.turns)):
      from_rows.append(
        [
          i
          for i, m, t in zip(row.ids, row.mask, row.turn, strict=True)
          if m and t == turn
        ]
      )
  assert sampled == from_rows
  for row in rows:
    stops = [
      k
      for k, (i, m) in enumerate(zip(row.ids, row.mask, strict=True))
      if i in TOKENIZER.stop_ids and not m
    ]
    # A stop token that was not sampled stands only where a reply was cut.
    assert all(row.mask[k - 1] for k in stops)


def test_assembly_aligns_the_teacher():
  episodes, _ = make()(PARAMS, KEY, worlds.tasks(6))
  batch = assemble.assemble(
    episodes,
    reward_names=('success', 'unknown'),
    length=256,
    rows=8,
    teacher_length=300,
  )
  teacher = batch.teacher
  assert teacher.available.tolist() == [True] * 6 + [False] * 2
  assert (batch.group[6:] == -1).all() and not batch.active[:, 1].any()
  for b in range(6):
    (at,) = np.nonzero(batch.action_mask[b])
    assert teacher.shift[b] > 0
    assert (
      teacher.tokens[b, at + teacher.shift[b]] == batch.tokens[b, at]
    ).all()
  with pytest.raises(ValueError, match='do not fit'):
    assemble.assemble(episodes, reward_names=(), length=8, rows=8)
  with pytest.raises(ValueError, match='never cut'):
    assemble.assemble(
      episodes, reward_names=(), length=256, rows=8, teacher_length=8
    )
