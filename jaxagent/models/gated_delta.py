"""The FG2-GDN layer and its relatives (2604.19021), down to GDN (2412.06464).

    q, k, v = silu(conv(x W))      q, k to unit length
    g = -exp(rate) softplus(x W_g + bias)                   log decay, <= 0
    r = exp(-softplus(-x W_b) / 2)          root of the learning rate sigmoid(.)
    o = delta_rule(q, r k, r v, g)
    y = (rms_norm(o) * gate(x)) W_o

Letters: `B` rows, `S` slots, `T` tokens, `C` tokens of a chunk, `H` heads, `J`
key heads, `K` and `V` widths of keys and values, `W` width of the convolution,
`E` channels of queries, keys and values together, `2 J K + H V`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxagent.models import config as config_lib
from jaxagent.models import layers, sharding
from jaxagent.types import Array
from kernels_pallas import fg2_gdn

CHUNKS = (16, 32, 64)  # tokens that the chunked rule takes at once
L2_EPS = 1e-6

# Stored in float32 whatever the model is stored in: decays multiply over
# thousands of tokens.
WIDE = ('decay_rate', 'decay_bias')


class State(NamedTuple):
  """What a row leaves behind in one layer."""

  tail: Float[Array, 'S tail E']  # the last W - 1 inputs of the convolution
  memory: Float[Array, 'S H K V']  # float32


def shapes(config: config_lib.ModelConfig) -> dict[str, tuple[int, ...]]:
  """The parameters' shapes, kernels `[in, out]`, convolutions `[W, out]`."""
  c = config.gated_delta
  narrow, wide = c.key_heads * c.key_dim, c.heads * c.value_dim
  channels = c.heads * c.key_dim
  a_head = c.variant == 'gdn'
  out = {
    'query': (config.hidden, narrow),
    'key': (config.hidden, narrow),
    'value': (config.hidden, wide),
    'query_conv': (c.conv_width, narrow),
    'key_conv': (c.conv_width, narrow),
    'value_conv': (c.conv_width, wide),
    'decay_rate': (c.heads,),
    'decay_bias': (c.heads if a_head else channels,),
    'norm': (c.value_dim,),
    'output': (wide, config.hidden),
  }
  sizes = {
    'gate': (wide, c.gate_rank),
    'decay': (c.heads, 0) if a_head else (channels, c.gate_rank),
  }
  if c.variant == 'fg2_plus':
    sizes['key_beta'] = (channels, c.beta_rank)
    sizes['value_beta'] = (wide, c.beta_rank)
  else:
    a_token = channels if c.variant == 'fg2' else c.heads
    sizes['beta'] = (a_token, c.beta_rank)
  for name, (size, rank) in sizes.items():
    if rank:
      out[f'{name}_down'] = (config.hidden, rank)
      out[f'{name}_up'] = (rank, size)
    else:
      out[name] = (config.hidden, size)
  return out


def initial(name: str, shape: tuple[int, ...], key: Array) -> Array | None:
  """The first value of a parameter; None where any matrix's will do.

  A head forgets at exp(-rate dt) a token, rate in [1, 16] and dt in
  [0.001, 0.1], both drawn log-uniformly.
  """
  if name == 'decay_rate':
    return jax.random.uniform(key, shape, maxval=math.log(16.0))
  if name == 'decay_bias':
    ends = {'minval': math.log(1e-3), 'maxval': math.log(1e-1)}
    dt = jnp.exp(jax.random.uniform(key, shape, **ends))
    return dt + jnp.log(-jnp.expm1(-dt))  # softplus of it is dt
  if name.endswith('_conv'):
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
  return None


def empty(config: config_lib.ModelConfig, slots: int, length: int) -> State:
  """Memories of zeros; their size does not depend on `length`."""
  del length
  c = config.gated_delta
  channels = 2 * c.key_heads * c.key_dim + c.heads * c.value_dim
  return State(
    jnp.zeros((slots, c.conv_width - 1, channels), config.dtype),
    jnp.zeros((slots, c.heads, c.key_dim, c.value_dim), jnp.float32),
  )


