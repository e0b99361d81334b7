"""Chunked scores against the plain form, and what is never in memory."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxagent.models import logprobs

B, T, D, V, U, E = 3, 11, 8, 37, 13, 6


@pytest.fixture(scope='module')
def data():
  keys = jax.random.split(jax.random.key(0), 7)
  normal = jax.random.normal
  mask = jax.random.uniform(keys[3], (B, T)) < 0.5
  return {
    'hidden': normal(keys[0], (B, T, D)),
    'unembedding': normal(keys[1], (D, V)) * 0.7,
    'tokens': jax.random.randint(keys[2], (B, T), 0, V),
    'mask': mask.at[0, 0].set(True).at[1].set(False).at[2, 5].set(True),
    'teacher': logprobs.Teacher(
      normal(keys[4], (B, U, E)),
      normal(keys[5], (E, V)) * 0.7,
      jnp.array([2, 0, 1]),
    ),
    'weights': normal(keys[6], (B, T)),
  }


def plain(hidden, unembedding, tokens, mask, teacher, temperature, top_k):
  """The definition, with every [B, T, V] array in memory."""
  at = jnp.maximum(jnp.arange(T) - 1, 0)
  mine = jax.nn.log_softmax(hidden[:, at] @ unembedding / temperature)
  there = jnp.minimum(at[None] + teacher.shift[:, None], U - 1)
  theirs = jnp.take_along_axis(teacher.hidden, there[..., None], axis=1)
  theirs = jax.nn.log_softmax(theirs @ teacher.unembedding / temperature)
  theirs = jax.lax.stop_gradient(theirs)
  p, q = jnp.exp(theirs), jnp.exp(mine)
  m = jnp.log((p + q) / 2)
  pick = lambda x, ids: jnp.take_along_axis(x, ids, axis=-1)  # noqa: E731
  ids = jax.lax.top_k(theirs, top_k)[1]
  out = {
    'logprobs': pick(mine, tokens[..., None])[..., 0],
    'entropy': -(q * mine).sum(-1),
    'teacher_logprobs': pick(theirs, tokens[..., None])[..., 0],
    'forward_kl': (p * (theirs - mine)).sum(-1),
    'jsd': ((p * (theirs - m)).sum(-1) + (q * (mine - m)).sum(-1)) / 2,
    'candidate': pick(mine, ids).sum(-1),
    'teacher_candidate': pick(theirs, ids).sum(-1),
  }
  seen = mask & (jnp.arange(T) > 0)[None]
  return {k: jnp.where(seen, v, 0) for k, v in out.items()}


def chunked(hidden, unembedding, tokens, mask, teacher, temperature, top_k):
  scores = logprobs.score(
    hidden,
    unembedding,
    tokens,
    mask,
    budget=24,
    chunk=7,
    temperature=temperature,
    teacher=teacher,
    top_k=top_k,
    needs=logprobs.OUTPUTS,
  )
  out = scores._asdict()
  candidates = out.pop('candidates')
  out['candidate'] = candidates.logprobs.sum(-1)
  out['teacher_candidate'] = candidates.teacher_logprobs.sum(-1)
  return out


@pytest.mark.parametrize('temperature', [1.0, 0.6])
def test_scores_and_their_gradients_equal_the_plain_form(data, temperature):
  data = dict(data)
  weights = data.pop('weights')
  rest = {k: data[k] for k in ('tokens', 'mask', 'teacher')}

  def run(fn, hidden, unembedding):
    out = fn(hidden, unembedding, **rest, temperature=temperature, top_k=4)
    return sum((v * weights).sum() * (i + 1) for i, v in enumerate(
      out[k] for k in sorted(out))), out  # fmt: skip

  results = []
  for fn in (chunked, plain):
    gradient = jax.grad(functools.partial(run, fn), (0, 1), has_aux=True)
    results.append(jax.jit(gradient)(data['hidden'], data['unembedding']))
  chex.assert_trees_all_close(*results, atol=1e-5, rtol=1e-5)
  assert jnp.abs(results[0][0][0]).max() > 0.1


def test_a_known_distribution():
  """Uniform over 4 tokens: log-prob -ln 4, entropy ln 4, no divergence."""
  hidden = jnp.zeros((1, 3, 2))
  unembedding = jnp.ones((2, 4))
  teacher = logprobs.Teacher(hidden, unembedding, jnp.array([0]))
  scores = logprobs.score(
    hidden,
    unembedding,
    jnp.array([[0, 1, 2]]),
    jnp.array([[True, False, True]]),
    budget=2,
    needs=logprobs.OUTPUTS - {'candidates'},
    teacher=teacher,
  )
  want = np.array([[0, 0, math.log(4)]])
  np.testing.assert_allclose(scores.logprobs, -want, atol=1e-6)
  np.testing.assert_allclose(scores.entropy, want, atol=1e-6)
  np.testing.assert_allclose(scores.forward_kl, 0 * want, atol=1e-6)
  np.testing.assert_allclose(scores.jsd, 0 * want, atol=1e-6)


def test_masked_positions_get_nothing_and_give_no_gradient(data):
  def total(hidden, mask):
    scores = logprobs.score(
      hidden, data['unembedding'], data['tokens'], mask, budget=33, chunk=8
    )
    return scores.logprobs.sum(), scores.logprobs

  run = jax.jit(jax.grad(total, has_aux=True))
  gradient, values = run(data['hidden'], data['mask'])
  seen = np.array(data['mask'])
  seen[:, 0] = False
  np.testing.assert_array_equal(values != 0, seen)
  used = np.zeros_like(seen)
  used[:, :-1] = seen[:, 1:]
  np.testing.assert_array_equal(np.abs(gradient).max(-1) > 0, used)
  nothing = jnp.zeros_like(data['mask'])
  gradient, values = run(data['hidden'], nothing)
  assert (values == 0).all() and (gradient == 0).all()


def test_what_does_not_fit_the_budget_is_not_silent(data):
  args = (data['hidden'], data['unembedding'], data['tokens'])
  full = jnp.ones((B, T), bool)
  scores = logprobs.score(*args, full, budget=20, chunk=5)
  assert jnp.isnan(scores.logprobs).sum() == B * (T - 1) - 20
  fits = logprobs.score(*args, full, budget=30, chunk=16)
  assert jnp.isfinite(fits.logprobs).all()


def test_buckets():
  assert logprobs.bucket(5, (32, 8, 16)) == 8
  assert logprobs.bucket(16, (32, 8, 16)) == 16
  with pytest.raises(ValueError, match='33 action positions'):
    logprobs.bucket(33, (32, 8, 16))


@pytest.mark.parametrize(
  'change, match',
  [
    ({'needs': frozenset({'ref_logprobs'})}, 'ref_logprobs'),
    ({'needs': frozenset({'jsd'}), 'teacher': None}, 'need a teacher'),
    ({'needs': frozenset({'candidates'})}, 'top_k'),
  ],
)
def test_impossible_requests_are_refused(data, change, match):
  args = {k: data[k] for k in ('hidden', 'unembedding', 'tokens', 'mask')}
  kwargs = args | {'teacher': data['teacher'], 'budget': 8} | change
  with pytest.raises(ValueError, match=match):
    logprobs.score(**kwargs)


def test_two_vocabularies_are_refused(data):
  args = {k: data[k] for k in ('hidden', 'unembedding', 'tokens', 'mask')}
  odd = data['teacher']._replace(unembedding=jnp.ones((E, V + 1)))
  with pytest.raises(ValueError, match='one vocabulary'):
    logprobs.score(**args, budget=8, teacher=odd)


def _sizes(jaxpr):
  """Sizes of all values of a jaxpr, inner ones included."""
  for equation in jaxpr.eqns:
    for value in equation.outvars:
      yield math.prod(value.aval.shape)
    for parameter in jax.tree.leaves(
      equation.params, is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      inner = getattr(parameter, 'jaxpr', parameter)
      if hasattr(inner, 'eqns'):
        yield from _sizes(inner)


@pytest.mark.parametrize('needs', [frozenset(), logprobs.OUTPUTS])
def test_no_array_of_all_positions_by_the_vocabulary(needs):
  b, t, d, v, n, chunk = 4, 64, 8, 1000, 64, 16
  shape = lambda *s, dtype='float32': jax.ShapeDtypeStruct(s, dtype)  # noqa: E731

  def loss(hidden, unembedding, tokens, mask, teacher):
    scores = logprobs.score(
      hidden,
      unembedding,
      tokens,
      mask,
      budget=n,
      chunk=chunk,
      needs=needs,
      teacher=teacher,
      top_k=3,
    )
    return sum(x.sum() for x in jax.tree.leaves(scores) if x.dtype == 'float32')

  args = (
    shape(b, t, d),
    shape(d, v),
    shape(b, t, dtype='int32'),
    shape(b, t, dtype='bool'),
    logprobs.Teacher(shape(b, t, d), shape(d, v), shape(b, dtype='int32')),
  )
  closed = jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(*args)
  sizes = list(_sizes(closed.jaxpr))
  assert chunk * v in sizes  # the walk does see the logits of a chunk
  assert max(sizes) <= chunk * v
  assert max(sizes) < n * v < b * t * v
