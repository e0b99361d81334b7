"""RMSNorm, RoPE, SwiGLU and the linear map, as functions of their arrays.

Letters: `B` rows, `T` tokens, `D` width, `H` heads, `K` width of a head.
Weights may be stored wider than the computation; they are cast where used, so
that gradients accumulate in the stored type.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int
import numpy as np

from jaxagent.models import config as config_lib
from jaxagent.types import Array


def linear(
  x: Float[Array, 'B T D'],
  kernel: Float[Array, 'D E'],
  bias: Float[Array, 'E'] | None = None,
) -> Float[Array, 'B T E']:
  """`x @ kernel + bias` in the type of `x`."""
  y = x @ kernel.astype(x.dtype)
  if bias is not None:
    y = y + jnp.broadcast_to(bias.astype(x.dtype), y.shape)
  return y


def rms_norm(
  x: Float[Array, '*L D'],
  weight: Float[Array, 'D'],
  *,
  eps: float,
  centred: bool = False,
) -> Float[Array, '*L D']:
  """Root-mean-square normalisation in float32 (1910.07467).

  Args:
    centred: `weight` is the distance from 1.
  """
  wide = x.astype(jnp.float32)
  scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
  if centred:
    weight = 1 + weight.astype(jnp.float32)
    return (wide * scale * jnp.broadcast_to(weight, x.shape)).astype(x.dtype)
  normed = (wide * scale).astype(x.dtype)
  return normed * jnp.broadcast_to(weight.astype(x.dtype), x.shape)


def norm(
  config: config_lib.ModelConfig,
  x: Float[Array, '*L D'],
  weight: Float[Array, 'D'],
) -> Float[Array, '*L D']:
  """`rms_norm` as the model does it."""
  return rms_norm(x, weight, eps=config.norm_eps, centred=config.centred_norms)


class Rows(NamedTuple):
  """What the layers of whole rows share."""

  turn: 'Rotation'
  mask: Bool[Array, '#B T T']  # which tokens a token attends to
  segment_ids: Int[Array, 'B T'] | None


class Chunk(NamedTuple):
  """What the layers of a chunk share; `S` slots, `C` tokens."""

  turn: 'Rotation'
  positions: Int[Array, 'S C']
  valid: Bool[Array, 'S C']


class Rotation(NamedTuple):
  """Cosines and sines of every position, float32 `[B, T, 1, half]`."""

  cos: Float[Array, 'B T 1 half']
  sin: Float[Array, 'B T 1 half']


def _frequencies(config: config_lib.ModelConfig) -> np.ndarray:
  """Radians a position, fastest first, `[K / 2]`."""
  half = config.rotary_dim // 2
  plain = config.rope_theta ** (-np.arange(half) / half)
  s = config.rope_scaling
  if s is None:
    return plain
  turns = s.original_max_positions * plain / (2 * np.pi)
  blend = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
  blend = np.clip(blend, 0, 1)
  return plain * (blend + (1 - blend) / s.factor)


def rotation(
  config: config_lib.ModelConfig, positions: Int[Array, 'B T']
) -> Rotation:
  """Rotary angles of the positions (2104.09864), Llama 3.1 scaling included."""
  frequencies = jnp.asarray(_frequencies(config), jnp.float32)
  angle = positions.astype(jnp.float32)[..., None, None] * frequencies.reshape(
    1, 1, 1, -1
  )
  return Rotation(jnp.cos(angle), jnp.sin(angle))


def rotate(
  x: Float[Array, 'B T H K'], turn: Rotation
) -> Float[Array, 'B T H K']:
  """Turns the pairs (i, i + half) of the first `2 * half` channels, as Hugging
  Face lays them out; half is K / 2, or less where the rest stays as it is."""
  half = turn.cos.shape[-1]
  a, b, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
  turned = [a * turn.cos - b * turn.sin, a * turn.sin + b * turn.cos, rest]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def swiglu(
  params: dict[str, Array], x: Float[Array, 'B T D']
) -> Float[Array, 'B T D']:
  """`down(silu(gate(x)) * up(x))` (2002.05202)."""
  gate = jax.nn.silu(linear(x, params['gate']))
  return linear(gate * linear(x, params['up']), params['down'])
