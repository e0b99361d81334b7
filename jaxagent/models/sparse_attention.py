"""Attention to a few blocks of keys, which each query chooses (2502.13189).

Parameters and cache are those of `attention`; with a budget of all blocks so
are the results. Whole rows run the kernel, whose time follows the budget. A
chunk against a cache applies the same choice as a mask.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxagent.models import attention, layers, sharding
from jaxagent.models import config as config_lib
from jaxagent.types import Array
from kernels_pallas import sparse_attention as kernel

shapes = attention.shapes
empty = attention.empty
crop = attention.crop
paste = attention.paste


def whole(
  config: config_lib.ModelConfig,
  params: dict[str, Array],
  x: Float[Array, 'B T D'],
  rows: layers.Rows,
) -> Float[Array, 'B T D']:
  """The layer on whole rows."""
  c = config.sparse_attention

  def attend(query, key, value, segment_ids=None):
    return kernel.sparse_attention(
      *(query, key, value),
      budget=c.budget,
      block_size=c.block_size,
      max_budget=c.budget,
      segment_ids=segment_ids,
    )

  packed = () if rows.segment_ids is None else (rows.segment_ids,)
  projected = attention.project(config, params, x, rows.turn)
  mixed = sharding.each_part(attend, *projected, *packed)
  return attention.finish(params, x, mixed.reshape(*x.shape[:2], -1))


def extend(
  config: config_lib.ModelConfig,
  params: dict[str, Array],
  x: Float[Array, 'S C D'],
  chunk: layers.Chunk,
  cache: attention.KV,
) -> tuple[Float[Array, 'S C D'], attention.KV]:
  """The layer on a chunk: stores it, then sees what each token chooses."""
  size = config.sparse_attention.block_size
  query, key, value = attention.project(config, params, x, chunk.turn)
  cache = attention.write(cache, key, value, chunk.positions, chunk.valid)
  extra = -cache.keys.shape[2] % size
  keys, values = (
    jnp.pad(y, ((0, 0), (0, 0), (0, extra), (0, 0))) for y in cache
  )
  chosen = kernel.routing.block_mask(
    query,
    jnp.swapaxes(keys, 1, 2),
    budget=config.sparse_attention.budget,
    block_size=size,
    positions=chunk.positions,
  )
  mask = kernel.routing.token_mask(
    chosen,
    length=keys.shape[2],
    block_size=size,
    positions=chunk.positions,
  )
  mixed = attention.attend(query, keys, values, jax.lax.stop_gradient(mask))
  return attention.finish(params, x, mixed), cache
