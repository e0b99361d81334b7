"""Every recipe: needs, numerical promises, and jax transforms of it."""

import inspect

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxagent import losses
from jaxagent.losses import base, recipes

NEEDS = {
  'grpo': {'ref_logprobs'},
  'gigpo': {'ref_logprobs'},
  'skill_grpo': {'ref_logprobs'},
  'sft': set(),
  'sdar': {'ref_logprobs', 'teacher_logprobs', 'teacher_mask'},
  'opsd_paper': {'ref_logprobs'},
  'grpo_opsd_paper': {'ref_logprobs'},
  'opsd_code': {'ref_logprobs', 'teacher_logprobs', 'teacher_mask'},
  'grpo_opsd_code': {'ref_logprobs', 'teacher_logprobs', 'teacher_mask'},
  'opsd_pg': {'ref_logprobs', 'teacher_logprobs', 'teacher_mask'},
  'grpo_opsd_pg': {'ref_logprobs', 'teacher_logprobs', 'teacher_mask'},
  'opsd_full': {'jsd', 'teacher_mask'},
  'skill_sd': {'ref_logprobs', 'teacher_logprobs', 'teacher_mask'},
  'rlsd': {'ref_logprobs', 'teacher_logprobs', 'teacher_mask'},
  'opd': {'teacher_logprobs'},
  'exopd': {'ref_logprobs', 'teacher_logprobs'},
  'gkd': {'candidates'},
  'aopd': {'teacher_logprobs', 'candidates'},
}
FIELDS = (
  'logprobs',
  'old_logprobs',
  'advantages',
  'entropy',
  'ref_logprobs',
  'teacher_logprobs',
  'forward_kl',
  'jsd',
  'candidates',
)
LOSSES = {name: losses.from_config({'name': name}) for name in losses.RECIPES}
LOSSES['sdar_soft_or'] = recipes.sdar(gate='soft_or', entropy_weight=0.1)
LOSSES['sdar_entropy'] = recipes.sdar(gate='sigmoid_entropy')
LOSSES['sdar_undetached'] = recipes.sdar(gate='undetached')
LOSSES['sdar_forward_kl'] = recipes.sdar(divergence='forward_kl')
LOSSES['aopd_self'] = recipes.aopd(keep_empty_skill=False, location='wrong')
LOSSES['aopd_jsd'] = recipes.aopd(beta=0.5, renorm=True, importance=True)
LOSSES['gkd_reverse'] = recipes.gkd(beta=0.0)


def reduced(loss, logprobs, inputs):
  inputs = inputs.replace(logprobs=logprobs)
  return base.token_mean(loss(inputs).values, inputs.mask).value()


def spoiled(inputs, field, where, bad):
  """`bad` for the numbers of a field at the tokens `where`."""

  def spoil(x):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      return x
    return jnp.where(where.reshape(where.shape + (1,) * (x.ndim - 2)), bad, x)

  return inputs.replace(**{field: jax.tree.map(spoil, getattr(inputs, field))})


def value_and_grad(loss, inputs):
  run = jax.value_and_grad(lambda lp, x: reduced(loss, lp, x))
  return jax.jit(run)(inputs.logprobs, inputs)


def test_a_sum_asks_for_the_most_candidates_of_its_terms():
  few, many = recipes.gkd(top_k=4), recipes.aopd(top_k=9)
  both = base.gate(base.scale(base.add(a=few, b=many), 0.5), few)
  assert (both.top_k, both.needs) == (9, many.needs)
  assert recipes.sdar().top_k == 0


def test_every_recipe_is_registered_with_its_needs():
  assert {name: LOSSES[name].needs for name in losses.RECIPES} == NEEDS
  public = {
    name
    for name, fn in inspect.getmembers(recipes, inspect.isfunction)
    if not name.startswith('_')
  }
  assert public <= set(losses.RECIPES)


@pytest.mark.parametrize('name', LOSSES)
def test_what_is_masked_is_never_read(name, make_inputs):
  """Noise, NaN and infinities under the mask change no bit of loss or grad."""
  inputs = make_inputs(seed=1)
  run = jax.jit(jax.value_and_grad(lambda lp, x: reduced(LOSSES[name], lp, x)))
  want = run(inputs.logprobs, inputs)
  for junk in (-123.0, jnp.nan, jnp.inf, -jnp.inf):
    soiled = inputs
    for field in FIELDS:
      soiled = spoiled(soiled, field, ~inputs.mask, junk)
    got = run(soiled.logprobs, soiled)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
  assert np.all(np.asarray(want[1])[~np.asarray(inputs.mask)] == 0)


