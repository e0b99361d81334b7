"""Gated delta rules: GDN, KDA, FG2-GDN, FG2-GDN+ and GDN-2 by one op.

    S_t = (I - c_t a_t^T) Diag(exp(g_t)) S_{t-1} + c_t u_t^T
    o_t = scale * S_t^T q_t

Letters: `B` rows, `T` tokens, `H` heads, `K` and `V` widths of keys and values.
A gate has one value a channel, or a last axis of 1 for one a head. Queries and
keys are expected L2-normalised; the op does not do it.

| variant   | a (erase)     | c (write)     | u             | g         |
|-----------|---------------|---------------|---------------|-----------|
| gdn       | sqrt(b) k     | sqrt(b) k     | sqrt(b) v     | a head    |
| kda       | sqrt(b) k     | sqrt(b) k     | sqrt(b) v     | a channel |
| fg2       | sqrt(b) k     | sqrt(b) k     | sqrt(b) v     | a channel |
| fg2_plus  | sqrt(b_k) k   | sqrt(b_k) k   | sqrt(b_v) v   | a channel |
| gdn2      | erase_gate k  | k             | write_gate v  | a channel |

One `b` a head may stand on both sides of the product as its square root, so
GDN and KDA are the symmetric form (a = c) too, and exactly so. Only GDN-2 is
not symmetric.

Keywords that all ops share:
  initial_state: [B, H, K, V] float32; the state before the first token, for
    the first document of a row. None is zeros.
  segment_ids: [B, T] integers; the packing of documents in a row, 0 for
    padding. The state is forgotten where the id changes; padding in between
    does not count, and an id may come again. `o` at padding is 0.
  scale: multiplies the queries; None is K ** -0.5.
  chunk_size: tokens a chunk, one of 16, 32, 64, 128. The `chunk` form picks
    what suits a CPU by itself.
  implementation: 'recurrent' (the definition), 'chunk' (plain XLA), 'pallas',
    'pallas_interpret', 'pallas_gpu'; None picks (see `choice`).
All return `(o, final_state)`: [B, T, H, V] in the dtype of v, and [B, H, K, V]
in float32 (float64 if an operand is). Pass the state back to continue a stream.
`g` below -30 counts as -30 in all but 'recurrent': exp(-30) is 9e-14.
"""

import functools
import importlib

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from kernels_pallas import dispatch
from kernels_pallas.fg2_gdn import chunked, decays, reference, specs

Array = jax.Array | np.ndarray
Outputs = tuple[Float[Array, 'B T H V'], Float[Array, 'B H K V']]

# The smallest log decay of a token, and the smallest beta under a square root.
MIN_G = decays.MIN_G
MIN_BETA = chunked.MIN_BETA

LANES = 16


def gated_delta(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B T H K'],
  v: Float[Array, 'B T H V'],
  g: Float[Array, 'B T H #K'],
  *,
  erase: Float[Array, 'B T H K'] | None = None,
  initial_state: Float[Array, 'B H K V'] | None = None,
  segment_ids: Int[Array, 'B T'] | None = None,
  scale: float | None = None,
  chunk_size: int = 64,
  implementation: str | None = None,
) -> Outputs:
  """The rank-one family on ready operands: c = k, u = v, a = erase.

  Args:
    q: queries.
    k: write directions, any step size already inside.
    v: values, any step size already inside.
    g: log decays <= 0, float32.
    erase: erase directions; None for the symmetric case, where they equal k.
    initial_state: see the top of the module, as for the rest.
    segment_ids: document of each token.
    scale: factor on the queries.
    chunk_size: tokens a chunk.
    implementation: by name, or None.

  Returns:
    `(o, final_state)`.

  Raises:
    ValueError: shapes that do not agree, or `g > 0` under
      KERNELS_PALLAS_CHECKS=1.
    TypeError: dtypes.
    NotImplementedError: the implementation cannot run here.
  """
  return _run(
    *(q, k, v, g),
    implementation=implementation,
    erase=erase,
    initial_state=initial_state,
    segment_ids=segment_ids,
    scale=scale,
    chunk_size=chunk_size,
  )


