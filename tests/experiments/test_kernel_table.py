"""The table of static figures says what was compiled, and what failed."""

import jax
import jax.numpy as jnp

from experiments import kernel_table
from kernels_pallas import testing

CASE = testing.Case(
  'op', len, (jax.ShapeDtypeStruct((2, 8, 4, 16), jnp.float32),)
)


def test_a_row_a_kernel_with_bytes_a_token_and_head():
  kernel = testing.Kernel('forward_3.1', 120, 7, 4096)
  result = testing.Compiled(
    'op', 'v5e', hbm_bytes=64 * 1536, temp_bytes=64 * 2, schedule=(kernel,)
  )
  assert kernel_table.rows(CASE, result) == [
    ['op', 'v5e', 'compiles', 'forward', '120', '7', '4', '1,536', '2']
  ]


def test_a_failure_and_a_fallback_are_seen():
  failed = testing.Compiled('op', 'v6e', error='E2003: not aligned\nmore')
  (row,) = kernel_table.rows(CASE, failed)
  assert row[2] == 'E2003: not aligned' and len(row) == len(kernel_table.TITLES)
  (row,) = kernel_table.rows(CASE, testing.Compiled('op', 'v6e'))
  assert row[3] == 'no kernel in it' and len(row) == len(kernel_table.TITLES)


def test_ours_beside_a_peer_are_as_large(monkeypatch):
  monkeypatch.setattr(
    kernel_table.importlib.util, 'find_spec', lambda name: True
  )
  found = {case.name: case for case in kernel_table.peer_cases()}
  for dtype in ('float32', 'bfloat16'):
    for what in ('forward', 'gradient'):
      ours = found[f'fg2_gdn {what} {dtype} C=64'].avals[0]
      peer = found[f'tokamax KDA {what} {dtype}'].avals[0]
      assert ours.size == peer.size and ours.dtype == peer.dtype
      assert f'splash_{what} {dtype} block=128' in found
