"""Forward kernel of the gated delta rule for TPU, one chunk a grid step.

With `G` the inclusive sum of `g` inside a chunk, `S` the state before it,

    L_ij = sum_d a_id c_jd exp(G_id - G_jd)   (i > j)     T = (I + L)^-1
    P_ij = sum_d q_id c_jd exp(G_id - G_jd)   (i >= j)
    N = T (U - (A e^G) S)     O = (Q e^G) S + P N
    S <- Diag(e^G_C) S + (C e^(G_C - G))^T N

Inside a tile of 8 rows, L and P are elementwise and T is forward substitution.
From there on neighbouring blocks of 8, 16, … rows are joined: with `pre` the sum
of g from the start of the right block to a row and `suf` the sum after a row of
the left block to its end, no exponent is positive and no sum is a difference,
and the new rows of T are those of the right block less T_22 L_21 T_11. This is
exact for repeated keys and strong decay, where powers of L or exp(G) exp(-G)
are not.

Letters: C tokens a chunk; R rows, the C tokens of one head under those of the
next, as many heads as fit into 128 rows. The state is kept transposed, [V, K],
so that decays multiply along lanes.
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

# Rows of a vector register.
TILE = 8

PARAMS = pltpu.CompilerParams(
  dimension_semantics=('parallel', 'parallel', 'arbitrary')
)


class Level(NamedTuple):
  """Sums of g in blocks of `size` rows, [R, K], none of them positive."""

  size: int
  pre: jax.Array  # from the start of the block to the row
  suf: jax.Array  # after the row to the end of the block


class Chunk(NamedTuple):
  """What the forward and the backward of a chunk both need.

  Attributes:
    tile_sums: [R, K], as `sums_in_tile`.
    levels: blocks of 8, 16, …, C / 2 rows.
    head: [R, K], e^G where the state before the chunk is seen, else 0.
    tail: [R, K], e^(G_C - G) where the state after it is written, else 0.
    keep: [R, K], e^G_C if the state lives through the chunk, else 0.
    p: [R, R].
    inverse: [R, R], T.
    begun: [R, 1], documents begun before, or None where there is only one.
    same: [R, R], pairs of one document, or None.
    last: [R, 1], tokens of the document that ends the chunk, or None.
  """

  tile_sums: jax.Array
  levels: tuple[Level, ...]
  head: jax.Array
  tail: jax.Array
  keep: jax.Array
  p: jax.Array
  inverse: jax.Array
  begun: jax.Array | None
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


def indices(rows):
  """Row and column of every entry of [R, R]."""
  shape = (rows, rows)
  return (
    lax.broadcasted_iota(jnp.int32, shape, 0),
    lax.broadcasted_iota(jnp.int32, shape, 1),
  )


def block(i, size):
  """`i // size`, which lowers for integers only as a shift."""
  return i >> (size.bit_length() - 1)


def local_sums(g, chunk):
  """The levels, then the sums for the whole chunk: pre, suf, total."""
  rows = lax.broadcasted_iota(jnp.int32, g.shape, 0)
  pre, suf, total = g, jnp.zeros_like(g), g
  levels, size = [], 1
  while size < chunk:
    if size >= TILE:
      levels.append(Level(size, pre, suf))
    right = (rows & size) != 0
    other = jnp.where(
      right,
      pltpu.roll(total, size, 0),
      pltpu.roll(total, g.shape[0] - size, 0),
    )
    pre = pre + jnp.where(right, other, 0.0)
    suf = suf + jnp.where(right, 0.0, other)
    total = total + other
    size *= 2
  return tuple(levels), pre, suf, total


def right_of(x, size):
  """The rows of every second block of `size`."""
  starts = range(size, x.shape[0], 2 * size)
  return jnp.concatenate([x[s : s + size] for s in starts], axis=0)


def with_right(x, new, size):
  """`x` with `new` for the rows of every second block of `size`."""
  parts = []
  for s in range(0, new.shape[0], size):
    parts += [x[2 * s : 2 * s + size], new[s : s + size]]
  return jnp.concatenate(parts, axis=0)


def pairs(rows, size, same):
  """[R / 2, R]: for rows of right blocks, the columns of their left ones."""
  shape = (rows // 2, rows)
  row = block(lax.broadcasted_iota(jnp.int32, shape, 0), size)
  column = block(lax.broadcasted_iota(jnp.int32, shape, 1), size)
  mask = column == 2 * row
  return mask if same is None else mask & right_of(same, size)


def spread(x, row):
  """Row `row` of every tile of 8 on all rows of its tile."""
  tiles = x.reshape(x.shape[0] // TILE, TILE, x.shape[1])
  one = jnp.broadcast_to(tiles[:, row : row + 1], tiles.shape)
  return one.reshape(x.shape)


def sums_in_tile(g, begun):
  """[R, K]: sums of g from the start of the tile, or document, to the row.

  Their differences would carry rounding from one document to the next, if sums
  did not start anew.
  """
  row = row_of_tile(g.shape[0])
  for step in (1, 2, 4):
    valid = row >= step
    if begun is not None:
      valid = valid & (begun == pltpu.roll(begun, step, 0))
    g = g + jnp.where(valid, pltpu.roll(g, step, 0), 0.0)
  return g


def sum_of_tile(x):
  """Sums of the rows of every tile of 8, on all rows of the tile."""
  tiles = x.reshape(x.shape[0] // TILE, TILE, x.shape[1])
  one = jnp.sum(tiles, axis=1, keepdims=True)
  return jnp.broadcast_to(one, tiles.shape).reshape(x.shape)


def row_of_tile(rows):
  """[R, 1]: place of every row in its tile."""
  return lax.broadcasted_iota(jnp.int32, (rows, 1), 0) & (TILE - 1)


def from_row(s, pre, begun):
  """Decay from row s of a tile to its rows, and for which rows there is one.

  Args:
    s: row of a tile.
    pre: [R, K], as `sums_in_tile`.
    begun: [R, 1], index of the document, or None.
  """
  # Rows above s have none; zero keeps their exponents from being large.
  decay = jnp.exp(jnp.minimum(pre - spread(pre, s), 0.0))
  valid = row_of_tile(pre.shape[0]) >= s
  return decay, valid if begun is None else valid & (begun == spread(begun, s))


def tiles(q, a, c, pre, begun):
  """P and T inside tiles of 8 rows, [R, R]; arguments as `from_row`."""
  i, j = indices(q.shape[0])
  row = row_of_tile(q.shape[0])
  p = jnp.zeros(i.shape, jnp.float32)
  inverse = jnp.where(i == j, 1.0, 0.0)
  for s in range(TILE):
    decay, valid = from_row(s, pre, begun)
    decayed = spread(c, s) * decay
    of_q = jnp.where(valid, jnp.sum(q * decayed, axis=1, keepdims=True), 0.0)
    p = jnp.where(j == (i & -TILE) + s, of_q, p)
    if s < TILE - 1:
      of_a = jnp.sum(a * decayed, axis=1, keepdims=True)
      of_a = jnp.where(valid & (row > s), of_a, 0.0)
      inverse = inverse - of_a * spread(inverse, s)
  return p, inverse


def prepare(q, a, c, g, run, chunk) -> Chunk:
  """Everything of a chunk that does not depend on the state.

  Args:
    q, a, c, g: [R, K] float32.
    run: [1, R] float32, documents begun since the chunk before, or None.
    chunk: C.
  """
  rows = g.shape[0]
  i, j = indices(rows)
  same = last = begun = None
  if run is not None:
    begun = jnp.sum(jnp.where(i == j, run, 0.0), axis=1, keepdims=True)
    end = jnp.max(run, axis=1, keepdims=True)
    same, last = begun == run, begun == end
  tile_sums = sums_in_tile(g, begun)
  levels, pre, suf, total = local_sums(g, chunk)
  head, tail, keep = jnp.exp(pre), jnp.exp(suf), jnp.exp(total)
  if run is not None:
    head = jnp.where(begun == 0.0, head, 0.0)
    tail = jnp.where(last, tail, 0.0)
    keep = jnp.where(end == 0.0, keep, 0.0)
  p, inverse = tiles(q, a, c, tile_sums, begun)
  for level in levels:
    size = level.size
    decay = jnp.exp(right_of(level.pre, size))
    x = jnp.concatenate(
      [right_of(q, size) * decay, right_of(a, size) * decay], axis=0
    )
    both = exact(x, c * jnp.exp(level.suf), NT)
    mask = pairs(rows, size, same)
    half = rows // 2
    p = with_right(p, jnp.where(mask, both[:half], right_of(p, size)), size)
    below = exact(jnp.where(mask, both[half:], 0.0), inverse)
    below = with_right(jnp.zeros_like(inverse), below, size)
    right = right_of(inverse, size)
    inverse = with_right(inverse, right - exact(right, below), size)
  return Chunk(
    *(tile_sums, levels, head, tail, keep, p, inverse, begun, same, last)
  )


def heads_of(x, chunk):
  """[R, …] as one [C, …] a head."""
  return [x[s : s + chunk] for s in range(0, x.shape[0], chunk)]


def stack(blocks):
  return jnp.concatenate(blocks, axis=0)


def advance(parts: Chunk, q, a, c, u, states, dot):
  """`(o, n, states after)` of a chunk; states [V, K], one a head."""
  chunk = u.shape[0] // len(states)
  q, a = q * parts.head, a * parts.head
  read = [
    dot(stack(both), state, NT)
    for *both, state in zip(
      heads_of(q, chunk), heads_of(a, chunk), states, strict=True
    )
  ]
  n = dot(parts.inverse, u - stack([x[chunk:] for x in read]))
  o = stack([x[:chunk] for x in read]) + dot(parts.p, n)
  after = [
    keep[:1] * state + dot(n, c, TN)
    for keep, state, n, c in zip(
      heads_of(parts.keep, chunk),
      states,
      heads_of(n, chunk),
      heads_of(c * parts.tail, chunk),
      strict=True,
    )
  ]
  return o, n, after


def load(ref, heads):
  """A block [1, C, heads K] as [R, K] float32."""
  width = ref.shape[2] // heads
  x = ref[0].astype(jnp.float32)
  return stack([x[:, h * width : (h + 1) * width] for h in range(heads)])


def store(ref, x, heads):
  """The inverse of `load`."""
  blocks = heads_of(x, x.shape[0] // heads)
  ref[0] = jnp.concatenate(blocks, axis=1).astype(ref.dtype)


def _kernel(*refs, symmetric, packed, save):
  refs = list(refs)
  scratch = refs.pop()
  q_ref, c_ref, u_ref, g_ref, start_ref = refs[:5]
  a_ref = c_ref if symmetric else refs[5]
  run = refs[6 - symmetric][0, 0] if packed else None
  o_ref, end_ref, *saved = refs[len(refs) - 2 - save :]
  heads = scratch.shape[0]

  @pl.when(pl.program_id(2) == 0)
  def _():
    scratch[...] = start_ref[0]

  if save:
    saved[0][0, :, 0] = scratch[...]
  q, a, c, u, g = (
    load(ref, heads) for ref in (q_ref, a_ref, c_ref, u_ref, g_ref)
  )
  parts = prepare(q, a, c, g, run, u_ref.shape[1])
  states = [scratch[h] for h in range(heads)]
  o, _, states = advance(parts, q, a, c, u, states, dot_for(u_ref.dtype))
  store(o_ref, o, heads)
  for h in range(heads):
    scratch[h] = states[h]

  @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
  def _():
    end_ref[0] = scratch[...]


def heads_a_step(heads, chunk):
  """As many heads as fit into 128 rows."""
  fit = [n for n in range(1, heads + 1) if heads % n == 0 and n * chunk <= 128]
  return max(fit, default=1)


def specs(shape, chunk, backwards=False):
  """Heads a step, and block specifications by kind.

  The grid is rows, groups of heads, chunks.
  """
  length, heads, k, v = shape[1:]
  last = length // chunk - 1
  n = heads_a_step(heads, chunk)

  def at(t):
    return last - t if backwards else t

  return n, {
    'k': pl.BlockSpec((1, chunk, n * k), lambda b, h, t: (b, at(t), h)),
    'v': pl.BlockSpec((1, chunk, n * v), lambda b, h, t: (b, at(t), h)),
    'run': pl.BlockSpec((1, 1, 1, n * chunk), lambda b, h, t: (b, at(t), 0, 0)),
    'state': pl.BlockSpec((1, n, v, k), lambda b, h, t: (b, h, 0, 0)),
    'states': pl.BlockSpec(
      (1, n, 1, v, k), lambda b, h, t: (b, h, at(t), 0, 0)
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
  group, of = specs(shape, chunk)
  operands = [q, c, u, g, state]
  kinds = ['k', 'k', 'v', 'k', 'state']
  if a is not None:
    operands.append(a)
    kinds.append('k')
  if run is not None:
    operands.append(jnp.tile(run, group))
    kinds.append('run')
  out_shape = [like(q, u.shape, u.dtype), like(q, state.shape, jnp.float32)]
  out_kinds = ['v', 'state']
  if save:
    out_shape.append(like(q, (rows, heads, chunks, v, k), jnp.float32))
    out_kinds.append('states')
  return pl.pallas_call(
    functools.partial(
      _kernel, symmetric=a is None, packed=run is not None, save=save
    ),
    grid=(rows, heads // group, chunks),
    in_specs=[of[kind] for kind in kinds],
    out_specs=[of[kind] for kind in out_kinds],
    out_shape=out_shape,
    scratch_shapes=[pltpu.VMEM((group, v, k), jnp.float32)],
    compiler_params=PARAMS,
    interpret=interpret,
    name='gated_delta_forward',
  )(*operands)
