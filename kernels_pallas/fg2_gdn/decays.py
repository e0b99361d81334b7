"""Three ways to put the decays of a chunk into its operands.

All sums of log decays are sums over the tokens between two rows, never
differences of one long running sum: that would lose the small decays behind a
large one.

    by_head       one decay a head: C x C tiles and factors on rows
    about_middle  a decay a channel, counted from the middle row: one product a
                  tile, but its exponents are bounded only if decays are moderate
    by_halves     a decay a channel, any size: pairs of neighbouring row blocks
                  of 4, 8, 16, each with both exponents <= 0

Arrays are [M, N, C, D]: chunks of a block, rows times heads, tokens, width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.fg2_gdn import triangular

Array = jax.Array | np.ndarray

# The smallest log decay of a token: exp(-30) is 9e-14.
MIN_G = -30.0
CHUNK = 32
HALF = CHUNK // 2
# From the middle of a chunk to that of the next is two halves at most, in one
# factor: exp(-80) is still a normal float32.
LIMIT = 40.0
# Rows that may be counted from their middle for any g >= MIN_G.
LEAF = 4
HIDDEN = -1e30

# [1, 1, C, 1] and pairs of them, [1, 1, C, C].
_ROW = np.arange(CHUNK)[None, None, :, None]
_COLUMN = np.swapaxes(_ROW, 2, 3)
_LOWER = _ROW >= _COLUMN
_STRICT = _ROW > _COLUMN
_FROM = _ROW <= _COLUMN
_AFTER = _ROW < _COLUMN


class Masks(NamedTuple):
  """Which tokens of packed rows may see each other.

  same: [M, N, C, C] token pairs of one document.
  head: [M, N, C, 1] tokens of the document that the state comes from.
  tail: [M, N, C, 1] tokens of the document that the state goes to.
  keep: [M, N, 1, 1] whether these are the same.
  """

  same: Array
  head: Array
  tail: Array
  keep: Array


class Decayed(NamedTuple):
  """The operands of a block with their decays.

  q, a, c: [M, N, C, K] for products with the state.
  lower, reads: [M, N, C, C], L and P of the chunk form.
  head: [M, N, C, 1] factor on what is read from the state, or None for 1.
  tail: [M, N, C, 1] factor on what is written, or None.
  enter: [N, K, 1] factor on the entry state of the block, or None.
  keep: [M, N, K or 1, 1] factor on the state over a chunk.
  write: [M, N, K, 1] factor on what the chunk adds, or None.
  pull: gradients of the undecayed operands from those of the fields,
    `(dq, da, dc, dreads, dlower) -> (dq, da, dc, z)`; z [M, N, C, G] is
    `q dq + a da - c dc`, whose sum over later rows is the gradient of g.
  """

  q: Array
  a: Array
  c: Array
  lower: Array
  reads: Array
  head: Array | None
  tail: Array | None
  enter: Array | None
  keep: Array
  write: Array | None
  pull: Callable


def masks(marks: Array, heads: int) -> Masks:
  """From [M, B, C, 2]: the run of each token, and of the one before it."""
  run, carried = marks[..., 0], marks[..., :1, 1]
  last = run[..., -1:]

  def spread(x):
    x = jnp.broadcast_to(x[:, :, None], (*x.shape[:2], heads, *x.shape[2:]))
    return x.reshape(x.shape[0], -1, *x.shape[3:])

  return Masks(
    same=spread(run[..., :, None] == run[..., None, :]),
    head=spread((run == carried)[..., None]),
    tail=spread((run == last)[..., None]),
    keep=spread((carried == last)[..., None]),
  )


def is_moderate(g: Array) -> Array:
  """Whether `about_middle` can hold the decays: half a chunk over e^-40."""
  halves = g.reshape(*g.shape[:2], 2, HALF, g.shape[-1])
  return jnp.min(jnp.sum(halves, -2)) > -LIMIT


def by_head(block: dict[str, Array], masks: Masks | None) -> Decayed:
  """One decay a head; the operands stay as they are."""
  q, c, g = block['q'], block['c'], block['g']
  a = block.get('a', c)
  seen = _LOWER if masks is None else _LOWER & masks.same
  # between[i, j] = sum of g over j < l <= i
  between = _sums(_LOWER, jnp.where(_STRICT, g, 0))
  decay = _hidden_exp(seen, between)
  strict = jnp.where(_STRICT, decay, 0)
  head = jnp.exp(between[..., :1] + g[..., :1, :])
  keep = head[..., -1:, :]
  tail = decay[..., -1, :, None]
  if masks is not None:
    head = jnp.where(masks.head, head, 0)
    keep = jnp.where(masks.keep, keep, 0)

  def pull(dq, da, dc, dreads, dlower):
    dreads, dlower = dreads * decay, dlower * strict
    dq, da, dc = _pull_pairs((q, a, c), (dq, da, dc), dreads, dlower)
    return dq, da, dc, lane_sum(q * dq + a * da - c * dc)

  return Decayed(
    *(q, a, c),
    lower=triangular.dot(a, c, 'nt') * strict,
    reads=triangular.dot(q, c, 'nt') * decay,
    head=head,
    tail=tail,
    enter=None,
    keep=keep,
    write=None,
    pull=pull,
  )


def about_middle(block: dict[str, Array], masks: None = None) -> Decayed:
  """A decay a channel, counted from the middle row; for one document a row.

  The state carries the factor from the chunk's start to its middle row.
  """
  assert masks is None, 'Packed rows need by_halves.'
  g = block['g']
  decay = jnp.exp(_sums(_signed(CHUNK), g))
  growth = 1 / decay
  to_middle = jnp.exp(jnp.sum(g[..., :HALF, :], -2))[..., None]
  to_end = decay[..., -1, :, None]
  # Over a chunk: from its middle to the middle of the next, or to the end.
  write = to_end * jnp.concatenate(
    [to_middle[1:], jnp.ones_like(to_middle[:1])]
  )
  q, c = block['q'] * decay, block['c'] * growth
  a = block.get('a', block['c']) * decay

  def pull(dq, da, dc, dreads, dlower):
    dreads = jnp.where(_LOWER, dreads, 0)
    dlower = jnp.where(_STRICT, dlower, 0)
    dq, da, dc = _pull_pairs((q, a, c), (dq, da, dc), dreads, dlower)
    z = q * dq + a * da - c * dc
    return dq * decay, da * decay, dc * growth, z

  return Decayed(
    *(q, a, c),
    lower=jnp.where(_STRICT, triangular.dot(a, c, 'nt'), 0),
    reads=jnp.where(_LOWER, triangular.dot(q, c, 'nt'), 0),
    head=None,
    tail=None,
    enter=to_middle[0],
    keep=write,
    write=write,
    pull=pull,
  )


def by_halves(block: dict[str, Array], masks: Masks | None) -> Decayed:
  """A decay a channel of any size: no exponent above 0 but in leaves of 4."""
  g, q, c = block['g'], block['q'], block['c']
  a = block.get('a', c)
  same = True if masks is None else masks.same
  levels = [_leaf(g, same)]
  size = LEAF
  while size < CHUNK:
    levels.append(_level(g, same, size))
    size *= 2
  start = jnp.exp(_sums(_LOWER, g))
  end = jnp.exp(_sums(_AFTER, g))
  keep = start[..., -1, :, None]
  if masks is not None:
    start = jnp.where(masks.head, _exp_sums(_LOWER & same, g), 0)
    end = jnp.where(masks.tail, _exp_sums(_AFTER & same, g), 0)
    keep = jnp.where(masks.keep, keep, 0)

  def products(x):
    return sum(
      jnp.where(pairs, triangular.dot(x * left, c * right, 'nt'), 0)
      for left, right, pairs in levels
    )

  def pull(dq, da, dc, dreads, dlower):
    dq, da, dc = dq * start, da * start, dc * end
    for left, right, pairs in levels:
      more = _pull_pairs(
        (q * left, a * left, c * right),
        (0.0, 0.0, 0.0),
        jnp.where(pairs, dreads, 0),
        jnp.where(_STRICT & pairs, dlower, 0),
      )
      dq, da, dc = (
        dx + extra * factor
        for dx, extra, factor in zip(
          (dq, da, dc), more, (left, left, right), strict=True
        )
      )
    return dq, da, dc, q * dq + a * da - c * dc

  return Decayed(
    *(q * start, a * start, c * end),
    lower=jnp.where(_STRICT, products(a), 0),
    reads=products(q),
    head=None,
    tail=None,
    enter=None,
    keep=keep,
    write=None,
    pull=pull,
  )


def total(state: Array, dstate: Array, width: int) -> Array:
  """[N, 1, width]: the sum of `state * dstate` over V, and K if width is 1."""
  by_channel = lane_sum(state * dstate)[:, None, :, 0]
  return by_channel if width > 1 else lane_sum(by_channel)


def sum_later(z: Array, total: Array, masks: Masks | None) -> Array:
  """The gradient of g: sums of `z` over each row and later ones of its run.

  `total` is what all tokens after the block add. A sum over the whole row would
  be the same number, but carry rounding from one document to the next.
  """
  spans = _FROM if masks is None else _FROM & masks.same
  inside = _sums(spans, z)
  dg = []
  for m in reversed(range(z.shape[0])):
    reached = total if masks is None else jnp.where(masks.tail[m], total, 0)
    dg.append(inside[m] + reached)
    total = dg[-1][:, :1]
    if masks is not None:
      total = jnp.where(masks.head[m, :, :1], total, 0)
  return jnp.stack(dg[::-1])


def _leaf(g, same):
  """Factors and pairs inside blocks of LEAF rows, from their middles."""
  inside = _ROW // LEAF == _COLUMN // LEAF
  signed = np.where(
    inside, np.tile(_signed(LEAF), (1, 1, CHUNK // LEAF, CHUNK // LEAF)), 0
  )
  sums = _sums(jnp.where(same, signed, 0), g)
  return jnp.exp(sums), jnp.exp(-sums), _LOWER & inside & same


def _level(g, same, size):
  """Factors and pairs of each right block of `size` rows with its left one.

  A right row has the sum from its block's start to itself, a left row the sum
  after it to its block's end.
  """
  row, column = _ROW // size, _COLUMN // size
  right = row % 2 == 1
  spans = (row == column) & np.where(right, _LOWER, _AFTER)
  factor = _exp_sums(spans & same, g)
  return (
    jnp.where(right, factor, 0),
    jnp.where(right, 0, factor),
    right & (row == column + 1) & same,
  )


def _pull_pairs(operands, gradients, dreads, dlower):
  """Adds what the products `q c^T` and `a c^T` give to their operands."""
  q, a, c = operands
  dq, da, dc = gradients
  return (
    dq + triangular.dot(dreads, c, 'mm'),
    da + triangular.dot(dlower, c, 'mm'),
    dc + triangular.dot(dreads, q, 'tn') + triangular.dot(dlower, a, 'tn'),
  )


def _signed(size):
  """Rows of +-1 that sum g from the middle row of `size` rows to each row."""
  lower = np.tril(np.ones((1, 1, size, size)))
  return lower - lower[..., size // 2 - 1, None, :]


def _sums(spans, g):
  """Sums of `g` over the tokens that each row of `spans` marks."""
  spans = jnp.asarray(spans).astype(g.dtype)
  spans = jnp.broadcast_to(spans, (*g.shape[:2], CHUNK, CHUNK))
  return triangular.dot(spans, g, 'mm')


def _exp_sums(spans, g):
  return jnp.exp(_sums(spans, g))


def _hidden_exp(seen, x):
  """exp where seen, else 0; masked on both sides for the gradient's sake."""
  return jnp.where(seen, jnp.exp(jnp.where(seen, x, HIDDEN)), 0)


def lane_sum(x):
  """The sum over the last axis, kept; in two stages, so that it vectorises."""
  width = x.shape[-1]
  lanes = 16 if width % 16 == 0 else 1
  x = x.reshape(*x.shape[:-1], width // lanes, lanes)
  return jnp.sum(jnp.sum(x, -2), -1, keepdims=True)