@pytest.mark.parametrize('name', LOSSES)
def test_extreme_values_stay_finite(name, make_inputs):
  """Any field may hold -1e4, infinity or NaN at a token that counts."""
  inputs = make_inputs(seed=2)
  run = jax.jit(jax.value_and_grad(lambda lp, x: reduced(LOSSES[name], lp, x)))
  hit = jnp.zeros((6, 7), bool).at[:, ::2].set(True)
  for field in FIELDS:
    for bad in (-1e4, -jnp.inf, jnp.inf, jnp.nan):
      hurt = spoiled(inputs, field, hit, bad)
      value, grad = run(hurt.logprobs, hurt)
      assert np.isfinite(value), (field, bad)
      assert np.all(np.isfinite(grad)), (field, bad)


def test_a_nan_token_drops_out_alone(make_inputs):
  inputs = make_inputs(seed=3).replace(mask=jnp.ones((6, 7), bool))
  teacher = inputs.teacher_logprobs.at[0, 2].set(jnp.nan)
  out = LOSSES['sdar'](inputs.replace(teacher_logprobs=teacher))
  want = LOSSES['sdar'](inputs)
  np.testing.assert_array_equal(
    out.metrics['policy/loss'], want.metrics['policy/loss']
  )
  differs = out.metrics['sdar/loss'] != want.metrics['sdar/loss']
  assert out.metrics['sdar/loss'][0, 2] == 0
  np.testing.assert_array_equal(jnp.argwhere(differs), [[0, 2]])


@pytest.mark.parametrize(
  'name', ['sdar', 'rlsd', 'skill_sd', 'opsd_full', 'exopd', 'gkd', 'aopd']
)
def test_transforms_agree_with_the_plain_loss(name, make_inputs):
  loss = LOSSES[name]
  inputs = make_inputs(seed=4, rows=16)

  def mean_and_grad(x):
    def total(logprobs):
      x_new = x.replace(logprobs=logprobs)
      mean = base.token_mean(loss(x_new).values, x.mask)
      return mean.total, mean

    grad, mean = jax.grad(total, has_aux=True)(x.logprobs)
    return mean, grad

  want_mean, want_grad = mean_and_grad(inputs)

  def check(mean, grad):
    np.testing.assert_allclose(mean.value(), want_mean.value(), rtol=1e-5)
    np.testing.assert_allclose(
      np.reshape(grad, (16, 7)), want_grad, rtol=1e-5, atol=1e-7
    )

  check(*jax.jit(mean_and_grad)(inputs))

  blocks = jax.tree.map(
    lambda x: x.reshape(8, 2, *x.shape[1:]) if x.ndim else jnp.full(8, x),
    inputs,
  )
  mean, grad = jax.vmap(mean_and_grad)(blocks)
  check(jax.tree.map(lambda x: x.sum(), mean), grad)

  def over_devices(x):
    mean, grad = mean_and_grad(x)
    return jax.lax.psum(mean, 'data'), grad

  mean, grad = jax.pmap(over_devices, axis_name='data')(blocks)
  check(jax.tree.map(lambda x: x[0], mean), grad)

  mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ('data',))
  rows, whole = jax.sharding.PartitionSpec('data'), jax.sharding.PartitionSpec()
  specs = jax.tree.map(lambda x: rows if x.ndim else whole, inputs)
  sharded = jax.shard_map(
    over_devices, mesh=mesh, in_specs=(specs,), out_specs=(whole, rows)
  )
  check(*jax.jit(sharded)(inputs))


def test_the_sharded_batch_needs_no_shard_map(make_inputs):
  inputs = make_inputs(seed=5, rows=16)
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ('data',))
  spread = jax.tree.map(
    lambda x: jax.device_put(
      x,
      jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec(*('data',) * bool(x.ndim))
      ),
    ),
    inputs,
  )
  got = value_and_grad(LOSSES['sdar'], spread)
  want = value_and_grad(LOSSES['sdar'], inputs)
  assert len(got[1].sharding.device_set) == 8
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  np.testing.assert_allclose(got[1], want[1], rtol=1e-5, atol=1e-8)


