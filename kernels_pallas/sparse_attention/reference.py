"""Block-sparse attention by its definition: softmax under a dense mask.

    o_t = sum_s p_ts v_s,   p_t = softmax(scale q_t . k_s over attended s)

Attended are the keys s <= t of the query's own block and those of its chosen
past blocks (`routing`). Memory is quadratic; float64 stays float64.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from kernels_pallas.sparse_attention import routing

Array = routing.Array


def masked_attention(
  q: Float[Array, 'B S H K'],
  k: Float[Array, 'B T G K'],
  v: Float[Array, 'B T G V'],
  mask: Bool[Array, 'B H S T'],
  *,
  scale: float,
) -> Float[Array, 'B S H V']:
  """Grouped-query softmax attention under a mask with a key for each query."""
  b, s, h, width = q.shape
  t, g = k.shape[1:3]
  dtype = routing.wide(q, k, v)
  q = q.astype(dtype).reshape(b, s, g, h // g, width)
  logits = scale * jnp.einsum(
    'bsgrk,btgk->bgrst', q, k.astype(dtype), precision='highest'
  )
  logits = jnp.where(mask.reshape(b, g, h // g, s, t), logits, -1e30)
  out = jnp.einsum(
    'bgrst,btgv->bsgrv',
    jax.nn.softmax(logits, axis=-1),
    v.astype(dtype),
    precision='highest',
  )
  return out.reshape(b, s, h, -1).astype(v.dtype)


def attend(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B T G K'],
  v: Float[Array, 'B T G V'],
  budget: Int[Array, 'B'],
  segment_ids: Int[Array, 'B T'] | None,
  *,
  block_size: int,
  max_budget: int,
  per: str,
  scale: float,
) -> Float[Array, 'B T H V']:
  """The op on whole rows of a multiple of `block_size` tokens."""
  del max_budget  # no table depends on it
  chosen = routing.block_mask(
    q,
    k,
    budget=budget,
    block_size=block_size,
    segment_ids=segment_ids,
    per=per,
  )
  mask = routing.token_mask(
    chosen,
    length=k.shape[1],
    block_size=block_size,
    segment_ids=segment_ids,
  )
  return masked_attention(q, k, v, mask, scale=scale)
