"""Reward transforms: pure, with explicit state, composed like optax.

A `RewardTransform` is `(init, apply)`: `init(num_rewards) -> state`, and
`apply(rewards, state) -> (rewards, state)` on `Rewards` of `[B, R]`. Nothing
here has a gradient. Where `active` is False a value was not observed: whoever
computes never reads it, and gives 0 for it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxagent import types


def stateless(
  fn: Callable[[types.Rewards], types.Rewards],
) -> types.RewardTransform:
  """A transform that remembers nothing, from `fn(rewards) -> rewards`."""
  return types.RewardTransform(
    init=lambda num_rewards: (), apply=lambda r, state: (fn(r), state)
  )


def identity() -> types.RewardTransform:
  """Leaves rewards as they are."""
  return stateless(lambda rewards: rewards)


def chain(*transforms: types.RewardTransform) -> types.RewardTransform:
  """Applies transforms from left to right; the state is the tuple of states."""

  def init(num_rewards):
    states = []
    for transform in transforms:
      states.append(transform.init(num_rewards))
      num_rewards = _num_rewards_after(transform, states[-1], num_rewards)
    return tuple(states)

  def apply(rewards, state):
    if len(state) != len(transforms):
      raise ValueError(
        f'A chain of {len(transforms)} transforms got a state of {len(state)};'
        " make the state with this chain's `init`, or restore the checkpoint"
        ' with the config that wrote it.'
      )
    states = []
    for transform, old in zip(transforms, state, strict=True):
      rewards, new = transform.apply(rewards, old)
      states.append(new)
    return rewards, tuple(states)

  return types.RewardTransform(init, apply)


def _num_rewards_after(transform, state, num_rewards):
  integers = jax.ShapeDtypeStruct((2,), jnp.int32)
  rewards = types.Rewards(
    values=jax.ShapeDtypeStruct((2, num_rewards), jnp.float32),
    active=jax.ShapeDtypeStruct((2, num_rewards), jnp.bool_),
    group=integers,
    episode=integers,
    part=integers,
  )
  after, _ = jax.eval_shape(transform.apply, rewards, state)
  return after.values.shape[1]


def combine(
  weights: tuple[float | int, ...] | None = None,
) -> types.RewardTransform:
  """Sums the columns of a row into one, such as success and a penalty.

  Args:
    weights: one per column, `(10, -0.1)` for instance; None for all 1.

  Returns:
    A `RewardTransform` from `[B, R]` to `[B, 1]`. An unobserved component adds
    nothing; the sum is active where any component was.

  Raises:
    ValueError: by `init` and `apply`, when the number of columns differs.
  """

  def check(num_rewards):
    if weights is not None and len(weights) != num_rewards:
      raise ValueError(
        f'combine got {len(weights)} weights {weights} for {num_rewards} reward'
        ' columns; give one weight per column, 0 for a column to ignore.'
      )
    return ()

  def apply(rewards, state):
    check(rewards.values.shape[1])
    values = jnp.where(rewards.active, rewards.values, 0)
    scale = jnp.ones(values.shape[1]) if weights is None else weights
    values = values * jnp.asarray(scale, values.dtype)[None, :]
    combined = rewards.replace(
      values=jnp.sum(values, axis=1, keepdims=True),
      active=jnp.any(rewards.active, axis=1, keepdims=True),
    )
    return combined, state

  return types.RewardTransform(check, apply)
