"""TPU kernels of the backward pass, on the same choice as the forward.

The gradient of queries walks the forward's lists; that of keys and values walks
lists by range of keys, over the tiles and query heads that attended it.
"""

import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from kernels_pallas.sparse_attention import pallas_fwd as parts
from kernels_pallas.sparse_attention import work


def _query_kernel(
  base, count, items, q, k, v, d_out, words, lse, delta, *refs, shape
):
  places, (dq, sums, lse_down, delta_down) = refs[:-4], refs[-4:]
  entry, step = pl.program_id(0), pl.program_id(1)

  @pl.when(step < count[entry])
  def _():
    row, span, opens, closes = parts.item(shape, entry, step, count, items)

    @pl.when(opens)
    def _():
      sums[...] = jnp.zeros_like(sums)
      for down, line in ((lse_down, lse), (delta_down, delta)):
        down[...] = jnp.broadcast_to(parts.column(line[0, 0]), down.shape)

    tile = parts.first_row(shape, entry, base) + row
    allowed = parts.mask(shape, tile, span, words, places, keys_down=False)
    logits = parts.dot(q[0], k[0], (1, 1)) * shape.scale
    logits = jnp.where(allowed, logits, parts.MASKED)
    weights = jnp.exp(logits - lse_down[:, :1])
    slopes = parts.dot(d_out[0], v[0], (1, 1)) - delta_down[:, :1]
    slopes = (weights * slopes * shape.scale).astype(k.dtype)
    sums[...] += parts.dot(slopes, k[0], (1, 0))

    @pl.when(closes)
    def _():
      dq[0] = sums[...].astype(dq.dtype)


def _key_kernel(
  base, count, items, q, k, v, d_out, words, lse, delta, *refs, shape
):
  places, (dk, dv, k_sums, v_sums) = refs[:-4], refs[-4:]
  entry, step = pl.program_id(0), pl.program_id(1)

  @pl.when(step < count[entry])
  def _():
    row, code, opens, closes = parts.item(shape, entry, step, count, items)

    @pl.when(opens)
    def _():
      k_sums[...] = jnp.zeros_like(k_sums)
      v_sums[...] = jnp.zeros_like(v_sums)

    span = parts.first_row(shape, entry, base) + row
    tile = lax.rem(code, shape.ranges)
    allowed = parts.mask(shape, tile, span, words, places, keys_down=True)
    logits = parts.dot(k[0], q[0], (1, 1)) * shape.scale
    logits = jnp.where(allowed, logits, parts.MASKED)
    weights = jnp.exp(logits - lse[0, 0])
    v_sums[...] += parts.dot(weights.astype(d_out.dtype), d_out[0], (1, 0))
    slopes = parts.dot(v[0], d_out[0], (1, 1)) - delta[0, 0]
    slopes = (weights * slopes * shape.scale).astype(q.dtype)
    k_sums[...] += parts.dot(slopes, q[0], (1, 0))

    @pl.when(closes)
    def _():
      dk[0] = k_sums[...].astype(dk.dtype)
      dv[0] = v_sums[...].astype(dv.dtype)


def _run(
  kernel, name, in_specs, outs, scratch, operands, tables, interpret, shape
):
  """One kernel over the lists; `outs` are (width, dtype) of its outputs."""

  def call(base, count, items):
    entries = count.shape[0]

    def at(entry, *args):
      return entry, parts.place(shape, entry, *args)[3], 0

    grid = pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=3,
      grid=(entries, jnp.max(count)),
      in_specs=in_specs,
      out_specs=[
        pl.BlockSpec((1, shape.block, width), at) for width, _ in outs
      ],
      scratch_shapes=[
        pltpu.VMEM((shape.block, width), jnp.float32) for width in scratch
      ],
    )
    return pl.pallas_call(
      functools.partial(kernel, shape=shape),
      grid_spec=grid,
      out_shape=[
        jax.ShapeDtypeStruct((entries, shape.rows * shape.block, width), dtype)
        for width, dtype in outs
      ],
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=('parallel', 'arbitrary')
      ),
      interpret=interpret,
      name=name,
    )(base, count, items, *operands)

  out = work.each_call(call, tables)
  length = shape.ranges * shape.block
  return [x.reshape(-1, length, x.shape[2]) for x in out]


def query_gradient(
  q, k, v, d_out, lse, delta, plan: work.Plan, shape, tables, *, interpret
):
  """Gradient of folded queries [BH, T, K]."""
  width, wide = q.shape[2], v.shape[2]
  line = parts.line_spec(shape, 1)
  of_q, of_d = parts.query_specs(shape, [width, wide])
  of_k, of_v = parts.key_specs(shape, [width, wide])
  words = parts.line_spec(shape, plan.words.shape[2])
  specs = [of_q, of_k, of_v, of_d, words, line, line]
  return _run(
    _query_kernel,
    'sparse_attention_query_gradient',
    specs + parts.packing_specs(shape),
    [(width, q.dtype)],
    [width, parts.LANES, parts.LANES],
    (q, k, v, d_out, plan.words, lse, delta, *parts.packing(plan)),
    tables,
    interpret,
    shape,
  )[0]


def key_gradients(
  q, k, v, d_out, lse, delta, plan: work.Plan, shape, tables, *, interpret
):
  """Gradients of folded keys and values; rows are ranges, columns tiles.

  A column is `head of the group * tiles + tile`.
  """
  width, wide = q.shape[2], v.shape[2]

  def tile_at(*args):
    group, _, code, _ = parts.place(shape, *args)
    head = group * shape.repeats + lax.div(code, shape.ranges)
    return head, lax.rem(code, shape.ranges)

  def of_query(size):
    return pl.BlockSpec((1, shape.block, size), lambda *a: (*tile_at(*a), 0))

  def of_key(size):
    return pl.BlockSpec(
      (1, shape.block, size), lambda *a: (*parts.place(shape, *a)[:2], 0)
    )

  def line(height):
    return pl.BlockSpec(
      (1, 1, height, shape.block), lambda *a: (*tile_at(*a), 0, 0)
    )

  def row_query(*args):
    head, tile = tile_at(*args)
    return lax.div(head, shape.heads), tile, 0, 0

  def row_key(*args):
    group, span, _, _ = parts.place(shape, *args)
    return lax.div(group * shape.repeats, shape.heads), span, 0, 0

  specs = [
    of_query(width),
    of_key(width),
    of_key(wide),
    of_query(wide),
    line(plan.words.shape[2]),
    line(1),
    line(1),
  ]
  if shape.packed:
    size = (1, 1, 1, shape.block)
    specs += [pl.BlockSpec(size, at) for at in (row_query, row_key, row_key)]
  return _run(
    _key_kernel,
    'sparse_attention_key_gradients',
    specs,
    [(width, k.dtype), (wide, v.dtype)],
    [width, wide],
    (q, k, v, d_out, plan.words, lse, delta, *parts.packing(plan)),
    tables,
    interpret,
    shape,
  )
