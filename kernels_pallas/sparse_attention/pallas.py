"""Block-sparse attention on a TPU: choice in XLA, three kernels, one vjp."""

import functools
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Float, Int

from kernels_pallas.sparse_attention import (
  pallas_bwd,
  pallas_fwd,
  routing,
  work,
)

Array = routing.Array

# Keep what bears this name where a policy rematerialises, and the backward
# pass reads the very choice of the forward pass.
CHOICE = 'sparse_attention_choice'


class Static(NamedTuple):
  """What a program is compiled for."""

  block_size: int
  scale: float
  heads: int
  repeats: int
  interpret: Any


def attend(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B T G K'],
  v: Float[Array, 'B T G V'],
  budget: Int[Array, 'B'],
  segment_ids: Int[Array, 'B T'] | None,
  *,
  block_size: int,
  max_budget: int,
  per: str,
  scale: float,
  interpret: Any = False,
) -> Float[Array, 'B T H V']:
  """The op on whole rows of a multiple of `block_size` tokens.

  Args:
    q: queries.
    k: keys.
    v: values.
    budget: blocks a query attends.
    segment_ids: documents, or None.
    block_size: tokens of a block, of a tile of queries and of a range of keys.
    max_budget: not used: lists are as long as the rows may need.
    per: 'query' or 'tile'.
    scale: of the logits.
    interpret: as `pallas_call` takes it.

  Raises:
    NotImplementedError: float64, or blocks that no tile of a TPU holds.
  """
  del max_budget
  narrow = all(x.dtype == jnp.bfloat16 for x in (q, k, v))
  dtype = jnp.dtype('bfloat16') if narrow else routing.wide(q, k, v)
  if dtype == jnp.float64:
    raise NotImplementedError(
      'Got float64 operands; the kernel adds up in float32. Use'
      " implementation='chunked' or 'reference'."
    )
  rows = 16 if dtype == jnp.bfloat16 else 8
  if not interpret and block_size % rows:
    raise NotImplementedError(
      f'Got block_size={block_size} with {dtype.name}; wanted a'
      f" multiple of {rows}. Use 128, or implementation='chunked'."
    )
  b, t, h, _ = q.shape
  plan = work.plan(q, k, budget, segment_ids, block_size=block_size, per=per)
  plan = jax.tree.map(lambda x: checkpoint_name(x, CHOICE), plan)

  def fold(x):
    x = jnp.swapaxes(x.astype(dtype), 1, 2)
    return x.reshape(-1, t, x.shape[3])

  static = Static(block_size, scale, h, h // k.shape[2], interpret)
  out = _attend(static, fold(q), fold(k), fold(v), plan)
  out = jnp.swapaxes(out.reshape(b, h, t, -1), 1, 2)
  return out.astype(v.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static, q, k, v, plan):
  return _forward(static, q, k, v, plan)[0]


def _forward(static, q, k, v, plan):
  shape = _by_tile(static, plan)
  used = plan.used.reshape(-1, shape.rows, shape.width)
  tables = work.lists(used)
  out, lse = pallas_fwd.forward(
    q, k, v, plan, shape, tables, interpret=static.interpret
  )
  return out, (q, k, v, plan, tables, out, lse)


def _backward(static, residuals, d_out):
  q, k, v, plan, tables, out, lse = residuals
  delta = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(2)
  operands = (q, k, v, d_out, lse, delta.reshape(lse.shape), plan)
  dq = pallas_bwd.query_gradient(
    *operands, _by_tile(static, plan), tables, interpret=static.interpret
  )
  shape = _by_range(static, plan)
  used = plan.used.reshape(-1, static.repeats * shape.ranges, shape.ranges)
  used = jnp.swapaxes(used, 1, 2).reshape(-1, shape.rows, shape.width)
  dk, dv = pallas_bwd.key_gradients(
    *operands, shape, work.lists(used), interpret=static.interpret
  )
  return dq, dk, dv, None


_attend.defvjp(_forward, _backward)


def _by_tile(static: Static, plan: work.Plan) -> pallas_fwd.Shape:
  """Lists by tile of queries, columns are ranges of keys."""
  ranges = plan.used.shape[1]
  pieces = work.pieces(ranges, ranges)
  return _shape(static, plan, pieces, ranges // pieces, ranges)


def _by_range(static: Static, plan: work.Plan) -> pallas_fwd.Shape:
  """Lists by range of keys, columns are tiles of all heads of the group."""
  ranges = plan.used.shape[1]
  width = static.repeats * ranges
  pieces = work.pieces(ranges, width)
  return _shape(static, plan, pieces, ranges // pieces, width)


def _shape(static, plan, pieces, rows, width):
  return pallas_fwd.Shape(
    heads=static.heads,
    repeats=static.repeats,
    block=static.block_size,
    ranges=plan.used.shape[1],
    pieces=pieces,
    rows=rows,
    width=width,
    scale=static.scale,
    packed=plan.first is not None,
  )
