"""Distillation on the policy's own tokens: AOPD (arXiv 2605.06387), baselines.

The symbols, at a token y that the policy sampled after a context c:

  P_S, P_T  policy and teacher at c, over the whole vocabulary
  A         sg[log P_T(y) - log P_S(y)]                                 (Eq. 1)
  L_OPD     -A log P_S(y)                                               (Eq. 2)
  S         the K tokens that the teacher finds likeliest               (Eq. 6)
  L_FKL     1/K sum over S of P_T (log P_T - log P_S)                   (Eq. 7)
  G         sg 1[P_T(y) - P_S(y) <= tau]                                (Eq. 9)
  L_AOPD    G L_FKL + (1 - G) L_OPD                                    (Eq. 10)
  JSD_beta  beta KL(P_T || P_M) + (1 - beta) KL(P_S || P_M),
            P_M = beta P_T + (1 - beta) P_S                            (Eq. 11)

`base.sequence_mean` is the paper's mean over rows. Only P_S has a gradient:
`logprobs` in the policy's term, `candidates.logprobs` in the imitating one.
As data, log-probabilities count as at least -30 nats, so that a token which the
teacher rules out does not outweigh a batch.

Eq. 11 is 0 at both ends. There beta means what the paper says it means, beta=1
KL(P_T || P_S) and beta=0 KL(P_S || P_T); the limits of the scaled Eq. 11 are
the other way round.
"""

import math

import jax
import jax.numpy as jnp

from jaxagent import types
from jaxagent.losses import base, distillation

_MIN_LOGPROB = -30.0  # nats; e^-30 is 1e-13
_MAX_LOG_RATIO = 20.0
_TEACHER = frozenset({'teacher_logprobs'})
_CANDIDATES = frozenset({'candidates'})
_SCALES = ('inv_k', 'one')


def opd(
  *,
  advantage_clip: base.Scalar | None = None,
  importance: bool = False,
  keep_empty_skill: bool = True,
) -> types.LossTerm:
  """`-A log P_S(y)`: policy gradient on the teacher's log-ratio (Eq. 2).

  Its expected gradient is that of KL(P_S || P_T).

  Args:
    advantage_clip: bound on |A| in nats; None for none.
    importance: multiply by sg[P_S / P_old], for a batch that is used in more
      than one step.
    keep_empty_skill: also rows without a privileged text. False where the
      teacher is the policy with a skill in its prompt.

  Returns:
    The term; it needs `teacher_logprobs`. Metrics: `gap`, which is A before
    the clip.
  """

  def fn(x):
    return _policy_gradient(x, _gap(x), advantage_clip, importance)

  return distillation.on_skill_rows(fn, _TEACHER, keep_empty_skill)


def exopd(
  *,
  extrapolation: base.Scalar = 1.25,
  advantage_clip: base.Scalar | None = None,
  importance: bool = False,
  keep_empty_skill: bool = True,
) -> types.LossTerm:
  """OPD beyond the teacher: ExOPD (arXiv 2602.12125).

  `A + (lambda - 1) sg[log P_T(y) - log P_ref(y)]` for A. Its fixed point is
  P_ref (P_T / P_ref)^lambda, normalised.

  Args:
    extrapolation: lambda; 1 is OPD. The value that AOPD's paper compares with
      is not stated.
    advantage_clip: see `opd`; of the whole advantage.
    importance: see `opd`.
    keep_empty_skill: see `opd`.

  Returns:
    The term; it needs `teacher_logprobs` and `ref_logprobs`. Metrics: `gap`.
  """

  def fn(x):
    beyond = _bounded(x.teacher_logprobs) - _bounded(x.ref_logprobs)
    advantage = _gap(x) + (extrapolation - 1) * beyond
    return _policy_gradient(x, advantage, advantage_clip, importance)

  needs = _TEACHER | {'ref_logprobs'}
  return distillation.on_skill_rows(fn, needs, keep_empty_skill)


def forward_kl_top_k(
  *,
  top_k: int = 32,
  fkl_scale: str = 'inv_k',
  renorm: bool = False,
  keep_empty_skill: bool = True,
) -> types.LossTerm:
  """KL(P_T || P_S) on the teacher's K likeliest tokens, in nats (Eq. 7).

  Raw, it is negative where the policy holds more mass on S than the teacher,
  and its gradient at the logits is `M_T P_S - P_T 1[S]`, M_T the teacher's mass
  of S: it also reaches the tokens outside. Renormalised, it is blind to them.

  Args:
    top_k: K; the vocabulary's size where that is smaller.
    fkl_scale: 'inv_k' divides by K, as Eq. 7 does; 'one' as the appendix.
    renorm: divide both by their mass of S first.
    keep_empty_skill: see `opd`.

  Returns:
    The term; it needs `candidates`. Metrics: `teacher_mass`, which is M_T.

  Raises:
    ValueError: for an unknown scale, or K below 1.
  """
  return jsd_top_k(
    beta=1.0,
    top_k=top_k,
    fkl_scale=fkl_scale,
    renorm=renorm,
    keep_empty_skill=keep_empty_skill,
  )


