"""A random batch with every optional field, for the tests of losses."""

import jax
import jax.numpy as jnp
import pytest

from jaxagent import types


@pytest.fixture(scope='session')
def make_inputs():
  """`make_inputs(seed=0, rows=6, length=7) -> LossInputs`, all fields filled."""
  return _make_inputs


def _make_inputs(seed=0, rows=6, length=7):
  keys = iter(jax.random.split(jax.random.key(seed), 10))
  shape = (rows, length)
  logprobs = -3 * jax.random.uniform(next(keys), shape)

  def near(scale):
    return logprobs + scale * jax.random.normal(next(keys), shape)

  logits = jax.random.normal(jax.random.key(seed + 1000), (2, *shape, 9))
  scores = jax.nn.log_softmax(2 * logits)
  teacher, ids = jax.lax.top_k(scores[1], 5)
  return types.LossInputs(
    logprobs=logprobs,
    old_logprobs=near(0.3),
    advantages=jax.random.normal(next(keys), shape),
    mask=jax.random.bernoulli(next(keys), 0.6, shape),
    step=jnp.asarray(3),
    entropy=2 * jax.random.uniform(next(keys), shape),
    ref_logprobs=near(0.5),
    teacher_logprobs=near(1.0),
    teacher_mask=jnp.arange(rows) % 3 != 1,
    forward_kl=jax.random.uniform(next(keys), shape),
    jsd=0.5 * jax.random.uniform(next(keys), shape),
    candidates=types.Candidates(
      ids=ids,
      logprobs=jnp.take_along_axis(scores[0], ids, axis=-1),
      teacher_logprobs=teacher,
    ),
  )
