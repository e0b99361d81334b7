"""Random rewards and trajectories for the tests of rewards."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxagent import types


@pytest.fixture(scope='session')
def make_rewards():
  """`make_rewards(seed=0) -> Rewards`: 3 groups, 4 episodes, 1-3 rows each."""
  return _make_rewards


def _make_rewards(seed=0, columns=2):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, 4, 12)
  episode = np.repeat(np.arange(12), lengths)
  rows = len(episode)
  return types.Rewards(
    values=jnp.asarray(rng.normal(size=(rows, columns)), jnp.float32),
    active=jnp.asarray(rng.random((rows, columns)) < 0.85),
    group=jnp.asarray(episode // 4 * 100 - 7, jnp.int32),
    episode=jnp.asarray(episode, jnp.int32),
    part=jnp.zeros(rows, jnp.int32),
  )


@pytest.fixture(scope='session')
def make_trajectory():
  """`make_trajectory(rewards, ...) -> Trajectory` of rows that carry them."""
  return _make_trajectory


def _make_trajectory(rewards, turn, anchor, step_reward, action_mask):
  shape = np.shape(turn)
  return types.Trajectory(
    tokens=jnp.zeros(shape, jnp.int32),
    action_mask=jnp.asarray(action_mask, bool),
    logprobs=jnp.zeros(shape),
    turn=jnp.asarray(turn, jnp.int32),
    anchor=jnp.asarray(anchor, jnp.int32),
    step_reward=jnp.asarray(step_reward, jnp.float32),
    rewards=rewards.values,
    active=rewards.active,
    group=rewards.group,
    episode=rewards.episode,
    part=rewards.part,
    status=jnp.zeros(shape[0], jnp.int32),
  )


@pytest.fixture(scope='session')
def make_columns():
  """`make_columns(values, group=0, active=True) -> Rewards`, a row an episode.

  `values` is [B, R], or [B] for one column.
  """
  return _make_columns


def _make_columns(values, group=0, active=True, part=0):
  values = np.asarray(values, np.float32)
  values = values[:, None] if values.ndim == 1 else values
  rows = len(values)
  return types.Rewards(
    values=jnp.asarray(values),
    active=jnp.asarray(np.broadcast_to(np.asarray(active), values.shape)),
    group=jnp.broadcast_to(jnp.asarray(group, jnp.int32), rows),
    episode=jnp.arange(rows, dtype=jnp.int32),
    part=jnp.broadcast_to(jnp.asarray(part, jnp.int32), rows),
  )
