"""Terms, the combinators that compose them, and the reducers.

A term is any per-token quantity together with the optional `LossInputs` fields
it reads: a loss, a gate, or an advantage. Terms never reduce. `term` builds
one out of plain arithmetic and keeps the numerical promises of all of them:

* a masked token has value 0, metrics 0 and gradient 0, whatever stands there;
* arithmetic is at least float32;
* an infinite input counts as +-1e4, without gradient;
* a token with a NaN in a field that the term reads contributes nothing.
"""

from collections.abc import Callable, Iterable
import functools
import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import optax

from jaxagent import types

Scalar = float | int
# A constant, `(start, end, steps)` for a linear ramp, or an optax schedule.
Weight = float | int | tuple | Callable

_INFINITY = 1e4  # nats: e^-1e4 is 0 in any float, and sums stay finite
_ALWAYS_READ = ('logprobs', 'old_logprobs', 'advantages')


def term(
  fn: Callable[[types.LossInputs], types.TokenLoss],
  needs: Iterable[str] = (),
  *,
  top_k: int = 0,
) -> types.LossTerm:
  """Makes a term of arithmetic that need not care about masks or NaN.

  Args:
    fn: per-token arithmetic on inputs that are finite everywhere.
    needs: names of the optional `LossInputs` fields that `fn` reads.
    top_k: how many of the candidates `fn` reads, the first ones; it may be
      given more, and gets fewer where the vocabulary has no more.

  Returns:
    The term, with the promises of this module.
  """
  needs = frozenset(needs)

  def safe(inputs):
    clean = _clean(inputs, needs)
    out = fn(clean)
    return jax.tree.map(lambda x: jnp.where(clean.mask, x, 0), out)

  return types.LossTerm(safe, needs, top_k)


def _composed(fn, *terms):
  """A term that reads whatever any of `terms` reads."""
  needs = frozenset().union(*(t.needs for t in terms))
  return types.LossTerm(fn, needs, max(t.top_k for t in terms))


def _clean(inputs, needs):
  """Finite float32 fields, and a mask without the tokens that hold a NaN."""

  def is_per_token(x):
    return jnp.issubdtype(x.dtype, jnp.floating) and x.ndim >= 2

  mask = inputs.mask
  for name in (*_ALWAYS_READ, *needs):
    for leaf in jax.tree.leaves(getattr(inputs, name)):
      if is_per_token(leaf):
        axes = tuple(range(2, leaf.ndim))
        mask = mask & ~jnp.any(jnp.isnan(leaf), axis=axes)

  def finite(x):
    if not is_per_token(x):
      return x
    if jnp.finfo(x.dtype).bits < 32:
      x = x.astype(jnp.float32)
    x = jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, 0)
    return jnp.nan_to_num(x, posinf=_INFINITY, neginf=-_INFINITY)

  return jax.tree.map(finite, inputs).replace(mask=mask)


def add(**terms: types.LossTerm) -> types.LossTerm:
  """Sums named terms.

  Args:
    **terms: at least one; the name prefixes the term's metrics, to which
      `<name>/loss`, its own share of the sum, is added.

  Returns:
    The sum; it needs what any of its terms needs.
  """
  if not terms:
    raise ValueError('add() got no terms; give at least one, as name=term.')

  def fn(inputs):
    outs = {name: term(inputs) for name, term in terms.items()}
    metrics = {
      f'{name}/{key}': value
      for name, out in outs.items()
      for key, value in {**out.metrics, 'loss': out.values}.items()
    }
    values = functools.reduce(operator.add, (o.values for o in outs.values()))
    return types.TokenLoss(values, metrics)

  return _composed(fn, *terms.values())


def scale(term: types.LossTerm, weight: Weight) -> types.LossTerm:
  """Multiplies a term by a weight that may depend on the training step."""

  def fn(inputs):
    out = term(inputs)
    return out.replace(values=weight_at(weight, inputs.step) * out.values)

  return _composed(fn, term)


