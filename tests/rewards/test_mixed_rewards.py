"""GDPO, RDPO and their parts as whole recipes: end to end, jit, devices."""

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxagent import rewards as rewards_lib
from jaxagent.models import sharding
from jaxagent.rewards import base, diagnostics, group, quantile, whitening

MIXED = ('group_normalize', 'gdpo', 'quantile', 'whitening', 'rdpo')
BINARY = (1.0, 1, 0, 0)
CONTINUOUS = (0.9, 0.2, 0.8, 0.1)
HAND = np.stack([BINARY, CONTINUOUS], axis=1)


def run(transform, rewards, steps=1):
  state = transform.init(rewards.values.shape[1])
  apply = jax.jit(transform.apply)
  for _ in range(steps):
    out, state = apply(rewards, state)
  return np.asarray(out.values), state


def recipe(name, **options):
  return rewards_lib.from_config({'name': name, **options})


def up(first, second):
  return np.asarray([first, second, -second, -first])


@pytest.fixture
def batch(make_columns):
  """`batch(seed) -> Rewards`: 8 prompts of 3 tasks, G=8, 4 columns, padding."""
  tasks = np.asarray([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 1, 1]], bool)

  def make(seed=0):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(8), 8)
    shared = rng.normal(size=(64, 1))
    values = 0.6 * shared + rng.normal(size=(64, 4)) * [1, 10, 0.1, 1]
    values[:, 0] = values[:, 0] > 0
    active = np.repeat(tasks[rng.integers(0, 3, 8)], 8, axis=0)
    active[60:] = False
    return make_columns(values, group, active)

  return make


# --- numbers by hand -----------------------------------------------------------


def test_grpo_by_hand(make_columns):
  got, _ = run(recipe('group_normalize'), make_columns(HAND))
  np.testing.assert_allclose(got[:, 0], up(1.1956, 0.2657), atol=5e-5)


def test_gdpo_by_hand(make_columns):
  rewards = make_columns(HAND)
  sums, _ = run(base.chain(group.group_normalize(), base.combine()), rewards)
  np.testing.assert_allclose(sums[:, 0], up(1.8458, 0.1312), atol=5e-5)
  got, _ = run(recipe('gdpo'), rewards)
  np.testing.assert_allclose(got[:, 0], up(1.4107, 0.1003), atol=5e-5)


def test_rdpo_by_hand(make_columns):
  rewards = make_columns(HAND)
  maq = quantile.magnitude_aware_quantile(scale=(1.0, 0.5))
  scores, _ = run(maq, rewards)
  np.testing.assert_allclose(
    scores.T,
    [
      [1.1503, 1.1503, -1.1503, -1.1503],
      [1.1503, -0.6948, 0.6948, -1.1503],
    ],
    atol=5e-5,
  )
  np.testing.assert_allclose(scores.sum(1), up(2.3007, 0.4555), atol=5e-5)
  whiten = base.chain(
    maq, whitening.mahalanobis_whiten(warmup=0), base.combine()
  )
  sums, state = run(whiten, rewards)
  np.testing.assert_allclose(
    state[1].covariance[0], [[1.7644, 0.3493], [0.3493, 1.2040]], atol=5e-5
  )
  np.testing.assert_allclose(sums[:, 0], up(1.7217, 0.1892), atol=5e-5)
  rdpo = recipe('rdpo', quantile={'scale': (1.0, 0.5)}, whitening={'warmup': 0})
  got, _ = run(rdpo, rewards)
  np.testing.assert_allclose(got[:, 0], up(1.4058, 0.1545), atol=5e-5)


def test_grpo_does_not_tell_two_successes_from_one(make_columns):
  """The summed rewards (0, 1) and (0, 2) get the same advantages; not so GDPO.

  One prompt has one good reward in its better attempt, the other has two.
  """
  rewards = make_columns([[0, 0], [1, 0], [0, 0], [1, 1]], [0, 0, 1, 1])
  got, _ = run(recipe('group_normalize'), rewards)
  np.testing.assert_allclose(got[:, 0], [-0.7071, 0.7071] * 2, atol=1e-4)
  got, _ = run(recipe('gdpo'), rewards)
  assert got[3] > 1.5 * got[1]


# --- what the parts promise ----------------------------------------------------


@pytest.mark.parametrize('ddof', [0, 1])
def test_batch_normalize_is_over_all_rows_that_have_the_column(
  ddof, make_columns
):
  values = np.asarray([3.0, 1, np.nan, 7, 2])
  seen = np.isfinite(values)
  got, _ = run(
    base.batch_normalize(ddof=ddof),
    make_columns(values, [0, 0, 1, 1, 2], seen[:, None]),
  )
  want = (values[seen] - values[seen].mean()) / values[seen].std(ddof=ddof)
  np.testing.assert_allclose(got[seen, 0], want, rtol=1e-5)
  assert got[~seen, 0] == 0