def whole(
  config: config_lib.ModelConfig,
  params: dict[str, Array],
  x: Float[Array, 'B T D'],
  rows: layers.Rows,
) -> Float[Array, 'B T D']:
  """The layer on whole rows; the memory is empty where a segment begins."""
  runs = None
  if rows.segment_ids is not None:
    runs = _runs(rows.segment_ids)
  inputs = _inputs(params, x)
  tail = empty(config, x.shape[0], 0).tail
  operands = _operands(
    config, params, x, convolve(inputs, _kernel(params), tail, runs)
  )

  def rule(q, k, v, g, segment_ids=None):
    return fg2_gdn.fg2_gdn_prescaled(
      *(q, k, v, g), segment_ids=segment_ids, chunk_size=_chunk(x.shape[1])
    )[0]

  packed = () if runs is None else (runs + 1,)  # 0 would be padding
  mixed = sharding.each_part(rule, *operands, *packed)
  return _finish(config, params, x, mixed)


def extend(
  config: config_lib.ModelConfig,
  params: dict[str, Array],
  x: Float[Array, 'S C D'],
  chunk: layers.Chunk,
  state: State,
) -> tuple[Float[Array, 'S C D'], State]:
  """The layer on a chunk of rows that are in the middle of something.

  The valid tokens of a slot stand at the beginning of its chunk. A chunk that
  begins at position 0 begins a new row.
  """
  valid = chunk.valid
  fresh = (chunk.positions[:, 0] == 0) & valid[:, 0]
  tail = jnp.where(fresh[:, None, None], 0, state.tail)
  memory = jnp.where(fresh[:, None, None, None], 0, state.memory)
  inputs = _inputs(params, x)
  q, k, v, g = _operands(
    config, params, x, convolve(inputs, _kernel(params), tail, None)
  )
  # A token without key, value and decay leaves the memory as it is.
  k, v, g = (jnp.where(valid[:, :, None, None], y, 0) for y in (k, v, g))
  if x.shape[1] == 1:
    token = (y[:, 0] for y in (q, k, v, g))
    mixed, memory = fg2_gdn.fg2_gdn_step(*token, memory)
    mixed = mixed[:, None]
  else:

    def rule(q, k, v, g, memory):
      mixed, memory = fg2_gdn.fg2_gdn_prescaled(
        *(q, k, v, g),
        initial_state=jnp.swapaxes(memory, 1, 2),
        chunk_size=_chunk(x.shape[1]),
      )
      return mixed, jnp.swapaxes(memory, 1, 2)

    by_head = jnp.swapaxes(memory, 1, 2)  # [S, K, H, V]
    mixed, by_head = sharding.each_part(rule, q, k, v, g, by_head)
    memory = jnp.swapaxes(by_head, 1, 2)
  last = jnp.sum(valid, axis=1, dtype=jnp.int32)
  at = last[:, None] + jnp.arange(tail.shape[1])[None]
  seen = jnp.concatenate([tail, inputs], axis=1)
  tail = jnp.take_along_axis(seen, at[:, :, None], axis=1)
  return _finish(config, params, x, mixed), State(tail, memory)


def crop(state: State, length: int) -> State:
  """Itself: a memory has no positions."""
  del length
  return state


def paste(state: State, cropped: State) -> State:
  """What came of `crop`."""
  del state
  return cropped


def convolve(
  x: Float[Array, 'B T E'],
  kernel: Float[Array, 'W E'],
  tail: Float[Array, 'B tail E'],
  runs: Int[Array, 'B T'] | None,
) -> Float[Array, 'B T E']:
  """Causal convolution of each channel by itself, then SiLU; float32 inside.

  Args:
    kernel: its last row weighs the token itself.
    tail: the W - 1 tokens before the first, of its document.
    runs: index of each token's document; none sees another. None is one.
  """
  width, length = kernel.shape[0], x.shape[1]
  kernel = kernel.astype(jnp.float32)
  seen = jnp.concatenate([tail, x], axis=1).astype(jnp.float32)
  if runs is not None:
    runs = jnp.concatenate(
      [jnp.repeat(runs[:, :1], width - 1, axis=1), runs], axis=1
    )
  total = jnp.zeros(x.shape, jnp.float32)
  for back in range(width):
    start = width - 1 - back
    term = seen[:, start : start + length]
    term = term * jnp.broadcast_to(kernel[start], term.shape)
    if runs is not None and back:
      same = runs[:, start : start + length] == runs[:, width - 1 :]
      term = jnp.where(same[:, :, None], term, 0)
    total = total + term
  return jax.nn.silu(total).astype(x.dtype)


