"""Forward kernel of the gated delta rule for TPU, one chunk a grid step.

With `G` the inclusive sum of `g` inside a chunk, `S` the state before it,

    L_ij = sum_d a_id c_jd exp(G_id - G_jd)   (i > j)     T = (I + L)^-1
    P_ij = sum_d q_id c_jd exp(G_id - G_jd)   (i >= j)
    N = T (U - (A e^G) S)     O = (Q e^G) S + P N
    S <- Diag(e^G_C) S + (C e^(G_C - G))^T N

L, P and T are built from pairs of neighbouring blocks of 1, 2, 4, … rows. For a
pair, `pre` sums g from the start of the right block and `suf` sums it after a
row to the end of the left block, so no exponent is positive and no sum is a
difference; and T of the two is T - T L_pair T. Both are exact, repeated keys
and strong decay included, where powers of L or exp(G) exp(-G) are not.

The state is kept transposed, [V, K], so that decays multiply along lanes.
Queries and erase directions are stacked, [2 C, K].
"""

import functools
from typing import NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

NN = (((1,), (0,)), ((), ()))
NT = (((1,), (1,)), ((), ()))
TN = (((0,), (0,)), ((), ()))

PARAMS = pltpu.CompilerParams(
  dimension_semantics=('parallel', 'parallel', 'arbitrary')
)


class Level(NamedTuple):
  """Blocks of `size` rows in pairs: the pairs' entries, and their decays."""

  size: int
  mask: jax.Array  # [C, C]: row in the right block, column in its left one
  pre: jax.Array  # [C, K]: exp of the sum up to the row in its block
  suf: jax.Array  # [C, K]: exp of the sum after the row in its block


class Chunk(NamedTuple):
  """What the forward and the backward of a chunk both need.

  Attributes:
    x: [2 C, K], queries over erase directions.
    head: [2 C, K], e^G where the state before the chunk is seen, else 0.
    tail: [C, K], e^(G_C - G) where the state after it is written, else 0.
    keep: [1, K], e^G_C if the state lives through the chunk, else 0.
    p: [C, C].
    inverse: [C, C], T.
    levels: for the backward.
    same: [C, C], pairs of one document, or None where there is only one.
    last: [C, 1], tokens of the document that ends the chunk, or None.
  """

  x: jax.Array
  head: jax.Array
  tail: jax.Array
  keep: jax.Array
  p: jax.Array
  inverse: jax.Array
  levels: tuple[Level, ...]
  same: jax.Array | None
  last: jax.Array | None


def exact(x, y, dims=NN):
  """A product of float32, as exact as the unit makes it."""
  return lax.dot_general(
    *(x, y, dims),
    precision=lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )


def quick(x, y, dims=NN):
  """A product of operands rounded to bfloat16, summed in float32."""
  return lax.dot_general(
    *(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), dims),
    preferred_element_type=jnp.float32,
  )


def dot_for(dtype):
  """The product for operands that came as `dtype`."""
  return exact if dtype == jnp.float32 else quick


def decays(g, same):
  """The levels of a chunk, then e^G, e^(G_C - G) and e^G_C, all [C, K]."""
  chunk = g.shape[0]
  rows = lax.broadcasted_iota(jnp.int32, g.shape, 0)
  i = lax.broadcasted_iota(jnp.int32, (chunk, chunk), 0)
  j = lax.broadcasted_iota(jnp.int32, (chunk, chunk), 1)
  pre, suf, total = g, jnp.zeros_like(g), g
  levels, size = [], 1
  while size < chunk:
    mask = ((i ^ j) >= size) & ((i ^ j) < 2 * size) & (i > j)
    mask = mask if same is None else mask & same
    levels.append(Level(size, mask, jnp.exp(pre), jnp.exp(suf)))
    right = (rows & size) != 0
    other = jnp.where(
      right, pltpu.roll(total, size, 0), pltpu.roll(total, chunk - size, 0)
    )
    pre = pre + jnp.where(right, other, 0.0)
    suf = suf + jnp.where(right, 0.0, other)
    total = total + other
    size *= 2
  return tuple(levels), jnp.exp(pre), jnp.exp(suf), jnp.exp(total)


def prepare(q, a, c, g, run) -> Chunk:
  """Everything of a chunk that does not depend on the state.

  Args:
    q, a, c, g: [C, K] float32.
    run: [1, C] float32, documents begun since the chunk before, or None.
  """
  chunk = g.shape[0]
  i = lax.broadcasted_iota(jnp.int32, (chunk, chunk), 0)
  j = lax.broadcasted_iota(jnp.int32, (chunk, chunk), 1)
  same = last = None
  if run is not None:
    column = jnp.sum(jnp.where(i == j, run, 0.0), axis=1, keepdims=True)
    end = jnp.max(run, axis=1, keepdims=True)
    same, last = column == run, column == end
  levels, head, tail, keep = decays(g, same)
  keep = keep[:1]
  if run is not None:
    head = jnp.where(column == 0.0, head, 0.0)
    tail = jnp.where(last, tail, 0.0)
    keep = jnp.where(end == 0.0, keep, 0.0)
  x = jnp.concatenate([q, a], axis=0)
  diagonal = jnp.sum(q * c, axis=1, keepdims=True)
  p = jnp.where(i == j, diagonal, 0.0)
  inverse = jnp.where(i == j, 1.0, 0.0)
  for level in levels:
    both = exact(x * twice(level.pre), c * level.suf, NT)
    p = jnp.where(level.mask, both[:chunk], p)
    pair = jnp.where(level.mask, both[chunk:], 0.0)
    if level.size > 1:
      pair = exact(inverse, exact(pair, inverse))
    inverse = inverse - pair
  return Chunk(x, twice(head), tail, keep, p, inverse, levels, same, last)


