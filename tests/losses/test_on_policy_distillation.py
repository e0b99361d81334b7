"""The identities and test vectors of AOPD and its baselines (2605.06387)."""

import functools

import contexts
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxagent import types
from jaxagent.losses import base, recipes
from jaxagent.losses import on_policy_distillation as distil

# --- identity 1: advantage and gate ------------------------------------------


def test_advantage_and_gate():
  inputs = contexts.inputs_of(
    jnp.log(contexts.STUDENT), jnp.log(contexts.TEACHER), contexts.ALL, k=2
  )
  out = distil.imitation_gate()(inputs)
  want = [-0.510826, 0.693147, -1.098612, 0.693147, 0]
  contexts.close(out.metrics['gap'][0], want)
  np.testing.assert_array_equal(out.values[0], [1, 0, 1, 0, 1])
  contexts.close(contexts.kl(contexts.STUDENT, contexts.TEACHER), 0.212261)
  contexts.close(contexts.kl(contexts.TEACHER, contexts.STUDENT), 0.207710)


def test_metrics_tell_the_branches_apart():
  inputs = contexts.inputs_of(
    jnp.log(contexts.STUDENT), jnp.log(contexts.TEACHER), contexts.ALL, k=2
  )
  metrics = recipes.aopd(top_k=2)(inputs).metrics
  gap = metrics['aopd/gap'][0]
  np.testing.assert_array_equal(metrics['aopd/gate'][0], [1, 0, 1, 0, 1])
  np.testing.assert_array_equal(metrics['aopd/near_zero'][0], [0, 0, 0, 0, 1])
  contexts.close(metrics['aopd/teacher_mass'][0], [0.7] * 5)
  nan = jnp.nan
  for name, want in (
    ('gap_imitated', [gap[0], nan, gap[2], nan, 0]),
    ('gap_reinforced', [nan, gap[1], nan, gap[3], nan]),
  ):
    np.testing.assert_array_equal(metrics[f'aopd/{name}'][0], want)


# --- identity 2: forward KL on the teacher's top K ---------------------------


@pytest.mark.parametrize(
  'k, scale, renorm, value, gradient',
  [
    (2, 'one', False, 0.124011, [0.05, -0.26, 0.105, 0.07, 0.035]),
    (2, 'inv_k', False, 0.0620056, [0.025, -0.13, 0.0525, 0.035, 0.0175]),
    (2, 'one', True, 0.177159, [0.285714, -0.285714, 0, 0, 0]),
    (5, 'one', False, 0.207710, [0.2, -0.2, 0.1, -0.1, 0]),
    (5, 'one', True, 0.207710, [0.2, -0.2, 0.1, -0.1, 0]),
    (5, 'inv_k', False, 0.207710 / 5, [0.04, -0.04, 0.02, -0.02, 0]),
  ],
)
def test_forward_kl(k, scale, renorm, value, gradient):
  term = distil.forward_kl_top_k(top_k=k, fkl_scale=scale, renorm=renorm)
  got = contexts.at_logits(term, [2], k=k)
  contexts.close(got[0], value)
  contexts.close(got[1], gradient)


def test_forward_kl_reads_only_its_own_k():
  """Another term of the sum may have asked for more candidates."""
  narrow = contexts.at_logits(distil.forward_kl_top_k(top_k=2), [0], k=2)
  wide = contexts.at_logits(distil.forward_kl_top_k(top_k=2), [0], k=5)
  np.testing.assert_array_equal(narrow[0], wide[0])
  np.testing.assert_array_equal(narrow[1], wide[1])


@pytest.mark.parametrize('scale', ['one', 'inv_k'])
def test_k_beyond_the_vocabulary_is_the_vocabulary(scale):
  for renorm in (False, True):
    some = dict(fkl_scale=scale, renorm=renorm)
    want = contexts.at_logits(
      distil.forward_kl_top_k(top_k=5, **some), [0], k=5
    )
    got = contexts.at_logits(
      distil.forward_kl_top_k(top_k=32, **some), [0], k=32
    )
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def test_ties_in_the_top_k_are_of_no_account():
  """Either of two equal tokens: the same value where the student ties too."""
  teacher, student = jnp.array([0.4, 0.3, 0.3]), jnp.array([0.5, 0.25, 0.25])
  term = distil.forward_kl_top_k(top_k=2)
  values = []
  for order in ([0, 1], [0, 2]):
    inputs = contexts.inputs_of(jnp.log(student), jnp.log(teacher), [0], k=2)
    ids = jnp.asarray(order)[None, None]
    candidates = types.Candidates(
      ids, jnp.log(student)[ids], jnp.log(teacher)[ids]
    )
    values.append(term(inputs.replace(candidates=candidates)).values)
  assert jnp.isfinite(values[0]).all()
  np.testing.assert_array_equal(*values)


