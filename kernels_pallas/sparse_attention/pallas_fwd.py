"""TPU kernel of the forward pass, and the parts that the backward shares."""

import functools
from typing import NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from kernels_pallas.sparse_attention import work

EMPTY = -1e30  # the largest logit of no key
MASKED = -2e30  # exp(MASKED - EMPTY) is 0: a row may be masked wholly
LANES = 128


class Shape(NamedTuple):
  """Sizes that kernels and index maps are made from.

  Attributes:
    heads: query heads of a row.
    repeats: query heads of a key head.
    block: tokens of a tile, and of a range.
    ranges: tiles of a row, as many as ranges.
    pieces: entries of a head.
    rows: rows of an entry's list: tiles forward, ranges for keys and values.
    width: columns of an entry's list.
    scale: of the logits.
    packed: whether blocks may lie across ranges.
  """

  heads: int
  repeats: int
  block: int
  ranges: int
  pieces: int
  rows: int
  width: int
  scale: float
  packed: bool


def item(shape: Shape, entry, step, count, items):
  """`(row, column, is first of its row, is last of its row)` of a step."""
  last = count[entry] - 1
  begin = entry * (shape.rows * shape.width)

  def at(j):
    return items[begin + jnp.clip(j, 0, last)]

  row = lax.div(at(step), shape.width)
  opens = (step == 0) | (lax.div(at(step - 1), shape.width) != row)
  closes = (step == last) | (lax.div(at(step + 1), shape.width) != row)
  return row, lax.rem(at(step), shape.width), opens, closes


def place(shape: Shape, entry, step, base, count, items):
  """`(head, row of the head, column, row of the entry)` for index maps."""
  spot = jnp.minimum(step, count[entry] - 1)
  code = items[entry * (shape.rows * shape.width) + spot]
  number = base[0] + entry
  row, column = lax.div(code, shape.width), lax.rem(code, shape.width)
  head = lax.div(number, shape.pieces)
  whole = lax.rem(number, shape.pieces) * shape.rows + row
  return head, whole, column, row


def first_row(shape: Shape, entry, base):
  """Row of the head at which this entry's rows begin."""
  return lax.rem(base[0] + entry, shape.pieces) * shape.rows


def dot(x, y, contract: tuple[int, int]):
  """Product in float32; float32 operands keep all their bits."""
  exact = x.dtype == jnp.float32
  return lax.dot_general(
    x,
    y,
    (((contract[0],), (contract[1],)), ((), ())),
    precision=lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT,
    preferred_element_type=jnp.float32,
  )


def column(row):
  """[1, S] -> [S, 1], without a relayout: select the diagonal and add up."""
  size = row.shape[1]
  square = (size, size)
  same = lax.broadcasted_iota(jnp.int32, square, 0) == (
    lax.broadcasted_iota(jnp.int32, square, 1)
  )
  spread = jnp.where(same, jnp.broadcast_to(row, square), 0.0)
  return jnp.sum(spread, axis=1, keepdims=True)


def row_of(column):
  """[S, 1] -> [1, S]."""
  size = column.shape[0]
  square = (size, size)
  same = lax.broadcasted_iota(jnp.int32, square, 0) == (
    lax.broadcasted_iota(jnp.int32, square, 1)
  )
  spread = jnp.where(same, jnp.broadcast_to(column, square), 0.0)
  return jnp.sum(spread, axis=0, keepdims=True)


def bit(words, number):
  """[1, S] float32: 1.0 where the queries chose complete block `number`."""
  number = jnp.maximum(number, 0)
  word = words[0, 0, pl.ds(lax.div(number, 32), 1), :]
  shift = jnp.full(word.shape, lax.rem(number, 32), jnp.int32)
  chosen = lax.shift_right_logical(word, shift) & 1
  return chosen.astype(jnp.float32)


def mask(shape: Shape, tile, span, words, places, *, keys_down: bool):
  """Which keys of a range the queries of a tile attend.

  Args:
    shape: sizes.
    tile: number of the tile of queries.
    span: number of the range of keys.
    words: the queries' words.
    places: refs of the queries' `first`, and the keys' `first` and `number`,
      if packed.
    keys_down: keys along the first axis instead of the second.
  """
  square = (shape.block, shape.block)
  of_query, of_key = (1, 0) if keys_down else (0, 1)
  query = lax.broadcasted_iota(jnp.int32, square, of_query)
  key = lax.broadcasted_iota(jnp.int32, square, of_key)
  causal = tile * shape.block + query >= span * shape.block + key

  def along(row, axis):
    return row if axis == 1 else column(row)

  chosen = along(bit(words, span), of_query) > 0.5
  if not shape.packed:
    return (chosen | (tile == span)) & causal
  query_first, key_first, key_number = (
    along(ref[0, 0].astype(jnp.float32), axis)
    for ref, axis in zip(places, (of_query, of_key, of_key), strict=True)
  )
  before = along(bit(words, span - 1), of_query) > 0.5
  here = key_number == span.astype(jnp.float32)
  there = key_number == (span - 1).astype(jnp.float32)
  own = key_first == query_first
  return (own | (chosen & here) | (before & there)) & causal


