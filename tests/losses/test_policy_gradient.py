"""GRPO and its companions against the numbers of their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxagent import types
from jaxagent.losses import base, policy_gradient


def row(logprobs, **fields):
  """A batch of one row; unnamed required fields are 0."""
  logprobs = jnp.asarray(logprobs, jnp.float32)[None]
  zeros = jnp.zeros_like(logprobs)
  fields = {k: jnp.asarray(v, jnp.float32)[None] for k, v in fields.items()}
  fields = {'old_logprobs': zeros, 'advantages': zeros, **fields}
  return types.LossInputs(
    logprobs=logprobs,
    mask=jnp.ones(logprobs.shape, bool),
    step=jnp.asarray(0),
    **fields,
  )


def gradient(term, inputs):
  def total(logprobs):
    return jnp.sum(term(inputs.replace(logprobs=logprobs)).values)

  return jax.grad(total)(inputs.logprobs)[0]


def test_dual_clip_numbers():
  ratio = jnp.asarray([5.0, 5.0, 0.5, 0.5])
  inputs = row(jnp.log(ratio), advantages=[-1.0, 1.0, -1.0, 1.0])
  out = policy_gradient.grpo()(inputs)
  np.testing.assert_allclose(out.values[0], [3, -1.2, 0.8, -0.5], rtol=1e-6)
  np.testing.assert_allclose(out.metrics['ratio'][0], ratio, rtol=1e-6)
  np.testing.assert_array_equal(out.metrics['clipped'][0], [1, 1, 1, 0])


def test_clipped_means_no_gradient():
  ratio = jnp.asarray([5.0, 5.0, 0.5, 0.5, 1.1, 2.0])
  inputs = row(jnp.log(ratio), advantages=[-1.0, 1.0, -1.0, 1.0, 1.0, -1.0])
  term = policy_gradient.grpo()
  got = gradient(term, inputs)
  np.testing.assert_allclose(got, [0, 0, 0, -0.5, -1.1, 2.0], rtol=1e-6)
  np.testing.assert_array_equal(term(inputs).metrics['clipped'][0], got == 0)


def test_without_dual_clip_a_punished_token_is_unbounded():
  inputs = row(jnp.log(jnp.asarray([5.0])), advantages=[-1.0])
  values = policy_gradient.grpo(dual_clip=None)(inputs).values
  np.testing.assert_allclose(values, [[5.0]], rtol=1e-6)


def test_asymmetric_clip():
  inputs = row(jnp.log(jnp.asarray([2.0, 0.1])), advantages=[1.0, -1.0])
  values = policy_gradient.grpo(clip_low=0.3, clip_high=0.5)(inputs).values
  np.testing.assert_allclose(values, [[-1.5, 0.7]], rtol=1e-6)


def test_on_policy_gradient_is_minus_advantage():
  inputs = row([-1.0, -2.0], old_logprobs=[-1.0, -2.0], advantages=[0.7, -1.3])
  got = gradient(policy_gradient.grpo(), inputs)
  np.testing.assert_allclose(got, [-0.7, 1.3], rtol=1e-6)


@pytest.mark.parametrize(
  'clips', [{'clip_low': 1.2}, {'clip_high': -0.1}, {'dual_clip': 1.0}]
)
def test_clips_that_make_no_sense_are_refused(clips):
  with pytest.raises(ValueError, match=next(iter(clips))):
    policy_gradient.grpo(**clips)


def test_k3_is_kl_in_expectation_and_never_negative():
  policy = jnp.asarray([0.5, 0.3, 0.2])
  reference = jnp.asarray([0.7, 0.2, 0.1])
  inputs = row(jnp.log(policy), ref_logprobs=jnp.log(reference))
  values = policy_gradient.kl_to_reference()(inputs).values[0]
  exact = jnp.sum(policy * jnp.log(policy / reference))
  np.testing.assert_allclose(jnp.sum(policy * values), exact, rtol=1e-5)
  assert jnp.all(values > 0)


def test_k3_argument_is_clamped():
  inputs = row([-50.0, 0.0, -1.0], ref_logprobs=[0.0, -50.0, -1.0])
  values = policy_gradient.kl_to_reference()(inputs).values[0]
  want = [np.exp(10.0) - 11, np.exp(-10.0) + 9, 0]
  np.testing.assert_allclose(values, want, rtol=1e-6)
  got = gradient(policy_gradient.kl_to_reference(), inputs)
  np.testing.assert_array_equal(got, [0, 0, 0])


def test_entropy_bonus_raises_entropy():
  inputs = row([-1.0, -2.0], entropy=[0.4, 1.1])
  term = policy_gradient.entropy_bonus()
  np.testing.assert_allclose(term(inputs).values, [[-0.4, -1.1]], rtol=1e-6)
  grad = jax.grad(lambda h: jnp.sum(term(inputs.replace(entropy=h)).values))(
    inputs.entropy
  )
  np.testing.assert_array_equal(grad, [[-1, -1]])


def test_sft_is_the_negative_log_likelihood(make_inputs):
  inputs = make_inputs()
  mean = base.token_mean(policy_gradient.sft()(inputs).values, inputs.mask)
  want = -np.mean(np.asarray(inputs.logprobs)[np.asarray(inputs.mask)])
  np.testing.assert_allclose(mean.value(), want, rtol=1e-6)
