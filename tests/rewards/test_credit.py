"""Advantages per token: broadcast, and GiGPO's step level by its definition."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxagent import rewards as rewards_lib
from jaxagent import types
from jaxagent.rewards import credit

# Two episodes of one task, two turns each; every turn is two tokens, of which
# the policy wrote the second, then a third that nobody wrote.
TURN = [[0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]
ACTS = [[0, 1, 1, 1, 0], [0, 1, 1, 1, 0]]
ANCHOR = [[5, 5, 6, 6, 6], [5, 5, 7, 7, 7]]
STEP_REWARD = [[0, 0, 1, 1, 1], [-0.1, -0.1, 0, 0, 0]]


def one_column(values, group, episode=None, active=None):
  rows = len(values)
  return types.Rewards(
    values=jnp.asarray(values, jnp.float32)[:, None],
    active=jnp.ones((rows, 1), bool)
    if active is None
    else jnp.asarray(active, bool)[:, None],
    group=jnp.asarray(group, jnp.int32),
    episode=jnp.arange(rows)
    if episode is None
    else jnp.asarray(episode, jnp.int32),
    part=jnp.zeros(rows, jnp.int32),
  )


def test_episode_advantages_are_broadcast_to_actions(make_trajectory):
  rewards = one_column([1.5, jnp.nan], [0, 0], active=[True, False])
  trajectory = make_trajectory(rewards, TURN, ANCHOR, STEP_REWARD, ACTS)
  got = credit.episode_advantages()(trajectory, rewards)
  np.testing.assert_array_equal(got, [[0, 1.5, 1.5, 1.5, 0], [0] * 5])


def test_several_columns_are_refused(make_trajectory, make_rewards):
  rewards = make_rewards(columns=2)
  shape = (len(rewards.group), 3)
  trajectory = make_trajectory(
    rewards, np.zeros(shape), np.zeros(shape), np.zeros(shape), np.ones(shape)
  )
  with pytest.raises(ValueError, match='combine'):
    credit.episode_advantages()(trajectory, rewards)


@pytest.mark.parametrize('normalization', ['mean_std', 'mean_only'])
def test_gigpo_by_hand(normalization, make_trajectory):
  rewards = one_column([0.7, -0.7], [0, 0])
  trajectory = make_trajectory(rewards, TURN, ANCHOR, STEP_REWARD, ACTS)
  estimate = credit.gigpo(omega=2.0, gamma=0.9, normalization=normalization)
  got = jax.jit(estimate)(trajectory, rewards)
  # Both began in state 5, with returns 0 + 0.9 * 1 and -0.1 + 0.9 * 0; the
  # second states are singletons.
  half = (0.9 + 0.1) / 2
  if normalization == 'mean_std':
    half = half / np.std([0.9, -0.1], ddof=1)
  up, down = 0.7 + 2 * half, -0.7 - 2 * half
  want = [[0, up, 0.7, 0.7, 0], [0, down, -0.7, -0.7, 0]]
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_omega_0_is_the_episode_advantage(make_trajectory):
  rewards = one_column([0.7, -0.7], [0, 0])
  trajectory = make_trajectory(rewards, TURN, ANCHOR, STEP_REWARD, ACTS)
  got = jax.jit(credit.gigpo(omega=0.0))(trajectory, rewards)
  want = credit.episode_advantages()(trajectory, rewards)
  np.testing.assert_array_equal(got, want)


def random_batch(make_trajectory, seed=0, length=12):
  """8 episodes of 2 tasks in 1-3 rows each; few states, so that they meet."""
  rng = np.random.default_rng(seed)
  episode = np.repeat(np.arange(8), rng.integers(1, 4, 8))
  rows = len(episode)
  # Interleave episodes, and keep the order of rows inside each.
  episode = rng.permutation(episode)
  turn = np.sort(rng.integers(0, 4, (rows, length)), axis=1)
  per_turn = rng.normal(size=(rows, 4)).round(1)
  anchors = rng.integers(-1, 3, (rows, 4))
  rewards = one_column(
    rng.normal(size=rows), episode // 4, episode, active=episode != 3
  )
  trajectory = make_trajectory(
    rewards,
    turn,
    np.take_along_axis(anchors, turn, 1),
    np.take_along_axis(per_turn, turn, 1),
    rng.random((rows, length)) < 0.6,
  )
  return trajectory, rewards


def step_advantages(trajectory, gamma):
  """A_S as loops over episodes and turns; episode 3 was not observed."""
  turn, acts, anchor, reward, episode, task = (
    np.asarray(x)
    for x in (
      trajectory.turn,
      trajectory.action_mask,
      trajectory.anchor,
      trajectory.step_reward,
      trajectory.episode,
      trajectory.group,
    )
  )
  steps = []
  for e in set(episode.tolist()) - {3}:
    own = [
      (r, t)
      for r in np.flatnonzero(episode == e)
      for t in np.unique(turn[r][acts[r]])
    ]
    future = 0.0
    for r, t in reversed(own):
      tokens = acts[r] & (turn[r] == t)
      at = np.flatnonzero(tokens)[0]
      future = reward[r, at] + gamma * future
      steps.append((r, tokens, (task[r], anchor[r, at]), future))
  out = np.zeros(turn.shape)
  for r, tokens, state, value in steps:
    peers = [v for _, _, s, v in steps if s == state]
    if state[1] >= 0 and len(peers) > 1 and np.ptp(peers) > 1e-6:
      spread = np.std(peers, ddof=1) + 1e-6
      out[r, tokens] = (value - np.mean(peers)) / spread
  return out


@pytest.mark.parametrize('seed', [0, 1])
def test_gigpo_is_its_definition(seed, make_trajectory):
  trajectory, rewards = random_batch(make_trajectory, seed)
  got = jax.jit(credit.gigpo())(trajectory, rewards)
  step = step_advantages(trajectory, 0.95)
  assert np.sum(step != 0) > 20
  want = credit.episode_advantages()(trajectory, rewards) + step
  np.testing.assert_allclose(got, want, atol=1e-4)
  assert np.all(np.asarray(got)[np.asarray(trajectory.episode) == 3] == 0)


def test_gigpo_does_not_see_the_order_of_episodes(make_trajectory):
  trajectory, rewards = random_batch(make_trajectory)
  order = np.argsort(-np.asarray(trajectory.episode), kind='stable')
  shuffle = lambda tree: jax.tree.map(lambda x: x[order], tree)  # noqa: E731
  estimate = jax.jit(credit.gigpo())
  got = estimate(shuffle(trajectory), shuffle(rewards))
  want = estimate(trajectory, rewards)[order]
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_gigpo_masked_equals_sliced(make_trajectory):
  trajectory, rewards = random_batch(make_trajectory)
  seen = np.asarray(rewards.active)[:, 0]
  spoiled = trajectory.replace(
    step_reward=jnp.where(
      trajectory.action_mask & rewards.active, trajectory.step_reward, jnp.nan
    )
  )
  estimate = jax.jit(credit.gigpo())
  got = estimate(spoiled, rewards)
  keep = lambda tree: jax.tree.map(lambda x: x[seen], tree)  # noqa: E731
  want = estimate(keep(trajectory), keep(rewards))
  np.testing.assert_allclose(got[seen], want, atol=1e-5)
  np.testing.assert_array_equal(got[~seen], 0)


def test_one_row_a_turn_gives_the_same_advantages(make_trajectory):
  """An episode in one row, or each of its turns in a row of its own."""
  whole_rewards = one_column([0.7, -0.7], [0, 0])
  whole = make_trajectory(whole_rewards, TURN, ANCHOR, STEP_REWARD, ACTS)
  split_rewards = one_column(
    [0.7, 0.7, -0.7, -0.7], [0] * 4, episode=[0, 0, 1, 1]
  )
  acts = np.repeat(np.asarray(ACTS), 2, axis=0)
  acts[::2, 2:] = 0
  acts[1::2, :2] = 0
  split = make_trajectory(
    split_rewards,
    np.zeros((4, 5)),
    *(np.repeat(np.asarray(x), 2, axis=0) for x in (ANCHOR, STEP_REWARD)),
    acts,
  )
  estimate = jax.jit(credit.gigpo())
  got = np.asarray(estimate(split, split_rewards))
  want = np.asarray(estimate(whole, whole_rewards))
  np.testing.assert_allclose(got[::2] + got[1::2], want, atol=1e-6)


def test_an_unknown_normalization_is_refused():
  with pytest.raises(ValueError, match='mean_only'):
    credit.gigpo(normalization='std')


def test_from_config_builds_the_estimator(make_trajectory):
  trajectory, rewards = random_batch(make_trajectory)
  got = rewards_lib.advantages_from_config({'name': 'gigpo', 'omega': 0.5})
  want = credit.gigpo(omega=0.5)
  chex.assert_trees_all_equal(
    jax.jit(got)(trajectory, rewards), jax.jit(want)(trajectory, rewards)
  )