# --- identity 6: a raw sum may be negative -----------------------------------


def test_a_negative_forward_kl_keeps_its_gradient():
  got = contexts.at_logits(
    distil.forward_kl_top_k(top_k=1),
    [0],
    k=1,
    student=jnp.array([0.6, 0.2, 0.2]),
    teacher=jnp.array([0.4, 0.3, 0.3]),
  )
  contexts.close(got[0], -0.162186)
  contexts.close(got[1], [-0.16, 0.08, 0.08])


# --- identity 3: policy gradient ----------------------------------------------


@pytest.mark.parametrize(
  'y, value, gradient',
  [
    (0, -0.354077, [0.255413, -0.102165, -0.076624, -0.051083, -0.025541]),
    (1, 1.115577, [0.346574, -0.554518, 0.103972, 0.069315, 0.034657]),
  ],
)
def test_opd(y, value, gradient):
  got = contexts.at_logits(distil.opd(), [y])
  contexts.close(got[0], value)
  contexts.close(got[1], gradient)


def test_expected_opd_descends_the_reverse_kl():
  got = contexts.expected_gradient(distil.opd())
  contexts.close(got, [0.149283, -0.181082, 0.132953, -0.090541, -0.010613])
  want = jax.grad(lambda z: contexts.kl(jax.nn.softmax(z), contexts.TEACHER))(
    jnp.log(contexts.STUDENT)
  )
  contexts.close(got, want)


def test_options_of_the_policy_gradient():
  clipped = contexts.at_logits(distil.opd(advantage_clip=0.5), [1])[1]
  plain = contexts.at_logits(distil.opd(), [1])[1]
  contexts.close(clipped, plain * 0.5 / 0.693147)
  inputs = contexts.inputs_of(
    jnp.log(contexts.STUDENT), jnp.log(contexts.TEACHER), [1], k=2
  )
  stale = inputs.replace(old_logprobs=inputs.logprobs - jnp.log(1.5))
  want = distil.opd()(inputs).values
  contexts.close(distil.opd(importance=True)(stale).values, 1.5 * want)
  contexts.close(distil.opd(importance=True)(inputs).values, want)
  gradient = jax.grad(
    lambda lp: distil.opd(importance=True)(stale.replace(logprobs=lp))
    .values.sum()
  )(stale.logprobs)  # fmt: skip
  contexts.close(gradient, [[-1.5 * 0.693147]])


# --- identity 4: AOPD ----------------------------------------------------------

AOPD = recipes.aopd(top_k=2)


def test_aopd_by_token_and_in_expectation():
  inputs = contexts.inputs_of(
    jnp.log(contexts.STUDENT), jnp.log(contexts.TEACHER), contexts.ALL, k=2
  )
  want = [0.0620056, 1.115577, 0.0620056, 1.596030, 0.0620056]
  contexts.close(AOPD(inputs).values[0], want)
  want = [0.121472, -0.188041, 0.067942, -0.024020, 0.022647]
  contexts.close(contexts.expected_gradient(AOPD), want)


def rows_of_two_lengths(extra=0):
  """Rows (0, 1) and (1, 3, 2, 0), and `extra` empty ones."""
  y = jnp.asarray([[0, 1, 2, 3], [1, 3, 2, 0]] + [[0] * 4] * extra)
  mask = [[1, 1, 0, 0], [1, 1, 1, 1]] + [[0] * 4] * extra
  return contexts.inputs_of(
    jnp.log(contexts.STUDENT), jnp.log(contexts.TEACHER), y, k=2, mask=mask
  )


@pytest.mark.parametrize('extra', [0, 1])
def test_rows_are_averaged_by_their_own_length(extra):
  inputs = rows_of_two_lengths(extra)
  values = AOPD(inputs).values
  means = values.sum(1) / inputs.mask.sum(1).clip(1).astype(float)
  contexts.close(means, [0.588791, 0.708905] + [0] * extra)
  contexts.close(base.sequence_mean(values, inputs.mask).value(), 0.648848)
  contexts.close(base.token_mean(values, inputs.mask).value(), 0.668867)


def test_rows_add_up_over_microbatches():
  inputs = rows_of_two_lengths(extra=1)
  values = AOPD(inputs).values
  parts = [
    base.sequence_mean(values[b : b + 1], inputs.mask[b : b + 1])
    for b in range(3)
  ]
  total = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts)
  contexts.close(total.value(), 0.648848)