def test_lambda_0_is_grpo_without_a_teacher(make_inputs):
  inputs = make_inputs()
  loss = recipes.sdar(weight=0.0)
  assert loss.needs == {'ref_logprobs'}
  got, want = loss(inputs), recipes.grpo()(inputs)
  np.testing.assert_array_equal(got.values, want.values)


def test_no_kl_means_no_reference_pass():
  assert recipes.grpo(kl_weight=0.0).needs == set()
  assert recipes.grpo(kl_weight=(0.0, 0.1, 10)).needs == {'ref_logprobs'}


def test_sdar_acts_on_groups_without_variance(make_inputs):
  inputs = make_inputs()
  inputs = inputs.replace(advantages=jnp.zeros_like(inputs.advantages))
  _, grad = value_and_grad(recipes.sdar(kl_weight=0.0), inputs)
  acts = inputs.mask & inputs.teacher_mask[:, None]
  np.testing.assert_array_equal(grad < 0, acts)


def test_grpo_opsd_code_is_sdar_with_half_a_gate(make_inputs):
  inputs = make_inputs()
  got = recipes.grpo_opsd_code(weight=0.1)(inputs)
  half = recipes.grpo(kl_weight=0.01)(inputs).values
  gap = inputs.teacher_logprobs - inputs.logprobs
  live = inputs.mask & inputs.teacher_mask[:, None]
  want = half + 0.1 * jnp.where(live, 0.5 * gap, 0)
  np.testing.assert_allclose(got.values, want, rtol=1e-5, atol=1e-7)


def test_opsd_code_is_sdar_without_the_policy_gradient(make_inputs):
  inputs = make_inputs()
  whole = recipes.sdar(weight=0.1)(inputs)
  got = recipes.opsd_code(weight=0.1)(inputs)
  want = whole.values - whole.metrics['policy/loss']
  np.testing.assert_allclose(got.values, want, rtol=1e-5, atol=1e-6)


def test_grpo_opsd_pg_adds_the_scaled_term(make_inputs):
  inputs = make_inputs()
  got = recipes.grpo_opsd_pg(weight=0.3)(inputs)
  gap = inputs.teacher_logprobs - inputs.logprobs
  live = inputs.mask & inputs.teacher_mask[:, None]
  want = recipes.grpo()(inputs).values
  want += 0.3 * jnp.where(live, -gap * inputs.logprobs, 0)
  np.testing.assert_allclose(got.values, want, rtol=1e-5, atol=1e-6)


def test_rlsd_is_grpo_on_reweighted_advantages(make_inputs):
  inputs = make_inputs()
  a = inputs.advantages
  w = jnp.exp(jnp.sign(a) * (inputs.teacher_logprobs - inputs.old_logprobs))
  w = jnp.where(inputs.teacher_mask[:, None], jnp.clip(w, 0.8, 1.2), 1.0)
  mix = 0.5 * (1 - 3 / 100)
  want = recipes.grpo()(inputs.replace(advantages=a * (1 - mix + mix * w)))
  got = recipes.rlsd()(inputs)
  np.testing.assert_allclose(got.values, want.values, rtol=1e-5, atol=1e-6)


def test_from_config_passes_arguments_on(make_inputs):
  inputs = make_inputs()
  config = ml_collections.ConfigDict(
    {'name': 'sdar', 'weight': (0.0, 1.0, 10), 'beta': 1.0, 'clip_high': 0.3}
  )
  got = losses.from_config(config)(inputs).values
  want = recipes.sdar(weight=0.3, beta=1.0, clip_high=0.3)(inputs).values
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
  'config, hint',
  [
    ({'name': 'sdra'}, "'sdar'"),
    ({'name': 'sdar', 'betta': 1.0}, "'beta'"),
    ({'name': 'sdar', 'clip_hi': 1.0}, "'clip_high'"),
    ({'beta': 1.0}, 'Known'),
  ],
)
def test_from_config_says_what_was_meant(config, hint):
  with pytest.raises(ValueError, match=hint):
    losses.from_config(config)
