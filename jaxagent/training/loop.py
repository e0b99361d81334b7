"""The training loop: rows, advantages, fixed passes, one update, again.

It never learns the name of a method: all of it is in the `Setup`.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
import json
import pathlib
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import optax

from jaxagent import registry, types
from jaxagent.losses import base
from jaxagent.models import logprobs, sharding
from jaxagent.rewards import credit, diagnostics, group
from jaxagent.training import checkpoint, evaluation, records, sources
from jaxagent.training import metrics as metrics_lib
from jaxagent.training import state as state_lib
from jaxagent.training import update as update_lib

TEACHERS = ('self', 'initial', 'external')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """How long, and how often to do what; steps are updates.

  Attributes:
    steps: the last step.
    microbatch: rows of one forward and backward pass.
    minibatches: optimiser steps over the rows of one rollout.
    evaluate_every: 0 never; after the last step all the same.
    evaluate_first: also before the first step.
    checkpoint_every: steps.
    record_every: steps between trajectory files; 0 never.
    teacher: 'self' are the weights before the update, 'initial' those that
      the run started from, 'external' is the setup's own model.
  """

  steps: int
  microbatch: int
  minibatches: int = 1
  evaluate_every: int = 0
  evaluate_first: bool = True
  checkpoint_every: int = 10
  record_every: int = 0
  teacher: str = 'self'

  def __post_init__(self):
    registry.one_of('train.teacher', self.teacher, TEACHERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
  """All that a run is made of."""

  params: Any  # what the run starts from, and the reference policy
  tokenizer: Any
  source: sources.Source
  passes: update_lib.Passes
  optimizer: optax.GradientTransformation
  schedule: Schedule
  reduce: Callable = base.token_mean
  transform: types.RewardTransform | None = None  # None: nothing to credit
  estimator: credit.Estimator | None = None
  reward_names: tuple[str, ...] = ()
  evaluators: Sequence[evaluation.Evaluator] = ()
  mesh: jax.sharding.Mesh | None = None
  teacher_params: Any = None  # of `passes.teacher`


def run(setup: Setup, workdir, *, label: str = 'train') -> state_lib.TrainState:
  """Trains, or goes on where a killed run of the same workdir stopped.

  Args:
    setup: what to train, on what, how long.
    workdir: gets `metrics.jsonl`, `tensorboard/`, `checkpoints/`,
      `trajectories/` and `evaluations.json`.
    label: of the progress bar.

  Returns:
    The last state.
  """
  workdir = pathlib.Path(workdir)
  schedule = setup.schedule
  mesh = setup.mesh or sharding.make_mesh()
  saver = checkpoint.Checkpointer(
    workdir / 'checkpoints', every=schedule.checkpoint_every
  )
  reference, state = start(setup)
  restored = saver.restore(state)
  if restored is not None:
    state, host = restored
    setup.source.restore(host['source'])
  step = _Step(setup, mesh, reference)
  first = int(state.step)
  writer = metrics_lib.Writer(workdir, step=first)
  bar = metrics_lib.progress(schedule.steps, start=first, label=label)
  try:
    with writer, bar as advance:
      if first == 0 and schedule.evaluate_first:
        _evaluate(setup, state, workdir, writer)
      while int(state.step) < schedule.steps:
        before = int(state.step)
        state, metrics, rows = step(state)
        now = int(state.step)
        writer.write(now - 1, metrics)
        if schedule.record_every and before % schedule.record_every == 0:
          path = workdir / 'trajectories' / f'step_{before:06d}.jsonl'
          records.write(path, rows)
        _evaluate(setup, state, workdir, writer)
        last = now >= schedule.steps
        host = {'source': setup.source.state()}
        saver.save(state, host, force=last)
        shown = {
          name.rsplit('/', 1)[-1]: metrics[name]
          for name in ('reward/success', 'loss')
          if name in metrics
        }
        advance(now - before, **shown)
  finally:
    saver.close()
  return state


def start(setup: Setup) -> tuple[Any, state_lib.TrainState]:
  """The reference parameters, and the first state with buffers of its own."""
  mesh = setup.mesh or sharding.make_mesh()
  reference = sharding.shard(setup.params, mesh)
  params = jax.tree.map(jnp.copy, reference)
  reward_state = ()
  if setup.transform is not None:
    reward_state = setup.transform.init(len(setup.reward_names))
  state = state_lib.init(params, setup.optimizer, reward_state)
  return reference, sharding.shard(state, mesh)


def make_credit(setup: Setup, mesh: jax.sharding.Mesh) -> Callable:
  """A function `(trajectory, reward_state)`: from rewards to advantages.

  All of it is compiled: op by op the statistics alone would take a fifth of the
  time of a small model's update.

  Returns:
    A function to `(advantages, reward_state, metrics)`; advantages f32[B, T]
    are of this process's rows, by statistics of all.
  """
  if setup.transform is None:
    return lambda trajectory, reward_state: (
      np.zeros(trajectory.tokens.shape, np.float32),
      reward_state,
      {},
    )
  transform = jax.jit(functools.partial(diagnostics.observe, setup.transform))
  statistics = jax.jit(group.group_statistics)
  estimate = jax.jit(setup.estimator)

  def credit(trajectory, reward_state):
    rows = trajectory.tokens.shape[0]
    own = types.Rewards(
      values=trajectory.rewards,
      active=trajectory.active,
      group=trajectory.group,
      episode=trajectory.episode,
      part=trajectory.part,
    )
    rewards = _gather(own)
    # Every process has all rows, and computes the same by itself.
    transformed, reward_state, found = transform(
      rewards, local(reward_state, mesh)
    )
    reward_state = jax.tree.map(np.asarray, reward_state)
    first = jax.process_index() * rows
    mine = jax.tree.map(lambda x: x[first : first + rows], transformed)
    advantages = np.asarray(estimate(trajectory, mine), np.float32)
    shares = statistics(rewards)
    metrics = {f'groups/{k}': float(v) for k, v in shares.items()}
    metrics |= diagnostics.named(found, setup.reward_names)
    acted = advantages[np.asarray(trajectory.action_mask)]
    metrics['advantage/abs'] = (
      float(np.abs(acted).mean()) if len(acted) else 0.0
    )
    return advantages, reward_state, metrics

  return credit


class _Step:
  """Compiled pieces of a step, and the step that strings them together."""

  def __init__(self, setup: Setup, mesh, reference):
    self.setup, self.mesh, self.reference = setup, mesh, reference
    self.external = sharding.shard(setup.teacher_params, mesh)
    self.update = update_lib.make_update(
      setup.passes, setup.optimizer, setup.reduce
    )
    self.inspect = update_lib.make_inspect(setup.passes)
    self.credit = make_credit(setup, mesh)

  def __call__(self, state):
    setup, schedule = self.setup, self.setup.schedule
    index = int(state.step)
    clock = _Clock()
    with sharing(self.mesh):
      rows = setup.source.next(local(state.params, self.mesh), index)
    clock.lap('rollout')
    trajectory = rows.trajectory
    advantages, reward_state, metrics = self.credit(
      trajectory, state.reward_state
    )
    state = state._replace(reward_state=reward_state)
    teacher_params = self.teacher(state)
    unembedding = jnp.copy(setup.passes.unembed_teacher(teacher_params))
    batch = update_lib.microbatches(trajectory, advantages, schedule.microbatch)
    budget = budget_of(batch.mask)
    batch = _put(batch, self.mesh)
    with sharding.use(self.mesh):
      fixed = setup.passes.fixed(teacher_params, self.reference, batch, budget)
    clock.lap('passes')
    recorded = []
    if schedule.record_every and index % schedule.record_every == 0:
      recorded, norms = self.look(
        state, batch, fixed, unembedding, budget, rows, advantages
      )
      metrics |= norms
      clock.lap('records')
    for part, part_fixed in _minibatches(batch, fixed, schedule.minibatches):
      with sharding.use(self.mesh):
        state, updated = self.update(
          state, part, part_fixed, unembedding, budget
        )
    metrics |= {name: float(value) for name, value in updated.items()}
    clock.lap('update')
    return state, rows.metrics | metrics | clock.laps, recorded

  def teacher(self, state):
    """The parameters of the teacher of this step."""
    if self.setup.passes.teacher is not None:
      return self.external
    if self.setup.schedule.teacher == 'initial':
      return self.reference
    if self.setup.schedule.minibatches > 1:  # the update donates them
      return jax.tree.map(jnp.copy, state.params)
    return state.params

  def look(self, state, batch, fixed, unembedding, budget, rows, advantages):
    """What a person looks at: rows with numbers per token, gradient shares."""
    with sharding.use(self.mesh):
      tokens, norms = self.inspect(
        state.params, batch, fixed, state.step, unembedding, budget
      )
    if jax.process_count() > 1:
      tokens = {}
    tokens = {
      name: np.asarray(x).reshape(-1, x.shape[-1]) for name, x in tokens.items()
    }
    recorded = records.records(
      rows.episodes,
      self.setup.tokenizer,
      step=int(state.step),
      advantages=advantages,
      tokens=tokens,
    )
    norms = {f'gradient/{k}_at_logprobs': float(v) for k, v in norms.items()}
    return recorded, norms


class _Clock:
  """Seconds by phase."""

  def __init__(self):
    self.laps, self._last = {}, time.perf_counter()

  def lap(self, name):
    now = time.perf_counter()
    self.laps[f'seconds/{name}'], self._last = now - self._last, now


def _evaluate(setup, state, workdir, writer):
  """Evaluates on schedule; `evaluations.json` has the first and the last."""
  step, schedule = int(state.step), setup.schedule
  due = schedule.evaluate_every and step % schedule.evaluate_every == 0
  if not setup.evaluators or not (due or step in (0, schedule.steps)):
    return
  mesh = setup.mesh or sharding.make_mesh()
  params = local(state.params, mesh)
  path = workdir / 'evaluations.json'
  results = json.loads(path.read_text()) if path.exists() else {}
  values = {}
  for evaluator in setup.evaluators:
    with sharing(mesh):
      summary, episodes = evaluator(params)
    when = 'after' if step else 'before'
    results.setdefault(when, {})[evaluator.name] = {'step': step, **summary}
    for field in ('success', 'low', 'high'):
      values[f'evaluation/{evaluator.name}/{field}'] = summary[field]
    if step in (0, schedule.steps) and jax.process_index() == 0:
      records.write(
        workdir / 'trajectories' / f'eval_{evaluator.name}_{step:06d}.jsonl',
        records.records(episodes[:64], setup.tokenizer, step=step),
      )
  if jax.process_index() == 0:
    fresh = path.with_suffix('.tmp')
    fresh.write_text(json.dumps(results, indent=1))
    fresh.replace(path)
  writer.write(max(step - 1, 0), values)


def sharing(mesh):
  """For what is run with `local` parameters: on the mesh, or one device of it.

  With several processes each plays its own tasks by itself.
  """
  if jax.process_count() == 1:
    return sharding.use(mesh)
  return contextlib.nullcontext()


def local(params, mesh):
  """Parameters that this process can roll out with by itself."""
  if jax.process_count() == 1:
    return params
  replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  whole = jax.jit(lambda x: x, out_shardings=replicated)(params)
  return jax.tree.map(lambda x: x.addressable_data(0), whole)


def _gather(tree):
  """Rows of all processes, in the order of the processes, on the host."""
  if jax.process_count() == 1:
    return jax.tree.map(np.asarray, tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def _put(batch, mesh):
  """Rows of a microbatch over the data axes of the mesh."""
  spec = jax.sharding.PartitionSpec(None, *sharding.BATCH)
  place = jax.sharding.NamedSharding(mesh, spec)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(place, x), batch
  )


def _minibatches(batch, fixed, count):
  """Splits microbatches into `count` consecutive optimiser steps."""
  m = batch.tokens.shape[0]
  if m % count:
    raise ValueError(
      f'{m} microbatches do not divide into {count} minibatches; change'
      ' train.microbatch or train.minibatches.'
    )
  size = m // count
  for k in range(count):
    yield jax.tree.map(
      lambda x, k=k: x[k * size : (k + 1) * size], (batch, fixed)
    )


def budget_of(mask) -> int:
  """A static size that holds the action positions of every microbatch."""
  most = int(np.asarray(mask).sum((1, 2)).max()) * jax.process_count()
  if jax.process_count() > 1:
    most = int(multihost_utils.process_allgather(np.int32(most)).max())
  sizes = [int(256 * 2 ** (k / 2)) for k in range(40)]
  return logprobs.bucket(most, sizes)
