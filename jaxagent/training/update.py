"""One optimiser step: a loss over microbatches, exact as over the whole batch.

The forward passes that a loss reads are data (`loss.needs`): those of fixed
weights run once in `Passes.fixed`, those of the current weights inside the
step. Nothing here knows the name of a method.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int
import numpy as np
import optax

from jaxagent import types
from jaxagent.losses import base
from jaxagent.models import logprobs
from jaxagent.models import policy as policy_lib
from jaxagent.training import state as state_lib

# What a loss may read of a teacher, and which of it needs the teacher's hidden
# states beside the current policy's. All of it is then scored there, so that
# the teacher meets the vocabulary once.
OF_TEACHER = logprobs.OF_TEACHER | {'teacher_mask'}
_PAIRED = logprobs.OF_TEACHER - {'teacher_logprobs'}


class Batch(NamedTuple):
  """Rows in microbatches: every array is `[m, b, ...]`."""

  tokens: Int[types.Array, 'm b T']
  mask: Bool[types.Array, 'm b T']
  old_logprobs: Float[types.Array, 'm b T']
  advantages: Float[types.Array, 'm b T']
  teacher_tokens: Int[types.Array, 'm b U'] | None = None
  teacher_shift: Int[types.Array, 'm b'] | None = None
  teacher_mask: Bool[types.Array, 'm b'] | None = None
  positions: Int[types.Array, 'm b T'] | None = None
  segment_ids: Int[types.Array, 'm b T'] | None = None


class Fixed(NamedTuple):
  """What fixed weights say about a batch; None where no term asks."""

  ref_logprobs: Float[types.Array, 'm b T'] | None = None
  teacher_logprobs: Float[types.Array, 'm b T'] | None = None
  teacher_hidden: Float[types.Array, 'm b T D'] | None = None


def microbatches(trajectory: types.Trajectory, advantages, size: int) -> Batch:
  """Folds rows into microbatches of `size` rows, padding with empty ones.

  Args:
    trajectory: B rows.
    advantages: f32[B, T].
    size: rows a microbatch.
  """
  padding = -trajectory.tokens.shape[0] % size

  def fold(x):
    if x is None:
      return None
    x = np.asarray(x)
    x = np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(-1, size, *x.shape[1:])

  teacher = trajectory.teacher
  return Batch(
    tokens=fold(trajectory.tokens),
    mask=fold(trajectory.action_mask),
    old_logprobs=fold(trajectory.logprobs),
    advantages=fold(advantages),
    teacher_tokens=fold(teacher and teacher.tokens),
    teacher_shift=fold(teacher and teacher.shift),
    teacher_mask=fold(teacher and teacher.available),
    positions=fold(trajectory.positions),
    segment_ids=fold(trajectory.segment_ids),
  )


@dataclasses.dataclass(frozen=True)
class Passes:
  """The forward passes that a loss reads.

  Attributes:
    policy: the token model.
    loss: names what it needs.
    temperature: of the sampler; every log-probability is taken at it.
    chunk: action positions that meet the vocabulary at once.
    teacher: a model of its own; None: the policy's, with the parameters that
      `fixed` is given. Heads that are padded to different sizes are cut to the
      smaller one.
  """

  policy: policy_lib.Policy
  loss: types.LossTerm
  temperature: float = 1.0
  chunk: int = 256
  teacher: policy_lib.Policy | None = None

  @property
  def vocab(self) -> int:
    """V that policy and teacher share."""
    models = (self.policy, self.teacher or self.policy)
    return min(model.config.vocab for model in models)

  def unembed(self, params):
    """The policy's head, `[D, V]`."""
    return _cut(self.policy.unembed(params), self.vocab)

  def unembed_teacher(self, params):
    """The teacher's head, of parameters of its own."""
    model = self.teacher or self.policy
    return _cut(model.unembed(params), self.vocab)

  def score(self, head, rows: Batch, hidden, budget, needs=(), teacher=None):
    """Log-probabilities and what else is asked for, of one microbatch."""
    return logprobs.score(
      hidden,
      head,
      rows.tokens,
      rows.mask,
      budget=budget,
      needs=frozenset(needs),
      temperature=self.temperature,
      chunk=self.chunk,
      teacher=teacher,
      top_k=min(self.loss.top_k, self.vocab),
    )

  def hidden(self, params, rows: Batch):
    """Hidden states of the rows under a policy."""
    return self.policy.apply(
      params, rows.tokens, rows.positions, rows.segment_ids
    )

  @functools.partial(jax.jit, static_argnums=(0, 4))
  def fixed(self, teacher_params, ref_params, batch: Batch, budget: int):
    """Runs the passes of fixed weights that the loss asks for.

    Args:
      teacher_params: of the teacher, which reads `batch.teacher_tokens`.
      ref_params: of the reference policy.
      batch: rows in microbatches.
      budget: action positions of the fullest microbatch, at most.

    Returns:
      `Fixed`.
    """
    needs = self.loss.needs

    def one(rows):
      ref = teacher = hidden = None
      if 'ref_logprobs' in needs:
        ref = self.score(
          self.unembed(ref_params), rows, self.hidden(ref_params, rows), budget
        ).logprobs
      if needs & logprobs.OF_TEACHER:
        hidden = _align(
          (self.teacher or self.policy).apply(
            teacher_params, rows.teacher_tokens
          ),
          rows.teacher_shift,
          rows.tokens.shape[1],
        )
        if not needs & _PAIRED:
          head = self.unembed_teacher(teacher_params)
          teacher = self.score(head, rows, hidden, budget).logprobs
          hidden = None
      return Fixed(ref, teacher, hidden)

    return jax.lax.map(one, batch)

  def inputs(
    self, params, rows: Batch, fixed: Fixed, step, budget, teacher_unembedding
  ) -> types.LossInputs:
    """What the loss reads of one microbatch; differentiable in `params`."""
    needs = self.loss.needs
    asked, teacher = {'entropy'}, None
    if needs & _PAIRED:
      asked |= needs & logprobs.OF_TEACHER
      teacher = logprobs.Teacher(
        fixed.teacher_hidden,
        teacher_unembedding,
        jnp.zeros(rows.tokens.shape[:1], jnp.int32),
      )
    scores = self.score(
      self.unembed(params), rows, self.hidden(params, rows), budget, asked,
      teacher,
    )  # fmt: skip
    teacher_logprobs = fixed.teacher_logprobs
    if teacher_logprobs is None:
      teacher_logprobs = scores.teacher_logprobs
    return types.LossInputs(
      logprobs=scores.logprobs,
      old_logprobs=rows.old_logprobs,
      advantages=rows.advantages,
      mask=rows.mask,
      step=step,
      entropy=scores.entropy,
      ref_logprobs=fixed.ref_logprobs,
      teacher_logprobs=teacher_logprobs,
      teacher_mask=rows.teacher_mask,
      forward_kl=scores.forward_kl,
      jsd=scores.jsd,
      candidates=scores.candidates,
    )


