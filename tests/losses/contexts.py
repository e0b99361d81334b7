"""One context with a student and a teacher, for the tests of distillation."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxagent import types

STUDENT = jnp.asarray([0.5, 0.2, 0.15, 0.1, 0.05])
TEACHER = jnp.asarray([0.3, 0.4, 0.05, 0.2, 0.05])
REFERENCE = jnp.asarray([0.45, 0.25, 0.15, 0.1, 0.05])
# A token that the teacher likes and the student ignores.
HOLE_STUDENT = jnp.asarray([0.9, 0.0999, 0.0001])
HOLE_TEACHER = jnp.asarray([0.1, 0.4, 0.5])
ZERO = jnp.full((), -jnp.inf)  # the log-probability of what cannot be
ALL = [0, 1, 2, 3, 4]


def inputs_of(log_student, log_teacher, y, *, k, mask=None, **fields):
  """Rows of tokens `y` [B, T], all in the context of two distributions [V]."""
  y = jnp.asarray(y)
  y = y[None] if y.ndim == 1 else y
  ids = jnp.argsort(-log_teacher, stable=True)[: min(k, len(log_teacher))]
  whole = jnp.broadcast_to(ids, (*y.shape, len(ids)))
  zeros = jnp.zeros(y.shape)
  logprobs = log_student[y]
  made = types.LossInputs(
    logprobs=logprobs,
    old_logprobs=jax.lax.stop_gradient(logprobs),
    advantages=zeros,
    mask=jnp.ones(y.shape, bool) if mask is None else jnp.asarray(mask, bool),
    step=jnp.asarray(0),
    ref_logprobs=jnp.log(REFERENCE)[jnp.minimum(y, 4)],
    teacher_logprobs=log_teacher[y],
    teacher_mask=jnp.ones(len(y), bool),
    candidates=types.Candidates(
      ids=whole.astype(jnp.int32),
      logprobs=log_student[whole],
      teacher_logprobs=log_teacher[whole],
    ),
  )
  return made.replace(**fields)


def at_logits(loss, y, *, k=2, student=STUDENT, teacher=TEACHER, **fields):
  """Sum of the token losses of `y`, and its gradient at the logits."""

  def total(logits, log_teacher):
    inputs = inputs_of(
      jax.nn.log_softmax(logits), log_teacher, y, k=k, **fields
    )
    return loss(inputs).values.sum()

  run = jax.value_and_grad(total)
  return run(jnp.log(student), jnp.log(teacher))


def expected_gradient(loss, *, student=STUDENT, **kw):
  """E[d loss / d logits] over tokens drawn from the student."""
  gradients = [
    p * at_logits(loss, [y], student=student, **kw)[1]
    for y, p in enumerate(student)
  ]
  return sum(gradients)


def kl(p, q):
  return jnp.sum(p * (jnp.log(p) - jnp.log(q)))


def close(got, want, atol=1e-6):
  np.testing.assert_allclose(got, want, atol=atol)


def bits(loss, inputs):
  """Values and both gradients of a loss, on many random rows."""

  def total(logprobs, candidates):
    x = inputs.replace(
      logprobs=logprobs,
      candidates=inputs.candidates.replace(logprobs=candidates),
    )
    values = loss(x).values
    return values.sum(), values

  run = jax.jit(jax.grad(total, (0, 1), has_aux=True))
  return run(inputs.logprobs, inputs.candidates.logprobs)