def twice(x):
  """[C, K] for both halves of stacked operands."""
  return jnp.concatenate([x, x], axis=0)


def advance(parts: Chunk, c, u, state, dot):
  """`(o, n, state after)` of a chunk."""
  chunk = u.shape[0]
  read = dot(parts.x * parts.head, state, NT)
  n = dot(parts.inverse, u - read[chunk:])
  o = read[:chunk] + dot(parts.p, n)
  return o, n, parts.keep * state + dot(n, c * parts.tail, TN)


def load(ref):
  """A block of a [B, T, H K] operand as [C, K] float32."""
  return ref[0].astype(jnp.float32)


def _kernel(*refs, symmetric, packed, save):
  refs = list(refs)
  scratch = refs.pop()
  q_ref, c_ref, u_ref, g_ref, start_ref = refs[:5]
  a_ref = c_ref if symmetric else refs[5]
  run = refs[6 - symmetric][0, 0] if packed else None
  o_ref, end_ref, *states = refs[len(refs) - 2 - save :]

  @pl.when(pl.program_id(2) == 0)
  def _():
    scratch[...] = start_ref[0, 0]

  state = scratch[...]
  if save:
    states[0][0, 0, 0] = state
  c = load(c_ref)
  parts = prepare(load(q_ref), load(a_ref), c, load(g_ref), run)
  o, _, state = advance(parts, c, load(u_ref), state, dot_for(u_ref.dtype))
  o_ref[0] = o.astype(o_ref.dtype)
  scratch[...] = state

  @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
  def _():
    end_ref[0, 0] = state


def specs(shape, chunk, backwards=False):
  """Block specifications by kind, for a grid of rows, heads and chunks."""
  rows, length, heads, k, v = shape
  del rows, heads
  last = length // chunk - 1

  def at(n):
    return last - n if backwards else n

  return {
    'k': pl.BlockSpec((1, chunk, k), lambda b, h, n: (b, at(n), h)),
    'v': pl.BlockSpec((1, chunk, v), lambda b, h, n: (b, at(n), h)),
    'run': pl.BlockSpec((1, 1, 1, chunk), lambda b, h, n: (b, at(n), 0, 0)),
    'state': pl.BlockSpec((1, 1, v, k), lambda b, h, n: (b, h, 0, 0)),
    'states': pl.BlockSpec(
      (1, 1, 1, v, k), lambda b, h, n: (b, h, at(n), 0, 0)
    ),
  }


def shape_of(q, state):
  """`(B, T, H, K, V)` from operands [B, T, H K] and a state [B, H, V, K]."""
  return (*q.shape[:2], state.shape[1], state.shape[3], state.shape[2])


def like(operand, shape, dtype):
  """An output shape that varies over the mesh axes that `operand` does."""
  varies = jax.typeof(operand).manual_axis_type
  return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varies)


def forward(q, a, c, u, g, state, run, *, chunk, save, interpret):
  """`(o, final state)`, and with `save` the states before every chunk.

  Args:
    q, a, c, g: [B, T, H K]; `a` None where it equals `c`.
    u: [B, T, H V].
    state: [B, H, V, K] float32.
    run: [B, T / C, 1, C] float32, or None.
    chunk: C.
    save: for the backward.
    interpret: as `pallas_call` takes it.
  """
  rows, length, heads, k, v = shape = shape_of(q, state)
  chunks = length // chunk
  of = specs(shape, chunk)
  operands = [q, c, u, g, state]
  kinds = ['k', 'k', 'v', 'k', 'state']
  for operand, kind in ((a, 'k'), (run, 'run')):
    if operand is not None:
      operands.append(operand)
      kinds.append(kind)
  out_shape = [like(q, u.shape, u.dtype), like(q, state.shape, jnp.float32)]
  out_kinds = ['v', 'state']
  if save:
    out_shape.append(like(q, (rows, heads, chunks, v, k), jnp.float32))
    out_kinds.append('states')
  return pl.pallas_call(
    functools.partial(
      _kernel, symmetric=a is None, packed=run is not None, save=save
    ),
    grid=(rows, heads, chunks),
    in_specs=[of[kind] for kind in kinds],
    out_specs=[of[kind] for kind in out_kinds],
    out_shape=out_shape,
    scratch_shapes=[pltpu.VMEM((v, k), jnp.float32)],
    compiler_params=PARAMS,
    interpret=interpret,
    name='gated_delta_forward',
  )(*operands)