@pytest.mark.parametrize('name', MIXED)
@pytest.mark.parametrize('value', [0.0, 0.1, 3.0])
def test_a_batch_without_spread_has_no_advantage(name, value, make_columns):
  rewards = make_columns(np.full((8, 2), value), [0] * 4 + [1] * 4)
  np.testing.assert_array_equal(run(recipe(name), rewards, 7)[0], 0)


@pytest.mark.parametrize('name', MIXED)
def test_groups_of_one_have_no_advantage(name, make_columns):
  rewards = make_columns([[1, 2], [3, 0], [2, 2]], [0, 1, 2])
  np.testing.assert_array_equal(run(recipe(name), rewards, 7)[0], 0)


def test_a_failed_primary_caps_what_follows(make_columns):
  values = [[0.0, 0.9, 0.7], [0.4, 0.3, 0.9], [0.5, 0.9, 0.8], [0.1, 0.9, 0.8]]
  active = np.ones((4, 3), bool)
  active[3, 0] = False  # this task has no primary
  rewards = make_columns(values, active=active)
  transform = base.cap_auxiliary(((0, 1), (0, 2)))
  out, _ = jax.jit(transform.apply)(rewards, transform.init(3))
  want = [[0.0, 0.0, 0.0], [0.4, 0.3, 0.4], [0.5, 0.9, 0.8], [0.1, 0.9, 0.8]]
  np.testing.assert_allclose(out.values, want)
  np.testing.assert_array_equal(out.active, rewards.active)
  with pytest.raises(ValueError, match='0, 3'):
    base.cap_auxiliary(((0, 3),)).init(3)


def test_caps_read_the_primary_as_it_came(make_columns):
  rewards = make_columns([[0.1, 0.4, 0.9]])
  got, _ = run(base.cap_auxiliary(((0, 1), (1, 2))), rewards)
  np.testing.assert_allclose(got, [[0.1, 0.1, 0.4]])


@pytest.mark.parametrize('name', MIXED)
def test_caps_are_applied_first(name, batch):
  rewards = batch()
  cap = base.cap_auxiliary(((0, 1), (2, 3)))
  capped, _ = cap.apply(rewards, ())
  got, _ = run(recipe(name, caps=((0, 1), (2, 3))), rewards)
  want, _ = run(recipe(name), capped)
  np.testing.assert_allclose(got, want, atol=1e-6)
  assert np.abs(got - run(recipe(name), rewards)[0]).max() > 0.01


