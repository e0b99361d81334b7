"""Backward kernel of the gated delta rule for TPU: chunks from last to first.

From the gradients dO and dS of a chunk, with everything of the forward computed
again from the state before it,

    dN = P^T dO + (C e^(G_C - G)) dS          dR = T^T dN = dU
    dP = tril(dO N^T)                         dL = -stril(dR N^T)
    dQ = (dO S^T) e^G + [sum_j dP_ij c_j e^(G_i - G_j)]
    dA = -(dR S^T) e^G + [sum_j dL_ij c_j e^(G_i - G_j)]
    dC = (N dS^T) e^(G_C - G) + [sum_i (dP_ij q_i + dL_ij a_i) e^(G_i - G_j)]
    dS <- (Q e^G)^T dO - (A e^G)^T dR + Diag(e^G_C) dS
    dg_t = sum_{i >= t} (q dq + a da - c dc)_i + rowsum(dS S after the chunk)

The brackets go by tiles and pairs of blocks, as in the forward. The sum in dg
stops at the end of t's document: without that, rounding would leak from one
document to another.
"""

import functools

from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from kernels_pallas.fg2_gdn import pallas_fwd as fwd


def _tiles(q, a, c, pre, begun, of_p, of_l):
  """Gradients of q, a and c through P and L inside tiles of 8 rows.

  Args:
    q, a, c: [R, K].
    pre, begun: as `pallas_fwd.tiles` takes them.
    of_p, of_l: [R, R], dP and dL.
  """
  i, j = fwd.indices(q.shape[0])
  row = fwd.row_of_tile(q.shape[0])
  dq, da, dc = (jnp.zeros_like(x) for x in (q, a, c))
  for s in range(fwd.TILE):
    decay, valid = fwd.from_row(s, pre, begun)
    at = (j == (i & -fwd.TILE) + s) & valid
    wp = jnp.sum(jnp.where(at, of_p, 0.0), axis=1, keepdims=True)
    wl = jnp.sum(jnp.where(at & (i > j), of_l, 0.0), axis=1, keepdims=True)
    decayed = fwd.spread(c, s) * decay
    dq = dq + wp * decayed
    da = da + wl * decayed
    dc = jnp.where(row == s, fwd.sum_of_tile((wp * q + wl * a) * decay), dc)
  return dq, da, dc


def _scores(parts, q, a, c, of_p, of_l, dot):
  """Gradients of q, a and c through P and L.

  Args:
    parts: of the chunk.
    q, a, c: [R, K].
    of_p, of_l: [R, R], dP and dL, not yet masked.
    dot: product of matrices.
  """
  rows = q.shape[0]
  half = rows // 2
  dq, da, dc = _tiles(q, a, c, parts.tile_sums, parts.begun, of_p, of_l)
  for size, pre, suf in parts.levels:
    right = functools.partial(fwd.right_of, size=size)
    mask = fwd.pairs(rows, size, parts.same)
    weights = fwd.stack([jnp.where(mask, right(x), 0.0) for x in (of_p, of_l)])
    pre, suf = jnp.exp(right(pre)), jnp.exp(suf)
    x = fwd.stack([right(q) * pre, right(a) * pre])
    dx = dot(weights, c * suf)
    dq = fwd.with_right(dq, right(dq) + pre * dx[:half], size)
    da = fwd.with_right(da, right(da) + pre * dx[half:], size)
    dc = dc + suf * dot(weights, x, fwd.TN)
  return dq, da, dc


def _sum_to_end(z, same, chunk):
  """Sums of rows i >= t, inside t's chunk and document."""
  t, i = fwd.indices(z.shape[0])
  later = (i >= t) & (fwd.block(i ^ t, chunk) == 0)
  later = later if same is None else later & same
  return fwd.exact(jnp.where(later, 1.0, 0.0), z)


