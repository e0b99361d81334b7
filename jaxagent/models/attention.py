"""Grouped-query attention: whole rows, and against a cache with lengths.

Letters: `S` slots, `C` tokens of a chunk, `M` positions of the cache, `H` query
heads, `G` key heads, `K` width of a head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxagent.models import config as config_lib
from jaxagent.models import layers
from jaxagent.types import Array


class KV(NamedTuple):
  """Keys and values of one layer; separate buffers, so that both can be
  donated."""

  keys: Float[Array, 'S G M K']
  values: Float[Array, 'S G M K']


def shapes(config: config_lib.ModelConfig) -> dict[str, tuple[int, ...]]:
  """The parameters' shapes, kernels `[in, out]`."""
  c = config
  wide, narrow = c.heads * c.head_dim, c.kv_heads * c.head_dim
  out = {
    'query': (c.hidden, wide),
    'key': (c.hidden, narrow),
    'value': (c.hidden, narrow),
    'output': (wide, c.hidden),
  }
  if c.attention_gate:
    out['gate'] = (c.hidden, wide)
  if c.attention_bias:
    out |= {
      'query_bias': (wide,),
      'key_bias': (narrow,),
      'value_bias': (narrow,),
    }
  if c.output_bias:
    out['output_bias'] = (c.hidden,)
  if c.qk_norm:
    out |= {'query_norm': (c.head_dim,), 'key_norm': (c.head_dim,)}
  return out


def empty(config: config_lib.ModelConfig, slots: int, length: int) -> KV:
  """A cache of zeros."""
  shape = (slots, config.kv_heads, length, config.head_dim)
  return KV(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))


def project(
  config: config_lib.ModelConfig,
  params: dict[str, Array],
  x: Float[Array, 'B T D'],
  turn: layers.Rotation,
) -> tuple[
  Float[Array, 'B T H K'], Float[Array, 'B T G K'], Float[Array, 'B T G K']
]:
  """Queries, keys and values; the first two normed and turned."""

  def heads(name, count):
    y = layers.linear(x, params[name], params.get(f'{name}_bias'))
    y = y.reshape(*x.shape[:2], count, config.head_dim)
    norm = params.get(f'{name}_norm')
    return y if norm is None else layers.norm(config, y, norm)

  query = layers.rotate(heads('query', config.heads), turn)
  key = layers.rotate(heads('key', config.kv_heads), turn)
  return query, key, heads('value', config.kv_heads)


def attend(
  query: Float[Array, 'B T H K'],
  keys: Float[Array, 'B G M K'],
  values: Float[Array, 'B G M K'],
  mask: Bool[Array, '#B *heads T M'],
) -> Float[Array, 'B T HK']:
  """Softmax attention, scores in float32; every query must see a key.

  Args:
    mask: what each query sees, for all heads or for each, `[B, H, T, M]`.
  """
  b, t, h, k = query.shape
  g = keys.shape[1]
  scores = jnp.einsum(
    'btgrk,bgmk->bgrtm',
    query.reshape(b, t, g, h // g, k),
    keys,
    preferred_element_type=jnp.float32,
  )
  # A large finite number: -inf would make a gradient of 0 * inf.
  if mask.ndim == 3:
    mask = mask[:, None, None]
  else:
    mask = mask.reshape(b, g, h // g, *mask.shape[2:])
  scores = jnp.where(mask, scores * k**-0.5, -1e30)
  weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
  return jnp.einsum('bgrtm,bgmk->btgrk', weights, values).reshape(b, t, h * k)


def causal_mask(
  length: int, segment_ids: Int[Array, 'B T'] | None = None
) -> Bool[Array, '#B T T']:
  """Tokens see themselves and what stands before them in their segment."""
  mask = jnp.tril(jnp.ones((1, length, length), bool))
  if segment_ids is not None:
    mask = mask & (segment_ids[:, :, None] == segment_ids[:, None, :])
  return mask


def write(
  cache: KV,
  keys: Float[Array, 'S C G K'],
  values: Float[Array, 'S C G K'],
  positions: Int[Array, 'S C'],
  valid: Bool[Array, 'S C'],
) -> KV:
  """Stores a chunk at its positions; what is not valid is stored nowhere."""
  slot = jnp.arange(keys.shape[0])[:, None]
  at = jnp.where(valid, positions, cache.keys.shape[2])
  return KV(
    cache.keys.at[slot, :, at].set(keys, mode='drop'),
    cache.values.at[slot, :, at].set(values, mode='drop'),
  )


def finish(
  params: dict[str, Array],
  x: Float[Array, 'B T D'],
  mixed: Float[Array, 'B T HK'],
) -> Float[Array, 'B T D']:
  """The output projection, behind a gate that reads `x` where there is one."""
  if 'gate' in params:
    mixed = mixed * jax.nn.sigmoid(layers.linear(x, params['gate']))
  return layers.linear(mixed, params['output'], params.get('output_bias'))


def whole(
  config: config_lib.ModelConfig,
  params: dict[str, Array],
  x: Float[Array, 'B T D'],
  rows: layers.Rows,
) -> Float[Array, 'B T D']:
  """The layer on whole rows."""
  query, key, value = project(config, params, x, rows.turn)
  heads_first = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
  return finish(params, x, attend(query, *heads_first, rows.mask))


def extend(
  config: config_lib.ModelConfig,
  params: dict[str, Array],
  x: Float[Array, 'S C D'],
  chunk: layers.Chunk,
  cache: KV,
) -> tuple[Float[Array, 'S C D'], KV]:
  """The layer on a chunk: stores it, then sees the cache up to each token."""
  query, key, value = project(config, params, x, chunk.turn)
  cache = write(cache, key, value, chunk.positions, chunk.valid)
  length = cache.keys.shape[2]
  mask = jnp.arange(length)[None, None] <= chunk.positions[:, :, None]
  mixed = attend(query, cache.keys, cache.values, mask)
  return finish(params, x, mixed), cache


def crop(cache: KV, length: int) -> KV:
  """The first `length` positions."""
  return KV(cache.keys[:, :, :length], cache.values[:, :, :length])


def paste(cache: KV, cropped: KV) -> KV:
  """Writes a cropped cache back over its origin."""
  return jax.tree.map(
    lambda x, y: jax.lax.dynamic_update_slice(x, y, (0, 0, 0, 0)),
    cache,
    cropped,
  )
