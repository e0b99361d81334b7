"""Distillation from a teacher that is the policy itself, shown a skill text.

Every equation of SDAR (arXiv 2605.15155) and of its baselines, each under its
own name. Symbols, all `[B, T]` and of the token that was sampled:

  logp       log-probability under the policy; the only one with a gradient
  logp_old   under the policy that sampled, logp_ref under the reference
  logp_T     under the teacher: same response tokens, skill text in the prompt
  h          entropy of the policy in nats
  D          the gap sg[logp_T - logp], clamped to +-20 before any use

Rows whose `teacher_mask` is False had no skill, so that their teacher is the
student: their distillation loss is 0 unless `keep_empty_skill`. They still
count in the denominator, as every token of the batch does.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxagent import types
from jaxagent.losses import base

_MAX_GAP = 20.0  # nats
_MAX_LOG_RATIO = 10.0
_TEACHER = frozenset({'teacher_logprobs'})


def self_distillation(
  *, divergence: str = 'reverse_kl', keep_empty_skill: bool = False
) -> types.LossTerm:
  """Distance of the policy to its teacher at each token, in nats.

  reverse_kl: `sg[logp_T] - logp` on the sampled token: minus the one-sample
  estimate of KL(policy || teacher), whose gradient is exactly `-grad logp`
  (also outside the clamp). It has a meaning only under a gate: under a constant
  one its expected gradient is 0.
  forward_kl, jsd: KL(teacher || policy), and the Jensen-Shannon divergence
  with M = (policy + teacher) / 2, over the whole vocabulary, from `inputs`.

  Args:
    divergence: 'reverse_kl', 'forward_kl' or 'jsd'.
    keep_empty_skill: let rows without a skill text imitate themselves.

  Returns:
    The term. Metrics for reverse_kl: `gap`; for all: `has_skill`.

  Raises:
    ValueError: for an unknown divergence.
  """
  if divergence not in _DIVERGENCES:
    raise ValueError(
      f'self_distillation got divergence={divergence!r}; choose one of'
      f' {sorted(_DIVERGENCES)}.'
    )
  fn, needs = _DIVERGENCES[divergence]
  return on_skill_rows(fn, needs, keep_empty_skill)


def undetached_gap(
  *, beta: base.Scalar, keep_empty_skill: bool = False
) -> types.LossTerm:
  """SDAR with the stop-gradient of its gate forgotten: a negative control.

  `s(beta D) D = SiLU(beta D) / beta` with the gradient let through D, which is
  `-(g + beta D g (1 - g)) grad logp`: below beta D = -1.278 it pushes down the
  tokens that the teacher rejects. At beta = 0 it equals the constant gate.
  """

  def fn(x):
    gap = jnp.clip(x.teacher_logprobs - x.logprobs, -_MAX_GAP, _MAX_GAP)
    return types.TokenLoss(
      jax.nn.sigmoid(beta * gap) * gap, {'gap': jax.lax.stop_gradient(gap)}
    )

  return on_skill_rows(fn, _TEACHER, keep_empty_skill)


def sigmoid_gap(*, beta: base.Scalar = 5.0) -> types.LossTerm:
  """SDAR's gate `s(beta D)`: open where the teacher likes the token more."""

  def fn(x):
    return types.TokenLoss(jax.nn.sigmoid(beta * _gap(x)), {})

  return base.term(fn, _TEACHER)


def sigmoid_entropy(*, beta: base.Scalar = 5.0) -> types.LossTerm:
  """The gate `s(beta h)`: open where the policy is unsure, never below 1/2."""

  def fn(x):
    return types.TokenLoss(jax.nn.sigmoid(beta * x.entropy), {})

  return base.term(fn, {'entropy'})


def soft_or(*, beta: base.Scalar = 5.0) -> types.LossTerm:
  """The gate `s(beta (1 - (1 - h)(1 - D)))`: unsure, or preferred by the teacher.

  The literal formula: for h above 1 nat it falls as the gap rises.
  """

  def fn(x):
    either = 1 - (1 - x.entropy) * (1 - _gap(x))
    return types.TokenLoss(jax.nn.sigmoid(beta * either), {})

  return base.term(fn, _TEACHER | {'entropy'})


def opsd_paper() -> types.LossTerm:
  """`logp - logp_ref`, OPSD as SDAR's Algorithms 3 and 5 print it.

  There is no skill in it. Its gradient `+grad logp` lowers every sampled token,
  and is 0 in expectation on-policy.
  """

  def fn(x):
    return types.TokenLoss(x.logprobs - x.ref_logprobs, {})

  return base.term(fn, {'ref_logprobs'})


