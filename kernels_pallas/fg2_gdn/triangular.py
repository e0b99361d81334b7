"""The inverse of I + L for batches of strictly lower triangular L."""

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

Array = jax.Array | np.ndarray

LEAF = 8


def dot(a, b, contract: str):
  """Batched matrix product; `contract` is 'mm', 'nt' or 'tn' as in BLAS."""
  spec = {
    'mm': '...ij,...jk->...ik',
    'nt': '...ij,...kj->...ik',
    'tn': '...ji,...jk->...ik',
  }[contract]
  return jnp.einsum(spec, a, b, precision=lax.Precision.HIGHEST)


def unit_inverse(
  lower: Float[Array, '*N C C'],
) -> Float[Array, '*N C C']:
  """(I + lower)^-1 by substitution on 8 rows, then merges of block pairs.

  Neumann series and Newton-Schulz lose all digits on repeated keys; this does
  not. Entries on and above the diagonal must be 0. `C` is 8 times a power of 2.
  """
  size = lower.shape[-1]
  spans = [(i, i + LEAF) for i in range(0, size, LEAF)]
  leaves = jnp.stack([lower[..., i:j, i:j] for i, j in spans], -3)
  inverse = _substitute(leaves)
  blocks = [inverse[..., i, :, :] for i in range(len(spans))]
  half = LEAF
  while half < size:
    merged = []
    for i in range(0, size // half, 2):
      top, bottom = blocks[i], blocks[i + 1]
      middle = (i + 1) * half
      corner = lower[..., middle : middle + half, i * half : middle]
      corner = -dot(bottom, dot(corner, top, 'mm'), 'mm')
      zero = jnp.zeros_like(corner)
      merged.append(
        jnp.concatenate(
          [
            jnp.concatenate([top, zero], -1),
            jnp.concatenate([corner, bottom], -1),
          ],
          -2,
        )
      )
    blocks, half = merged, 2 * half
  return blocks[0]


def _substitute(lower):
  """The inverse of small blocks, element by element, batch in the lanes."""
  rows = jnp.moveaxis(lower.reshape(-1, LEAF, LEAF), 0, -1)
  zero = jnp.zeros_like(rows[0, 0])
  one = jnp.ones_like(zero)
  inverse = [[zero] * LEAF for _ in range(LEAF)]
  for i in range(LEAF):
    inverse[i][i] = one
    for j in range(i):
      total = rows[i, j]
      for m in range(j + 1, i):
        total = total + rows[i, m] * inverse[m][j]
      inverse[i][j] = -total
  stacked = jnp.stack([jnp.stack(row) for row in inverse])
  return jnp.moveaxis(stacked, -1, 0).reshape(lower.shape)
