"""What the gated delta ops accept; said before anything is computed."""

import os

import jax
import jax.numpy as jnp
import numpy as np

CHUNK_SIZES = (16, 32, 64, 128)
FLOATS = ('bfloat16', 'float16', 'float32', 'float64')

# Set to 1 to have the values of `g` checked when a program runs. Read when a
# function is traced: programs compiled before are not changed.
CHECK_VARIABLE = 'KERNELS_PALLAS_CHECKS'


def check_operands(
  q, k, v, g, *, erase, initial_state, segment_ids, chunk_size
) -> None:
  """Shapes and dtypes of `gated_delta`.

  Raises:
    ValueError: a shape, or `chunk_size`.
    TypeError: a dtype.
  """
  if q.ndim != 4:
    raise ValueError(
      f'Got q of shape {q.shape}; wanted [B, T, H, K]. Add the missing axes.'
    )
  rows, length, heads, width = q.shape
  if length == 0:
    raise ValueError(f'Got q of shape {q.shape}; wanted at least one token.')
  if v.ndim != 4:
    raise ValueError(
      f'Got v of shape {v.shape}; wanted [B, T, H, V]. Add the missing axes.'
    )
  check_shape('k', k, q.shape)
  check_shape('v', v, (rows, length, heads, v.shape[-1]))
  check_gate('g', g, q.shape)
  check_float('g', g, ('float32', 'float64'))
  for name, x in (('q', q), ('k', k), ('v', v)):
    check_float(name, x)
  if erase is not None:
    check_shape('erase', erase, q.shape)
    check_float('erase', erase)
  if initial_state is not None:
    check_state(initial_state, (rows, heads, width, v.shape[-1]))
  if segment_ids is not None:
    check_shape('segment_ids', segment_ids, (rows, length))
    if not jnp.issubdtype(segment_ids.dtype, jnp.integer):
      raise TypeError(
        f'Got segment_ids of {segment_ids.dtype}; wanted integers, 0 for'
        ' padding.'
      )
  if chunk_size not in CHUNK_SIZES:
    raise ValueError(
      f'Got chunk_size={chunk_size}; wanted one of {CHUNK_SIZES}.'
    )


def check_shape(name: str, x, wanted: tuple[int, ...]) -> None:
  """One shape, exactly."""
  if tuple(x.shape) != tuple(wanted):
    raise ValueError(
      f'Got {name} of shape {tuple(x.shape)}; wanted {tuple(wanted)}. Reshape'
      f' {name}, or correct the operand that it must agree with.'
    )


def check_gate(name: str, x, like: tuple[int, ...]) -> None:
  """A gate: one value a channel of `like`, or one a head (last axis 1)."""
  narrow = (*like[:-1], 1)
  if tuple(x.shape) not in (tuple(like), narrow):
    raise ValueError(
      f'Got {name} of shape {tuple(x.shape)}; wanted {tuple(like)}, one value a'
      f' channel, or {narrow}, one a head. Write {name}[..., None] for a value'
      ' a head without its last axis.'
    )


def check_float(name: str, x, wanted: tuple[str, ...] = FLOATS) -> None:
  """A floating dtype out of `wanted`."""
  if jnp.dtype(x.dtype).name not in wanted:
    raise TypeError(
      f'Got {name} of {x.dtype}; wanted {" or ".join(wanted)}. Cast it with'
      f' {name}.astype.'
    )


def check_state(state, wanted: tuple[int, ...]) -> None:
  """A state [B, H, K, V] in float32 or float64."""
  check_shape('the state', state, wanted)
  check_float('state', state, ('float32', 'float64'))


def check_square(k, v) -> None:
  """FG2 puts one vector on keys and values: they must be of one width."""
  if k.shape[-1] != v.shape[-1]:
    raise ValueError(
      f'Got keys of width {k.shape[-1]} and values of width {v.shape[-1]};'
      ' FG2 scales both with one vector and wants them equal. Use fg2_plus with'
      ' a vector for each, or kda with one value a head.'
    )


def check_values(g) -> None:
  """Raises ValueError where `g > 0` or NaN, if KERNELS_PALLAS_CHECKS=1.

  Inside `jit` the check rides along as a callback, and the error comes when
  the program runs.
  """
  if os.environ.get(CHECK_VARIABLE, '0') != '1':
    return
  jax.debug.callback(_refuse_growth, jnp.max(g))


def _refuse_growth(largest) -> None:
  if not np.all(np.asarray(largest) <= 0):
    raise ValueError(
      f'Got g with a largest value of {largest}; wanted log decays <= 0. Pass'
      ' the logarithm of the decay factor, not the factor.'
    )