def opsd_policy_gradient(*, keep_empty_skill: bool = False) -> types.LossTerm:
  """`-D logp`: the policy gradient of reverse KL to the teacher.

  Its expected gradient is that of KL(policy || teacher).
  """

  def fn(x):
    gap = _gap(x)
    return types.TokenLoss(-gap * x.logprobs, {'gap': gap})

  return on_skill_rows(fn, _TEACHER, keep_empty_skill)


def skill_sd(*, keep_empty_skill: bool = False) -> types.LossTerm:
  """Importance-weighted k3 to the teacher: Skill-SD (SDAR, Algorithm 4).

  `rho (e^-d - 1 + d)`, `d = logp - logp_T`, `rho = e^(logp - logp_old)`, with
  -d at most 20 and log rho at most 10. The gradient flows through both and is
  `rho d grad logp`.
  """

  def fn(x):
    minus_d = jnp.minimum(x.teacher_logprobs - x.logprobs, _MAX_GAP)
    log_rho = jnp.minimum(x.logprobs - x.old_logprobs, _MAX_LOG_RATIO)
    values = jnp.exp(log_rho) * (jnp.expm1(minus_d) - minus_d)
    return types.TokenLoss(values, {'gap': _gap(x)})

  return on_skill_rows(fn, _TEACHER, keep_empty_skill)


def rlsd_advantages(
  *,
  clip: base.Scalar = 0.2,
  mix: base.Weight = (0.5, 0.0, 100),
  keep_empty_skill: bool = False,
) -> types.LossTerm:
  """RLSD's advantages (arXiv 2604.03128): the teacher sets only their size.

  `A ((1 - mix) + mix w)`, `w = clip(e^(sign(A) (logp_T - logp_old)), 1 +- clip)`.
  Rows without a skill keep A.

  Args:
    clip: how far w may be from 1.
    mix: share of w; by default from 1/2 linearly to 0 in 100 steps.
    keep_empty_skill: weigh rows without a skill text all the same.

  Returns:
    A term for `base.with_advantages`. Metrics: `teacher_weight`, which is w.
  """

  def fn(x):
    gap = jnp.clip(x.teacher_logprobs - x.old_logprobs, -_MAX_GAP, _MAX_GAP)
    weight = jnp.exp(jnp.sign(x.advantages) * gap)
    weight = jnp.clip(weight, 1 - clip, 1 + clip)
    if not keep_empty_skill:
      weight = jnp.where(x.teacher_mask[:, None], weight, 1)
    share = base.weight_at(mix, x.step)
    values = x.advantages * ((1 - share) + share * weight)
    return types.TokenLoss(values, {'teacher_weight': weight})

  return base.term(fn, _needs(_TEACHER, keep_empty_skill))


def on_skill_rows(
  fn: Callable[[types.LossInputs], types.TokenLoss],
  needs: frozenset[str],
  keep_empty_skill: bool,
  *,
  top_k: int = 0,
) -> types.LossTerm:
  """`base.term`, 0 on the rows that were shown no skill.

  Args:
    fn: per-token arithmetic, see `base.term`.
    needs: the fields that it reads.
    keep_empty_skill: leave those rows as they are.
    top_k: candidates that it reads.

  Returns:
    The term. Metrics gain `has_skill`, unless those rows are kept.
  """
  if keep_empty_skill:
    return base.term(fn, needs, top_k=top_k)

  def masked(x):
    out = fn(x)
    has_skill = jnp.broadcast_to(x.teacher_mask[:, None], x.mask.shape)
    metrics = {**out.metrics, 'has_skill': has_skill.astype(out.values.dtype)}
    return types.TokenLoss(jnp.where(has_skill, out.values, 0), metrics)

  return base.term(masked, _needs(needs, keep_empty_skill), top_k=top_k)


def _gap(x):
  """D: detached, and bounded where one of the two gives a token no chance."""
  gap = jnp.clip(x.teacher_logprobs - x.logprobs, -_MAX_GAP, _MAX_GAP)
  return jax.lax.stop_gradient(gap)


def _needs(needs, keep_empty_skill):
  return needs if keep_empty_skill else needs | {'teacher_mask'}


def _reverse_kl(x):
  gap = _gap(x)
  # The value is the clamped gap, the gradient -1 on either side of the clamp.
  straight_through = jax.lax.stop_gradient(x.logprobs) - x.logprobs
  return types.TokenLoss(gap + straight_through, {'gap': gap})


_DIVERGENCES = {
  'reverse_kl': (_reverse_kl, _TEACHER),
  'forward_kl': (
    lambda x: types.TokenLoss(x.forward_kl, {}),
    frozenset({'forward_kl'}),
  ),
  'jsd': (lambda x: types.TokenLoss(x.jsd, {}), frozenset({'jsd'})),
}

# How a config names a gate; each takes `beta`.
GATES = {
  'sigmoid_gap': sigmoid_gap,
  'sigmoid_entropy': sigmoid_entropy,
  'soft_or': soft_or,
}
