"""What the TPU kernels are told: work lists, and each query's choice in bits.

A kernel walks a list of (tile of queries, range of keys) pairs, made on the
device from the chosen blocks, over a grid whose length is that of the longest
list: the number of steps follows the budget, and nothing is compiled anew. A
step that finds its list at an end repeats the last pair's addresses, so that it
copies nothing, and computes nothing.

Exact routing per query inside a tile is a mask: the tile walks all ranges that
any of its queries needs, and bit n of a query's words says whether it chose
complete block n.

Lists lie in scalar memory (1 MiB on v5e and v6e), so an entry is a piece of a
head's tiles small enough, and as many entries go into a call as fit.

Letters: `E` entries, `L` length of a list, `I` tiles of queries, `N` ranges of
keys, both of `S` tokens, `W` words of 32 bits.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from kernels_pallas.sparse_attention import routing

Array = routing.Array

# Numbers of one call's lists; 256 KiB.
TABLE = 65536


class Plan(NamedTuple):
  """Routing as the kernels read it.

  Attributes:
    words: bit n % 32 of word n // 32 is set where the query chose block n.
    used: ranges that some query of the tile attends, its own included.
    first: position at which each token's block begins; None if not packed.
    number: complete block of each token, -2 for none; None if not packed.
  """

  words: Int[Array, 'BH I W S']
  used: Bool[Array, 'BH I N']
  first: Int[Array, 'B I 1 S'] | None
  number: Int[Array, 'B I 1 S'] | None


class Lists(NamedTuple):
  """Work lists of all entries, `calls` times `E` of them.

  Attributes:
    items: `row * width + column` of each pair, first `count` of each list.
    count: pairs in each list, at least one.
  """

  items: Int[Array, 'calls E*L']
  count: Int[Array, 'calls E']


def plan(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B T G K'],
  budget: Int[Array, 'B'],
  segment_ids: Int[Array, 'B T'] | None,
  *,
  block_size: int,
  per: str,
) -> Plan:
  """Chooses blocks, one head of the batch at a time."""
  b, t, h, _ = q.shape
  n = t // block_size
  blocks = routing.locate(segment_ids, length=t, block_size=block_size)
  heads = jnp.repeat(jnp.arange(k.shape[2]), h // k.shape[2])

  def head(args):
    query, group = args
    chosen = routing.block_mask(
      query[:, :, None],
      lax.dynamic_index_in_dim(k, group, axis=2),
      budget=budget,
      block_size=block_size,
      segment_ids=segment_ids,
      per=per,
    )[:, 0]
    touched = chosen.reshape(b, n, block_size, n).any(2)
    return _words(chosen, block_size), touched

  words, touched = lax.map(head, (jnp.moveaxis(q, 2, 0), heads))
  used = touched | jnp.eye(n, dtype=bool)[None, None]
  if segment_ids is not None:
    used = used | _spill(touched, blocks, block_size)[..., :n]

  def fold(x):
    return jnp.moveaxis(x, 0, 1).reshape(b * h, *x.shape[2:])

  first = number = None
  if segment_ids is not None:
    number = routing.complete_number(blocks, block_size=block_size)
    number = jnp.where(number < 0, -2, number)
    first, number = (
      x.reshape(b, n, 1, block_size) for x in (blocks.first, number)
    )
  return Plan(fold(words), fold(used), first, number)


def _words(chosen, block_size):
  """[B T N] -> [B I W S], 32 blocks a word."""
  b, t, n = chosen.shape
  bits = jnp.pad(chosen, ((0, 0), (0, 0), (0, -n % 32)))
  bits = bits.reshape(b, t // block_size, block_size, -1, 32)
  shift = jnp.arange(32, dtype=jnp.uint32)[None, None, None, None]
  words = (bits.astype(jnp.uint32) << shift).sum(-1, dtype=jnp.uint32)
  return lax.bitcast_convert_type(jnp.swapaxes(words, 2, 3), jnp.int32)


def _spill(touched, blocks, block_size):
  """Ranges needed because a block reaches into the next one."""
  n = touched.shape[-1]
  crosses = blocks.start % block_size != 0
  right = jnp.pad(touched & crosses[None, :, None], ((0, 0),) * 3 + ((1, 0),))
  begin = jnp.arange(n, dtype=jnp.int32)[None, :, None] * block_size
  first = blocks.first.reshape(-1, n, block_size)
  own = (first < begin).any(2)[:, :, None] & jnp.eye(n, k=-1, dtype=bool)[None]
  return right[..., :n] | own[None]


def pieces(rows: int, width: int) -> int:
  """Into how many equal pieces rows are cut for a list to fit.

  Raises:
    NotImplementedError: a single row does not fit.
  """
  for count in range(1, rows + 1):
    if rows % count == 0 and rows // count * width <= TABLE:
      return count
  raise NotImplementedError(
    f'Got work lists of {width} pairs for one tile; {TABLE} fit into scalar'
    ' memory. Use a larger block_size.'
  )


def lists(used: Bool[Array, 'E rows width']) -> Lists:
  """Lists of the pairs in use, by row, in as few calls as fit."""
  entries, rows, width = used.shape
  flat = used.reshape(entries, rows * width)
  length = flat.shape[1]
  index = jnp.arange(length, dtype=jnp.int32)[None]
  items = jnp.sort(jnp.where(flat, index, length), axis=1)
  count = flat.sum(1, dtype=jnp.int32)
  together = max(
    c
    for c in range(1, entries + 1)
    if entries % c == 0 and (c == 1 or c * length <= TABLE)
  )
  return Lists(
    items.reshape(-1, together * length), count.reshape(-1, together)
  )


def each_call(function, work: Lists):
  """`function(base, count, items)` of each call, outputs by entry.

  `base` [1] is the number of the call's first entry.
  """
  calls, together = work.count.shape
  base = jnp.arange(calls, dtype=jnp.int32)[:, None] * together
  if calls == 1:
    return function(base[0], work.count[0], work.items[0])
  out = lax.map(lambda args: function(*args), (base, work.count, work.items))
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
