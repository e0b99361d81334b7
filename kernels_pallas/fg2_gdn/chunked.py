"""The gated delta rule by chunks in plain XLA: fast on a CPU, exact for any g.

Per chunk of `C` tokens with entry state S and decays G summed from its start
(arXiv 2510.26692 and the WY form of arXiv 2406.06484):

    L_ij = sum_d a_id c_jd e^(G_id - G_jd)  i > j      T = (I + L)^-1
    P_ij = sum_d q_id c_jd e^(G_id - G_jd)  i >= j
    N = T (u - (a e^G) S)      o = (q e^G) S + P N
    S' = e^(G_C) S + (c e^(G_C - G))^T N

What makes it fast on one core (measured; see `experiments/bench.py kernels`):
one `lax.scan` over blocks of a few chunks, with all temporaries of a block in
cache; the walk over the chunks of a block unrolled; rows and heads folded into
one batch axis; the backward recomputes a block from its entry state.

Chunks are of 32 tokens, 4 to a block, whatever the caller's `chunk_size`: on
CPUs that was best or tied at every length.
"""

import functools

import jax
from jax import custom_batching, lax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from kernels_pallas.fg2_gdn import decays, triangular

Array = jax.Array | np.ndarray

CHUNK = decays.CHUNK
CHUNKS = 4  # a block
# The smallest beta under a square root; smaller ones count as this, without
# gradient.
MIN_BETA = 1e-30
SCALED = {'beta_c': 'c', 'beta_u': 'u'}


@functools.partial(jax.jit, static_argnames=('chunk_size', 'scale'))
def gated_delta_chunked(
  q: Float[Array, 'B T H K'],
  a: Float[Array, 'B T H K'] | None,
  c: Float[Array, 'B T H K'],
  u: Float[Array, 'B T H V'],
  g: Float[Array, 'B T H G'],
  initial_state: Float[Array, 'B H K V'],
  runs: Int[Array, 'B T'] | None,
  *,
  chunk_size: int,
  scale: float = 1.0,
  beta_c: Float[Array, 'B T H #K'] | None = None,
  beta_u: Float[Array, 'B T H #V'] | None = None,
) -> tuple[Float[Array, 'B T H V'], Float[Array, 'B H K V']]:
  """Same arguments and values as `reference.gated_delta_recurrent`.

  Computes in the dtype of `initial_state`. Below -30 `g` counts as -30, with
  no gradient. Scales and clamps inside its blocks: arrays of the size of an
  operand that are written beforehand cost up to half the time. Under `vmap` the
  mapped axis joins the rows, so that nothing is computed twice.

  Args:
    q: queries.
    a: erase directions; None where they equal `c`.
    c: write directions.
    u: values.
    g: log decays <= 0.
    initial_state: the state before the first token.
    runs: index of each token's document along the row, or None.
    chunk_size: not used, see the top of the module.
    scale: factor on the queries.
    beta_c: `c` is taken times the square root of this, see `MIN_BETA`.
    beta_u: `u` likewise.

  Returns:
    `o`, in the dtype of `u`, and the state after the last token.
  """
  del chunk_size
  length = q.shape[1]
  chunks = min(CHUNKS, -(-length // CHUNK))
  extra = -length % (CHUNK * chunks)
  xs = {'q': q, 'a': a, 'c': c, 'u': u, 'g': g}
  xs |= {'beta_c': beta_c, 'beta_u': beta_u}
  xs = {name: x for name, x in xs.items() if x is not None}
  if extra:
    pad = ((0, 0), (0, extra), (0, 0), (0, 0))
    xs = {name: jnp.pad(x, pad) for name, x in xs.items()}
  marks = None
  if runs is not None:
    runs = jnp.pad(runs, ((0, 0), (0, extra)), mode='edge')
    before = jnp.pad(runs[:, :-1], ((0, 0), (1, 0)), mode='edge')
    marks = jnp.stack([runs, before], -1)
  o, state = _op((chunks, scale), xs, jnp.asarray(initial_state), marks)
  return o[:, :length], state


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _op(options, xs, state, marks):
  return _folding(functools.partial(_forward, options, False))(xs, state, marks)


def _op_forward(options, xs, state, marks):
  run = _folding(functools.partial(_forward, options, True))
  o, last, entries = run(xs, state, marks)
  return (o, last), (xs, entries, last, marks)


def _op_backward(options, residuals, cotangents):
  run = _folding(functools.partial(_backward, options))
  dxs, dstate = run(*residuals, *cotangents)
  return dxs, dstate, None


_op.defvjp(_op_forward, _op_backward)


def _folding(function):
  """Under `vmap`, joins the mapped axis to the rows.

  A batched `lax.cond` would run both of its branches and mix their values.
  """
  batched = custom_batching.custom_vmap(function)

  @batched.def_vmap
  def rule(size, mapped, *args):
    def join(x, is_mapped):
      x = x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
      return x.reshape(-1, *x.shape[2:])

    outputs = _folding(function)(*jax.tree.map(join, args, tuple(mapped)))
    split = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), outputs)
    return split, jax.tree.map(lambda _: True, split)

  return batched


