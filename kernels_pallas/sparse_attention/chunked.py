"""Block-sparse attention in plain XLA; its time follows the budget.

Queries are gathered by the block that they chose, so that every piece of work
is a dense product of `ROWS` queries with one block of keys:

    pairs     all (query, chosen block), window by window of queries, in a
              window by block, each block padded to whole tiles of `ROWS` pairs
    forward   for each window: a loop over its tiles for the softmax parts of
              every pair, then a loop over the places of a budget, by which each
              query adds up its parts
    backward  the same tiles again, by the log-sum-exp that the forward saved

All loops end at numbers that are known at run time only, so that one program
serves all budgets. A window has as many queries as `WINDOW` pairs have room
for under the budget at hand: many to share a block where the budget is small,
and no more memory where it is large. A chosen block is complete and wholly in
the past: tiles need no mask. The query's own block is a dense product in a band
beside them.

One group of heads (those that share a key head) of one row is done at a time.

Letters: `M` queries of a group (heads x tokens), `T` its keys, `N` blocks, `P`
places for pairs, `J` places of a budget, `U` units of `S` queries, of which
windows are made.
"""

import functools
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from kernels_pallas.sparse_attention import routing

Array = routing.Array
ROWS = 128
WINDOW = 32768
UNIT = 128
UNITS = 4  # of which blocks are chosen at once, at most
EMPTY = -1e30  # the largest logit of no key
NOWHERE = 1 << 30


class Pairs(NamedTuple):
  """The (query, chosen block) pairs of a group.

  Attributes:
    query: query of each pair, M where the place is empty.
    block: where the keys of each tile of pairs begin.
    begin: first tile of each window; from the last window on, all tiles.
    units: units in a window.
    places: where the pairs of each query are, NOWHERE if it has no more.
    most: pairs of the query that has most, of each unit.
  """

  query: Int[Array, 'P']
  block: Int[Array, 'tiles']
  begin: Int[Array, 'U+1']
  units: Int[Array, '']
  places: Int[Array, 'U J S']
  most: Int[Array, 'U']


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
) -> Float[Array, 'B T H V']:
  """The op on whole rows of a multiple of `block_size` tokens."""
  b, t, h, _ = q.shape
  g = k.shape[2]
  blocks = routing.locate(segment_ids, length=t, block_size=block_size)
  packed = None if segment_ids is None else blocks.start
  means = routing.mean_keys(k, packed, block_size=block_size)
  chooser = q if per == 'query' else routing.tile_queries(q, blocks.first)
  dtype = routing.wide(q, k, v)

  def fold(x):  # [B T G*R K] -> [B*G R*T K]
    x = x.reshape(b, x.shape[1], g, -1, x.shape[3]).transpose(0, 2, 3, 1, 4)
    return x.reshape(b * g, -1, x.shape[-1])

  operands = [fold(x).astype(dtype) for x in (q, k, v)]
  plan = (fold(lax.stop_gradient(chooser)), fold(means))
  each = jax.tree.map(
    lambda x: jnp.repeat(jnp.broadcast_to(x, (b, *x.shape[1:])), g, axis=0),
    blocks,
  )
  static = Static(block_size, max_budget, scale, packed is not None)
  out = _attend(static, *operands, *plan, each, jnp.repeat(budget, g))
  out = out.reshape(b, g, h // g, t, -1).transpose(0, 3, 1, 2, 4)
  return out.reshape(b, t, h, -1).astype(v.dtype)


class Static(NamedTuple):
  """What a program is compiled for."""

  block_size: int
  max_budget: int
  scale: float
  packed: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static, q, k, v, chooser, means, blocks, budget):
  return _forward(static, q, k, v, chooser, means, blocks, budget)[0]


def _forward(static, q, k, v, chooser, means, blocks, budget):
  def group(args):
    q, k, v, chooser, means, blocks, budget = args
    pairs = _pairs(static, chooser, means, blocks, budget, k.shape[0])
    out, lse = _group_forward(static, q, k, v, blocks, pairs)
    return out, lse, pairs

  out, lse, pairs = lax.map(group, (q, k, v, chooser, means, blocks, budget))
  return out, (q, k, v, out, lse, blocks, pairs, chooser, means)


def _backward(static, residuals, d_out):
  *operands, chooser, means = residuals
  dq, dk, dv = lax.map(
    lambda args: _group_backward(static, *args), (*operands, d_out)
  )
  return dq, dk, dv, jnp.zeros_like(chooser), jnp.zeros_like(means), None, None


_attend.defvjp(_forward, _backward)


def _unit(queries: int) -> int:
  """Queries of a unit: what divides them all."""
  return max(x for x in range(1, UNIT + 1) if queries % x == 0)