def _chunk(q, a, c, u, g, run, states, do, dstates, through, dot):
  """Gradients of one chunk: dq, da, dc, du, dg, and those of the states.

  Operands have the rows of all heads, states and `through` are one a head.
  """
  chunk = u.shape[0] // len(states)

  def each(function, *operands):
    """Stacks `function` of every head."""
    return fwd.stack(list(map(function, *operands)))

  def split(x):
    return fwd.heads_of(x, chunk)

  def reads(x, states):
    return each(dot, split(x), states)

  parts = fwd.prepare(q, a, c, g, run, chunk)
  _, n, _ = fwd.advance(parts, q, a, c, u, states, dot)
  written = c * parts.tail
  dn = dot(parts.p, do, fwd.TN) + each(
    lambda x, ds: dot(x, ds, fwd.NT), split(written), dstates
  )
  du = dot(parts.inverse, dn, fwd.TN)
  of_p, of_l = dot(do, n, fwd.NT), -dot(du, n, fwd.NT)
  dq, da, dc = _scores(parts, q, a, c, of_p, of_l, dot)
  dq = dq + reads(do, states) * parts.head
  da = da - reads(du, states) * parts.head
  dc = dc + reads(n, dstates) * parts.tail
  dg = _sum_to_end(q * dq + a * da - c * dc, parts.same, chunk)
  through = each(lambda x: jnp.broadcast_to(x, (chunk, x.shape[1])), through)
  dg = dg + (
    through if parts.last is None else jnp.where(parts.last, through, 0.0)
  )
  before = [
    keep[:1] * ds + dot(do, q, fwd.TN) - dot(du, a, fwd.TN)
    for keep, ds, do, q, du, a in zip(
      split(parts.keep),
      dstates,
      split(do),
      split(q * parts.head),
      split(du),
      split(a * parts.head),
      strict=True,
    )
  ]
  return dq, da, dc, du, dg, before


def _kernel(*refs, symmetric, packed):
  refs = list(refs)
  through, scratch = refs.pop(), refs.pop()
  q_ref, c_ref, u_ref, g_ref, states_ref, end_ref, do_ref, dend_ref = refs[:8]
  a_ref = c_ref if symmetric else refs[8]
  run = refs[9 - symmetric][0, 0] if packed else None
  outs = refs[8 + (not symmetric) + packed :]
  dq_ref, dc_ref, du_ref, dg_ref, dstart_ref = outs[:5]
  heads = scratch.shape[0]

  @pl.when(pl.program_id(2) == 0)
  def _():
    scratch[...] = dend_ref[0]
    for h in range(heads):
      through[h] = jnp.sum(
        dend_ref[0, h] * end_ref[0, h], axis=0, keepdims=True
      )

  states = [states_ref[0, h, 0] for h in range(heads)]
  dq, da, dc, du, dg, dstates = _chunk(
    *(fwd.load(ref, heads) for ref in (q_ref, a_ref, c_ref, u_ref, g_ref)),
    run,
    states,
    fwd.load(do_ref, heads),
    [scratch[h] for h in range(heads)],
    [through[h] for h in range(heads)],
    fwd.dot_for(u_ref.dtype),
  )
  if symmetric:
    dc = dc + da
  else:
    fwd.store(outs[5], da, heads)
  fwd.store(dq_ref, dq, heads)
  fwd.store(dc_ref, dc, heads)
  fwd.store(du_ref, du, heads)
  fwd.store(dg_ref, dg, heads)
  for h in range(heads):
    scratch[h] = dstates[h]
    through[h] = jnp.sum(dstates[h] * states[h], axis=0, keepdims=True)

  @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
  def _():
    dstart_ref[0] = scratch[...]


def backward(q, a, c, u, g, states, end, run, do, dend, *, chunk, interpret):
  """Gradients of `pallas_fwd.forward`.

  Args:
    q, a, c, u, g, run: as there.
    states: [B, H, T / C, V, K], the states before every chunk.
    end: [B, H, V, K], the final state.
    do: [B, T, H V], gradient of the output.
    dend: [B, H, V, K], gradient of the final state.
    chunk: C.
    interpret: as `pallas_call` takes it.

  Returns:
    Gradients of q, a (None where a is), c, u, g and the initial state.
  """
  rows, length, heads, k, v = shape = fwd.shape_of(q, end)
  group, of = fwd.specs(shape, chunk, backwards=True)
  operands = [q, c, u, g, states, end, do, dend]
  kinds = ['k', 'k', 'v', 'k', 'states', 'state', 'v', 'state']
  if a is not None:
    operands.append(a)
    kinds.append('k')
  if run is not None:
    operands.append(jnp.tile(run, group))
    kinds.append('run')
  results = [q, c, u, g, end] + ([] if a is None else [a])
  out_kinds = ['k', 'k', 'v', 'k', 'state'] + ([] if a is None else ['k'])
  outs = pl.pallas_call(
    functools.partial(_kernel, symmetric=a is None, packed=run is not None),
    grid=(rows, heads // group, length // chunk),
    in_specs=[of[kind] for kind in kinds],
    out_specs=[of[kind] for kind in out_kinds],
    out_shape=[fwd.like(q, x.shape, x.dtype) for x in results],
    scratch_shapes=[
      pltpu.VMEM((group, v, k), jnp.float32),
      pltpu.VMEM((group, 1, k), jnp.float32),
    ],
    compiler_params=fwd.PARAMS,
    interpret=interpret,
    name='gated_delta_backward',
  )(*operands)
  dq, dc, du, dg, dstart, *rest = outs
  return dq, rest[0] if rest else None, dc, du, dg, dstart
