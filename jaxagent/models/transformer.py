"""The model as functions of `(config, params, ...)`.

Parameters are a nested dict, kernels `[in, out]`, layers unstacked (a decode
loop that slices stacked weights copies them at every token):

```
embed [V, D]            unembed [D, V] (only where untied)       norm [D]
layers: list of
  attention_norm [D]    attention, sparse_attention or gated_delta
  mlp_norm [D]          mlp: gate, up [D, F], down [F, D]; or experts
```
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxagent.models import (
  attention,
  experts,
  gated_delta,
  layers,
  sharding,
  sparse_attention,
)
from jaxagent.models import config as config_lib
from jaxagent.types import Array

Params = dict[str, Any]
Cache = tuple[Any, ...]  # a layer's own state each

# What mixes tokens in a layer of each kind.
MIXERS = {
  'attention': attention,
  'gated_delta': gated_delta,
  'sparse_attention': sparse_attention,
}


def shapes(config: config_lib.ModelConfig) -> Params:
  """The parameters as `jax.ShapeDtypeStruct`s."""
  c = config
  if c.experts is None:
    network = {
      'gate': (c.hidden, c.intermediate),
      'up': (c.hidden, c.intermediate),
      'down': (c.intermediate, c.hidden),
    }
  else:
    network = experts.shapes(c)

  def layer(kind):
    return {
      'attention_norm': (c.hidden,),
      kind: MIXERS[kind].shapes(c),
      'mlp_norm': (c.hidden,),
      'mlp' if c.experts is None else 'experts': network,
    }

  params = {
    'embed': (c.vocab, c.hidden),
    'layers': [layer(kind) for kind in c.kinds],
    'norm': (c.hidden,),
  }
  if not c.tie_embeddings:
    params['unembed'] = (c.hidden, c.vocab)

  def describe(path, shape):
    wide = path[-1].key in gated_delta.WIDE
    return jax.ShapeDtypeStruct(shape, 'float32' if wide else c.param_dtype)

  return jax.tree.map_with_path(
    describe, params, is_leaf=lambda x: isinstance(x, tuple)
  )


def init(config: config_lib.ModelConfig, key: Array) -> Params:
  """Matrices from N(0, init_std), norms one, biases zero, and the decays and
  convolutions of `gated_delta.initial`."""
  leaves, tree = jax.tree.flatten_with_path(shapes(config))
  special = [
    gated_delta.initial(path[-1].key, leaf.shape, jax.random.fold_in(key, i))
    for i, (path, leaf) in enumerate(leaves)
  ]
  matrices = [
    leaf.shape
    for (_, leaf), value in zip(leaves, special, strict=True)
    if value is None and len(leaf.shape) > 1
  ]
  # One draw a shape: a draw a matrix takes a minute to compile at 30 layers.
  keys = jax.random.split(key, len(matrices))
  noise, used = {}, 0
  for shape in dict.fromkeys(matrices):
    count = matrices.count(shape)
    normal = functools.partial(jax.random.normal, shape=shape)
    drawn = jax.lax.map(normal, keys[used : used + count]) * config.init_std
    noise[shape], used = iter(drawn), used + count

  def first(path, leaf, value):
    if value is None and len(leaf.shape) > 1:
      value = next(noise[leaf.shape])
    elif value is None:
      name = path[-1].key
      # The norm of a gated delta layer is never centred.
      centred = config.centred_norms and path[-2:][0] != _GATED_DELTA
      one = name.endswith('norm') and not centred
      value = jnp.full(leaf.shape, 1.0 if one else 0.0)
    return value.astype(leaf.dtype)

  return tree.unflatten(
    first(*leaf, value) for leaf, value in zip(leaves, special, strict=True)
  )


_GATED_DELTA = jax.tree_util.DictKey('gated_delta')


def _feed(config, layer, x):
  """Norm and network of a layer, added to what came in."""
  y = layers.norm(config, x, layer['mlp_norm'])
  if config.experts is None:
    return x + layers.swiglu(layer['mlp'], y)
  return x + experts.apply(config, layer['experts'], y)


def _period(kinds):
  """The shortest pattern that the layers repeat."""
  n = len(kinds)
  return next(
    p for p in range(1, n + 1) if n % p == 0 and kinds == kinds[:p] * (n // p)
  )


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
    segment_ids: which of several packed rows a token belongs to; attention and
      memories stay inside. None is one row.
    scan: compile one layer instead of all, or of each the pattern that they
      repeat (stacks the weights at each call).
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
  rows = layers.Rows(
    layers.rotation(config, positions),
    attention.causal_mask(length, segment_ids),
    segment_ids,
  )

  def block(kind, x, layer):
    y = layers.norm(config, x, layer['attention_norm'])
    x = sharding.by_rows(x + MIXERS[kind].whole(config, layer[kind], y, rows))
    return sharding.by_rows(_feed(config, layer, x))

  if remat:
    block = jax.checkpoint(block, static_argnums=0)
  x = jnp.asarray(params['embed'])[tokens].astype(config.dtype)
  x = sharding.by_rows(x)
  if scan:
    period = _period(config.kinds)
    stacked = [
      jax.tree.map(lambda *w: jnp.stack(w), *params['layers'][i::period])
      for i in range(period)
    ]

    def pattern(x, some):
      for kind, layer in zip(config.kinds[:period], some, strict=True):
        x = block(kind, x, layer)
      return x, None

    x, _ = jax.lax.scan(pattern, x, stacked)
  else:
    for kind, layer in zip(config.kinds, params['layers'], strict=True):
      x = block(kind, x, layer)
  return layers.norm(config, x, params['norm'])


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
    MIXERS[kind].empty(config, slots, length) for kind in config.kinds
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
  at position 0, where memories are emptied. The hidden states of tokens that
  are not valid mean nothing.

  Where the model is `recurrent`, the valid tokens of a slot stand at the
  beginning of its chunk, and positions continue where the slot was left, or
  begin again at 0.
  """
  chunk = layers.Chunk(layers.rotation(config, positions), positions, valid)
  x = jnp.asarray(params['embed'])[tokens].astype(config.dtype)
  new = []
  for kind, layer, old in zip(
    config.kinds, params['layers'], cache, strict=True
  ):
    y = layers.norm(config, x, layer['attention_norm'])
    mixed, state = MIXERS[kind].extend(config, layer[kind], y, chunk, old)
    x = _feed(config, layer, x + mixed)
    new.append(state)
  return layers.norm(config, x, params['norm']), tuple(new)


def unembed(params: Params) -> Float[Array, 'D V']:
  """The matrix from hidden states to logits, in its stored type."""
  if 'unembed' in params:
    return params['unembed']
  return jnp.asarray(params['embed']).T


def crop(config: config_lib.ModelConfig, cache: Cache, length: int) -> Cache:
  """The first `length` positions of a cache: attention reads all it is given,
  so short rows are served faster from a short cache."""
  return tuple(
    MIXERS[kind].crop(state, length)
    for kind, state in zip(config.kinds, cache, strict=True)
  )


def paste(
  config: config_lib.ModelConfig, cache: Cache, cropped: Cache
) -> Cache:
  """The inverse of `crop`: writes the cropped cache back over its origin."""
  return tuple(
    MIXERS[kind].paste(*states)
    for kind, *states in zip(config.kinds, cache, cropped, strict=True)
  )
