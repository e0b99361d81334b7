"""Group-relative advantages against their definition, row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxagent import types
from jaxagent.rewards import group


def table(values, groups, episodes=None, active=None, parts=None):
  """Rewards of one column; by default every row is an episode of its own."""
  values = jnp.asarray(values, jnp.float32)[:, None]
  rows = len(values)
  return types.Rewards(
    values=values,
    active=jnp.ones((rows, 1), bool)
    if active is None
    else jnp.asarray(active, bool)[:, None],
    group=jnp.asarray(groups, jnp.int32),
    episode=jnp.arange(rows)
    if episodes is None
    else jnp.asarray(episodes, jnp.int32),
    part=jnp.asarray(parts or [0] * rows, jnp.int32),
  )


def scores(transform, rewards):
  out, _ = jax.jit(transform.apply)(
    rewards, transform.init(rewards.values.shape[1])
  )
  return np.asarray(out.values)


@pytest.mark.parametrize(
  'ddof, want', [(1, [1.5, -0.5, -0.5, -0.5]), (0, [1.732, -0.577])]
)
def test_grpo_numbers(ddof, want):
  got = scores(group.group_normalize(ddof=ddof), table([1, 0, 0, 0], [3] * 4))
  atol = 1e-5 if ddof else 1e-3
  np.testing.assert_allclose(got[: len(want), 0], want, atol=atol)


@pytest.mark.parametrize('value', [0.0, 0.1, 10.0, 1e6])
def test_without_spread_the_advantage_is_exactly_zero(value):
  rewards = table([value] * 7, [0] * 7, episodes=[0, 0, 0, 1, 1, 2, 3])
  for transform in (group.group_normalize(), group.leave_one_out()):
    np.testing.assert_array_equal(scores(transform, rewards), 0)


def test_a_group_of_one_gets_nothing():
  rewards = table([5, 1, 0], [0, 1, 1])
  for transform in (group.group_normalize(), group.leave_one_out()):
    got = scores(transform, rewards)[:, 0]
    assert got[0] == 0 and got[1] > 0 > got[2]


def test_one_episode_of_several_rows_is_a_group_of_one():
  rewards = table([1, 0, 0, 1, 1], [0] * 3 + [1] * 2, episodes=[0, 0, 0, 1, 2])
  for transform in (group.group_normalize(), group.leave_one_out()):
    np.testing.assert_array_equal(scores(transform, rewards), 0)


def test_parts_of_an_episode_are_compared_with_their_like():
  got = scores(
    group.group_normalize(),
    table([1, 0, 9, 4], [0] * 4, episodes=[0, 1, 0, 1], parts=[0, 0, 1, 1]),
  )
  half = np.sqrt(0.5)
  np.testing.assert_allclose(got[:, 0], [half, -half] * 2, atol=1e-5)


def test_a_long_episode_weighs_no_more_than_a_short_one():
  rewards = table([1, 1, 1, 0, 0], [0] * 5, episodes=[0, 0, 0, 1, 2])
  got = scores(group.group_normalize(), rewards)[:, 0]
  third = np.asarray([1.0, 0.0, 0.0])
  want = (third - third.mean()) / third.std(ddof=1)
  np.testing.assert_allclose(got, want[[0, 0, 0, 1, 2]], atol=1e-5)
  rows = np.asarray([1.0, 1, 1, 0, 0])
  got = scores(group.group_normalize(over='rows'), rewards)[:, 0]
  want = (rows - rows.mean()) / rows.std(ddof=1)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_penalty_stays_on_its_row():
  rewards = table([10, 9.9, 10, 0, 0], [0] * 5, episodes=[0, 0, 0, 1, 2])
  got = scores(group.group_normalize(), rewards)[:, 0]
  assert got[0] == got[2] > got[1] > 0 and got[3] == got[4] < 0


def test_leave_one_out_numbers():
  got = scores(group.leave_one_out(), table([1, 0, 0, 0], [0] * 4))[:, 0]
  np.testing.assert_allclose(got, [1, -1 / 3, -1 / 3, -1 / 3], atol=1e-6)
  rewards = table([4, 2, 1], [0] * 3, episodes=[0, 0, 1])
  got = scores(group.leave_one_out(), rewards)[:, 0]
  np.testing.assert_allclose(got, [4 - 1, 2 - 1, 1 - 3], atol=1e-6)


TRANSFORMS = {
  'z': group.group_normalize(),
  'z_rows': group.group_normalize(over='rows'),
  'loo': group.leave_one_out(),
  'loo_rows': group.leave_one_out(over='rows'),
}


def by_hand(rewards, name):
  """The definition as loops over rows and columns."""
  values, active = np.asarray(rewards.values), np.asarray(rewards.active)
  groups, episodes = np.asarray(rewards.group), np.asarray(rewards.episode)
  out = np.zeros_like(values)
  for i, c in np.argwhere(active):
    inside = (groups == groups[i]) & active[:, c]
    if name.endswith('rows'):
      units = {j: values[j, c] for j in np.flatnonzero(inside)}
      own = i
    else:
      units = {
        e: values[inside & (episodes == e), c].mean() for e in episodes[inside]
      }
      own = episodes[i]
    if len(units) < 2:
      continue
    if name.startswith('loo'):
      others = [v for key, v in units.items() if key != own]
      out[i, c] = values[i, c] - np.mean(others)
    else:
      all_units = np.asarray(list(units.values()))
      spread = all_units.std(ddof=1) + 1e-6
      out[i, c] = (values[i, c] - all_units.mean()) / spread
  return out


@pytest.mark.parametrize('name', TRANSFORMS)
def test_equal_to_the_definition(name, make_rewards):
  rewards = make_rewards()
  got = scores(TRANSFORMS[name], rewards)
  np.testing.assert_allclose(got, by_hand(rewards, name), atol=1e-5)


@pytest.mark.parametrize('name', TRANSFORMS)
def test_the_order_of_rows_does_not_matter(name, make_rewards):
  rewards = make_rewards(seed=1)
  order = np.random.default_rng(0).permutation(len(rewards.group))
  shuffled = jax.tree.map(lambda x: x[order], rewards)
  np.testing.assert_allclose(
    scores(TRANSFORMS[name], shuffled),
    scores(TRANSFORMS[name], rewards)[order],
    atol=1e-6,
  )


@pytest.mark.parametrize('name', TRANSFORMS)
def test_masked_equals_sliced(name, make_rewards):
  rewards = make_rewards(seed=2, columns=1)
  seen = np.asarray(rewards.active)[:, 0]
  assert 0 < seen.sum() < len(seen)
  spoiled = rewards.replace(
    values=jnp.where(rewards.active, rewards.values, jnp.nan)
  )
  got = scores(TRANSFORMS[name], spoiled)
  want = scores(TRANSFORMS[name], jax.tree.map(lambda x: x[seen], rewards))
  np.testing.assert_allclose(got[seen], want, atol=1e-6)
  np.testing.assert_array_equal(got[~seen], 0)


def test_statistics_count_groups():
  rewards = table(
    [0, 0, 1, 1, 0, 1, 0, 0, 3],
    [0, 0, 1, 1, 2, 2, 3, 3, 4],
    active=[1, 1, 1, 1, 1, 1, 0, 0, 1],
  )
  got = jax.jit(group.group_statistics)(rewards)
  assert got == {'live': 0.25, 'all_fail': 0.25, 'all_pass': 0.5}


def test_statistics_without_any_group_are_zero():
  rewards = table([1, 0], [0, 0], active=[0, 0])
  got = jax.jit(group.group_statistics)(rewards)
  assert got == {'live': 0, 'all_fail': 0, 'all_pass': 0}


def test_group_sizes_are_checked_by_episode():
  rewards = table([0] * 5, [7, 7, 7, 9, 9], episodes=[0, 0, 1, 2, 3])
  group.check_group_sizes(rewards, size=2)
  with pytest.raises(ValueError, match='{7: 2, 9: 2}'):
    group.check_group_sizes(rewards, size=3)
  uneven = jax.tree.map(lambda x: x[:4], rewards)
  with pytest.raises(ValueError, match='{9: 1}'):
    group.check_group_sizes(uneven, size=2)


def test_an_unknown_unit_is_refused():
  for factory in (group.group_normalize, group.leave_one_out):
    with pytest.raises(ValueError, match='trajectories'):
      factory(over='tokens')
