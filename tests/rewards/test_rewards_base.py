"""Chains, sums of columns, and the registry."""

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxagent import rewards as rewards_lib
from jaxagent import types
from jaxagent.rewards import base, group


def counter():
  """Adds to the first column how often it ran; the state is a count."""

  def apply(rewards, state):
    values = rewards.values.at[:, 0].add(state)
    return rewards.replace(values=values), state + 1

  return types.RewardTransform(lambda n: jnp.zeros(()), apply)


def test_identity_changes_nothing(make_rewards):
  rewards = make_rewards()
  identity = base.identity()
  out, _ = identity.apply(rewards, identity.init(2))
  chex.assert_trees_all_equal(out, rewards)


def test_chain_applies_in_order_and_threads_state(make_rewards):
  rewards = make_rewards()
  chained = base.chain(counter(), base.combine((2, 0)), counter())
  state = chained.init(2)
  first, state = jax.jit(chained.apply)(rewards, state)
  second, state = jax.jit(chained.apply)(rewards, state)
  seen = np.asarray(rewards.active[:, 0])
  rose = np.asarray(second.values - first.values)[:, 0]
  np.testing.assert_allclose(rose, np.where(seen, 2 + 1, 1), atol=1e-5)
  assert state[0] == state[2] == 2


def test_chain_of_nothing_is_identity(make_rewards):
  rewards = make_rewards()
  out, state = base.chain().apply(rewards, base.chain().init(2))
  chex.assert_trees_all_equal(out, rewards)
  assert state == ()


def test_chain_refuses_the_state_of_another_chain(make_rewards):
  chained = base.chain(base.identity(), base.identity())
  with pytest.raises(ValueError, match='2 transforms got a state of 1'):
    chained.apply(make_rewards(), ((),))


def test_chain_tells_each_transform_its_columns():
  assert base.chain(base.combine((1, 2)), base.combine((3,))).init(2)
  with pytest.raises(ValueError, match='2 weights'):
    base.chain(base.combine((1, 2)), base.combine((3, 4))).init(2)


def test_combine_weighs_what_was_observed():
  rewards = types.Rewards(
    values=jnp.asarray([[1.0, 2.0], [1.0, jnp.nan], [jnp.inf, jnp.nan]]),
    active=jnp.asarray([[True, True], [True, False], [False, False]]),
    group=jnp.zeros(3, jnp.int32),
    episode=jnp.arange(3),
    part=jnp.zeros(3, jnp.int32),
  )
  out, _ = base.combine((10, -0.1)).apply(rewards, ())
  np.testing.assert_allclose(out.values, [[9.8], [10.0], [0.0]], rtol=1e-6)
  np.testing.assert_array_equal(out.active, [[True], [True], [False]])
  out, _ = base.combine().apply(rewards, ())
  np.testing.assert_allclose(out.values, [[3.0], [1.0], [0.0]], rtol=1e-6)


def test_recipes_end_in_one_column(make_rewards):
  rewards = make_rewards()
  for name in rewards_lib.RECIPES:
    transform = rewards_lib.from_config({'name': name, 'weights': (10, -0.1)})
    out, _ = jax.jit(transform.apply)(rewards, transform.init(2))
    assert out.values.shape == out.active.shape == (len(rewards.group), 1)
    assert jnp.all(jnp.isfinite(out.values)) and jnp.any(out.values != 0)


def test_from_config_is_the_composition_it_names(make_rewards):
  rewards = make_rewards()
  config = ml_collections.ConfigDict(
    {'name': 'group_normalize', 'weights': (10, -0.1), 'over': 'rows'}
  )
  got = rewards_lib.from_config(config)
  want = base.chain(
    base.combine((10, -0.1)), group.group_normalize(over='rows')
  )
  chex.assert_trees_all_equal(
    jax.jit(got.apply)(rewards, got.init(2)),
    jax.jit(want.apply)(rewards, want.init(2)),
  )


@pytest.mark.parametrize(
  'build, config, hint',
  [
    (rewards_lib.from_config, {'name': 'group_normalise'}, 'group_normalize'),
    (rewards_lib.from_config, {'name': 'combine', 'weight': 1}, 'weights'),
    (rewards_lib.from_config, {}, 'Known'),
    (rewards_lib.advantages_from_config, {'name': 'gipo'}, 'gigpo'),
    (
      rewards_lib.advantages_from_config,
      {'name': 'gigpo', 'gama': 1.0},
      'gamma',
    ),
  ],
)
def test_from_config_says_what_was_meant(build, config, hint):
  with pytest.raises(ValueError, match=hint):
    build(config)