def _cut(head, size):
  """A head `[D, V]` without its padding."""
  return head if head.shape[1] == size else head[:, :size]


def _align(hidden, shift, length):
  """Teacher's hidden states, `[b, U, D]` to `[b, T, D]`: t from t + shift."""
  at = jnp.arange(length)[None] + shift[:, None]
  at = jnp.clip(at, 0, hidden.shape[1] - 1)
  return jnp.take_along_axis(hidden, at[:, :, None], axis=1)


def make_gradient(
  passes: Passes, reduce: Callable = base.token_mean
) -> Callable:
  """A function `(params, batch, fixed, step, teacher_unembedding, budget)`.

  Totals and weights of microbatches are summed and divided once, so that any
  split gives the gradient of the whole.

  Returns:
    A function to `(gradient, metrics)`, the gradient shaped as `params`.
  """

  def total(params, rows, fixed, step, teacher_unembedding, budget):
    inputs = passes.inputs(
      params, rows, fixed, step, budget, teacher_unembedding
    )
    out = passes.loss(inputs)
    loss = reduce(out.values, rows.mask)
    # A metric of the loss is nan at a token that it does not speak of. Terms
    # of the loss are means of its own kind, so that they add up to it.
    means = {
      name: (reduce if name.endswith('/loss') else base.token_mean)(
        value, rows.mask & ~jnp.isnan(value)
      )
      for name, value in out.metrics.items()
    } | {
      name: base.token_mean(value, rows.mask)
      for name, value in _monitor(inputs).items()
    }
    ratio = jnp.exp(inputs.logprobs - rows.old_logprobs) - 1
    worst = jnp.max(jnp.where(rows.mask, jnp.abs(ratio), 0))
    return loss.total, (loss, means, worst)

  one_gradient = jax.grad(total, has_aux=True)

  def gradient(params, batch, fixed, *rest):
    def one(sums, xs):
      grads, found = one_gradient(params, *xs, *rest)
      return jax.tree.map(jnp.add, sums, grads), found

    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, (loss, means, worst) = jax.lax.scan(one, zeros, (batch, fixed))
    loss, means = jax.tree.map(lambda x: x.sum(0), (loss, means))
    weight = jnp.maximum(loss.weight, 1)
    grads = jax.tree.map(lambda g: g / weight.astype(g.dtype), grads)
    metrics = {name: mean.value() for name, mean in means.items()}
    return grads, metrics | {
      'loss': loss.value(),
      'policy/ratio_error': jnp.max(worst),
      'batch/action_tokens': jnp.sum(batch.mask),
    }

  return gradient