def _kernel(base, count, items, q, k, v, words, *refs, shape: Shape):
  places, (out, lse, top, total, sums) = refs[:-5], refs[-5:]
  entry, step = pl.program_id(0), pl.program_id(1)

  @pl.when(step < count[entry])
  def _():
    row, span, opens, closes = item(shape, entry, step, count, items)

    @pl.when(opens)
    def _():
      top[...] = jnp.full_like(top, EMPTY)
      total[...] = jnp.zeros_like(total)
      sums[...] = jnp.zeros_like(sums)

    tile = first_row(shape, entry, base) + row
    allowed = mask(shape, tile, span, words, places, keys_down=False)
    logits = jnp.where(allowed, dot(q[0], k[0], (1, 1)) * shape.scale, MASKED)
    old = top[:, :1]
    new = jnp.maximum(old, jnp.max(logits, axis=1, keepdims=True))
    weights = jnp.exp(logits - new)
    keep = jnp.exp(old - new)
    norm = total[:, :1] * keep + jnp.sum(weights, axis=1, keepdims=True)
    add = dot(weights.astype(v.dtype), v[0], (1, 0))
    sums[...] = sums[...] * keep + add
    top[...] = jnp.broadcast_to(new, top.shape)
    total[...] = jnp.broadcast_to(norm, total.shape)

    @pl.when(closes)
    def _():
      out[0] = (sums[...] / norm).astype(out.dtype)
      lse[0, 0] = row_of(new + jnp.log(norm))


def query_specs(shape: Shape, widths):
  """Blocks of arrays that go with a list's tile of queries."""

  def at(*args):
    head, tile, _, _ = place(shape, *args)
    return head, tile, 0

  return [pl.BlockSpec((1, shape.block, width), at) for width in widths]


def key_specs(shape: Shape, widths):
  """Blocks of arrays that go with a list's range of keys."""

  def at(*args):
    head, _, span, _ = place(shape, *args)
    return lax.div(head, shape.repeats), span, 0

  return [pl.BlockSpec((1, shape.block, width), at) for width in widths]


def line_spec(shape: Shape, height: int):
  """Blocks of arrays [BH, I, height, S]: one line of numbers a tile."""

  def at(*args):
    head, tile, _, _ = place(shape, *args)
    return head, tile, 0, 0

  return pl.BlockSpec((1, 1, height, shape.block), at)


def packing_specs(shape: Shape):
  """Blocks of the queries' `first`, the keys' `first` and `number`."""
  if not shape.packed:
    return []

  def of_query(*args):
    head, tile, _, _ = place(shape, *args)
    return lax.div(head, shape.heads), tile, 0, 0

  def of_key(*args):
    head, _, span, _ = place(shape, *args)
    return lax.div(head, shape.heads), span, 0, 0

  size = (1, 1, 1, shape.block)
  return [pl.BlockSpec(size, at) for at in (of_query, of_key, of_key)]


def packing(plan: work.Plan):
  """The operands of `packing_specs`."""
  return () if plan.first is None else (plan.first, plan.first, plan.number)


def forward(q, k, v, plan: work.Plan, shape: Shape, tables, *, interpret):
  """Output [BH, T, V] and log-sum-exp [BH, I, 1, S] of folded operands."""
  block, wide = shape.block, v.shape[2]

  def call(base, count, items):
    entries = count.shape[0]
    grid = pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=3,
      grid=(entries, jnp.max(count)),
      in_specs=[
        *query_specs(shape, [q.shape[2]]),
        *key_specs(shape, [k.shape[2], wide]),
        line_spec(shape, plan.words.shape[2]),
        *packing_specs(shape),
      ],
      out_specs=[
        pl.BlockSpec(
          (1, block, wide), lambda e, *a: (e, place(shape, e, *a)[3], 0)
        ),
        pl.BlockSpec(
          (1, 1, 1, block), lambda e, *a: (e, place(shape, e, *a)[3], 0, 0)
        ),
      ],
      scratch_shapes=[
        pltpu.VMEM((block, LANES), jnp.float32),
        pltpu.VMEM((block, LANES), jnp.float32),
        pltpu.VMEM((block, wide), jnp.float32),
      ],
    )
    return pl.pallas_call(
      functools.partial(_kernel, shape=shape),
      grid_spec=grid,
      out_shape=[
        jax.ShapeDtypeStruct((entries, shape.rows * block, wide), v.dtype),
        jax.ShapeDtypeStruct((entries, shape.rows, 1, block), jnp.float32),
      ],
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=('parallel', 'arbitrary')
      ),
      interpret=interpret,
      name='sparse_attention_forward',
    )(base, count, items, q, k, v, plan.words, *packing(plan))

  out, lse = work.each_call(call, tables)
  lse = lse.reshape(q.shape[0], -1, 1, block)
  return out.reshape(*q.shape[:2], wide), lse