def _runs(segment_ids):
  """Index of each token's document, 0, 1, ... along the row."""
  changed = segment_ids[:, 1:] != segment_ids[:, :-1]
  runs = jnp.cumsum(changed, axis=1, dtype=jnp.int32)
  return jnp.pad(runs, ((0, 0), (1, 0)))


def _chunk(length):
  return next((size for size in CHUNKS if size >= length), CHUNKS[-1])


def _inputs(params, x):
  """What the convolution reads."""
  names = ('query', 'key', 'value')
  return jnp.concatenate([layers.linear(x, params[n]) for n in names], axis=-1)


def _kernel(params):
  names = ('query_conv', 'key_conv', 'value_conv')
  return jnp.concatenate([params[n] for n in names], axis=-1)


def _project(params, name, x):
  if name in params:
    return layers.linear(x, params[name])
  return layers.linear(
    layers.linear(x, params[f'{name}_down']), params[f'{name}_up']
  )


def _unit(x):
  wide = x.astype(jnp.float32)
  return wide * jax.lax.rsqrt(jnp.sum(wide * wide, -1, keepdims=True) + L2_EPS)


def _root(config, params, name, x):
  """Root of the learning rate, [B, T, H, ...]: finite slopes for any logit."""
  logit = _project(params, name, x).astype(jnp.float32)
  top = 2.0 if config.allow_neg_eigval else 1.0
  root = math.sqrt(top) * jnp.exp(-jax.nn.softplus(-logit) / 2)
  return root.reshape(*x.shape[:2], config.heads, -1)


def _operands(config, params, x, mixed):
  """Queries, scaled keys and values, and log decays, from the convolution."""
  c = config.gated_delta
  narrow = c.key_heads * c.key_dim
  q, k, v = jnp.split(mixed, (narrow, 2 * narrow), axis=-1)
  keyed = (*x.shape[:2], c.key_heads, c.key_dim)
  repeats = c.heads // c.key_heads
  q, k = (jnp.repeat(_unit(y.reshape(keyed)), repeats, axis=2) for y in (q, k))
  v = v.reshape(*x.shape[:2], c.heads, c.value_dim).astype(jnp.float32)
  if c.variant == 'fg2_plus':
    roots = [_root(c, params, f'{n}_beta', x) for n in ('key', 'value')]
  else:
    roots = [_root(c, params, 'beta', x)] * 2
  k, v = (
    y * jnp.broadcast_to(r, y.shape) for y, r in zip((k, v), roots, strict=True)
  )
  step = _project(params, 'decay', x).astype(jnp.float32)
  bias = params['decay_bias'].astype(jnp.float32)
  step = jax.nn.softplus(step + jnp.broadcast_to(bias, step.shape))
  step = step.reshape(*x.shape[:2], c.heads, -1)
  rate = jnp.exp(params['decay_rate'].astype(jnp.float32))
  g = -step * jnp.broadcast_to(rate[:, None], step.shape)
  return *(y.astype(x.dtype) for y in (q, k, v)), g


def _finish(config, params, x, mixed):
  """Norm by head, gate, and the output projection."""
  c = config.gated_delta
  normed = layers.rms_norm(mixed, params['norm'], eps=config.norm_eps)
  gate = _project(params, 'gate', x).astype(jnp.float32)
  gate = (jax.nn.silu if c.gate == 'silu' else jax.nn.sigmoid)(gate)
  wide = normed.reshape(gate.shape).astype(jnp.float32) * gate
  return layers.linear(wide.astype(x.dtype), params['output'])