def make_update(
  passes: Passes,
  optimizer: optax.GradientTransformation,
  reduce: Callable = base.token_mean,
) -> Callable:
  """The jitted step `(state, batch, fixed, teacher_unembedding, budget)`.

  A gradient (see `make_gradient`) that is not finite leaves the state as it
  was, but for its step, and is counted in the metrics.

  Returns:
    A function to `(state, metrics)`; it donates the state's buffers.
  """
  gradient = make_gradient(passes, reduce)

  @functools.partial(jax.jit, static_argnums=4, donate_argnums=0)
  def update(state, batch, fixed, teacher_unembedding, budget):
    grads, metrics = gradient(
      state.params, batch, fixed, state.step, teacher_unembedding, budget
    )
    new, norm, skipped = _apply(state, grads, optimizer)
    return new, metrics | {'gradient/norm': norm, 'gradient/skipped': skipped}

  return update


def _apply(state: state_lib.TrainState, grads: Any, optimizer):
  norm = optax.global_norm(grads)
  finite = jnp.isfinite(norm)
  with jax.numpy_dtype_promotion('standard'):  # optax raises floats to counts
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)

  def keep(new, old):
    return jnp.where(finite, new, old)

  params, opt_state = jax.tree.map(
    keep, (params, opt_state), (state.params, state.opt_state)
  )
  new = state._replace(step=state.step + 1, params=params, opt_state=opt_state)
  return new, norm, 1 - finite.astype(jnp.float32)


def _monitor(inputs: types.LossInputs) -> dict:
  """What every run logs per token, whatever its loss."""
  metrics = {
    'policy/nll': -inputs.logprobs,
    'policy/entropy': inputs.entropy,
  }
  if inputs.teacher_logprobs is not None:
    metrics['teacher/gap'] = inputs.teacher_logprobs - inputs.logprobs
  return jax.lax.stop_gradient(metrics)


def make_inspect(passes: Passes) -> Callable:
  """A jitted `(params, batch, fixed, step, teacher_unembedding, budget)`.

  Returns:
    A function to per-token arrays `{name: f32[m, b, T]}`: the loss's metrics
    and its inputs, for a person to look at; and to the norms of the gradients
    with respect to the log-probabilities, per term.
  """

  @functools.partial(jax.jit, static_argnums=5)
  def inspect(params, batch, fixed, step, teacher_unembedding, budget):
    def one(xs):
      rows, rows_fixed = xs
      inputs = passes.inputs(
        params, rows, rows_fixed, step, budget, teacher_unembedding
      )
      return inputs, passes.loss(inputs).metrics | _monitor(inputs)

    inputs, tokens = jax.lax.map(one, (batch, fixed))
    flat = jax.tree.map(
      lambda x: x.reshape(-1, *x.shape[2:]), inputs.replace(step=None)
    )
    norms = base.gradient_norms(passes.loss, flat.replace(step=step))
    return tokens, norms

  return inspect
