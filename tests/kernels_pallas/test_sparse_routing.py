"""Blocks are where they should be, and the best of them are chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.sparse_attention import routing

block_mask = jax.jit(routing.block_mask, static_argnames=('block_size', 'per'))
token_mask = jax.jit(
  routing.token_mask, static_argnames=('length', 'block_size')
)
best = jax.jit(routing.best)


def operands(*, length=24, heads=4, groups=2, width=8, rows=2, seed=0):
  keys = jax.random.split(jax.random.key(seed), 2)
  q = jax.random.normal(keys[0], (rows, length, heads, width))
  return q, jax.random.normal(keys[1], (rows, length, groups, width))


def chosen_by_hand(q, k, budget, size):
  """[H, T] lists of the past blocks of one row, by sorting in NumPy."""
  q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
  heads, repeats = q.shape[1], q.shape[1] // k.shape[1]
  out = []
  for head in range(heads):
    keys = k[:, head // repeats]
    row = []
    for t in range(len(q)):
      own = t // size
      score = [
        q[t, head] @ keys[n * size : (n + 1) * size].mean(0) for n in range(own)
      ]
      order = sorted(range(own), key=lambda n: (-score[n], n))
      row.append(sorted(order[: budget - 1]))
    out.append(row)
  return out


def test_unpacked_blocks_are_row_ranges():
  blocks = routing.locate(None, length=12, block_size=4)
  np.testing.assert_array_equal(blocks.start, [[0, 4, 8]])
  np.testing.assert_array_equal(blocks.first, [[0] * 4 + [4] * 4 + [8] * 4])


def test_packed_blocks_count_from_each_document():
  ids = jnp.array([[7] * 3 + [5] * 7 + [9] * 2])
  blocks = routing.locate(ids, length=12, block_size=4)
  np.testing.assert_array_equal(blocks.document, [[0] * 3 + [3] * 7 + [10] * 2])
  np.testing.assert_array_equal(
    blocks.first, [[0] * 3 + [3] * 4 + [7] * 3 + [10] * 2]
  )
  # Only 3..6 is a whole block of its document; it begins in range 0.
  np.testing.assert_array_equal(blocks.start, [[3, 12, 12]])
  number = routing.complete_number(blocks, block_size=4)
  np.testing.assert_array_equal(number, [[-1] * 3 + [0] * 4 + [-1] * 5])


@pytest.mark.parametrize('count', [0, 1, 2, 3, 9])
def test_best_takes_the_highest_and_of_equals_the_first(count):
  values = jnp.array([[1.0, -2.0, 1.0, 3.0, 1.0, jnp.inf, -0.0, 0.0]])
  allowed = jnp.array([[True] * 5 + [False, True, True]])
  order = [3, 0, 2, 4, 6, 7, 1]
  taken = best(values, allowed, jnp.array([count]))
  assert set(np.flatnonzero(taken[0])) == set(order[:count])


def test_best_agrees_with_a_sort_on_many_ties():
  values = jax.random.randint(jax.random.key(0), (200, 17), -3, 4)
  values = values.astype(jnp.float32) * 0.37
  count = jax.random.randint(jax.random.key(1), (200,), 0, 18)
  taken = best(values, jnp.ones_like(values, bool), count)
  order = np.argsort(-np.asarray(values), axis=1, kind='stable')
  for row in range(200):
    assert set(np.flatnonzero(taken[row])) == set(order[row, : int(count[row])])


@pytest.mark.parametrize('budget', [1, 2, 4])
def test_queries_choose_by_mean_keys(budget):
  q, k = operands()
  mask = block_mask(q, k, budget=budget, block_size=4)
  for row in range(2):
    wanted = chosen_by_hand(q[row], k[row], budget, 4)
    for head in range(4):
      for t in range(24):
        got = np.flatnonzero(mask[row, head, t]).tolist()
        assert got == wanted[head][t]


def test_budget_of_each_row():
  q, k = operands()
  both = block_mask(q, k, budget=jnp.array([2, 5]), block_size=4)
  for row, budget in enumerate((2, 5)):
    alone = block_mask(q, k, budget=budget, block_size=4)
    np.testing.assert_array_equal(both[row], alone[row])
  assert int(both[0, 0, -1].sum()) == 1 and int(both[1, 0, -1].sum()) == 4


def test_a_cache_gives_the_choice_of_the_row():
  q, k = operands()
  whole = block_mask(q, k, budget=3, block_size=4)
  tokens = token_mask(whole, length=24, block_size=4)
  # Slots of unlike lengths, junk behind them, room for more.
  positions = jnp.array([[5, 6, 7], [20, 21, 22]])
  cache = jnp.pad(k, ((0, 0), (0, 8), (0, 0), (0, 0)))
  junk = jnp.arange(32)[None, :] > positions[:, -1:]
  cache = jnp.where(junk[..., None, None], 1e6, cache)
  query = jnp.take_along_axis(q, positions[..., None, None], axis=1)
  chosen = block_mask(query, cache, budget=3, block_size=4, positions=positions)
  seen = token_mask(chosen, length=32, block_size=4, positions=positions)
  for slot in range(2):
    for i, at in enumerate(positions[slot]):
      np.testing.assert_array_equal(seen[slot, :, i, :24], tokens[slot, :, at])
  assert not seen[..., 24:].any()


def test_a_packed_document_chooses_as_if_alone():
  q, k = operands(length=40, rows=1)
  ids = jnp.array([[1] * 7 + [2] * 22 + [3] * 11])
  packed = token_mask(
    block_mask(q, k, budget=3, block_size=4, segment_ids=ids),
    length=40,
    block_size=4,
    segment_ids=ids,
  )
  for begin, end in ((0, 7), (7, 29), (29, 40)):
    pad = ((0, 0), (0, -(end - begin) % 4), (0, 0), (0, 0))
    alone = [jnp.pad(x[:, begin:end], pad) for x in (q, k)]
    mask = token_mask(
      block_mask(*alone, budget=3, block_size=4),
      length=alone[0].shape[1],
      block_size=4,
    )[:, :, : end - begin, : end - begin]
    np.testing.assert_array_equal(packed[:, :, begin:end, begin:end], mask)
    assert not packed[:, :, begin:end, :begin].any()
    assert not packed[:, :, begin:end, end:].any()


def test_tiles_choose_together_and_a_later_token_changes_an_earlier_one():
  q, k = operands()
  mask = block_mask(q, k, budget=2, block_size=4, per='tile')
  tiles = mask.reshape(2, 4, 6, 4, 6)
  np.testing.assert_array_equal(tiles, tiles[:, :, :, :1].repeat(4, axis=3))
  moved = q.at[:, 23].multiply(-100.0)
  other = block_mask(moved, k, budget=2, block_size=4, per='tile')
  assert (other[:, :, 20] != mask[:, :, 20]).any()
  exact = [
    block_mask(x, k, budget=2, block_size=4)[:, :, :23] for x in (q, moved)
  ]
  np.testing.assert_array_equal(*exact)


def test_positions_go_with_neither_packing_nor_tiles():
  q, k = operands()
  with pytest.raises(ValueError, match='positions'):
    block_mask(
      q,
      k,
      budget=2,
      block_size=4,
      positions=jnp.zeros((2, 24), jnp.int32),
      per='tile',
    )


def geometric(ratio, blocks):
  """Keys of which block j gets a routing probability ~ ratio ** j."""
  k = np.log(ratio) * jnp.arange(blocks + 1.0)[None, :, None, None]
  return jnp.ones_like(k), k


@pytest.mark.parametrize(
  'ratio, wanted',
  [
    (0.9, [0.3439, 0.5695, 0.8147, 0.9657, 0.9988]),
    (0.99, [0.0544, 0.1067, 0.2052, 0.38, 0.6555]),
  ],
)
def test_coverage_of_geometric_scores(ratio, wanted):
  q, k = geometric(ratio, 128)
  curve = routing.coverage(
    q, k, [4, 8, 16, 32, 64], block_size=1, base_budget=127
  )
  np.testing.assert_allclose(curve[0], wanted, atol=6e-5)


def test_coverage_averages_heads_and_long_enough_queries():
  q, k = operands(length=32)
  curve = routing.coverage(q, k, [1, 2, 3, 9], block_size=4, base_budget=3)
  means = np.asarray(k).reshape(2, 8, 4, 2, 8).mean(2)
  shares = []
  for row in range(2):
    for head in range(4):
      for t in range(16, 32):
        score = means[row, : t // 4, head // 2] @ np.asarray(q)[row, t, head]
        p = np.sort(np.exp(score - score.max()))[::-1]
        mass = np.cumsum(p / p.sum())
        shares.append([mass[min(b, t // 4) - 1] for b in (1, 2, 3, 9)])
  shares = np.reshape(shares, (2, -1, 4)).mean(1)
  np.testing.assert_allclose(curve, shares, atol=1e-5)
  np.testing.assert_allclose(curve[:, -1], 1, atol=1e-6)


def test_coverage_without_long_queries_sets_no_bound():
  q, k = operands(length=16)
  curve = routing.coverage(q, k, [1, 2], block_size=4, base_budget=3)
  np.testing.assert_array_equal(curve, np.ones((2, 2)))


def test_coverage_with_the_own_block_counts_it_first():
  q, k = operands(length=16, rows=1, heads=1, groups=1)
  curve = routing.coverage(
    q, k, [1, 4], block_size=4, base_budget=3, count_current_block=True
  )
  shares = []
  for t in range(12, 16):
    means = [np.asarray(k)[0, n * 4 : n * 4 + 4, 0].mean(0) for n in range(3)]
    means.append(np.asarray(k)[0, 12 : t + 1, 0].mean(0))
    p = np.exp(np.stack(means) @ np.asarray(q)[0, t, 0])
    shares.append(p[3] / p.sum())
  np.testing.assert_allclose(curve[0], [np.mean(shares), 1.0], atol=1e-5)


def test_routing_has_no_gradient():
  q, k = operands()

  def loss(q, k):
    return (
      routing.coverage(q, k, [1], block_size=4, base_budget=2).sum()
      + routing.scores(q, routing.mean_keys(k, None, block_size=4)).sum()
    )

  for gradient in jax.grad(loss, argnums=(0, 1))(q, k):
    assert not gradient.any()