def _forward(options, save, xs, state, marks):
  """o, the last state and, if `save`, the entry state of each block."""
  chunks, scale = options
  rows, length, heads, _ = xs['q'].shape
  cut = functools.partial(_cut, chunks, heads, state.dtype)

  def step(state, index):
    block, masks = cut(xs, marks, index)
    block, _ = _ready(block, scale)
    o, after = _branch(_block_forward, block['g'], masks, state, block)
    o = _uncut(o, rows).astype(xs['u'].dtype)
    return after, (o, state if save else None)

  last, (o, entries) = lax.scan(
    step,
    state.reshape(-1, *state.shape[2:]),
    jnp.arange(length // (CHUNK * chunks)),
  )
  o = jnp.moveaxis(o, 0, 1).reshape(xs['u'].shape)
  last = last.reshape(state.shape)
  if not save:
    return o, last
  entries = entries.reshape(-1, *state.shape)
  return o, last, jnp.moveaxis(entries, 0, 1)


def _backward(options, xs, entries, last, marks, do, dlast):
  """Gradients of the operands and of the initial state."""
  chunks, scale = options
  rows, length, heads, _ = xs['q'].shape
  cut = functools.partial(_cut, chunks, heads, entries.dtype)

  def step(carry, x):
    index, entry = x
    block, masks = cut({**xs, 'do': do}, marks, index)
    do_block, raw = block.pop('do'), block
    block, roots = _ready(raw, scale)
    entry = entry.reshape(carry[0].shape)
    dblock, *carry = _branch(
      *(_block_backward, block['g'], masks),
      *(entry, block, do_block, *carry),
    )
    return tuple(carry), {
      name: _uncut(dx, rows).astype(xs[name].dtype)
      for name, dx in _unready(raw, roots, scale, dblock).items()
    }

  fold = (-1, *dlast.shape[2:])
  last, dlast = last.reshape(fold), dlast.reshape(fold)
  carry = (dlast, decays.total(last, dlast, xs['g'].shape[-1]))
  (dstate, _), dxs = lax.scan(
    step,
    carry,
    (jnp.arange(length // (CHUNK * chunks)), jnp.moveaxis(entries, 1, 0)),
    reverse=True,
  )
  dxs = {
    name: jnp.moveaxis(dx, 0, 1).reshape(xs[name].shape)
    for name, dx in dxs.items()
  }
  return dxs, dstate.reshape(entries.shape[:1] + entries.shape[2:])


def _ready(block, scale):
  """Operands as the rule takes them, from operands as they come.

  Returns them, and the square roots of the betas by name.
  """
  out = {name: x for name, x in block.items() if name not in SCALED}
  out['q'] = scale * block['q']
  out['g'] = jnp.maximum(block['g'], decays.MIN_G)
  roots = {
    name: jnp.sqrt(jnp.maximum(block[name], MIN_BETA))
    for name in SCALED
    if name in block
  }
  for name, root in roots.items():
    out[SCALED[name]] = block[SCALED[name]] * root
  return out, roots


def _unready(raw, roots, scale, dblock):
  """Gradients of what came into `_ready` from those of what came out."""
  out = dict(dblock)
  out['q'] = scale * dblock['q']
  out['g'] = jnp.where(raw['g'] < decays.MIN_G, 0, dblock['g'])
  for name, root in roots.items():
    x = SCALED[name]
    droot = dblock[x] * raw[x]
    if root.shape[-1] == 1:
      droot = decays.lane_sum(droot)
    out[x] = dblock[x] * root
    out[name] = jnp.where(raw[name] > MIN_BETA, droot / (2 * root), 0)
  return out


def _branch(function, g, masks, *args):
  """Runs `function` with the decays that suit `g`, chosen at run time.

  Not so for packed rows: one document's decays would choose for the others,
  and change their last bits.
  """
  if g.shape[-1] == 1 or masks is not None:
    form = decays.by_head if g.shape[-1] == 1 else decays.by_halves
    return function(form, masks, *args)
  return lax.cond(
    decays.is_moderate(g),
    functools.partial(function, decays.about_middle, masks),
    functools.partial(function, decays.by_halves, masks),
    *args,
  )


def _cut(chunks, heads, dtype, xs, marks, index):
  """Block `index` as [chunks, rows * heads, C, D], and its masks."""
  size = CHUNK * chunks

  def cut(x):
    x = lax.dynamic_slice_in_dim(x, index * size, size, axis=1)
    x = x.reshape(x.shape[0], chunks, CHUNK, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  def fold(x):
    x = jnp.swapaxes(cut(x), 2, 3).astype(dtype)
    return x.reshape(chunks, -1, CHUNK, x.shape[-1])

  block = {name: fold(x) for name, x in xs.items()}
  return block, None if marks is None else decays.masks(cut(marks), heads)


def _uncut(x, rows):
  """[chunks, rows * heads, C, D] as [rows, chunks * C, heads, D]."""
  chunks, _, size, width = x.shape
  x = x.reshape(chunks, rows, -1, size, width).transpose(1, 0, 3, 2, 4)
  return x.reshape(rows, chunks * size, -1, width)


def _walk(d, inverse, u, state):
  """The chunks of a block in order.

  Returns lists over chunks, states as `d` scales them and new rows N, and the
  state after the block.
  """
  states, news = [], []
  if d.enter is not None:
    state = d.enter * state
  for m in range(u.shape[0]):
    read = _times(d.head, m, triangular.dot(d.a[m], state, 'mm'))
    new = triangular.dot(inverse[m], u[m] - read, 'mm')
    states.append(state)
    news.append(new)
    added = triangular.dot(d.c[m], _times(d.tail, m, new), 'tn')
    state = d.keep[m] * state + _times(d.write, m, added)
  return states, news, state


def _times(factor, m, x):
  return x if factor is None else factor[m] * x


def _block_forward(form, masks, state, block):
  d = form(block, masks)
  inverse = triangular.unit_inverse(d.lower)
  states, news, last = _walk(d, inverse, block['u'], state)
  o = [
    _times(d.head, m, triangular.dot(d.q[m], states[m], 'mm'))
    + triangular.dot(d.reads[m], news[m], 'mm')
    for m in range(len(news))
  ]
  return jnp.stack(o), last


def _block_backward(form, masks, state, block, do, dstate, total):
  """Gradients of a block, and of its entry state.

  Args:
    form: how decays enter.
    masks: of packed rows, or None.
    state: entry state.
    block: operands.
    do: gradient of the outputs.
    dstate: gradient of the state after the block.
    total: sum over V (and K, for a decay a head) of that state times its
      gradient; what tokens after the block add to each decay in it.
  """
  d = form(block, masks)
  inverse = triangular.unit_inverse(d.lower)
  states, news, _ = _walk(d, inverse, block['u'], state)
  read_back = triangular.dot(d.reads, do, 'tn')
  drests, dstates = [], []
  for m in reversed(range(len(news))):
    dadded = _times(d.write, m, dstate)
    dnew = _times(d.tail, m, triangular.dot(d.c[m], dadded, 'mm'))
    drest = triangular.dot(inverse[m], read_back[m] + dnew, 'tn')
    dstate = (
      d.keep[m] * dstate
      + triangular.dot(d.q[m], _times(d.head, m, do[m]), 'tn')
      - triangular.dot(d.a[m], _times(d.head, m, drest), 'tn')
    )
    drests.append(drest)
    dstates.append(dadded)
  if d.enter is not None:
    dstate = d.enter * dstate
  news, states = jnp.stack(news), jnp.stack(states)
  drests, dstates = jnp.stack(drests[::-1]), jnp.stack(dstates[::-1])
  head, tail = (1 if x is None else x for x in (d.head, d.tail))
  dq, da, dc, z = d.pull(
    triangular.dot(head * do, states, 'nt'),
    -triangular.dot(head * drests, states, 'nt'),
    triangular.dot(tail * news, dstates, 'nt'),
    triangular.dot(do, news, 'nt'),
    -triangular.dot(drests, news, 'nt'),
  )
  grads = {'q': dq, 'a': da, 'c': dc, 'u': drests}
  if 'a' not in block:
    grads['c'] = dc + grads.pop('a')
  grads['g'] = decays.sum_later(z, total, masks)
  total = decays.total(state, dstate, z.shape[-1])
  return grads, dstate, total
