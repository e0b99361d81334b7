"""The clipped policy gradient and what usually stands next to it.

Each function returns a `LossTerm` over `[B, T]`; gradients reach `logprobs`,
and `entropy` in the entropy bonus. Symbols: r the probability ratio to the
policy that sampled, A the advantage.
"""

import jax
import jax.numpy as jnp

from jaxagent import types
from jaxagent.losses import base

_MAX_LOG_RATIO = 20.0  # e^20 is finite, and far outside any clip
_MAX_KL_ARGUMENT = 10.0


def grpo(
  *,
  clip_low: base.Scalar = 0.2,
  clip_high: base.Scalar = 0.2,
  dual_clip: base.Scalar | None = 3.0,
) -> types.LossTerm:
  """Clipped policy gradient of GRPO (arXiv 2402.03300), with dual clip.

  `L1 = -A r`, `L2 = -A clip(r, 1 - clip_low, 1 + clip_high)`; the loss is
  `max(L1, L2)`, and for A < 0 at most `-A dual_clip` (arXiv 1912.09729).

  Args:
    clip_low: how far below 1 the ratio still earns gradient.
    clip_high: how far above 1.
    dual_clip: bound c > 1 on the ratio of a punished token; None for no bound.

  Returns:
    The term. Metrics: `ratio`; `clipped`, 1 where the gradient is cut off.

  Raises:
    ValueError: for clips that leave no room around 1.
  """
  if not 0 <= clip_low <= 1 or clip_high < 0:
    raise ValueError(
      f'grpo got clip_low={clip_low}, clip_high={clip_high}; give distances'
      ' from a ratio of 1, with 0 <= clip_low <= 1 and clip_high >= 0.'
    )
  if dual_clip is not None and dual_clip <= 1:
    raise ValueError(
      f'grpo got dual_clip={dual_clip}; give a bound above 1 on the ratio of'
      ' punished tokens, or None to leave it out.'
    )

  def fn(x):
    log_ratio = x.logprobs - x.old_logprobs
    ratio = jnp.exp(jnp.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))
    plain = -x.advantages * ratio
    bounded = -x.advantages * jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    values = jnp.maximum(plain, bounded)
    clipped = bounded > plain
    if dual_clip is not None:
      ceiling = -x.advantages * dual_clip
      clipped |= (x.advantages < 0) & (ceiling < values)
      values = jnp.where(x.advantages < 0, jnp.minimum(ceiling, values), values)
    metrics = {
      'ratio': jax.lax.stop_gradient(ratio),
      'clipped': clipped.astype(values.dtype),
    }
    return types.TokenLoss(values, metrics)

  return base.term(fn)


def kl_to_reference() -> types.LossTerm:
  """KL(policy || reference) in nats, by the k3 estimator, as a loss.

  `k3 = e^d - 1 - d`, `d = logp_ref - logp` clamped to +-10: unbiased as a
  value on sampled tokens, never negative (http://joschu.net/blog/kl-approx.html).

  Returns:
    The term; it needs `ref_logprobs`. Metrics: `k3`, which is its value.
  """

  def fn(x):
    d = x.ref_logprobs - x.logprobs
    d = jnp.clip(d, -_MAX_KL_ARGUMENT, _MAX_KL_ARGUMENT)
    values = jnp.expm1(d) - d
    return types.TokenLoss(values, {'k3': jax.lax.stop_gradient(values)})

  return base.term(fn, {'ref_logprobs'})


def entropy_bonus() -> types.LossTerm:
  """Minus the policy's entropy in nats; it needs `entropy`."""
  return base.term(lambda x: types.TokenLoss(-x.entropy, {}), {'entropy'})


def sft() -> types.LossTerm:
  """Negative log-likelihood of the masked-in tokens, in nats."""
  return base.term(lambda x: types.TokenLoss(-x.logprobs, {}))