def _run(q, k, v, g, *, implementation=None, **keywords):
  """`gated_delta` with `betas`, for keys and values; see `_prepare`."""
  args, kwargs, length = _prepare(q, k, v, g, **keywords)
  o, state = dispatch.call(
    IMPLEMENTATIONS,
    implementation,
    *args,
    automatic=automatic(),
    **kwargs,
  )
  return o[:, :length], state


def choice(
  q, k, v, g, *, implementation: str | None = None, **keywords
) -> dispatch.Choice:
  """Says which implementation `gated_delta` would run on these, and why.

  Arrays may be `jax.ShapeDtypeStruct`; nothing is computed.
  """

  arrays = {k: x for k, x in keywords.items() if hasattr(x, 'shape')}
  rest = {k: x for k, x in keywords.items() if k not in arrays}
  args = jax.eval_shape(
    lambda q, k, v, g, arrays: _prepare(q, k, v, g, **arrays, **rest)[0],
    *(q, k, v, g, arrays),
  )
  return dispatch.choice(
    IMPLEMENTATIONS,
    implementation,
    *args,
    automatic=automatic(),
    chunk_size=keywords.get('chunk_size', 64),
    scale=1.0,
  )


def fg2_gdn(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B T H K'],
  v: Float[Array, 'B T H V'],
  g: Float[Array, 'B T H #K'],
  beta_k: Float[Array, 'B T H #K'],
  beta_v: Float[Array, 'B T H #V'],
  **keywords,
) -> Outputs:
  """FG2-GDN+ (arXiv 2604.19021): learning rates a channel, keys and values.

  `beta_k` and `beta_v` in [0, 1] (up to 2 keeps a step non-expansive). One
  value a head on both, the same, is KDA; one decay a head besides, GDN. Under
  1e-30 a beta counts as that, with no gradient: a layer that has the logit x
  should pass k * exp(-softplus(-x) / 2) to `fg2_gdn_prescaled`.
  """
  specs.check_gate('beta_k', beta_k, k.shape)
  specs.check_gate('beta_v', beta_v, v.shape)
  return _run(q, k, v, g, betas=(beta_k, beta_v), **keywords)


def fg2_gdn_prescaled(
  q: Float[Array, 'B T H K'],
  k_s: Float[Array, 'B T H K'],
  v_s: Float[Array, 'B T H V'],
  g: Float[Array, 'B T H #K'],
  **keywords,
) -> Outputs:
  """FG2-GDN+ on `k_s = sqrt(beta_k) k` and `v_s = sqrt(beta_v) v`."""
  return gated_delta(q, k_s, v_s, g, **keywords)


def fg2_plus(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B T H K'],
  v: Float[Array, 'B T H V'],
  g: Float[Array, 'B T H #K'],
  beta_k: Float[Array, 'B T H #K'],
  beta_v: Float[Array, 'B T H #V'],
  **keywords,
) -> Outputs:
  """FG2-GDN+ by its name in the paper; the same as `fg2_gdn`."""
  return fg2_gdn(q, k, v, g, beta_k, beta_v, **keywords)


def fg2(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B T H K'],
  v: Float[Array, 'B T H K'],
  g: Float[Array, 'B T H #K'],
  beta: Float[Array, 'B T H #K'],
  **keywords,
) -> Outputs:
  """FG2-GDN (arXiv 2604.19021): one vector of learning rates for both sides.

  Raises:
    ValueError: keys and values of different width.
  """
  specs.check_square(k, v)
  return fg2_gdn(q, k, v, g, beta, beta, **keywords)


