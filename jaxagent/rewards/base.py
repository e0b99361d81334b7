"""Reward transforms: pure, with explicit state, composed like optax.

A `RewardTransform` is `(init, apply)`: `init(num_rewards) -> state`, and
`apply(rewards, state) -> (rewards, state)` on `Rewards` of `[B, R]`. Nothing
here has a gradient. What is worth logging of an application is a third
function, `metrics(rewards, state)`; compiled together with `apply`, what both
compute is computed once. Where `active` is False a value was not observed: whoever
computes never reads it, and gives 0 for it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxagent import masked, types
from jaxagent.rewards import diagnostics

Caps = tuple[tuple[int, int], ...]  # (primary, auxiliary) columns


def stateless(
  fn: Callable[[types.Rewards], types.Rewards],
  metrics: Callable[[types.Rewards], dict] = lambda after: {},
) -> types.RewardTransform:
  """A transform that remembers nothing.

  Args:
    fn: `rewards -> rewards`.
    metrics: what to log, from what `fn` returned.
  """
  return types.RewardTransform(
    init=lambda num_rewards: (),
    apply=lambda r, state: (fn(r), state),
    metrics=lambda r, state: metrics(fn(r)),
  )


def identity() -> types.RewardTransform:
  """Leaves rewards as they are."""
  return stateless(lambda rewards: rewards)


def chain(*transforms: types.RewardTransform) -> types.RewardTransform:
  """Applies transforms from left to right; the state is the tuple of states.

  Its metrics are those of all of them; of equal names the last one stays.
  """

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

  def metrics(rewards, state):
    found = {}
    for transform, old in zip(transforms, state, strict=True):
      found |= transform.metrics(rewards, old)
      rewards, _ = transform.apply(rewards, old)
    return found

  return types.RewardTransform(init, apply, metrics)


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

  def weigh(rewards):
    check(rewards.values.shape[1])
    values = jnp.where(rewards.active, rewards.values, 0)
    scale = jnp.ones(values.shape[1]) if weights is None else weights
    return values * jnp.asarray(scale, values.dtype)[None, :]

  def apply(rewards, state):
    combined = rewards.replace(
      values=jnp.sum(weigh(rewards), axis=1, keepdims=True),
      active=jnp.any(rewards.active, axis=1, keepdims=True),
    )
    return combined, state

  def metrics(rewards, state):
    return diagnostics.of_sum(rewards.replace(values=weigh(rewards)))

  return types.RewardTransform(check, apply, metrics)


def batch_normalize(
  *, ddof: int = 0, eps: float = 1e-6
) -> types.RewardTransform:
  """`(s - mean) / (std + eps)` of each column over all rows that have it.

  The last step of GDPO (arXiv 2601.05242): groups and parts do not matter, and
  every row counts once. A column without spread becomes 0.

  Args:
    ddof: 0 for the standard deviation of the population, 1 of a sample.
    eps: added to the standard deviation.
  """

  def fn(rewards):
    one = jnp.zeros_like(rewards.group)
    seen = rewards.active.astype(rewards.values.dtype)
    moments = masked.segment_moments(rewards.values, seen, one, ddof=ddof)
    values = jnp.where(rewards.active, rewards.values, 0)
    scores = (values - moments.mean) / (moments.std + eps)
    live = rewards.active & moments.varies
    return rewards.replace(values=jnp.where(live, scores, 0))

  return stateless(fn)


def drop_nonfinite() -> types.RewardTransform:
  """Takes a reward that is NaN or infinite for one row from its whole group.

  The others could not be compared with it. How many rewards of groups were
  lost is logged as `rewards/nonfinite`.
  """

  def fn(rewards):
    lost = _lost(rewards)
    return rewards.replace(active=rewards.active & ~lost)

  def metrics(rewards, state):
    segment = masked.labels(rewards.group, rewards.part)
    size = segment.shape[0]
    lost = _lost(rewards).astype(jnp.int32)
    groups = jax.ops.segment_max(lost, segment, size) > 0
    return {'rewards/nonfinite': jnp.sum(groups).astype(jnp.float32)}

  return types.RewardTransform(
    lambda num_rewards: (), lambda r, state: (fn(r), state), metrics
  )


def _lost(rewards):
  """bool[B, R]: a row of the same group and part has no finite value."""
  segment = masked.labels(rewards.group, rewards.part)
  broken = rewards.active & ~jnp.isfinite(rewards.values)
  size = segment.shape[0]
  hit = jax.ops.segment_max(broken.astype(jnp.int32), segment, size)
  return hit[segment] > 0


def cap_auxiliary(
  caps: Caps, *, threshold: float | int = 0.5
) -> types.RewardTransform:
  """A failed primary reward caps what an auxiliary one can give.

  RDPO's conditional rewards (arXiv 2605.13641): where the primary is below the
  threshold, `r_aux <- min(r_primary, r_aux)`. So a short or pleasant answer
  earns nothing that is wrong.

  Args:
    caps: pairs of columns (primary, auxiliary). A pair acts on the rows that
      have both; the primary is read as it was before any cap.
    threshold: below it a primary reward has failed.

  Returns:
    A `RewardTransform`.

  Raises:
    ValueError: by `init`, when a pair names a column that does not exist.
  """

  def init(num_rewards):
    known = range(num_rewards)
    wrong = [c for c in caps if c[0] not in known or c[1] not in known]
    if wrong:
      raise ValueError(
        f'cap_auxiliary got the pairs {wrong} for {num_rewards} reward columns;'
        ' give pairs (primary, auxiliary) of positions in config.rewards.names.'
      )
    return ()

  def apply(rewards, state):
    values = rewards.values
    for primary, auxiliary in caps:
      judge = rewards.values[:, primary]
      failed = rewards.active[:, primary] & (judge < threshold)
      column = values[:, auxiliary]
      capped = jnp.where(failed, jnp.minimum(judge, column), column)
      values = values.at[:, auxiliary].set(capped)
    return rewards.replace(values=values), state

  return types.RewardTransform(init, apply)
