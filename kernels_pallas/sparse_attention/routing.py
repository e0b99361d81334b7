"""Which blocks of keys a query attends: mean keys, scores, the k best.

    score[t, n] = q_t . mean(keys of block n)

Letters: `B` rows, `S` queries, `T` keys, `H` query heads, `G` key heads, `K`
width, `N` row ranges of `block_size` tokens.

Blocks are counted from the start of each document, not of the row, so that a
document attends the same keys wherever a row has it. A document is a run of
equal segment ids. A query attends its own block up to itself, always, and the
`budget - 1` complete blocks before it, of its document, with the highest
scores; equal scores go to the earlier block.

Only complete blocks are ever chosen, and no two of them begin within
`block_size` tokens. So they are numbered by the row range in which they begin,
`n * block_size <= start < (n + 1) * block_size`: N numbers do, however the row
is packed. Without packing, number and range are the same.

Routing is not differentiated: every result is cut off from gradients.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int
import numpy as np

Array = jax.Array | np.ndarray
ROUTES = ('query', 'tile')


class Blocks(NamedTuple):
  """Where documents and blocks lie in rows of `N * block_size` tokens.

  Attributes:
    document: position at which each token's document begins.
    first: position at which each token's block begins.
    start: position at which the complete block number n begins, T for none.
  """

  document: Int[Array, 'B T']
  first: Int[Array, 'B T']
  start: Int[Array, 'B N']


def locate(
  segment_ids: Int[Array, 'B T'] | None, *, length: int, block_size: int
) -> Blocks:
  """Finds documents and blocks; `B` is 1 where nothing is packed.

  Args:
    segment_ids: document of each token, or None: every row is one document.
    length: T, a multiple of `block_size`.
    block_size: tokens a block.
  """
  at = jnp.arange(length, dtype=jnp.int32)[None]
  if segment_ids is None:
    start = at[:, ::block_size]
    return Blocks(jnp.zeros_like(at), at - at % block_size, start)
  change = segment_ids[:, 1:] != segment_ids[:, :-1]
  change = jnp.pad(change, ((0, 0), (1, 0)), constant_values=True)
  document = lax.cummax(jnp.where(change, at, 0), axis=1)
  begins = (at - document) % block_size == 0
  last = jnp.pad(
    document[:, block_size - 1 :],
    ((0, 0), (0, block_size - 1)),
    constant_values=length,
  )
  start = jnp.where(begins & (last == document), at, length)
  start = start.reshape(start.shape[0], -1, block_size).min(2)
  return Blocks(document, at - (at - document) % block_size, start)


def wide(*arrays: Array) -> jnp.dtype:
  """float64 if one of the arrays is, else float32."""
  double = any(x.dtype == jnp.float64 for x in arrays)
  return jnp.dtype('float64' if double else 'float32')


def mean_keys(
  k: Float[Array, 'B T G K'],
  start: Int[Array, 'B N'] | None,
  *,
  block_size: int,
) -> Float[Array, 'B N G K']:
  """Mean key of each complete block, at least float32.

  Args:
    k: keys.
    start: `Blocks.start`; None where nothing is packed.
    block_size: tokens a block.
  """
  k = lax.stop_gradient(k).astype(wide(k))
  rows, length, heads, width = k.shape
  if start is None:
    blocks = k.reshape(rows, -1, block_size, heads, width)
  else:
    within = jnp.arange(block_size, dtype=start.dtype)
    inside = start[:, :, None] + within[None, None]
    inside = jnp.minimum(inside, length - 1).reshape(rows, -1, 1, 1)
    blocks = jnp.take_along_axis(k, inside, axis=1)
    blocks = blocks.reshape(rows, -1, block_size, heads, width)
  return blocks.mean(2)


def tile_queries(
  q: Float[Array, 'B T H K'], first: Int[Array, '#B T']
) -> Float[Array, 'B T H K']:
  """Each query replaced by the mean query of its block.

  What a kernel that routes whole tiles does. It is not causal: a token's
  blocks then depend on the later tokens of its own block.
  """
  q = lax.stop_gradient(q).astype(wide(q))
  first = jnp.broadcast_to(first, q.shape[:2])

  def row(q, first):
    total = jnp.zeros_like(q).at[first].add(q)
    count = jnp.zeros(q.shape[0], q.dtype).at[first].add(1)
    return (total / jnp.maximum(count, 1)[:, None, None])[first]

  return jax.vmap(row)(q, first)


def scores(
  q: Float[Array, 'B S H K'], means: Float[Array, 'B N G K']
) -> Float[Array, 'B H S N']:
  """Routing scores in float32, not scaled; heads share keys in order."""
  b, s, h, k = q.shape
  g = means.shape[2]
  q = lax.stop_gradient(q).astype(means.dtype).reshape(b, s, g, h // g, k)
  out = jnp.einsum('bsgrk,bngk->bgrsn', q, means, precision='highest')
  return out.reshape(b, h, s, -1).astype(jnp.float32)


def past(
  document: Int[Array, '*b'], first: Int[Array, '*b'], start: Int[Array, '*b N']
) -> Bool[Array, '*b N']:
  """Complete blocks before the query's own, in its document."""
  return (start >= document[..., None]) & (start < first[..., None])