def test_what_the_student_did_not_write_is_in_neither_branch():
  inputs = rows_of_two_lengths()
  junk = inputs.replace(
    teacher_logprobs=jnp.where(inputs.mask, inputs.teacher_logprobs, jnp.nan)
  )
  np.testing.assert_array_equal(AOPD(junk).values, AOPD(inputs).values)
  np.testing.assert_array_equal(AOPD(inputs).values[0, 2:], 0)
  none = inputs.replace(mask=jnp.zeros_like(inputs.mask))
  assert base.sequence_mean(AOPD(none).values, none.mask).value() == 0


# --- identity 5: ends of tau, and where gradients go ---------------------------


@pytest.mark.parametrize('k', [2, 5])
@pytest.mark.parametrize(
  'tau, other',
  [(-1.0, distil.opd()), (-7, distil.opd()), (1, None), (9.0, None)],
)
def test_both_ends_of_tau_bit_for_bit(tau, other, k, make_inputs):
  other = other or distil.forward_kl_top_k(top_k=k)
  inputs = make_inputs(seed=3)
  got = contexts.bits(recipes.aopd(tau=tau, top_k=k), inputs)
  want = contexts.bits(other, inputs)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(a, b)
  assert np.abs(jax.tree.leaves(want)[-1]).max() > 0


@pytest.mark.parametrize('tau, want', [(-1, 0), (-1.0, 0), (1, 1)])
def test_ends_of_tau_hold_where_probabilities_underflow(tau, want):
  """P_S = 1 and P_T = 0: the literal test would say imitate at tau = -1."""
  inputs = contexts.inputs_of(jnp.array([0.0]), jnp.array([-1e3]), [0], k=1)
  assert distil.imitation_gate(tau=tau)(inputs).values[0, 0] == want


def test_no_gradient_reaches_the_teacher(make_inputs):
  inputs = make_inputs(seed=4)
  losses = [AOPD, recipes.opd(), recipes.exopd()]
  losses += [recipes.gkd(beta=beta) for beta in (0.0, 0.3, 1.0)]

  def total(data):
    return sum(loss(inputs.replace(**data)).values.sum() for loss in losses)

  data = dict(
    teacher_logprobs=inputs.teacher_logprobs,
    ref_logprobs=inputs.ref_logprobs,
    old_logprobs=inputs.old_logprobs,
    candidates=inputs.candidates,
  )
  gradient = jax.grad(total, allow_int=True)(data)
  gradient['candidates'] = gradient['candidates'].teacher_logprobs
  for name, x in gradient.items():
    np.testing.assert_array_equal(x, 0, err_msg=name)


def test_advantage_and_gate_are_constants():
  """Written with numbers in their place, the gradient is the same."""
  tokens = jnp.asarray(contexts.ALL)
  inputs = contexts.inputs_of(
    jnp.log(contexts.STUDENT), jnp.log(contexts.TEACHER), contexts.ALL, k=2
  )
  advantage = np.asarray(jnp.log(contexts.TEACHER) - jnp.log(contexts.STUDENT))
  gate = np.asarray([1, 0, 1, 0, 1], np.float32)

  def by_hand(logits):
    ours, theirs = jax.nn.log_softmax(logits), jnp.log(contexts.TEACHER)
    ids = inputs.candidates.ids[0, 0]
    kl = jnp.sum(jnp.exp(theirs[ids]) * (theirs[ids] - ours[ids])) / 2
    return jnp.sum(gate * kl - (1 - gate) * advantage * ours[tokens])

  contexts.close(
    contexts.at_logits(AOPD, contexts.ALL)[1],
    jax.grad(by_hand)(jnp.log(contexts.STUDENT)),
  )


# --- identity 7: Eq. 11 ---------------------------------------------------------


def gkd(beta):
  return distil.jsd_top_k(beta=beta, top_k=5, fkl_scale='one')


@pytest.mark.parametrize(
  'beta, want',
  [
    (0.1, 0.0185722),
    (0.5, 0.0511996),
    (0.9, 0.0188716),
    # Eq. 11 is 0 at both ends; there the paper's words hold.
    (1.0, 0.207710),
    (0.0, 0.212261),
    (1, 0.207710),
    (0, 0.212261),
  ],
)
def test_jsd_values(beta, want):
  contexts.close(contexts.at_logits(gkd(beta), [0], k=5)[0], want)


