"""What sparse attention accepts; said before anything is computed."""

import jax.numpy as jnp
import numpy as np

from kernels_pallas.sparse_attention import routing

FLOATS = ('bfloat16', 'float16', 'float32', 'float64')


def check_operands(
  q, k, v, *, budget, block_size, max_budget, segment_ids, per
) -> None:
  """Shapes, dtypes and ranges of `sparse_attention`.

  Raises:
    ValueError: a shape or a number out of range.
    TypeError: a dtype.
  """
  if q.ndim != 4 or q.shape[1] == 0:
    raise ValueError(
      f'Got q of shape {q.shape}; wanted [B, T, H, K] with T > 0. Add the'
      ' missing axes.'
    )
  rows, length, heads, width = q.shape
  if k.ndim != 4 or k.shape[:2] != (rows, length) or k.shape[3] != width:
    raise ValueError(
      f'Got k of shape {k.shape}; wanted ({rows}, {length}, G, {width}) to go'
      f' with q of shape {q.shape}. Queries against a longer cache take'
      ' `routing.token_mask` instead.'
    )
  if heads % k.shape[2]:
    raise ValueError(
      f'Got {heads} query heads and {k.shape[2]} key heads; wanted a multiple.'
      ' Repeat or drop heads.'
    )
  if v.ndim != 4 or v.shape[:3] != k.shape[:3]:
    raise ValueError(
      f'Got v of shape {v.shape}; wanted {(*k.shape[:3], "V")}, one value a'
      ' key.'
    )
  for name, x in (('q', q), ('k', k), ('v', v)):
    if jnp.dtype(x.dtype).name not in FLOATS:
      raise TypeError(
        f'Got {name} of {x.dtype}; wanted {" or ".join(FLOATS)}. Cast it with'
        f' {name}.astype.'
      )
  check_segments(segment_ids, (rows, length))
  check_budget(budget, rows)
  if block_size < 1:
    raise ValueError(f'Got block_size={block_size}; wanted at least 1 token.')
  if max_budget is not None and max_budget < 1:
    raise ValueError(
      f'Got max_budget={max_budget}; wanted at least 1: the own block counts.'
    )
  if per not in routing.ROUTES:
    raise ValueError(f'Got per={per!r}; wanted one of {routing.ROUTES}.')


def check_segments(segment_ids, wanted: tuple[int, int]) -> None:
  """None, or one integer a token."""
  if segment_ids is None:
    return
  if segment_ids.shape != wanted:
    raise ValueError(
      f'Got segment_ids of shape {segment_ids.shape}; wanted {wanted}, one id a'
      ' token.'
    )
  if not jnp.issubdtype(segment_ids.dtype, jnp.integer):
    raise TypeError(
      f'Got segment_ids of {segment_ids.dtype}; wanted integers. Cast them.'
    )


def check_budget(budget, rows: int) -> None:
  """One integer, or one a row; at least 1 where it is known already."""
  if isinstance(budget, int | np.integer) and budget < 1:
    raise ValueError(
      f'Got budget={budget}; wanted at least 1: the own block counts.'
    )
  if not jnp.issubdtype(jnp.result_type(budget), jnp.integer):
    raise TypeError(
      f'Got a budget of {jnp.result_type(budget)}; wanted int32 numbers of'
      ' blocks.'
    )
  if jnp.shape(budget) not in ((), (rows,)):
    raise ValueError(
      f'Got a budget of shape {jnp.shape(budget)}; wanted () or ({rows},). For'
      ' a budget a layer, give each layer its own.'
    )