def best(
  values: Float[Array, '*b N'],
  allowed: Bool[Array, '*b N'],
  count: Int[Array, '*b'],
) -> Bool[Array, '*b N']:
  """The `count` highest of the allowed values, equal ones in order of index.

  Finds the value that is `count`-th from above bit by bit: the cost does not
  depend on `count`, which is a run-time value, and nothing is sorted.
  """
  # Blocks come first: sums over the first axis vectorise, over the last not.
  values, allowed = (jnp.moveaxis(x, -1, 0) for x in (values, allowed))
  count = jnp.minimum(count, allowed.sum(0, dtype=jnp.int32))
  bits = lax.bitcast_convert_type(values + 0.0, jnp.int32)  # -0.0 is 0.0
  bits = bits ^ ((bits >> 31) & jnp.int32(0x7FFFFFFF))
  bits = lax.bitcast_convert_type(bits, jnp.uint32) ^ jnp.uint32(1 << 31)
  bits = jnp.where(allowed, bits, 0)  # the order of floats, as integers

  def raise_bound(i, bound):
    higher = bound | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
    enough = (bits >= higher[None]).sum(0, dtype=jnp.int32) >= count
    return jnp.where(enough, higher, bound)

  bound = jnp.zeros(bits.shape[1:], jnp.uint32)
  bound = lax.fori_loop(0, 32, raise_bound, bound)[None]
  above = bits > bound
  equal = (bits == bound) & allowed
  spare = count - above.sum(0, dtype=jnp.int32)
  equal = lax.cond(
    jnp.all(equal.sum(0, dtype=jnp.int32) <= spare),
    lambda x: x,
    lambda x: x & (jnp.cumsum(x, axis=0, dtype=jnp.int32) <= spare[None]),
    equal,
  )  # to break ties is slow, and rare
  chosen = (above | equal) & (count > 0)[None]
  return jnp.moveaxis(chosen, 0, -1)


def block_mask(
  q: Float[Array, 'B S H K'],
  k: Float[Array, 'B T G K'],
  *,
  budget: Int[Array, '...'] | int,
  block_size: int,
  positions: Int[Array, 'B S'] | None = None,
  segment_ids: Int[Array, 'B T'] | None = None,
  per: str = 'query',
) -> Bool[Array, 'B H S N']:
  """The past blocks that each query chooses; its own block is not among them.

  Args:
    q: queries, of a whole row or of some positions.
    k: keys of a whole row, or a cache. T is a multiple of `block_size`. Keys
      from a query's own block on are not looked at, so a cache may hold
      anything there.
    budget: blocks a query attends, its own included; one number or [B].
    block_size: tokens a block.
    positions: where the queries stand in `k`; None: q and k are whole rows.
    segment_ids: documents packed in the rows; needs whole rows.
    per: 'query', or 'tile': all queries of a block choose by their mean, which
      is not causal and needs whole rows.

  Returns:
    [b, h, s, n] is True where the query attends complete block n (see the top).
  """
  if positions is not None and (segment_ids is not None or per == 'tile'):
    raise ValueError(
      f'Got positions with segment_ids={segment_ids is not None} and'
      f' per={per!r}; queries against a cache have neither. Leave out positions'
      ' for whole rows.'
    )
  blocks = locate(segment_ids, length=k.shape[1], block_size=block_size)
  document, first = blocks.document, blocks.first
  if positions is not None:
    document, first = jnp.zeros_like(positions), positions
    first = positions - positions % block_size
  if per == 'tile':
    q = tile_queries(q, first)
  packed = None if segment_ids is None else blocks.start
  found = scores(q, mean_keys(k, packed, block_size=block_size))
  start = jnp.broadcast_to(
    blocks.start[:, None], (*first.shape, blocks.start.shape[1])
  )
  allowed = jnp.broadcast_to(past(document, first, start)[:, None], found.shape)
  count = jnp.reshape(jnp.asarray(budget, jnp.int32) - 1, (-1, 1, 1))
  return best(found, allowed, jnp.broadcast_to(count, found.shape[:-1]))


