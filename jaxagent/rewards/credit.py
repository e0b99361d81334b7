"""From transformed rewards to the advantage of every token.

An estimator is `(trajectory, rewards) -> advantages f32[B, T]`, 0 where the
policy did not act. `rewards` has been transformed and has one column.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxagent import masked, types

Estimator = Callable[[types.Trajectory, types.Rewards], Float[Array, 'B T']]

_NORMALIZATIONS = ('mean_std', 'mean_only')


def episode_advantages() -> Estimator:
  """Every token of a row gets the row's transformed reward, as in GRPO."""
  return _broadcast


def _broadcast(trajectory, rewards):
  if rewards.values.shape[1] != 1:
    raise ValueError(
      f'Got {rewards.values.shape[1]} reward columns for one advantage; end the'
      ' reward transform with `combine`.'
    )
  row = jnp.where(rewards.active, rewards.values, 0)
  return jnp.where(trajectory.action_mask, row, 0)


def gigpo(
  *,
  omega: float | int = 1.0,
  gamma: float | int = 0.95,
  normalization: str = 'mean_std',
  eps: float = 1e-6,
) -> Estimator:
  """GiGPO's advantages (arXiv 2505.10978): `A_E + omega A_S`.

  A_E is the transformed reward of the row. A_S compares the turns, in any
  attempt at the same task and for the same part, that acted in the same state
  (equal `anchor`), by their discounted return to go. A turn without an anchor
  (negative), alone with its anchor, or without spread there has A_S = 0.

  A turn is the action tokens of a row with equal `turn`; its reward is read
  from `step_reward` at its last token. Turns of an episode that has several
  rows follow each other in the order of the rows. Rows whose reward was not
  observed take no part.

  Args:
    omega: weight of A_S.
    gamma: discount per turn.
    normalization: 'mean_std', or 'mean_only' to leave out the division.
    eps: added to the sample standard deviation.

  Returns:
    The estimator.

  Raises:
    ValueError: for another `normalization`.
  """
  if normalization not in _NORMALIZATIONS:
    raise ValueError(
      f'gigpo got normalization={normalization!r}; choose one of'
      f' {_NORMALIZATIONS}.'
    )

  def estimate(trajectory, rewards):
    advantages = _broadcast(trajectory, rewards)
    acts = trajectory.action_mask & rewards.active
    closes = acts & _ends_turn(acts, trajectory.turn)
    returns = _returns_to_go(trajectory, closes, gamma)
    known = acts & (trajectory.anchor >= 0)
    moments = _anchor_moments(trajectory, returns, closes & known)
    steps = returns - moments.mean
    if normalization == 'mean_std':
      steps = steps / (moments.std + eps)
    return advantages + omega * jnp.where(known & moments.varies, steps, 0)

  return estimate


def _ends_turn(acts, turn):
  """True at tokens with no later action in the same turn of their row."""
  never = jnp.iinfo(turn.dtype).max
  first_later = jax.lax.cummin(
    jnp.where(acts, turn, never), axis=1, reverse=True
  )
  following = jnp.full_like(first_later, never)
  return turn < following.at[:, :-1].set(first_later[:, 1:])


def _returns_to_go(trajectory, closes, gamma):
  """Discounted return from each token's turn to the end of its episode.

  The recurrence `G_n = a_n G_{n+1} + b_n` over the tokens of an episode, one
  row after another: (a, b) is (gamma, reward) where a turn closes and (1, 0)
  elsewhere, so that all tokens of a turn have its return.
  """
  shape = closes.shape
  order = jnp.argsort(trajectory.episode, stable=True)
  episode = trajectory.episode[order]
  last = jnp.ones_like(episode, bool).at[:-1].set(episode[1:] != episode[:-1])
  last = jnp.zeros(shape, bool).at[:, -1].set(last)
  closes = closes[order]
  reward = jnp.where(closes, trajectory.step_reward[order], 0)
  decay = jnp.where(closes, jnp.asarray(gamma, reward.dtype), 1)
  # Nothing flows back over the last token of an episode.
  decay = jnp.where(last, 0, decay)

  def compose(later, earlier):
    return earlier[0] * later[0], earlier[0] * later[1] + earlier[1]

  _, returns = jax.lax.associative_scan(
    compose, (decay.reshape(-1), reward.reshape(-1)), reverse=True
  )
  return jnp.zeros(shape, reward.dtype).at[order].set(returns.reshape(shape))


def _anchor_moments(trajectory, returns, counted):
  """Moments over the turns of equal (group, part, anchor), for every token."""

  def flat(x):
    return jnp.broadcast_to(x.reshape(x.shape[0], -1), returns.shape).reshape(
      -1
    )

  segment = masked.labels(
    flat(trajectory.group), flat(trajectory.part), flat(trajectory.anchor)
  )
  weights = flat(counted).astype(returns.dtype)
  moments = masked.segment_moments(
    flat(returns)[:, None], weights[:, None], segment
  )
  return jax.tree.map(lambda x: x.reshape(returns.shape), moments)