def kda(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B T H K'],
  v: Float[Array, 'B T H V'],
  g: Float[Array, 'B T H #K'],
  beta: Float[Array, 'B T H 1'],
  **keywords,
) -> Outputs:
  """Kimi delta attention (arXiv 2510.26692): decay a channel, beta a head."""
  specs.check_shape('beta', beta, (*k.shape[:-1], 1))
  return fg2_gdn(q, k, v, g, beta, beta, **keywords)


def gdn(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B T H K'],
  v: Float[Array, 'B T H V'],
  g: Float[Array, 'B T H 1'],
  beta: Float[Array, 'B T H 1'],
  **keywords,
) -> Outputs:
  """Gated DeltaNet (arXiv 2412.06464): decay and beta a head."""
  specs.check_shape('g', g, (*k.shape[:-1], 1))
  return kda(q, k, v, g, beta, **keywords)


def gdn2(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B T H K'],
  v: Float[Array, 'B T H V'],
  g: Float[Array, 'B T H #K'],
  erase_gate: Float[Array, 'B T H #K'],
  write_gate: Float[Array, 'B T H #V'],
  **keywords,
) -> Outputs:
  """GDN-2 (arXiv 2605.22791): gates on erasing and on the value; a != c."""
  specs.check_gate('erase_gate', erase_gate, k.shape)
  specs.check_gate('write_gate', write_gate, v.shape)
  return gated_delta(
    *(q, k, _scaled(v, write_gate), g), erase=_scaled(k, erase_gate), **keywords
  )


def fg2_gdn_step(
  q: Float[Array, 'B H K'],
  k_s: Float[Array, 'B H K'],
  v_s: Float[Array, 'B H V'],
  g: Float[Array, 'B H #K'],
  state: Float[Array, 'B H K V'],
  *,
  erase: Float[Array, 'B H K'] | None = None,
  scale: float | None = None,
) -> tuple[Float[Array, 'B H V'], Float[Array, 'B H K V']]:
  """One token of decoding on ready operands; one pass over the state.

  Args:
    q: query of the token.
    k_s: write direction.
    v_s: value.
    g: log decay <= 0.
    state: float32 state after the tokens before.
    erase: erase direction; None where it equals `k_s`.
    scale: factor on the query; None is K ** -0.5.

  Returns:
    `(o, state)`: the output in the dtype of `v_s`, and the state after it.
  """
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  specs.check_state(state, (*q.shape, v_s.shape[-1]))
  g = jnp.maximum(g, MIN_G)
  o, state = reference.gated_delta_step(
    jnp.asarray(q, state.dtype) * scale, erase, k_s, v_s, g, state
  )
  return o.astype(v_s.dtype), state


