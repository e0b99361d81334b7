"""Edge cases of on-policy distillation (2605.06387), and its options."""

import contexts
import jax.numpy as jnp
import numpy as np
import pytest

from jaxagent.losses import on_policy_distillation as distil
from jaxagent.losses import recipes

AOPD = recipes.aopd(top_k=2)


def test_a_token_that_the_teacher_rules_out():
  """The gate is 1, and nothing of the other branch leaks."""
  teacher = jnp.array([0.6, 0.4, 0.0])
  student = jnp.array([0.3, 0.3, 0.4])
  value, gradient = contexts.at_logits(
    AOPD, [2], student=student, teacher=teacher
  )
  want = contexts.at_logits(
    distil.forward_kl_top_k(top_k=2), [2], student=student, teacher=teacher
  )
  assert value == want[0] and jnp.isfinite(gradient).all()
  np.testing.assert_array_equal(gradient, want[1])
  bound = contexts.at_logits(
    distil.opd(), [2], student=student, teacher=teacher
  )
  contexts.close(
    bound[1], (-30 - jnp.log(0.4)) * -(jnp.eye(3)[2] - student), 1e-4
  )


@pytest.mark.parametrize('renorm', [False, True])
@pytest.mark.parametrize('beta', [0.5, 1.0])
def test_fewer_than_k_tokens_with_mass(beta, renorm):
  """0 log 0 is 0."""
  student = jnp.array([0.5, 0.3, 0.2])
  some = dict(student=student, teacher=jnp.array([0.7, 0.3, 0.0]))
  sharp = distil.jsd_top_k(beta=beta, top_k=3, fkl_scale='one', renorm=renorm)
  value, gradient = contexts.at_logits(sharp, [0], k=3, **some)
  p = some['teacher']
  m = beta * p + (1 - beta) * student
  halves = beta * (p[:2] * jnp.log(p / m)[:2]).sum()
  halves += (
    (1 - beta) * (student * jnp.log(student / m)).sum() if beta < 1 else 0
  )
  if beta == 1:
    halves = (p[:2] * jnp.log(p / student)[:2]).sum()
  contexts.close(value, halves)
  assert jnp.isfinite(gradient).all()


def test_a_student_that_rules_a_candidate_out_stays_finite():
  log_student = jnp.array([-0.5, -0.932752, contexts.ZERO])
  inputs = contexts.inputs_of(
    log_student, jnp.log(contexts.HOLE_TEACHER), [0, 1], k=3
  )
  for beta in (0.0, 0.5, 1.0):
    values, gradients = contexts.bits(recipes.aopd(beta=beta, top_k=3), inputs)[
      ::-1
    ]
    for x in (values, *gradients):
      assert jnp.isfinite(x).all()


@pytest.mark.parametrize('bump, gate', [(0, 1), (2e-7, 0), (-2e-7, 1)])
def test_an_advantage_of_0_is_imitated(bump, gate):
  inputs = contexts.inputs_of(
    jnp.log(contexts.STUDENT), jnp.log(contexts.STUDENT), [0], k=2
  )
  inputs = inputs.replace(teacher_logprobs=inputs.logprobs + bump)
  assert distil.imitation_gate()(inputs).values[0, 0] == gate


def test_the_gate_is_decided_by_what_it_is_given_in_float32():
  """bfloat16 would map .5004 and .4996 to one value."""
  student, teacher = jnp.array([0.4996]), jnp.array([0.5004])
  inputs = contexts.inputs_of(jnp.log(student), jnp.log(teacher), [0], k=1)
  assert distil.imitation_gate()(inputs).values[0, 0] == 0
  assert student.astype(jnp.bfloat16) == teacher.astype(jnp.bfloat16)


@pytest.mark.parametrize(
  'arguments, want',
  [
    ({}, [1, 0, 1, 0, 1]),
    ({'tau': -0.15}, [1, 0, 0, 0, 0]),
    ({'tau': 0.15}, [1, 0, 1, 1, 1]),
    ({'location': 'zero'}, [0, 0, 0, 0, 1]),
    ({'location': 'zero', 'near': 0.15}, [0, 0, 1, 1, 1]),
  ],
)
def test_where_to_imitate(arguments, want):
  inputs = contexts.inputs_of(
    jnp.log(contexts.STUDENT), jnp.log(contexts.TEACHER), contexts.ALL, k=2
  )
  gate = distil.imitation_gate(**arguments)(inputs).values
  np.testing.assert_array_equal(gate[0], want)


def test_the_accuracy_filter_spares_rows_that_succeeded():
  inputs = contexts.inputs_of(
    jnp.log(contexts.STUDENT),
    jnp.log(contexts.TEACHER),
    [contexts.ALL, contexts.ALL],
    k=2,
  )
  inputs = inputs.replace(
    advantages=jnp.broadcast_to(jnp.array([[1.0], [0.0]]), (2, 5))
  )
  gate = distil.imitation_gate(location='wrong')(inputs).values
  np.testing.assert_array_equal(gate, [[0] * 5, [1, 0, 1, 0, 1]])
  values = recipes.aopd(location='wrong', top_k=2)(inputs).values
  np.testing.assert_array_equal(values[0], distil.opd()(inputs).values[0])


def test_rows_without_a_skill_have_no_teacher_of_their_own(make_inputs):
  inputs = make_inputs(seed=8)
  values = recipes.aopd(keep_empty_skill=False)(inputs).values
  skill = np.asarray(inputs.teacher_mask)
  np.testing.assert_array_equal(values[~skill], 0)
  want = recipes.aopd()(inputs).values
  np.testing.assert_array_equal(values[skill], want[skill])
  assert np.abs(want[~skill]).max() > 0


@pytest.mark.parametrize(
  'make, told',
  [
    (lambda: recipes.gkd(fkl_scale='k'), 'inv_k'),
    (lambda: recipes.gkd(beta=1.5), 'beta=1.5'),
    (lambda: recipes.gkd(top_k=0), 'top_k=0'),
    (lambda: recipes.aopd(location='positive'), 'negative'),
  ],
)
def test_what_cannot_be_is_refused(make, told):
  with pytest.raises(ValueError, match=told):
    make()
