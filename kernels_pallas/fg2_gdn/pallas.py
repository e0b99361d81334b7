"""The gated delta rule as Pallas kernels for TPU, with their own derivative."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from kernels_pallas.fg2_gdn import pallas_bwd, pallas_fwd

Array = jax.Array | np.ndarray

LANES = 128


def gated_delta_pallas(
  q: Float[Array, 'B T H K'],
  a: Float[Array, 'B T H K'] | None,
  c: Float[Array, 'B T H K'],
  u: Float[Array, 'B T H V'],
  g: Float[Array, 'B T H #K'],
  initial_state: Float[Array, 'B H K V'],
  runs: Int[Array, 'B T'] | None,
  *,
  chunk_size: int,
  interpret: Any = False,
) -> tuple[Float[Array, 'B T H V'], Float[Array, 'B H K V']]:
  """One kernel forward and one backward, chunks in order, state in VMEM.

  Float32 operands are multiplied as float32; if all of q, a, c, u are bfloat16
  so are the factors of the large products, with float32 sums. Decays, scores
  of keys, their triangular inverse and the state are float32 always. Widths
  that are no multiple of 128 are padded with zeros to one, which costs what
  the wider head would; a decay a head is broadcast to its channels.

  Args:
    q: queries, already scaled.
    a: erase directions; None where they equal `c`.
    c: write directions.
    u: values.
    g: log decays in [-30, 0].
    initial_state: the state before the first token.
    runs: index of each token's document, non-decreasing along T, or None.
    chunk_size: tokens a chunk; divides T.
    interpret: True or `pltpu.InterpretParams` to run on a CPU.

  Returns:
    `o` in the dtype of `u`, and the final state in float32.

  Raises:
    NotImplementedError: float64, which TPUs have not.
    ValueError: T is no multiple of chunk_size.
  """
  arrays = [x for x in (q, a, c, u, g, initial_state) if x is not None]
  if any(x.dtype == jnp.float64 for x in arrays):
    raise NotImplementedError(
      'got float64; TPU kernels compute in float32. Cast the operands, or use'
      " implementation='chunk'."
    )
  rows, length, heads, k = q.shape
  v = u.shape[-1]
  if length % chunk_size:
    raise ValueError(
      f'Got {length} tokens; wanted a multiple of chunk_size={chunk_size}. Pad'
      ' with steps of c = u = g = 0.'
    )
  half = all(x is None or x.dtype == jnp.bfloat16 for x in (q, a, c, u))
  dtype = jnp.bfloat16 if half else jnp.float32

  def flat(x, dtype=dtype):
    x = _widen(jnp.asarray(x, dtype))
    return x.reshape(rows, length, heads * x.shape[-1])

  state = jnp.swapaxes(jnp.asarray(initial_state, jnp.float32), 2, 3)
  o, state = _gated_delta(
    chunk_size,
    interpret,
    flat(q),
    None if a is None else flat(a),
    flat(c),
    flat(u),
    flat(jnp.broadcast_to(g, q.shape), jnp.float32),
    jnp.swapaxes(_widen(jnp.swapaxes(_widen(state), 2, 3)), 2, 3),
    None if runs is None else _begun(runs, chunk_size),
  )
  o = o.reshape(rows, length, heads, -1)[..., :v].astype(u.dtype)
  return o, jnp.swapaxes(state, 2, 3)[:, :, :k, :v]


def _widen(x):
  """Pads the last axis with zeros to whole vectors of lanes."""
  extra = -x.shape[-1] % LANES
  return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, extra),)) if extra else x


def _begun(runs, chunk):
  """[B, N, 1, C] float32: documents begun since the end of the chunk before."""
  runs = jnp.asarray(runs).reshape(runs.shape[0], -1, 1, chunk)
  ends = runs[:, :-1, :, -1:]
  before = jnp.concatenate([runs[:, :1, :, :1], ends], axis=1)
  return (runs - before).astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gated_delta(chunk, interpret, q, a, c, u, g, state, run):
  o, end = pallas_fwd.forward(
    *(q, a, c, u, g, state, run), chunk=chunk, save=False, interpret=interpret
  )
  return o, end


def _forward(chunk, interpret, q, a, c, u, g, state, run):
  o, end, states = pallas_fwd.forward(
    *(q, a, c, u, g, state, run), chunk=chunk, save=True, interpret=interpret
  )
  return (o, end), (q, a, c, u, g, states, end, run)


def _backward(chunk, interpret, residuals, gradients):
  *operands, run = residuals
  grads = pallas_bwd.backward(
    *(*operands, run, *gradients), chunk=chunk, interpret=interpret
  )
  return (*grads, None)


_gated_delta.defvjp(_forward, _backward)