@pytest.mark.parametrize('broken', [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_no_number_is_lost_to_its_group(broken, make_columns):
  rng = np.random.default_rng(0)
  values, group_of = rng.normal(size=(8, 2)), np.repeat([4, 9], 4)
  spoiled = values.copy()
  spoiled[1, 0] = broken
  active = np.ones((8, 2), bool)
  active[:4, 0] = False
  for name in set(MIXED) - {'group_normalize'}:
    got, state = run(recipe(name), make_columns(spoiled, group_of))
    want, wanted = run(recipe(name), make_columns(values, group_of, active))
    np.testing.assert_allclose(got, want, atol=1e-6)
    chex.assert_trees_all_close(state, wanted, atol=1e-6)
  drop = base.drop_nonfinite()
  assert drop.metrics(make_columns(spoiled, group_of), ()) == {
    'rewards/nonfinite': 1
  }


def test_weights_are_of_the_whitened_scores(batch):
  rewards, weights = batch(), (1.0, 0.5, 2.0, 0.0)
  got, _ = run(
    recipe('rdpo', weights=weights, whitening={'warmup': 0}), rewards
  )
  parts = base.chain(
    quantile.magnitude_aware_quantile(), whitening.mahalanobis_whiten(warmup=0)
  )
  scores, _ = run(parts, rewards)
  assert np.allclose(scores[~np.asarray(rewards.active)], 0)
  sums = scores @ np.asarray(weights)
  rows = np.asarray(rewards.active).any(1)
  want = (sums - sums[rows].mean()) / sums[rows].std()
  np.testing.assert_allclose(got[rows, 0], want[rows], atol=1e-4)


def test_binary_balanced_uncorrelated_is_the_control(make_columns):
  """There RDPO and GDPO are the same up to nothing."""
  values = [[1, 1], [1, 0], [0, 1], [0, 0]] * 4
  rewards = make_columns(values, np.repeat(np.arange(4), 4))
  got = [run(recipe(name), rewards, 7)[0] for name in ('gdpo', 'rdpo')]
  np.testing.assert_allclose(*got, atol=1e-5)
  assert np.abs(got[0]).max() > 1


# --- compositions, compilation, devices ------------------------------------------


def by_hand(name):
  first = group.group_normalize()
  if name in ('quantile', 'rdpo'):
    first = quantile.magnitude_aware_quantile(beta=0.5)
  second = [whitening.mahalanobis_whiten(warmup=2)]
  return base.chain(
    base.drop_nonfinite(),
    first,
    *(second if name in ('whitening', 'rdpo') else []),
    base.combine(),
    base.batch_normalize(),
  )


@pytest.mark.parametrize('name', MIXED[1:])
def test_a_recipe_is_its_parts(name, batch):
  config = ml_collections.ConfigDict({'name': name})
  if name in ('quantile', 'rdpo'):
    config.quantile = {'beta': 0.5}
  if name in ('whitening', 'rdpo'):
    config.whitening = {'warmup': 2}
  got, want = rewards_lib.from_config(config), by_hand(name)
  states = got.init(4), want.init(4)
  for step in range(4):
    out = [
      jax.jit(t.apply)(batch(step), state)
      for t, state in zip((got, want), states, strict=True)
    ]
    chex.assert_trees_all_equal(*out)
    states = [state for _, state in out]


def test_a_wrong_option_of_a_part_is_named():
  with pytest.raises(ValueError, match="mean 'beta'"):
    recipe('rdpo', quantile={'betta': 1.0})
  with pytest.raises(ValueError, match="mean 'guard_sign'"):
    recipe('whitening', whitening={'guard_signs': True})


@pytest.mark.parametrize('name', MIXED)
def test_one_program_for_all_steps(name, batch):
  transform = recipe(name)
  chex.clear_trace_counter()
  step = jax.jit(
    chex.assert_max_traces(
      lambda r, s: diagnostics.observe(transform, r, s), n=1
    )
  )
  state = transform.init(4)
  for seed in range(7):
    out, state, metrics = step(batch(seed), state)
    assert jnp.all(jnp.isfinite(out.values)), seed
    assert float(jnp.abs(out.values).max()) > 0.5


@pytest.mark.parametrize('name', MIXED)
def test_padding_rows_change_nothing(name, batch, make_columns):
  rewards = batch()
  kept = jax.tree.map(lambda x: x[:60], rewards)
  spoiled = rewards.replace(
    values=jnp.where(rewards.active, rewards.values, jnp.nan)
  )
  got, state = run(recipe(name), spoiled)
  want, wanted = run(recipe(name), kept)
  np.testing.assert_allclose(got[:60], want, atol=1e-5)
  np.testing.assert_array_equal(got[60:], 0)
  chex.assert_trees_all_close(state, wanted, atol=1e-6)


@pytest.mark.parametrize('name', MIXED)
def test_a_reward_that_is_never_observed_changes_nothing(name, batch):
  rewards = batch()
  wider = rewards.replace(
    values=jnp.pad(rewards.values, ((0, 0), (1, 0)), constant_values=jnp.nan),
    active=jnp.pad(rewards.active, ((0, 0), (1, 0))),
  )
  got, _ = run(recipe(name), wider, 7)
  want, _ = run(recipe(name), rewards, 7)
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize('name', MIXED)
def test_one_reward_is_scored_and_normalised(name, batch):
  first = batch()
  one = first.replace(values=first.values[:, 1:2], active=first.active[:, 1:2])
  got, _ = run(recipe(name), one, 7)
  seen = np.asarray(one.active)[:, 0]
  assert got[seen].std() > 0.5 and np.all(got[~seen] == 0)
  if name != 'group_normalize':
    np.testing.assert_allclose(got[seen].mean(), 0, atol=1e-5)
    np.testing.assert_allclose(got[seen].std(), 1, atol=1e-4)


@pytest.mark.parametrize('name', MIXED)
def test_the_order_of_rows_does_not_matter(name, batch):
  rewards = batch()
  order = np.random.default_rng(0).permutation(64)
  got, _ = run(recipe(name), jax.tree.map(lambda x: x[order], rewards), 7)
  want, _ = run(recipe(name), rewards, 7)
  np.testing.assert_allclose(got, want[order], atol=1e-4)


@pytest.mark.parametrize('name', MIXED)
def test_rows_on_eight_devices_are_one_batch(name, batch):
  """Statistics are global: sharded rows give what one device gives."""
  assert jax.device_count() == 8
  transform = recipe(name)
  mesh = sharding.make_mesh(data=8)
  rows = jax.NamedSharding(mesh, sharding.BATCH)
  states = [transform.init(4)] * 2
  for seed in range(7):
    whole = batch(seed)
    sharded = jax.device_put(whole, rows)
    assert len(sharded.values.sharding.device_set) == 8
    (want, first), (got, second) = (
      jax.jit(transform.apply)(r, s)
      for r, s in zip((whole, sharded), states, strict=True)
    )
    np.testing.assert_allclose(got.values, want.values, atol=3e-6)
    chex.assert_trees_all_close(first, second, atol=1e-6)
    states = [first, second]
