"""Backward kernel of the gated delta rule for TPU: chunks from last to first.

From the gradients dO and dS of a chunk, with everything of the forward computed
again from the state before it,

    dN = P^T dO + (C e^(G_C - G)) dS          dR = T^T dN = dU
    W = [dO; -dR]      dM = W N^T, lower triangle for P, strict one for L
    d[Q; A] = (W S^T) e^G + [sum_j dM_ij c_j e^(G_i - G_j)]
    dC = (N dS^T) e^(G_C - G) + [sum_i dM_ij x_i e^(G_i - G_j)]
    dS <- [Q; A]^T W e^G + Diag(e^G_C) dS
    dg_t = sum_{i >= t} (q dq + a da - c dc)_i + rowsum(dS S after the chunk)

The brackets use the levels of the forward. The sum in dg stops at the end of
t's document: without that, rounding would leak from one document to another.
"""

import functools

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from kernels_pallas.fg2_gdn import pallas_fwd as fwd


def _scores(parts: fwd.Chunk, c, weights, chunk, dot):
  """Gradients of stacked x and of c through P and L.

  Args:
    parts: of the forward.
    c: [C, K].
    weights: [2 C, C], dP over dL, not yet masked.
    chunk: C.
    dot: product of matrices.
  """
  i = lax.broadcasted_iota(jnp.int32, (chunk, chunk), 0)
  j = lax.broadcasted_iota(jnp.int32, (chunk, chunk), 1)
  diagonal = jnp.sum(
    jnp.where(i == j, weights[:chunk], 0.0), axis=1, keepdims=True
  )
  dx = jnp.concatenate([diagonal * c, jnp.zeros_like(c)], axis=0)
  dc = diagonal * parts.x[:chunk]
  for level in parts.levels:
    mask = jnp.concatenate([level.mask, level.mask], axis=0)
    entries = jnp.where(mask, weights, 0.0)
    pre = fwd.twice(level.pre)
    dx = dx + pre * dot(entries, c * level.suf)
    dc = dc + level.suf * dot(entries, parts.x * pre, fwd.TN)
  return dx, dc


def _sum_to_end(z, same):
  """Sums of rows i >= t, inside t's document."""
  chunk = z.shape[0]
  t = lax.broadcasted_iota(jnp.int32, (chunk, chunk), 0)
  i = lax.broadcasted_iota(jnp.int32, (chunk, chunk), 1)
  later = i >= t if same is None else (i >= t) & same
  return fwd.exact(jnp.where(later, 1.0, 0.0), z)


def _chunk(q, a, c, u, g, run, state, do, dstate, through, dot):
  """Gradients of one chunk: dq, da, dc, du, dg, dstate."""
  chunk = u.shape[0]
  parts = fwd.prepare(q, a, c, g, run)
  _, n, _ = fwd.advance(parts, c, u, state, dot)
  dn = dot(parts.p, do, fwd.TN) + dot(c * parts.tail, dstate, fwd.NT)
  du = dot(parts.inverse, dn, fwd.TN)
  w = jnp.concatenate([do, -du], axis=0)
  dx, dc = _scores(parts, c, dot(w, n, fwd.NT), chunk, dot)
  dx = dx + dot(w, state) * parts.head
  dc = dc + dot(n, dstate) * parts.tail
  z = parts.x * dx
  dg = _sum_to_end(z[:chunk] + z[chunk:] - c * dc, parts.same)
  dg = dg + (
    through if parts.last is None else jnp.where(parts.last, through, 0.0)
  )
  dstate = parts.keep * dstate + dot(w, parts.x * parts.head, fwd.TN)
  return dx[:chunk], dx[chunk:], dc, du, dg, dstate


def _kernel(*refs, symmetric, packed):
  refs = list(refs)
  through, scratch = refs.pop(), refs.pop()
  q_ref, c_ref, u_ref, g_ref, states_ref, end_ref, do_ref, dend_ref = refs[:8]
  a_ref = c_ref if symmetric else refs[8]
  run = refs[9 - symmetric][0, 0] if packed else None
  outs = refs[8 + (not symmetric) + packed :]
  dq_ref, dc_ref, du_ref, dg_ref, dstart_ref = outs[:5]

  @pl.when(pl.program_id(2) == 0)
  def _():
    scratch[...] = dend_ref[0, 0]
    through[...] = jnp.sum(
      dend_ref[0, 0] * end_ref[0, 0], axis=0, keepdims=True
    )

  state = states_ref[0, 0, 0]
  dq, da, dc, du, dg, dstate = _chunk(
    *(fwd.load(ref) for ref in (q_ref, a_ref, c_ref, u_ref, g_ref)),
    run,
    state,
    fwd.load(do_ref),
    scratch[...],
    through[...],
    fwd.dot_for(u_ref.dtype),
  )
  if symmetric:
    dc = dc + da
  else:
    outs[5][0] = da.astype(outs[5].dtype)
  dq_ref[0] = dq.astype(dq_ref.dtype)
  dc_ref[0] = dc.astype(dc_ref.dtype)
  du_ref[0] = du.astype(du_ref.dtype)
  dg_ref[0] = dg
  scratch[...] = dstate
  through[...] = jnp.sum(dstate * state, axis=0, keepdims=True)

  @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
  def _():
    dstart_ref[0, 0] = dstate


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
  of = fwd.specs(shape, chunk, backwards=True)
  operands = [q, c, u, g, states, end, do, dend]
  kinds = ['k', 'k', 'v', 'k', 'states', 'state', 'v', 'state']
  for operand, kind in ((a, 'k'), (run, 'run')):
    if operand is not None:
      operands.append(operand)
      kinds.append(kind)
  results = [q, c, u, g, end] + ([] if a is None else [a])
  out_kinds = ['k', 'k', 'v', 'k', 'state'] + ([] if a is None else ['k'])
  outs = pl.pallas_call(
    functools.partial(_kernel, symmetric=a is None, packed=run is not None),
    grid=(rows, heads, length // chunk),
    in_specs=[of[kind] for kind in kinds],
    out_specs=[of[kind] for kind in out_kinds],
    out_shape=[fwd.like(q, x.shape, x.dtype) for x in results],
    scratch_shapes=[
      pltpu.VMEM((v, k), jnp.float32),
      pltpu.VMEM((1, k), jnp.float32),
    ],
    compiler_params=fwd.PARAMS,
    interpret=interpret,
    name='gated_delta_backward',
  )(*operands)
  dq, dc, du, dg, dstart, *rest = outs
  return dq, rest[0] if rest else None, dc, du, dg, dstart
