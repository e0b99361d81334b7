"""The bench compares what it times, and reads its own rows rightly."""

import chex
import jax
import pytest

from experiments import bench_sparse


def test_the_dense_forms_agree():
  keys = jax.random.split(jax.random.key(0), 3)
  q, k, v = (
    jax.random.normal(key, (1, 192, heads, 16))
    for key, heads in zip(keys, (4, 2, 2), strict=True)
  )
  dense = bench_sparse.masked(q, k, v)
  for tile in (64, 128, 512):
    tiled = bench_sparse.tiled(q, k, v, tile=tile)
    chex.assert_trees_all_close(tiled, dense, atol=1e-5)


def test_a_row_has_every_arm_and_was_compared():
  row = bench_sparse.rows(
    length=64, budgets=[1, 2, 4, 9], block_size=16, width=8, repeats=1
  )
  arms = ['masked', 'tiled', 'sparse 1', 'sparse 2', 'sparse all']
  assert list(row['arms']) == arms
  assert all(len(times) == 1 for times in row['arms'].values())
  assert 0 < row['error'] <= bench_sparse.TOLERANCE


def test_a_wrong_form_is_not_timed(monkeypatch):
  monkeypatch.setattr(bench_sparse, 'tiled', lambda q, k, v: q * 2)
  with pytest.raises(AssertionError, match='differ'):
    bench_sparse.rows(length=64, budgets=[1], block_size=16, width=8, repeats=1)


def test_wins_is_against_the_best_dense_form():
  times = {'masked': 5.0, 'tiled': 4.0, 'sparse 1': 1.0, 'sparse 2': 3.9}
  times |= {'sparse 4': 4.5, 'sparse all': 6.0}
  row = {'arms': {name: [x] for name, x in times.items()}}
  assert bench_sparse.wins(row) == '2'
  row['arms'] |= {'tiled': [0.5]}
  assert bench_sparse.wins(row) is None


def test_tables_show_ratios_and_static_figures():
  arms = {'tiled': [4.0], 'sparse 1': [1.0], 'sparse all': [8.0]}
  row = {'length': 64, 'backward': False, 'arms': arms}
  static = {'program': 'a kernel', 'tpu': 'v5e', 'bundles': 7, 'error': None}
  text = bench_sparse.table({'rows': {'a': row}, 'static': [static]})
  assert '1 (4.00x)' in text and '8 (0.50x)' in text
  assert '| a kernel | v5e |' in text and '| 7 |' in text