def test_scaled_limits_of_the_jsd():
  contexts.close(
    contexts.at_logits(gkd(1 - 1e-3), [0], k=5)[0] / 1e-3, 0.212260, atol=2e-3
  )
  contexts.close(
    contexts.at_logits(gkd(1e-3), [0], k=5)[0] / 1e-3, 0.207710, atol=2e-3
  )


@pytest.mark.parametrize('beta', [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize('renorm', [False, True])
def test_jsd_gradients(beta, renorm):
  def plain(logits):
    p, q = contexts.TEACHER, jax.nn.softmax(logits)
    if beta in (0.0, 1.0):
      return contexts.kl(p, q) if beta else contexts.kl(q, p)
    m = beta * p + (1 - beta) * q
    return beta * contexts.kl(p, m) + (1 - beta) * contexts.kl(q, m)

  term = distil.jsd_top_k(beta=beta, top_k=5, fkl_scale='one', renorm=renorm)
  value, gradient = contexts.at_logits(term, [0], k=5)
  contexts.close(value, plain(jnp.log(contexts.STUDENT)))
  contexts.close(gradient, jax.grad(plain)(jnp.log(contexts.STUDENT)))


@pytest.mark.parametrize('beta', [0.1, 0.5, 0.9])
def test_a_cut_jsd_is_never_negative_and_0_at_the_teacher(beta, make_inputs):
  inputs = make_inputs(seed=6)
  assert (distil.jsd_top_k(beta=beta)(inputs).values >= -1e-6).all()
  mine = inputs.candidates.replace(logprobs=inputs.candidates.teacher_logprobs)
  same = inputs.replace(candidates=mine)
  contexts.close(distil.jsd_top_k(beta=beta)(same).values, 0)
  _, (_, gradient) = contexts.bits(distil.jsd_top_k(beta=beta), same)[::-1]
  contexts.close(gradient, 0)


def test_aopd_at_tau_1_is_the_forward_kl_arm_of_gkd(make_inputs):
  inputs = make_inputs(seed=7)
  got = recipes.aopd(tau=1, top_k=3)(inputs).values
  want = recipes.gkd(beta=1.0, top_k=3)(inputs).values
  np.testing.assert_array_equal(got, want)


# --- identity 8: the black hole --------------------------------------------------


def test_policy_gradient_leaves_an_ignored_token_ignored():
  hole = dict(student=contexts.HOLE_STUDENT, teacher=contexts.HOLE_TEACHER)
  inputs = contexts.inputs_of(
    jnp.log(contexts.HOLE_STUDENT), jnp.log(contexts.HOLE_TEACHER), [0], k=2
  )
  gap = distil.imitation_gate()(inputs).metrics['gap']
  contexts.close(gap, [[-2.197225]])
  scaled = dict(atol=2e-6)
  opd = -contexts.at_logits(distil.opd(), [0], **hole)[1]
  contexts.close(opd, [-0.219722, 0.219503, 0.000220], **scaled)
  whole = distil.forward_kl_top_k(top_k=3, fkl_scale='one')
  contexts.close(
    -contexts.at_logits(whole, [0], k=3, **hole)[1], [-0.8, 0.3001, 0.4999]
  )
  aopd = -contexts.at_logits(AOPD, [0], **hole)[1]
  contexts.close(aopd, [-0.405, 0.155045, 0.249955])
  assert aopd[2] > 1000 * opd[2]


# --- identity 9: ExOPD -----------------------------------------------------------


def exopd_advantage(student, **kw):
  inputs = contexts.inputs_of(
    jnp.log(student), jnp.log(contexts.TEACHER), contexts.ALL, k=2
  )
  values = distil.exopd(**kw)(inputs).values[0]
  return -values / jnp.log(student)


def test_exopd():
  want = [-0.612192, 0.810648, -1.373265, 0.866434, 0]
  contexts.close(exopd_advantage(contexts.STUDENT), want)
  inputs = contexts.inputs_of(
    jnp.log(contexts.STUDENT), jnp.log(contexts.TEACHER), contexts.ALL, k=2
  )
  np.testing.assert_array_equal(
    distil.exopd(extrapolation=1)(inputs).values, distil.opd()(inputs).values
  )


def test_fixed_point_of_exopd():
  fixed = contexts.REFERENCE * (contexts.TEACHER / contexts.REFERENCE) ** 1.25
  fixed = fixed / fixed.sum()
  contexts.close(fixed, [0.258964, 0.429766, 0.036294, 0.227211, 0.047765])
  contexts.close(exopd_advantage(fixed), [0.045725] * 5)
  contexts.close(
    contexts.expected_gradient(distil.exopd(), student=fixed), [0] * 5
  )
