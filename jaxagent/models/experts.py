"""A mixture of experts: each token goes to a few of many small SwiGLUs.

Tokens are sorted by expert and multiplied in ragged groups, so that no token
is dropped and nothing is computed for an expert that none was sent to, where
the backend has ragged products.

Letters: `N` tokens, `D` width, `X` experts, `F` units of one.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxagent.models import config as config_lib
from jaxagent.models import layers
from jaxagent.types import Array


def shapes(config: config_lib.ModelConfig) -> dict[str, tuple[int, ...]]:
  """The parameters' shapes, those of the experts stacked."""
  c, d = config.experts, config.hidden
  return {
    'router': (d, c.count),
    'expert_gate': (c.count, d, c.intermediate),
    'expert_up': (c.count, d, c.intermediate),
    'expert_down': (c.count, c.intermediate, d),
    'shared_gate': (d, c.shared),
    'shared_up': (d, c.shared),
    'shared_down': (c.shared, d),
    'shared_switch': (d, 1),
  }


def apply(
  config: config_lib.ModelConfig,
  params: dict[str, Array],
  x: Float[Array, 'B T D'],
) -> Float[Array, 'B T D']:
  """The experts of each token by their weights, and the shared one."""
  c = config.experts
  flat = x.reshape(-1, x.shape[-1])
  logits = layers.linear(x, params['router']).reshape(-1, c.count)
  probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
  weights, chosen = jax.lax.top_k(probs, c.active)
  if c.normalise:
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
  mixed = _routed(params, flat, chosen, weights.astype(x.dtype))
  shared = layers.swiglu(
    {k: params[f'shared_{k}'] for k in ('gate', 'up', 'down')}, x
  )
  switch = jax.nn.sigmoid(layers.linear(x, params['shared_switch']))
  return mixed.reshape(x.shape) + switch * shared


def _routed(
  params: dict[str, Array],
  x: Float[Array, 'N D'],
  chosen: Int[Array, 'N A'],
  weights: Float[Array, 'N A'],
) -> Float[Array, 'N D']:
  tokens, active = chosen.shape
  order = jnp.argsort(chosen.reshape(-1))
  count = params['router'].shape[1]
  sizes = jnp.bincount(chosen.reshape(-1), length=count).astype(jnp.int32)

  def ragged(y, name):
    return jax.lax.ragged_dot(y, params[name].astype(y.dtype), sizes)

  sent = x[order // active]
  hidden = jax.nn.silu(ragged(sent, 'expert_gate')) * ragged(sent, 'expert_up')
  out = ragged(hidden, 'expert_down') * weights.reshape(-1)[order][:, None]
  back = jnp.argsort(order)
  return jnp.sum(out[back].reshape(tokens, active, -1), axis=1)