def token_mask(
  chosen: Bool[Array, 'B H S N'],
  *,
  length: int,
  block_size: int,
  positions: Int[Array, 'B S'] | None = None,
  segment_ids: Int[Array, 'B T'] | None = None,
) -> Bool[Array, 'B H S T']:
  """The keys that each query attends: chosen blocks and its own up to itself.

  Args:
    chosen: what `block_mask` returned for the same positions or segments.
    length: T.
    block_size: tokens a block.
    positions: as given to `block_mask`.
    segment_ids: as given to `block_mask`.
  """
  blocks = locate(segment_ids, length=length, block_size=block_size)
  number = complete_number(blocks, block_size=block_size)[:, None, None]
  inside = jnp.take_along_axis(
    chosen,
    jnp.broadcast_to(jnp.maximum(number, 0), (*chosen.shape[:3], length)),
    axis=3,
  )
  at = jnp.arange(length, dtype=jnp.int32)
  if positions is None:
    own, first = at[None], blocks.first
  else:
    own, first = positions, positions - positions % block_size
  local = blocks.first[:, None, :] == first[:, :, None]
  local = local & (at[None, None] <= own[:, :, None])
  return (inside & (number >= 0)) | local[:, None]


def complete_number(blocks: Blocks, *, block_size: int) -> Int[Array, 'B T']:
  """Number of the complete block that each token is in, or -1."""
  number = blocks.first // block_size
  start = jnp.take_along_axis(blocks.start, number, axis=1)
  return jnp.where(start == blocks.first, number, -1)


def coverage(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B T G K'],
  budgets: Sequence[int],
  *,
  block_size: int,
  base_budget: int,
  count_current_block: bool = False,
  segment_ids: Int[Array, 'B T'] | None = None,
  scale: float = 1.0,
) -> Float[Array, 'B C']:
  """Share of the routing probability in the k best blocks (2604.13847).

  A softmax over the scores of a query's past blocks, sorted from above and
  summed; the mean over heads and over the queries that have more than
  `base_budget` blocks to choose from. Where a row has no such query nothing is
  lost by any budget of at least `base_budget`, and no bound applies: ones.

  Args:
    q: queries.
    k: keys; T is a multiple of `block_size`.
    budgets: the k at which the curve is wanted.
    block_size: tokens a block.
    base_budget: the k that other budgets are held against.
    count_current_block: also let the query's own block take part, by the mean
      of its keys up to the query, and a place: it is attended in any case, so
      it comes first and C(k) is its share and that of the k - 1 best others.
    segment_ids: documents packed in the rows.
    scale: multiplies the scores; they are plain products by default.

  Returns:
    The curve of each row, rising in k, in float32.
  """
  blocks = locate(segment_ids, length=k.shape[1], block_size=block_size)
  packed = None if segment_ids is None else blocks.start
  found = scores(q, mean_keys(k, packed, block_size=block_size)) * scale
  start = jnp.broadcast_to(
    blocks.start[:, None], (*blocks.first.shape, blocks.start.shape[1])
  )
  allowed = past(blocks.document, blocks.first, start)
  allowed = jnp.broadcast_to(allowed, (q.shape[0], *allowed.shape[1:]))
  found = jnp.where(allowed[:, None], found, -jnp.inf)
  found = -jnp.sort(-found, axis=-1)
  if count_current_block:
    own = own_scores(q, k, blocks.first) * scale
    found = jnp.concatenate([own[..., None], found], axis=-1)
  valid = allowed.sum(-1) + int(count_current_block) > base_budget
  top = jnp.where(valid[:, None], found.max(-1), 0)[..., None]
  mass = jnp.cumsum(jnp.exp(found - top), axis=-1)
  places = np.minimum(np.asarray(budgets), mass.shape[-1]) - 1
  share = mass[..., places] / jnp.maximum(mass[..., -1:], 1e-30)
  share = jnp.where(valid[:, None, :, None], share, 0).mean(1).sum(1)
  count = valid.sum(-1)[:, None].astype(share.dtype)
  return jnp.where(count > 0, share / jnp.maximum(count, 1), 1.0)


def own_scores(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B T G K'],
  first: Int[Array, '#B T'],
) -> Float[Array, 'B H T']:
  """Score of each query with the mean key of its own block up to itself."""
  b, t, h, width = q.shape
  k = lax.stop_gradient(k).astype(jnp.float32)
  at = jnp.arange(t, dtype=jnp.int32)
  inside = (first[:, None, :] == first[:, :, None]) & (at[:, None] >= at[None])[
    None
  ]
  weight = inside.astype(jnp.float32)
  weight = weight / weight.sum(-1, keepdims=True)
  mean = jnp.einsum(
    'bts,bsgk->btgk',
    jnp.broadcast_to(weight, (b, t, t)),
    k,
    precision='highest',
  )
  q = lax.stop_gradient(q).astype(jnp.float32)
  q = q.reshape(b, t, k.shape[2], -1, width)
  out = jnp.einsum('btgrk,btgk->bgrt', q, mean, precision='highest')
  return out.reshape(b, h, t)