def runs_of(segment_ids: Int[Array, 'B T']) -> Int[Array, 'B T']:
  """Index of each token's document: 0, 1, … along the row.

  Padding (id 0) joins the document on its left, leading padding the first one.
  """
  length = segment_ids.shape[1]
  real = segment_ids != 0
  places = lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
  left = lax.cummax(jnp.where(real, places, -1), axis=1)
  first = jnp.argmax(real, axis=1).astype(jnp.int32)[:, None]
  source = jnp.where(left < 0, first, left)
  ids = jnp.take_along_axis(jnp.asarray(segment_ids), source, axis=1)
  changes = ids[:, 1:] != ids[:, :-1] if length > 1 else ids[:, :0] != 0
  return jnp.pad(jnp.cumsum(changes, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


def automatic(platform: str | None = None) -> tuple[str, ...]:
  """The implementations that None tries, in order."""
  platform = jax.default_backend() if platform is None else platform
  return AUTOMATIC.get(platform, ('chunk',))


def _prepare(
  q,
  k,
  v,
  g,
  *,
  erase=None,
  initial_state=None,
  segment_ids=None,
  scale=None,
  chunk_size=64,
  betas=(None, None),
):
  """Operands as every implementation takes them, and the length of `o`.

  `betas` go as they are to the implementation, which takes `sqrt(beta) x` for
  `x`: the chunked form does so in cache.
  """
  specs.check_operands(
    *(q, k, v, g),
    erase=erase,
    initial_state=initial_state,
    segment_ids=segment_ids,
    chunk_size=chunk_size,
  )
  specs.check_values(g)
  rows, length, heads, width = q.shape
  accumulate = _wide(q, k, v, g)
  if initial_state is None:
    initial_state = jnp.zeros((rows, heads, width, v.shape[-1]), accumulate)
  options = {
    'chunk_size': chunk_size,
    'scale': width**-0.5 if scale is None else float(scale),
  }
  runs = None
  operands = [q, erase, k, v, g, *betas]
  if segment_ids is not None:
    runs = runs_of(segment_ids)
    real = (segment_ids != 0)[..., None, None]
    operands = [None if x is None else jnp.where(real, x, 0) for x in operands]
  extra = -length % chunk_size
  if extra:
    pad = ((0, 0), (0, extra))
    operands = [
      None if x is None else jnp.pad(x, (*pad, (0, 0), (0, 0)))
      for x in operands
    ]
    runs = None if runs is None else jnp.pad(runs, pad, mode='edge')
  state = jnp.asarray(initial_state, accumulate)
  *operands, beta_c, beta_u = operands
  options |= {'beta_c': beta_c, 'beta_u': beta_u}
  return (*operands, state, runs), options, length


def _wide(*arrays):
  """float64 if an array is, else float32; strict promotion has no bfloat16."""
  return (
    jnp.float64 if any(x.dtype == np.float64 for x in arrays) else jnp.float32
  )


def _scaled(x, factor):
  """`x * factor` in float32 or wider, given in the dtype of `x`."""
  wide = _wide(x, factor)
  width = x.shape[-1]
  if factor.shape[-1] == 1 and width % LANES == 0:
    # Widened in two steps, so that its gradient is summed in two, which
    # vectorises; one sum over the last axis was a sixth of GDN's training time.
    factor = jnp.broadcast_to(factor, (*factor.shape[:-1], LANES))[..., None, :]
    tall = (*x.shape[:-1], width // LANES, LANES)
    factor = jnp.broadcast_to(factor, tall).reshape(x.shape)
  return (x.astype(wide) * factor.astype(wide)).astype(x.dtype)


def _ready(
  function,
  lowest,
  *operands,
  scale,
  beta_c=None,
  beta_u=None,
  **keywords,
):
  """Runs `function` on scaled operands and decays not below `lowest`."""
  q, a, c, u, g, state, runs = operands
  q = _scaled(q, jnp.full((1, 1, 1, 1), scale, _wide(q, g)))
  c, u = (
    x if beta is None else _scaled(x, jnp.sqrt(jnp.maximum(beta, MIN_BETA)))
    for x, beta in ((c, beta_c), (u, beta_u))
  )
  if lowest is not None:
    g = jnp.maximum(g, lowest)
  return function(q, a, c, u, g, state, runs, **keywords)


def _late(module: str, name: str, **keywords):
  """An implementation that is imported when it is first run."""

  def run(*args, **rest):
    path = f'kernels_pallas.fg2_gdn.{module}'
    try:
      function = getattr(importlib.import_module(path), name)
    except (ImportError, AttributeError) as error:
      raise NotImplementedError(f'{path}.{name}: {error}') from error
    return _ready(function, MIN_G, *args, **keywords, **rest)

  return run


IMPLEMENTATIONS = {
  'recurrent': functools.partial(_ready, reference.gated_delta_recurrent, None),
  # Scales and clamps by itself, in cache.
  'chunk': chunked.gated_delta_chunked,
  'pallas': _late('pallas', 'gated_delta_pallas'),
  'pallas_interpret': _late('pallas', 'gated_delta_pallas', interpret=True),
  'pallas_gpu': _late('pallas_gpu', 'gated_delta_pallas_gpu'),
}

AUTOMATIC = {
  'tpu': ('pallas', 'chunk'),
  # The Triton kernel has not run on a GPU yet; ask for it by name.
  'gpu': ('chunk',),
}
