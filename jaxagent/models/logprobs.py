"""Log-probabilities, entropy and divergences, at action positions only.

The logits of a batch, `[B, T, V]`, are by far the largest array that training
could make. Nothing here makes it: the action positions are gathered into a
static budget of N slots, and chunks of them meet the vocabulary one after the
other, forward and backward. All of it is float32.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import jax
from jax import ad_checkpoint
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxagent import types
from jaxagent.types import Array

# What `score` computes on demand, by its name in `types.LossInputs`.
OF_TEACHER = frozenset({'teacher_logprobs', 'forward_kl', 'jsd', 'candidates'})
OUTPUTS = OF_TEACHER | {'entropy'}


class Teacher(NamedTuple):
  """What a teacher thinks of the same tokens; never differentiated."""

  hidden: Float[Array, 'B U E']
  unembedding: Float[Array, 'E V']
  shift: Int[Array, 'B']  # token t of a row is token t + shift of the teacher's


class Scores(NamedTuple):
  """Per token, 0 where not masked; the names of `types.LossInputs`."""

  logprobs: Float[Array, 'B T']
  entropy: Float[Array, 'B T'] | None = None
  teacher_logprobs: Float[Array, 'B T'] | None = None
  forward_kl: Float[Array, 'B T'] | None = None
  jsd: Float[Array, 'B T'] | None = None
  candidates: types.Candidates | None = None


def logits(
  hidden: Float[Array, 'N D'],
  unembedding: Float[Array, 'D V'],
  temperature: float = 1.0,
) -> Float[Array, 'N V']:
  """Logits over the temperature: product in the type of `hidden`, sums and
  result in float32. Sampler and trainer both come through here."""
  return (
    jnp.dot(
      hidden,
      unembedding.astype(hidden.dtype),
      preferred_element_type=jnp.float32,
    )
    / temperature
  )


def bucket(count: int, sizes: Sequence[int]) -> int:
  """The smallest of `sizes` that holds `count`: a budget, chosen on the host.

  Raises:
    ValueError: none does.
  """
  fitting = [size for size in sizes if size >= count]
  if not fitting:
    raise ValueError(
      f'{count} action positions do not fit the budgets {sorted(sizes)}. Add'
      f' one of at least {count}, or use smaller batches.'
    )
  return min(fitting)


def score(
  hidden: Float[Array, 'B T D'],
  unembedding: Float[Array, 'D V'],
  tokens: Int[Array, 'B T'],
  mask: Bool[Array, 'B T'],
  *,
  budget: int,
  needs: frozenset[str] = frozenset(),
  temperature: float = 1.0,
  chunk: int = 256,
  teacher: Teacher | None = None,
  top_k: int = 0,
) -> Scores:
  """Scores `tokens` where `mask`, and what else is asked for.

  Entry t speaks of `tokens[:, t]`, hence of the hidden state at t - 1; the
  first token of a row has none and counts as not masked. With p the teacher
  and q the policy at a position, in nats: `entropy` H(q), `forward_kl`
  KL(p || q), `jsd` the mean of KL(p || m) and KL(q || m) with m = (p + q) / 2,
  `candidates` the `top_k` likeliest tokens of p with both log-probabilities.

  Args:
    hidden: of the rows, after the final norm.
    unembedding: `policy.unembed(params)`.
    budget: static number of positions to make room for. Masked positions
      beyond it come back as nan: choose it with `bucket`.
    needs: a subset of `OUTPUTS`.
    temperature: the sampler's (`sampler.Sampling.score_temperature`), applied
      to policy and teacher.
    chunk: positions that meet the vocabulary at once; memory is chunk x V.
    teacher: required by the outputs in `OF_TEACHER`.
    top_k: number of candidates K.

  Raises:
    ValueError: an unknown output, or one without what it is computed from.
  """
  _check(needs, teacher, top_k, unembedding.shape[1])
  b, t = tokens.shape
  wanted = mask & (jnp.arange(t) > 0)[None]
  chunk = min(chunk, budget)
  steps = math.ceil(budget / chunk)
  (at,) = jnp.nonzero(wanted.reshape(-1), size=steps * chunk, fill_value=b * t)
  row, column = jnp.divmod(jnp.minimum(at, b * t - 1), t)
  before = jnp.maximum(column - 1, 0)

  def fold(x):
    return x.reshape(steps, chunk, *x.shape[1:])

  inputs = {'hidden': fold(hidden[row, before])}
  inputs['token'] = fold(tokens[row, column].astype(jnp.int32))
  if teacher is not None and needs & OF_TEACHER:
    there = before + jnp.asarray(teacher.shift)[row]
    there = jnp.clip(there, 0, teacher.hidden.shape[1] - 1)
    inputs['teacher'] = jax.lax.stop_gradient(
      fold(jnp.asarray(teacher.hidden)[row, there])
    )

  def body(carry, x):
    mine = logits(x['hidden'], unembedding, temperature)
    theirs = None
    if 'teacher' in x:
      theirs = logits(x['teacher'], teacher.unembedding, temperature)
      theirs = jax.lax.stop_gradient(theirs)
    return carry, _outputs(mine, theirs, x['token'], needs, top_k)

  # The candidates' ids are kept, so that no second top-k runs backward.
  keep = jax.checkpoint_policies.save_only_these_names('ids')
  _, flat = jax.lax.scan(jax.checkpoint(body, policy=keep), None, inputs)

  def unfold(x):
    lost = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0
    tail = x.shape[2:]
    base = jnp.where(wanted.reshape(-1, *(1 for _ in tail)), lost, 0)
    base = jnp.broadcast_to(base, (b * t, *tail)).astype(x.dtype)
    out = base.at[at].set(x.reshape(-1, *tail), mode='drop')
    return out.reshape(b, t, *tail)

  return Scores(**jax.tree.map(unfold, flat))


def _check(needs, teacher, top_k, vocab):
  if unknown := sorted(needs - OUTPUTS):
    raise ValueError(
      f'score cannot compute {unknown}; it knows {sorted(OUTPUTS)}.'
    )
  if teacher is None and needs & OF_TEACHER:
    raise ValueError(
      f'{sorted(needs & OF_TEACHER)} need a teacher; pass `teacher`.'
    )
  if teacher is not None and teacher.unembedding.shape[1] != vocab:
    raise ValueError(
      f'The teacher has {teacher.unembedding.shape[1]} tokens and the policy'
      f' {vocab}; distillation needs one vocabulary.'
    )
  if 'candidates' in needs and not 0 < top_k <= vocab:
    raise ValueError(f'candidates need 0 < top_k <= {vocab}, got {top_k}.')


def _outputs(mine, theirs, token, needs, top_k):
  """The outputs of one chunk, from logits `[n, V]` and token `[n]`."""
  ours = jax.nn.log_softmax(mine)
  out = {'logprobs': _take(ours, token[:, None])[:, 0]}
  if 'entropy' in needs:
    out['entropy'] = -jnp.sum(jnp.exp(ours) * ours, axis=-1)
  if theirs is None:
    return out
  teach = jax.nn.log_softmax(theirs)
  if 'teacher_logprobs' in needs:
    out['teacher_logprobs'] = _take(teach, token[:, None])[:, 0]
  if 'forward_kl' in needs:
    out['forward_kl'] = jnp.sum(jnp.exp(teach) * (teach - ours), axis=-1)
  if 'jsd' in needs:
    middle = jnp.logaddexp(teach, ours) - math.log(2)
    halves = jnp.exp(teach) * (teach - middle) + jnp.exp(ours) * (ours - middle)
    out['jsd'] = jnp.sum(halves, axis=-1) / 2
  if 'candidates' in needs:
    ids = jax.lax.top_k(theirs, top_k)[1].astype(jnp.int32)
    ids = ad_checkpoint.checkpoint_name(ids, 'ids')
    out['candidates'] = types.Candidates(
      ids=ids, logprobs=_take(ours, ids), teacher_logprobs=_take(teach, ids)
    )
  return out


def _take(x, ids):
  return jnp.take_along_axis(x, ids, axis=-1)
