"""The identities and test vectors of SDAR and its baselines (2605.15155)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxagent import types
from jaxagent.losses import base, distillation, recipes

POLICY = jnp.asarray([0.5, 0.3, 0.2])
TEACHER = jnp.asarray([0.7, 0.2, 0.1])


def row(logprobs, mask=None, teacher_mask=True, step=0, **fields):
  """A batch of one row; unnamed required fields are 0."""
  logprobs = jnp.asarray(logprobs, jnp.float32)[None]
  zeros = jnp.zeros_like(logprobs)
  fields = {k: jnp.asarray(v, jnp.float32)[None] for k, v in fields.items()}
  fields = {'old_logprobs': zeros, 'advantages': zeros, **fields}
  mask = jnp.ones(zeros.shape, bool) if mask is None else mask
  return types.LossInputs(
    logprobs=logprobs,
    mask=jnp.asarray(mask, bool).reshape(zeros.shape),
    step=jnp.asarray(step),
    teacher_mask=jnp.asarray([teacher_mask]),
    **fields,
  )


def value_and_grad(term, inputs):
  def loss(logprobs):
    out = term(inputs.replace(logprobs=logprobs))
    return base.token_mean(out.values, inputs.mask).value()

  value, grad = jax.value_and_grad(loss)(inputs.logprobs)
  return value, grad[0]


def gated(beta):
  return base.gate(
    distillation.self_distillation(), distillation.sigmoid_gap(beta=beta)
  )


def vector_1():
  return row(
    [-1.0, -0.5, -2.0, -0.7],
    teacher_logprobs=[-0.8, -1.0, -2.0, -9.0],
    mask=[1, 1, 1, 0],
  )


def test_sdar_vector():
  value, grad = value_and_grad(gated(5.0), vector_1())
  np.testing.assert_allclose(value, 0.0360942, rtol=1e-5)
  want = [-0.243686, -0.025286, -0.166667, 0]
  np.testing.assert_allclose(grad, want, atol=1e-6)
  metrics = gated(5.0)(vector_1()).metrics
  np.testing.assert_allclose(metrics['gap'][0], [0.2, -0.5, 0, 0], atol=1e-6)
  want = [0.731059, 0.075858, 0.5, 0]
  np.testing.assert_allclose(metrics['gate'][0], want, atol=1e-6)
  np.testing.assert_array_equal(metrics['gate_open'][0], [1, 0, 0, 0])


def test_beta_0_is_a_gate_of_one_half():
  value, grad = value_and_grad(gated(0.0), vector_1())
  np.testing.assert_allclose(value, -0.05, rtol=1e-5)
  np.testing.assert_allclose(grad, [-1 / 6, -1 / 6, -1 / 6, 0], rtol=1e-6)


def test_gap_gate_values_and_slope():
  gaps = jnp.asarray([-2, -0.5, -0.12, 0, 0.12, 0.5, 2])
  term = distillation.sigmoid_gap(beta=5.0)
  gates = term(row(jnp.zeros(7), teacher_logprobs=gaps)).values[0]
  want = [0.000045, 0.075858, 0.354344, 0.5, 0.645656, 0.924142, 0.999955]
  np.testing.assert_allclose(gates, want, atol=1e-6)
  step = 1e-3
  above = term(row(jnp.zeros(7), teacher_logprobs=gaps + step)).values[0]
  below = term(row(jnp.zeros(7), teacher_logprobs=gaps - step)).values[0]
  slope = (above - below) / (2 * step)
  np.testing.assert_allclose(slope, 5 * gates * (1 - gates), atol=1e-4)
  assert jnp.all(slope <= 5 / 4 + 1e-4)


def test_a_forgotten_stop_gradient_pushes_rejected_tokens_down():
  term = distillation.undetached_gap(beta=5.0)
  inputs = vector_1()
  gap = jnp.asarray([0.2, -0.5, 0.0])
  values = term(inputs).values[0, :3]
  np.testing.assert_allclose(values, jax.nn.silu(5 * gap) / 5, atol=1e-6)
  _, grad = value_and_grad(term, inputs)
  want = [-0.927671, 0.099401, -0.5]
  np.testing.assert_allclose(3 * grad[:3], want, atol=1e-6)
  _, detached = value_and_grad(gated(5.0), inputs)
  assert grad[1] > 0 > detached[1]


def test_undetached_gradient_changes_sign_where_predicted():
  term = distillation.undetached_gap(beta=5.0)
  gaps = jnp.asarray([-0.255693 - 1e-4, -0.255693 + 1e-4])
  _, grad = value_and_grad(term, row([0.0, 0.0], teacher_logprobs=gaps))
  assert grad[0] > 0 > grad[1]


def expected_direction(term):
  """-E[grad_z loss] over tokens drawn from POLICY = softmax(z)."""

  def expected(logits):
    logprobs = jax.nn.log_softmax(logits)
    reference = jax.lax.stop_gradient(logprobs)
    inputs = row(
      jnp.zeros(3),
      teacher_logprobs=jnp.log(TEACHER),
      old_logprobs=reference,
      ref_logprobs=jnp.log(TEACHER),
    ).replace(logprobs=logprobs[None])
    return jnp.sum(POLICY * term(inputs).values[0])

  return -jax.grad(expected)(jnp.log(POLICY))


def minus_grad_reverse_kl():
  def reverse_kl(logits):
    policy = jax.nn.softmax(logits)
    return jnp.sum(policy * (jnp.log(policy) - jnp.log(TEACHER)))

  return -jax.grad(reverse_kl)(jnp.log(POLICY))


def test_expected_direction_of_sdar():
  inputs = row(jnp.log(POLICY), teacher_logprobs=jnp.log(TEACHER))
  gates = distillation.sigmoid_gap(beta=5.0)(inputs).values[0]
  np.testing.assert_allclose(gates, [0.843217, 0.116364, 0.030303], atol=1e-6)
  mean_gate = jnp.sum(POLICY * gates)
  np.testing.assert_allclose(mean_gate, 0.462578, atol=1e-6)
  got = expected_direction(gated(5.0))
  np.testing.assert_allclose(got, POLICY * (gates - mean_gate), atol=1e-6)
  np.testing.assert_allclose(got, [0.190319, -0.103864, -0.086455], atol=1e-6)


def test_ungated_sdar_is_noise_of_mean_zero():
  np.testing.assert_allclose(expected_direction(gated(0.0)), 0, atol=1e-7)


def test_small_beta_descends_the_reverse_kl():
  got = expected_direction(gated(0.01))
  np.testing.assert_allclose(got, [0.000536, -0.000235, -0.000301], atol=1e-6)
  want = 0.01 / 4 * minus_grad_reverse_kl()
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_opsd_policy_gradient_descends_the_reverse_kl():
  got = expected_direction(distillation.opsd_policy_gradient())
  np.testing.assert_allclose(got, [0.214253, -0.094030, -0.120223], atol=1e-6)
  np.testing.assert_allclose(got, minus_grad_reverse_kl(), atol=1e-6)


def test_opsd_as_printed_has_no_expected_gradient():
  got = expected_direction(distillation.opsd_paper())
  np.testing.assert_allclose(got, 0, atol=1e-7)


def test_opsd_as_printed_lowers_every_sampled_token():
  inputs = row([-1.0, -2.0], ref_logprobs=[-1.5, -0.5])
  value, grad = value_and_grad(distillation.opsd_paper(), inputs)
  np.testing.assert_allclose(value, (0.5 - 1.5) / 2, rtol=1e-6)
  np.testing.assert_allclose(grad, [0.5, 0.5], rtol=1e-6)


def test_mean_gap_is_minus_the_reverse_kl():
  inputs = row(jnp.log(POLICY), teacher_logprobs=jnp.log(TEACHER))
  values = distillation.self_distillation()(inputs).values[0]
  np.testing.assert_allclose(-jnp.sum(POLICY * values), 0.092033, atol=1e-6)


def forward_kl(logits):
  return jnp.sum(TEACHER * (jnp.log(TEACHER) - jax.nn.log_softmax(logits)))


def jensen_shannon(logits):
  policy = jax.nn.softmax(logits)
  middle = (policy + TEACHER) / 2

  def kl_to_middle(p):
    return jnp.sum(p * (jnp.log(p) - jnp.log(middle)))

  return (kl_to_middle(policy) + kl_to_middle(TEACHER)) / 2


@pytest.mark.parametrize(
  'name, divergence, number',
  [('forward_kl', forward_kl, 0.085123), ('jsd', jensen_shannon, 0.021901)],
)
def test_full_vocabulary_divergences_keep_value_and_gradient(
  name, divergence, number
):
  term = distillation.self_distillation(divergence=name)
  logits = jnp.log(POLICY)

  def loss(logits, gate=None):
    inputs = row([0.0, 0.0], teacher_logprobs=[0.3, 0.0])
    per_token = jnp.broadcast_to(divergence(logits), (1, 2))
    inputs = inputs.replace(**{name: per_token})
    out = (base.gate(term, gate) if gate else term)(inputs)
    return base.token_mean(out.values, inputs.mask).value()

  np.testing.assert_allclose(loss(logits), number, atol=1e-6)
  want = jax.grad(divergence)(logits)
  np.testing.assert_allclose(jax.grad(loss)(logits), want, atol=1e-6)
  gate = distillation.sigmoid_gap(beta=5.0)
  share = (jax.nn.sigmoid(1.5) + 0.5) / 2
  got = jax.grad(loss)(logits, gate)
  np.testing.assert_allclose(got, share * want, atol=1e-6)


@pytest.mark.parametrize(
  'd, log_rho, loss, gradient',
  [
    (0.5, 0.0, 0.106531, 0.5),
    (-0.5, 0.0, 0.148721, -0.5),
    (0.5, 0.2, 0.130117, 0.610701),
  ],
)
def test_skill_sd_numbers(d, log_rho, loss, gradient):
  inputs = row([-1.0], teacher_logprobs=[-1 - d], old_logprobs=[-1 - log_rho])
  value, grad = value_and_grad(distillation.skill_sd(), inputs)
  np.testing.assert_allclose(value, loss, atol=1e-6)
  np.testing.assert_allclose(grad, [gradient], atol=1e-6)


@pytest.mark.parametrize(
  'advantage, delta, weight, want',
  [
    (-1.2, 0.3, 0.8, -1.08),
    (1.2, 0.1, 1.105171, 1.263103),
    (1.5, -1.0, 0.8, 1.35),
    (0.0, 0.7, 1.0, 0.0),
  ],
)
def test_rlsd_numbers(advantage, delta, weight, want):
  inputs = row(
    [-2.0],
    old_logprobs=[-1.0],
    teacher_logprobs=[-1 + delta],
    advantages=[advantage],
  )
  out = distillation.rlsd_advantages()(inputs)
  np.testing.assert_allclose(out.values, [[want]], atol=1e-6)
  np.testing.assert_allclose(
    out.metrics['teacher_weight'], [[weight]], atol=1e-6
  )


def test_rlsd_fades_into_grpo():
  inputs = row(
    [-2.0], teacher_logprobs=[-1.0], old_logprobs=[-2.0], advantages=[1.0]
  )
  loss = recipes.rlsd(kl_weight=0.0)
  seen = [
    -float(loss(inputs.replace(step=jnp.asarray(step))).values[0, 0])
    for step in (0, 50, 100, 1000)
  ]
  np.testing.assert_allclose(seen, [1.1, 1.05, 1.0, 1.0], rtol=1e-6)


def test_soft_or_numbers():
  inputs = row(
    jnp.zeros(4),
    entropy=[1.2, 0.2, 0.2, 0.0],
    teacher_logprobs=[-0.3, -0.3, 0.3, 0.5],
  )
  got = distillation.soft_or(beta=5.0)(inputs).values[0]
  want = [0.998167, 0.450166, 0.900250, 0.924142]
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_soft_or_falls_in_the_gap_above_one_nat():
  inputs = row(jnp.zeros(2), entropy=[1.2, 1.2], teacher_logprobs=[-0.3, 0.3])
  low, high = distillation.soft_or(beta=5.0)(inputs).values[0]
  assert low > high


def test_entropy_gate_is_never_below_one_half():
  inputs = row(jnp.zeros(3), entropy=[0.0, 0.1, 3.0])
  got = distillation.sigmoid_entropy(beta=5.0)(inputs).values[0]
  np.testing.assert_allclose(got, jax.nn.sigmoid(5 * inputs.entropy[0]))
  assert got[0] == 0.5 and jnp.all(got >= 0.5)


@pytest.mark.parametrize('gate', sorted(distillation.GATES))
def test_gates_pass_no_gradient(gate, make_inputs):
  inputs = make_inputs()
  term = base.gate(
    distillation.self_distillation(), distillation.GATES[gate](beta=5.0)
  )

  def loss(logprobs, entropy, teacher_logprobs):
    changed = inputs.replace(
      logprobs=logprobs, entropy=entropy, teacher_logprobs=teacher_logprobs
    )
    return jnp.sum(term(changed).values)

  of = (inputs.logprobs, inputs.entropy, inputs.teacher_logprobs)
  grad, *others = jax.grad(loss, argnums=(0, 1, 2))(*of)
  has_skill = inputs.mask & inputs.teacher_mask[:, None]
  gates = jnp.where(has_skill, term(inputs).metrics['gate'], 0)
  np.testing.assert_allclose(grad, -gates, rtol=1e-6)
  for other in others:
    np.testing.assert_array_equal(other, 0)


TEACHER_TERMS = {
  'self_distillation': distillation.self_distillation,
  'forward_kl': lambda **k: distillation.self_distillation(
    divergence='forward_kl', **k
  ),
  'undetached_gap': lambda **k: distillation.undetached_gap(beta=5.0, **k),
  'opsd_policy_gradient': distillation.opsd_policy_gradient,
  'skill_sd': distillation.skill_sd,
}


@pytest.mark.parametrize('name', TEACHER_TERMS)
def test_rows_without_a_skill_are_left_out(name, make_inputs):
  inputs = make_inputs()
  acts = np.asarray(inputs.mask)
  skill = np.asarray(inputs.teacher_mask)[:, None]
  out = TEACHER_TERMS[name]()(inputs)
  assert np.all((np.asarray(out.values) != 0) == (acts & skill))
  np.testing.assert_array_equal(out.metrics['has_skill'], acts & skill)
  kept = TEACHER_TERMS[name](keep_empty_skill=True)(inputs).values
  assert np.all((np.asarray(kept) != 0) == acts)


def test_rlsd_keeps_the_advantage_of_rows_without_a_skill(make_inputs):
  inputs = make_inputs().replace(mask=jnp.ones((6, 7), bool))
  got = distillation.rlsd_advantages()(inputs).values
  same = np.all(np.asarray(got) == np.asarray(inputs.advantages), axis=1)
  np.testing.assert_array_equal(same, ~np.asarray(inputs.teacher_mask))


@pytest.mark.parametrize('logp, logp_t', [(-1e4, -1.0), (-1.0, -1e4)])
def test_the_gap_is_clamped_before_gate_and_product(logp, logp_t):
  inputs = row([logp], teacher_logprobs=[logp_t])
  value, grad = value_and_grad(gated(0.1), inputs)
  gap = np.clip(logp_t - logp, -20, 20)
  gate = 1 / (1 + np.exp(-0.1 * gap))
  np.testing.assert_allclose(value, gate * gap, rtol=1e-6)
  np.testing.assert_allclose(grad, [-gate], rtol=1e-6)


def test_skill_sd_survives_extreme_ratios():
  inputs = row(
    [-1e4, -1.0, -1.0],
    teacher_logprobs=[-1.0, -1e4, -1.0],
    old_logprobs=[-1.0, -1e4, -1e4],
  )
  value, grad = value_and_grad(distillation.skill_sd(), inputs)
  assert jnp.isfinite(value) and jnp.all(jnp.isfinite(grad))


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match='reverse_kl'):
    distillation.self_distillation(divergence='kl')
  with pytest.raises(ValueError, match='soft_or'):
    recipes.sdar(gate='softor')
  with pytest.raises(ValueError, match='undetached'):
    recipes.sdar(gate='undetached', divergence='jsd')
