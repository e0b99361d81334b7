"""Composition, reduction, and the promises that `base.term` makes for all."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxagent import types
from jaxagent.losses import base, distillation, policy_gradient


def constant(value, **metrics):
  """A term that is `value` at every token."""

  def fn(inputs):
    like = jnp.ones_like(inputs.logprobs)
    return types.TokenLoss(
      value * like, {name: v * like for name, v in metrics.items()}
    )

  return base.term(fn)


def by_hand(x, *, weight, beta, clip):
  """SDAR without KL, written as one function of plain arrays."""
  ratio = jnp.exp(x.logprobs - x.old_logprobs)
  clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
  values = jnp.maximum(-x.advantages * ratio, -x.advantages * clipped)
  dual = jnp.minimum(values, -x.advantages * 3.0)
  values = jnp.where(x.advantages < 0, dual, values)
  gap = jax.lax.stop_gradient(x.teacher_logprobs - x.logprobs)
  gated = jax.nn.sigmoid(beta * gap) * (x.teacher_logprobs - x.logprobs)
  values += weight * jnp.where(x.teacher_mask[:, None], gated, 0.0)
  return jnp.mean(values, where=x.mask)


def test_composed_equals_written_by_hand(make_inputs):
  inputs = make_inputs()
  gated = base.gate(
    distillation.self_distillation(), distillation.sigmoid_gap(beta=5.0)
  )
  term = base.add(grpo=policy_gradient.grpo(), sdar=base.scale(gated, 0.1))

  def composed(logprobs):
    out = term(inputs.replace(logprobs=logprobs))
    return base.token_mean(out.values, inputs.mask).value()

  def plain(logprobs):
    changed = inputs.replace(logprobs=logprobs)
    return by_hand(changed, weight=0.1, beta=5.0, clip=0.2)

  got = jax.jit(jax.value_and_grad(composed))(inputs.logprobs)
  want = jax.value_and_grad(plain)(inputs.logprobs)
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  np.testing.assert_allclose(got[1], want[1], rtol=1e-5, atol=1e-8)


def test_add_names_metrics_and_unites_needs(make_inputs):
  inputs = make_inputs()
  term = base.add(
    a=constant(2.0, size=7.0),
    b=base.scale(policy_gradient.entropy_bonus(), 0.5),
  )
  assert term.needs == {'entropy'}
  out = term(inputs)
  assert set(out.metrics) == {'a/size', 'a/loss', 'b/loss'}
  np.testing.assert_allclose(
    out.values, out.metrics['a/loss'] + out.metrics['b/loss'], rtol=1e-6
  )
  np.testing.assert_array_equal(
    out.metrics['a/size'], jnp.where(inputs.mask, 7.0, 0.0)
  )


def test_add_of_nothing_is_refused():
  with pytest.raises(ValueError, match='at least one'):
    base.add()


@pytest.mark.parametrize(
  'weight, want',
  [
    (3, 3.0),
    (0.25, 0.25),
    ((0.0, 1.0, 10), 0.3),
    (optax.linear_schedule(1.0, 0.0, 10), 0.7),
  ],
)
def test_scale_by_constants_ramps_and_schedules(weight, want, make_inputs):
  inputs = make_inputs().replace(mask=jnp.ones((6, 7), bool))
  values = jax.jit(base.scale(constant(1.0), weight))(inputs).values
  np.testing.assert_allclose(values, want, rtol=1e-6)


def test_a_schedule_does_not_recompile(make_inputs):
  inputs = make_inputs()
  run = jax.jit(base.scale(constant(1.0), (0.0, 1.0, 10)))
  first = run(inputs).values
  second = run(inputs.replace(step=jnp.asarray(7))).values
  assert run._cache_size() == 1
  assert not np.array_equal(first, second)


def test_gate_multiplies_and_is_detached(make_inputs):
  inputs = make_inputs()
  likelihood = base.term(lambda x: types.TokenLoss(jnp.exp(x.logprobs), {}))
  term = base.gate(policy_gradient.sft(), likelihood)
  grad = jax.grad(lambda lp: jnp.sum(term(inputs.replace(logprobs=lp)).values))(
    inputs.logprobs
  )
  want = jnp.where(inputs.mask, -jnp.exp(inputs.logprobs), 0)
  np.testing.assert_allclose(grad, want, rtol=1e-6)


def test_with_advantages_replaces_them_without_gradient(make_inputs):
  inputs = make_inputs()
  inputs = inputs.replace(old_logprobs=inputs.logprobs)
  term = base.with_advantages(
    policy_gradient.grpo(),
    base.term(lambda x: types.TokenLoss(x.logprobs * x.advantages, {})),
  )
  grad = jax.grad(lambda lp: jnp.sum(term(inputs.replace(logprobs=lp)).values))(
    inputs.logprobs
  )
  want = jnp.where(inputs.mask, inputs.logprobs * inputs.advantages, 0)
  np.testing.assert_allclose(term(inputs).metrics['advantage'], want)
  np.testing.assert_allclose(grad, -want, rtol=1e-6)


def test_a_missing_field_is_named(make_inputs):
  inputs = make_inputs().replace(ref_logprobs=None)
  with pytest.raises(ValueError, match='ref_logprobs'):
    base.add(kl=policy_gradient.kl_to_reference())(inputs)


def test_reducers_on_two_rows():
  values = jnp.asarray([[2.0, 9.0, 9.0], [0.0, 1.0, 2.0]])
  mask = jnp.asarray([[True, False, False], [True, True, True]])
  assert base.token_mean(values, mask).value() == 1.25
  assert base.sequence_mean(values, mask).value() == 1.5


@pytest.mark.parametrize('name', sorted(base.REDUCERS))
def test_padded_rows_and_masked_nan_do_not_count(name):
  values = jnp.asarray([[2.0, jnp.nan], [4.0, 6.0], [jnp.inf, jnp.nan]])
  mask = jnp.asarray([[True, False], [True, True], [False, False]])
  got = base.REDUCERS[name](values, mask)
  want = base.REDUCERS[name](values[:2], mask[:2])
  assert got.value() == want.value() > 0


@pytest.mark.parametrize('name', sorted(base.REDUCERS))
def test_an_all_masked_batch_is_zero(name, make_inputs):
  inputs = make_inputs().replace(mask=jnp.zeros((6, 7), bool))
  term = base.add(a=policy_gradient.grpo(), b=distillation.self_distillation())

  def loss(logprobs):
    values = term(inputs.replace(logprobs=logprobs)).values
    return base.REDUCERS[name](values, inputs.mask).value()

  value, grad = jax.value_and_grad(loss)(inputs.logprobs)
  assert value == 0
  np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize('pieces', [1, 2, 4, 8])
@pytest.mark.parametrize('name', sorted(base.REDUCERS))
def test_microbatches_add_up_to_the_batch(name, pieces, make_inputs):
  inputs = make_inputs(rows=8)
  inputs = inputs.replace(mask=inputs.mask.at[5].set(False))
  term = base.add(
    a=policy_gradient.grpo(),
    b=base.gate(distillation.self_distillation(), distillation.sigmoid_gap()),
  )

  def total(logprobs, part):
    part = part.replace(logprobs=logprobs)
    mean = base.REDUCERS[name](term(part).values, part.mask)
    return mean.total, mean

  run = jax.jit(jax.value_and_grad(total, has_aux=True))
  (_, whole), grad = run(inputs.logprobs, inputs)
  size = 8 // pieces
  means, grads = [], []
  for start in range(0, 8, size):
    part = jax.tree.map(
      lambda x, i=start: x[i : i + size] if x.ndim else x, inputs
    )
    (_, mean), part_grad = run(part.logprobs, part)
    means.append(mean)
    grads.append(part_grad)
  summed = functools.reduce(
    lambda a, b: jax.tree.map(operator.add, a, b), means
  )
  np.testing.assert_allclose(summed.value(), whole.value(), rtol=1e-6)
  np.testing.assert_allclose(
    jnp.concatenate(grads) / summed.weight, grad / whole.weight, atol=1e-6
  )


def test_low_precision_inputs_are_computed_in_float32(make_inputs):
  inputs = jax.tree.map(
    lambda x: (
      x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x
    ),
    make_inputs(),
  )
  out = base.add(a=policy_gradient.grpo())(inputs)
  assert out.values.dtype == jnp.float32
  exact = jax.tree.map(
    lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, inputs
  )
  want = base.add(a=policy_gradient.grpo())(exact)
  np.testing.assert_array_equal(out.values, want.values)


def test_gradient_norms_are_those_of_each_term(make_inputs):
  inputs = make_inputs()
  term = base.add(
    sft=policy_gradient.sft(),
    half=base.scale(policy_gradient.sft(), 0.5),
    entropy=policy_gradient.entropy_bonus(),
  )
  norms = base.gradient_norms(term, inputs)
  one = 1 / np.sqrt(np.sum(np.asarray(inputs.mask)))
  np.testing.assert_allclose(norms['sft'], one, rtol=1e-6)
  np.testing.assert_allclose(norms['half'], one / 2, rtol=1e-6)
  assert norms['entropy'] == 0


def test_wrong_shapes_are_caught(make_inputs):
  inputs = make_inputs()
  with pytest.raises(TypeError):
    base.token_mean(inputs.logprobs[0], inputs.mask)