def jsd_top_k(
  *,
  beta: base.Scalar = 0.5,
  top_k: int = 32,
  fkl_scale: str = 'inv_k',
  renorm: bool = False,
  keep_empty_skill: bool = True,
) -> types.LossTerm:
  """JSD_beta on the teacher's K likeliest tokens: GKD (arXiv 2306.13649).

  Between the ends the raw sum is least at P_S = P_T on S. At beta = 0 it is
  least at P_S = P_T / e, unless S is the vocabulary or `renorm`.

  Args:
    beta: in [0, 1]; see the module for both ends.
    top_k: see `forward_kl_top_k`.
    fkl_scale: see `forward_kl_top_k`.
    renorm: see `forward_kl_top_k`.
    keep_empty_skill: see `opd`.

  Returns:
    The term; it needs `candidates`. Metrics: `teacher_mass`.

  Raises:
    ValueError: for an unknown scale, K below 1, or beta outside [0, 1].
  """
  if fkl_scale not in _SCALES:
    raise ValueError(f'Got fkl_scale={fkl_scale!r}; choose one of {_SCALES}.')
  if top_k < 1 or not 0 <= beta <= 1:
    raise ValueError(
      f'Got top_k={top_k}, beta={beta}; give top_k >= 1 and 0 <= beta <= 1.'
    )

  def fn(x):
    student = x.candidates.logprobs[..., :top_k]
    student = jnp.where(student > 0, 0, student)  # keeps the slope at 0
    teacher = _bounded(x.candidates.teacher_logprobs[..., :top_k])
    mass = jnp.sum(jnp.exp(teacher), axis=-1)
    if renorm:
      student, teacher = map(jax.nn.log_softmax, (student, teacher))
    values = jnp.sum(_divergence(student, teacher, beta), axis=-1)
    if fkl_scale == 'inv_k':
      values = values / student.shape[-1]
    return types.TokenLoss(values, {'teacher_mass': mass})

  return distillation.on_skill_rows(
    fn, _CANDIDATES, keep_empty_skill, top_k=top_k
  )


def imitation_gate(
  *,
  tau: base.Scalar = 0.0,
  location: str = 'negative',
  near: base.Scalar = 1e-4,
) -> types.LossTerm:
  """G: 1 where AOPD imitates, 0 where it follows the policy gradient (Eq. 9).

  Args:
    tau: largest P_T(y) - P_S(y) that is imitated. At 0 this is A <= 0; at -1
      or less nothing is imitated, at 1 or more everything.
    location: 'negative' is the paper's; 'wrong' only in rows whose advantage
      is not positive, which is "no success" where `rewards` leaves a 0 or 1 as
      it is (transform 'combine'); 'zero' takes |P_T(y) - P_S(y)| <= `near` for
      the test, whatever tau: AOPD-Zero.
    near: what counts as no difference of probabilities, here and in the metric
      `near_zero`.

  Returns:
    The gate; it needs `teacher_logprobs`. Metrics: `gap`, which is A;
    `gap_imitated` and `gap_reinforced`, A where G is 1 and where it is 0, nan
    elsewhere; `near_zero`, 1 where the two probabilities agree.

  Raises:
    ValueError: for an unknown location.
  """
  if location not in _LOCATIONS:
    raise ValueError(f'Got location={location!r}; choose one of {_LOCATIONS}.')

  def fn(x):
    gap = _gap(x)
    rise = jnp.exp(_bounded(x.teacher_logprobs)) - jnp.exp(_bounded(x.logprobs))
    near_zero = jnp.abs(rise) <= near
    if location == 'zero':
      imitate = near_zero
    else:
      imitate = _at_most(gap, rise, tau)
    if location == 'wrong':
      imitate &= x.advantages <= 0
    metrics = {
      'gap': gap,
      'gap_imitated': jnp.where(imitate, gap, jnp.nan),
      'gap_reinforced': jnp.where(imitate, jnp.nan, gap),
      'near_zero': near_zero.astype(gap.dtype),
    }
    return types.TokenLoss(imitate.astype(gap.dtype), metrics)

  return base.term(fn, _TEACHER)


_LOCATIONS = ('negative', 'zero', 'wrong')


def _at_most(gap, rise, tau):
  """Whether P_T - P_S <= tau; by logarithms, which are finer, at tau = 0."""
  if tau <= -1 or tau >= 1:
    return jnp.full(gap.shape, tau >= 1)
  return gap <= 0 if tau == 0 else rise <= tau


def _policy_gradient(x, advantage, clip, importance):
  weight = advantage
  if clip is not None:
    weight = jnp.clip(weight, -clip, clip)
  if importance:
    log_ratio = x.logprobs - x.old_logprobs
    log_ratio = jnp.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    weight = weight * jnp.exp(log_ratio)
  weight = jax.lax.stop_gradient(weight)
  return types.TokenLoss(-weight * x.logprobs, {'gap': _gap(x)})


def _gap(x):
  """A."""
  return _bounded(x.teacher_logprobs) - _bounded(x.logprobs)


def _bounded(logprobs):
  """Log-probabilities as data: finite, and no gradient through them."""
  return jax.lax.stop_gradient(jnp.clip(logprobs, _MIN_LOGPROB, 0))


def _divergence(student, teacher, beta):
  """The summands of JSD_beta."""
  if beta == 1:
    return jnp.exp(teacher) * (teacher - student)
  if beta == 0:
    return jnp.exp(student) * (student - teacher)
  mixture = jnp.logaddexp(math.log(beta) + teacher, math.log1p(-beta) + student)
  return beta * jnp.exp(teacher) * (teacher - mixture) + (1 - beta) * jnp.exp(
    student
  ) * (student - mixture)
