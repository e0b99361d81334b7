"""The transformer as functions of `(config, params, ...)`.

Parameters are a nested dict, kernels `[in, out]`, layers unstacked (a decode
loop that slices stacked weights copies them at every token):

```
embed [V, D]            unembed [D, V] (only where untied)       norm [D]
layers: list of
  attention_norm [D]    attention: query, key, value, output (+ _bias), and
                                   query_norm, key_norm [K]
  mlp_norm [D]          mlp: gate, up [D, F], down [F, D]
```
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxagent.models import attention, layers
from jaxagent.models import config as config_lib
from jaxagent.types import Array

Params = dict[str, Any]
Cache = tuple[attention.KV, ...]


def shapes(config: config_lib.ModelConfig) -> Params:
  """The parameters as `jax.ShapeDtypeStruct`s."""
  c = config
  wide, narrow = c.heads * c.head_dim, c.kv_heads * c.head_dim
  mixer = {
    'query': (c.hidden, wide),
    'key': (c.hidden, narrow),
    'value': (c.hidden, narrow),
    'output': (wide, c.hidden),
  }
  if c.attention_bias:
    mixer |= {
      'query_bias': (wide,),
      'key_bias': (narrow,),
      'value_bias': (narrow,),
    }
  if c.output_bias:
    mixer['output_bias'] = (c.hidden,)
  if c.qk_norm:
    mixer |= {'query_norm': (c.head_dim,), 'key_norm': (c.head_dim,)}
  layer = {
    'attention_norm': (c.hidden,),
    'attention': mixer,
    'mlp_norm': (c.hidden,),
    'mlp': {
      'gate': (c.hidden, c.intermediate),
      'up': (c.hidden, c.intermediate),
      'down': (c.intermediate, c.hidden),
    },
  }
  params = {
    'embed': (c.vocab, c.hidden),
    'layers': [layer] * c.layers,
    'norm': (c.hidden,),
  }
  if not c.tie_embeddings:
    params['unembed'] = (c.hidden, c.vocab)
  return jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, c.param_dtype),
    params,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def init(config: config_lib.ModelConfig, key: Array) -> Params:
  """Matrices from N(0, init_std), norms one, biases zero."""
  leaves, tree = jax.tree.flatten_with_path(shapes(config))
  matrices = [leaf.shape for _, leaf in leaves if len(leaf.shape) == 2]
  # One draw a shape: a draw a matrix takes a minute to compile at 30 layers.
  keys = jax.random.split(key, len(matrices))
  noise, used = {}, 0
  for shape in dict.fromkeys(matrices):
    count = matrices.count(shape)
    normal = functools.partial(jax.random.normal, shape=shape)
    drawn = jax.lax.map(normal, keys[used : used + count]) * config.init_std
    noise[shape], used = iter(drawn), used + count

  def initial(path, leaf):
    if len(leaf.shape) == 2:
      return next(noise[leaf.shape]).astype(leaf.dtype)
    fill = jnp.ones if path[-1].key.endswith('norm') else jnp.zeros
    return fill(leaf.shape, leaf.dtype)

  return tree.unflatten(initial(*leaf) for leaf in leaves)


def _block(config, layer, x, turn, mix):
  """One layer; `mix(query, key, value) -> mixed [B, T, HK], state`."""
  params = layer['attention']
  y = layers.rms_norm(x, layer['attention_norm'], eps=config.norm_eps)
  mixed, state = mix(*attention.project(config, params, y, turn))
  x = x + layers.linear(mixed, params['output'], params.get('output_bias'))
  y = layers.rms_norm(x, layer['mlp_norm'], eps=config.norm_eps)
  return x + layers.swiglu(layer['mlp'], y), state


def apply(
  config: config_lib.ModelConfig,
  params: Params,
  tokens: Int[Array, 'B T'],
  positions: Int[Array, 'B T'] | None = None,
  segment_ids: Int[Array, 'B T'] | None = None,
  *,
  scan: bool = False,
  remat: bool = False,
) -> Float[Array, 'B T D']:
  """Hidden states after the final norm, of whole rows.

  Args:
    positions: of each token in its own row; None is 0, 1, 2, ...
    segment_ids: which of several packed rows a token belongs to; attention
      stays inside. None is one row.
    scan: compile one layer instead of all (stacks the weights at each call).
    remat: keep only the layers' inputs for the backward pass.

  Raises:
    ValueError: the rows are longer than the model's context.
  """
  _, length = tokens.shape
  if positions is None:
    if length > config.max_positions:
      raise ValueError(
        f'Rows of {length} tokens exceed max_positions={config.max_positions}.'
        ' Cut the rows, or raise max_positions if the model was trained so.'
      )
    positions = jnp.broadcast_to(jnp.arange(length)[None], tokens.shape)
  mask = attention.causal_mask(length, segment_ids)
  turn = layers.rotation(config, positions)

  def mix(query, key, value):
    heads_first = (jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2))
    return attention.attend(query, *heads_first, mask), None

  def block(x, layer):
    return _block(config, layer, x, turn, mix)

  if remat:
    block = jax.checkpoint(block)
  x = jnp.asarray(params['embed'])[tokens].astype(config.dtype)
  if scan:
    stacked = jax.tree.map(lambda *w: jnp.stack(w), *params['layers'])
    x, _ = jax.lax.scan(block, x, stacked)
  else:
    for layer in params['layers']:
      x, _ = block(x, layer)
  return layers.rms_norm(x, params['norm'], eps=config.norm_eps)


def empty_cache(
  config: config_lib.ModelConfig, slots: int, length: int
) -> Cache:
  """A cache of `slots` rows of at most `length` tokens."""
  if length > config.max_positions:
    raise ValueError(
      f'A cache of {length} positions exceeds the model'
      f' (max_positions={config.max_positions}). Ask for fewer.'
    )
  return tuple(
    attention.empty(config, slots, length) for _ in range(config.layers)
  )


def extend(
  config: config_lib.ModelConfig,
  params: Params,
  tokens: Int[Array, 'S C'],
  positions: Int[Array, 'S C'],
  valid: Bool[Array, 'S C'],
  cache: Cache,
) -> tuple[Float[Array, 'S C D'], Cache]:
  """Feeds a chunk of tokens to rows whose past is in the cache.

  Serves prefill (C > 1) and decode (C = 1). Keys and values are stored at
  `positions` where `valid` and inside the cache, else nowhere; a token sees
  the cache up to its own position, so that a slot is reused by starting again
  at position 0. The hidden states of tokens that are not valid mean nothing.
  """
  length = cache[0].keys.shape[2]
  mask = jnp.arange(length)[None, None] <= positions[:, :, None]
  turn = layers.rotation(config, positions)
  x = jnp.asarray(params['embed'])[tokens].astype(config.dtype)
  new = []
  for layer, old in zip(params['layers'], cache, strict=True):

    def mix(query, key, value, old=old):
      kv = attention.write(old, key, value, positions, valid)
      return attention.attend(query, kv.keys, kv.values, mask), kv

    x, kv = _block(config, layer, x, turn, mix)
    new.append(kv)
  return layers.rms_norm(x, params['norm'], eps=config.norm_eps), tuple(new)


def unembed(params: Params) -> Float[Array, 'D V']:
  """The matrix from hidden states to logits, in its stored type."""
  if 'unembed' in params:
    return params['unembed']
  return jnp.asarray(params['embed']).T


def crop(cache: Cache, length: int) -> Cache:
  """The first `length` positions of a cache: attention reads all it is given,
  so short rows are served faster from a short cache."""
  return jax.tree.map(lambda x: x[:, :, :length], cache)


def paste(cache: Cache, cropped: Cache) -> Cache:
  """The inverse of `crop`: writes the cropped cache back over its origin."""
  return jax.tree.map(
    lambda x, y: jax.lax.dynamic_update_slice(x, y, (0, 0, 0, 0)),
    cache,
    cropped,
  )