def gate(term: types.LossTerm, by: types.LossTerm) -> types.LossTerm:
  """Multiplies each token of a term by a detached gate.

  Args:
    term: the loss.
    by: a term whose values are the gate, in [0, 1]. No gradient enters it.

  Returns:
    The product. Metrics gain `gate` and `gate_open`, 1 where gate > 1/2.
  """

  def fn(inputs):
    out, opening = term(inputs), by(inputs)
    opening = jax.lax.stop_gradient(opening)
    is_open = (opening.values > 0.5).astype(opening.values.dtype)
    metrics = {
      **out.metrics,
      **opening.metrics,
      'gate': opening.values,
      'gate_open': is_open,
    }
    return types.TokenLoss(opening.values * out.values, metrics)

  return _composed(fn, term, by)


def choose(
  by: types.LossTerm, then: types.LossTerm, otherwise: types.LossTerm
) -> types.LossTerm:
  """One of two terms at each token.

  Args:
    by: a term whose values are 1 where `then` is chosen, else 0. No gradient
      enters it.
    then: the loss there.
    otherwise: the loss of all other tokens; neither leaks into the other's.

  Returns:
    The choice. Metrics are those of all three, and `gate`, the values of `by`.
  """

  def fn(inputs):
    opening = jax.lax.stop_gradient(by(inputs))
    yes, no = then(inputs), otherwise(inputs)
    values = jnp.where(opening.values > 0.5, yes.values, no.values)
    metrics = no.metrics | yes.metrics | opening.metrics
    return types.TokenLoss(values, metrics | {'gate': opening.values})

  return _composed(fn, by, then, otherwise)


def with_advantages(
  term: types.LossTerm, advantages: types.LossTerm
) -> types.LossTerm:
  """Runs a term on other advantages.

  Args:
    term: reads `inputs.advantages`, such as `policy_gradient.grpo`.
    advantages: a term whose values take their place. No gradient enters it.

  Returns:
    The term; metrics gain those of `advantages`, and `advantage`.
  """

  def fn(inputs):
    new = jax.lax.stop_gradient(advantages(inputs))
    out = term(inputs.replace(advantages=new.values))
    metrics = {**out.metrics, **new.metrics, 'advantage': new.values}
    return out.replace(metrics=metrics)

  return _composed(fn, term, advantages)


def weight_at(
  weight: Weight, step: Int[types.Array, '']
) -> Float[types.Array, ''] | Scalar:
  """The weight at a training step; see `Weight` for the three ways to say it."""
  if isinstance(weight, tuple):
    weight = optax.linear_schedule(*weight)
  return weight(step) if callable(weight) else weight


def token_mean(
  x: Float[types.Array, 'B T'], mask: Bool[types.Array, 'B T']
) -> types.Mean:
  """Every token counts once: sum(m x) / max(sum(m), 1)."""
  return types.Mean(
    total=jnp.sum(jnp.where(mask, x, 0)), weight=jnp.sum(mask, dtype=x.dtype)
  )


def sequence_mean(
  x: Float[types.Array, 'B T'], mask: Bool[types.Array, 'B T']
) -> types.Mean:
  """Every row with a token counts once, as in GRPO (arXiv 2402.03300)."""
  lengths = jnp.sum(mask, axis=1, dtype=x.dtype)
  sums = jnp.sum(jnp.where(mask, x, 0), axis=1)
  return types.Mean(
    total=jnp.sum(sums / jnp.maximum(lengths, 1)),
    weight=jnp.sum(lengths > 0, dtype=x.dtype),
  )


def gradient_norms(
  loss: types.LossTerm, inputs: types.LossInputs
) -> dict[str, Float[Array, '']]:
  """How hard each named term of `add` pulls at the token log-probabilities.

  Their ratio says what a weight really buys, for the price of a loss and not
  of a model's backward pass.

  Args:
    loss: made by `add`.
    inputs: one batch.

  Returns:
    Per term the 2-norm of d(its token mean) / d(logprobs).
  """
  weight = jnp.maximum(jnp.sum(inputs.mask, dtype=jnp.float32), 1)

  def totals(logprobs):
    metrics = loss(inputs.replace(logprobs=logprobs)).metrics
    return {
      name.removesuffix('/loss'): jnp.sum(value) / weight
      for name, value in metrics.items()
      if name.endswith('/loss')
    }

  gradients = jax.jacrev(totals)(jnp.asarray(inputs.logprobs))
  return {name: jnp.linalg.norm(g) for name, g in gradients.items()}


# How a config names the way token losses become one number.
REDUCERS = {'token_mean': token_mean, 'sequence_mean': sequence_mean}