def _room(static: Static, unit: int, blocks: int) -> int:
  """Places of a window: at least those that a unit may need."""
  least = unit * (static.max_budget - 1) + blocks * ROWS
  return -(-max(WINDOW, least) // ROWS) * ROWS


def _choose(chooser, means, blocks, budget):
  """What each query of a group chose, unit by unit: no array leaves the cache.

  Returns:
    words: u32[U, S, W], the chosen blocks of each query as bits.
    rank: i32[U, S, N], how many earlier queries of the unit chose the block.
    count: i32[U, N], how many did in all.
  """
  m, n = chooser.shape[0], means.shape[0]
  unit, length = _unit(m), blocks.first.shape[0]
  units = math.gcd(m // unit, UNITS)
  earlier = np.tri(unit, k=-1, dtype=np.float32)

  def of_some(args):
    chooser, document, first = args
    found = routing.scores(chooser[None, :, None], means[None, :, None])[0, 0]
    chosen = routing.best(
      found,
      routing.past(
        document, first, jnp.broadcast_to(blocks.start, found.shape)
      ),
      jnp.broadcast_to(budget - 1, document.shape),
    ).reshape(units, unit, n)
    rank = jnp.einsum('st,utn->usn', earlier, chosen.astype(jnp.float32))
    return _bits(chosen), rank.astype(jnp.int32), chosen.sum(1, dtype=jnp.int32)

  document, first = (
    jnp.tile(x, m // length) for x in (blocks.document, blocks.first)
  )
  parts = jax.tree.map(
    lambda x: x.reshape(-1, units * unit, *x.shape[1:]),
    (chooser, document, first),
  )
  return jax.tree.map(
    lambda x: x.reshape(-1, *x.shape[2:]), lax.map(of_some, parts)
  )


def _bits(chosen):
  """[..., N] as u32[..., W]: bit i of word w is block 32 w + i."""
  extra = -chosen.shape[-1] % 32
  chosen = jnp.pad(chosen, [(0, 0)] * (chosen.ndim - 1) + [(0, extra)])
  chosen = chosen.reshape(*chosen.shape[:-1], -1, 32).astype(jnp.uint32)
  shifts = lax.broadcasted_iota(jnp.uint32, chosen.shape, chosen.ndim - 1)
  return (chosen << shifts).sum(-1, dtype=jnp.uint32)


def _take_lowest(words, none):
  """The first block of each query and the words without it; `none` if empty."""
  lowest = words & (~words + 1)
  at = lax.broadcasted_iota(jnp.int32, words.shape, words.ndim - 1)
  word = jnp.where(words != 0, at, NOWHERE).min(-1)
  lowest = jnp.where(at == word[..., None], lowest, 0)
  bit = lax.population_count(lowest.sum(-1, dtype=jnp.uint32) - 1)
  block = 32 * word + bit.astype(jnp.int32)
  return jnp.where(word == NOWHERE, none, block), words ^ lowest


def _pairs(static, chooser, means, blocks, budget, length) -> Pairs:
  """Chooses, and lists the chosen pairs by window and block, and by query.

  The lists are written block by block of a query, as far as the budget goes.
  """
  words, rank, count = _choose(chooser, means, blocks, budget)
  u, unit, n = rank.shape
  m = u * unit
  room = _room(static, unit, n) - n * ROWS
  units = jnp.clip(room // (unit * jnp.maximum(budget - 1, 1)), 1, u)
  window = jnp.arange(u, dtype=jnp.int32) // units
  # Pairs of a block in a window lie together, from a multiple of ROWS on.
  tiles = -(-jnp.zeros_like(count).at[window].add(count) // ROWS)
  ends = jnp.cumsum(tiles.reshape(-1), dtype=jnp.int32).reshape(u, n)
  earlier = jnp.cumsum(count, axis=0, dtype=jnp.int32) - count
  earlier = earlier - earlier[window * units]
  first = (ends - tiles)[window] * ROWS + earlier
  before = np.arange(length) // static.block_size
  most = m // length * int(np.minimum(before, static.max_budget - 1).sum())
  size = -(-most // ROWS) * ROWS + min(u * n, max(most, 1)) * ROWS
  index = jnp.arange(m, dtype=jnp.int32).reshape(u, unit)

  def one_more(j, carry):
    words, query, places = carry
    block, words = _take_lowest(words, n)
    at = jnp.minimum(block, n - 1)
    place = jnp.take_along_axis(first, at, axis=1)
    place += jnp.take_along_axis(rank, at[:, :, None], axis=2)[:, :, 0]
    here = block < n
    query = query.at[jnp.where(here, place, size)].set(index, mode='drop')
    place = jnp.where(here, place, NOWHERE)
    places = lax.dynamic_update_index_in_dim(places, place, j, 1)
    return words, query, places

  chosen = lax.population_count(words).sum(2, dtype=jnp.uint32).max(1)
  chosen = chosen.astype(jnp.int32)
  query = jnp.full(size, m, jnp.int32)
  places = (u, max(static.max_budget - 1, 1), unit)
  places = jnp.full(places, NOWHERE, jnp.int32)
  _, query, places = lax.fori_loop(
    0, chosen.max(), one_more, (words, query, places)
  )
  used = jnp.arange(size // ROWS, dtype=jnp.int32)
  owner = jnp.searchsorted(ends.reshape(-1), used, side='right')
  return Pairs(
    query,
    blocks.start[jnp.minimum(owner, u * n - 1).astype(jnp.int32) % n],
    jnp.pad(ends[:, -1], (1, 0)),
    units,
    places,
    chosen,
  )


def _tile(static, i, pairs, k, v):
  """Queries, keys and values of tile i."""
  rows = lax.dynamic_slice(pairs.query, (i * ROWS,), (ROWS,))
  start = pairs.block[i]
  keys = lax.dynamic_slice_in_dim(k, start, static.block_size)
  values = lax.dynamic_slice_in_dim(v, start, static.block_size)
  return rows, start, keys, values


def _each_window(pairs: Pairs, tile, merge, tile_carry, sums):
  """Runs `tile` over the tiles of a window, then `merge` over its units.

  `tile(i, place, carry)` writes at `place`; `merge(places, j, parts, rows)`
  adds the j-th parts of a unit's queries to its rows of `sums`.
  """
  u, most, unit = pairs.places.shape

  def window(w, carry):
    begin, end = pairs.begin[w], pairs.begin[w + 1]

    def one_tile(i, carry):
      return tile(i, (i - begin) * ROWS, carry)

    def one_unit(s, sums):
      rows = jax.tree.map(
        lambda x: lax.dynamic_slice_in_dim(x, s * unit, unit), sums
      )
      places = pairs.places[s] - begin * ROWS
      rows = lax.fori_loop(
        0,
        pairs.most[s],
        lambda j, rows: merge(places[j], parts, rows),
        rows,
      )
      return jax.tree.map(
        lambda x, y: lax.dynamic_update_slice_in_dim(x, y, s * unit, 0),
        sums,
        rows,
      )

    tile_carry, sums = carry
    tile_carry = lax.fori_loop(begin, end, one_tile, tile_carry)
    parts = tile_carry[0]
    last = jnp.minimum((w + 1) * pairs.units, u)
    return tile_carry, lax.fori_loop(w * pairs.units, last, one_unit, sums)

  windows = -(-u // pairs.units)
  return lax.fori_loop(0, windows, window, (tile_carry, sums))


def _group_forward(static, q, k, v, blocks, pairs):
  """Output and log-sum-exp of each query of a group."""
  room = _room(static, pairs.places.shape[2], k.shape[0] // static.block_size)
  parts = tuple(
    jnp.zeros(shape, q.dtype) for shape in ((room, v.shape[1]), room, room)
  )

  def tile(i, place, carry):
    rows, _, keys, values = _tile(static, i, pairs, k, v)
    logits = static.scale * (q.at[rows].get(mode='clip') @ keys.T)
    top = logits.max(1)
    weights = jnp.exp(logits - top[:, None])
    new = (weights @ values, top, weights.sum(1))
    return (
      jax.tree.map(
        lambda x, y: lax.dynamic_update_slice_in_dim(x, y, place, 0),
        carry[0],
        new,
      ),
    )

  def merge(place, parts, sums):
    out, top, total = sums
    here = place < room
    part, its_top, its_total = (x.at[place].get(mode='clip') for x in parts)
    higher = jnp.maximum(top, jnp.where(here, its_top, EMPTY))
    keep = jnp.exp(top - higher)
    add = jnp.where(here, jnp.exp(its_top - higher), 0)
    out = out * keep[:, None] + part * add[:, None]
    return out, higher, total * keep + its_total * add

  sums = _local_forward(static, q, k, v, blocks)
  _, (out, top, total) = _each_window(pairs, tile, merge, (parts,), sums)
  return out / total[:, None], top + jnp.log(total)


def _group_backward(static, q, k, v, out, lse, blocks, pairs, d_out):
  """Gradients of the three operands of a group."""
  delta = (out * d_out).sum(1)
  dq, dk, dv = _local_backward(static, q, k, v, lse, delta, d_out, blocks)
  m = q.shape[0]
  room = _room(static, pairs.places.shape[2], k.shape[0] // static.block_size)

  def tile(i, place, carry):
    parts, dk, dv = carry
    rows, start, keys, values = _tile(static, i, pairs, k, v)
    queries, its_lse, its_delta, its_d = (
      x.at[rows].get(mode='clip') for x in (q, lse, delta, d_out)
    )
    logits = static.scale * (queries @ keys.T)
    weights = jnp.exp(logits - its_lse[:, None])
    weights = jnp.where((rows < m)[:, None], weights, 0)
    slopes = weights * (its_d @ values.T - its_delta[:, None]) * static.scale
    parts = lax.dynamic_update_slice_in_dim(parts, slopes @ keys, place, 0)
    dk = _add_at(dk, slopes.T @ queries, start)
    return parts, dk, _add_at(dv, weights.T @ its_d, start)

  def merge(place, parts, dq):
    part = parts.at[place].get(mode='clip')
    return dq + jnp.where((place < room)[:, None], part, 0)

  parts = jnp.zeros((room, q.shape[1]), q.dtype)
  carry, dq = _each_window(pairs, tile, merge, (parts, dk, dv), dq)
  return dq, *carry[1:]


def _add_at(x, y, start):
  old = lax.dynamic_slice_in_dim(x, start, y.shape[0])
  return lax.dynamic_update_slice_in_dim(x, old + y, start, 0)


def _band(static, x):
  """Keys that may be in the own block of row range n: [N, W, K].

  That range, and the one before it where blocks are not aligned to ranges.
  """
  x = x.reshape(-1, static.block_size, *x.shape[1:])
  if not static.packed:
    return x
  before = jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
  return jnp.concatenate([before, x], axis=1)


def _band_mask(static, blocks):
  """[N, 1, S, W]: keys of the query's own block, up to the query."""
  at = jnp.arange(blocks.first.shape[0], dtype=jnp.int32)
  key_at = _band(static, at)[:, None, None]
  key_first = _band(static, blocks.first)[:, None, None]
  own = at.reshape(-1, 1, static.block_size, 1)
  first = blocks.first.reshape(own.shape)
  mask = (key_first == first) & (key_at <= own)
  if static.packed:  # range 0 has none before it
    real = lax.broadcasted_iota(jnp.int32, mask.shape, 3) >= static.block_size
    later = lax.broadcasted_iota(jnp.int32, mask.shape, 0) > 0
    mask = mask & (real | later)
  return mask


def _ranges(static, x, length):
  """[M, K] -> [N, R, S, K]: queries by row range."""
  n = length // static.block_size
  x = x.reshape(-1, n, static.block_size, *x.shape[1:])
  return jnp.swapaxes(x, 0, 1)


def _rows(x):
  """[N, R, S, K] -> [M, K]."""
  x = jnp.swapaxes(x, 0, 1)
  return x.reshape(-1, *x.shape[3:])


def _local_forward(static, q, k, v, blocks):
  """Softmax parts of each query's own block."""
  queries = _ranges(static, q, k.shape[0])
  keys, values = _band(static, k), _band(static, v)
  logits = static.scale * jnp.einsum('nrsk,nwk->nrsw', queries, keys)
  logits = jnp.where(_band_mask(static, blocks), logits, EMPTY)
  top = logits.max(3)
  weights = jnp.exp(logits - top[..., None])
  out = jnp.einsum('nrsw,nwv->nrsv', weights, values)
  return _rows(out), _rows(top), _rows(weights.sum(3))


def _local_backward(static, q, k, v, lse, delta, d_out, blocks):
  """What the own blocks add to the gradients."""
  queries, lse, delta, d_out = (
    _ranges(static, x, k.shape[0]) for x in (q, lse, delta, d_out)
  )
  keys, values = _band(static, k), _band(static, v)
  logits = static.scale * jnp.einsum('nrsk,nwk->nrsw', queries, keys)
  logits = jnp.where(_band_mask(static, blocks), logits, EMPTY)
  weights = jnp.exp(logits - lse[..., None])
  slopes = jnp.einsum('nrsv,nwv->nrsw', d_out, values) - delta[..., None]
  slopes = weights * slopes * static.scale
  dq = jnp.einsum('nrsw,nwk->nrsk', slopes, keys)
  dk = jnp.einsum('nrsw,nrsk->nwk', slopes, queries)
  dv = jnp.einsum('nrsw,nrsv->nwv', weights, d_out)
  return _rows(dq), _unband(static, dk), _unband(static, dv)


def _unband(static, x):
  """Transpose of `_band`."""
  if static.packed:
    before, own = jnp.split(x, 2, axis=1)
    x = own + jnp.concatenate([before[1:], jnp.zeros_like(own[:1])])
  return x.reshape(-1, x.shape[2])
