"""The gated delta rule for GPUs: a Triton-flavoured Pallas forward.

Written as the TPU kernel (see `pallas_fwd` for the equations), with what Triton
lacks left out: a program walks all chunks of a head for one slice of the values
and keeps its part of the state in registers, sums of g are products with 0/1
matrices, and blocks are joined from single rows on. The backward is that of the
chunked form, which computes the forward again.
"""

import functools
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from kernels_pallas.fg2_gdn import chunked

Array = jax.Array | np.ndarray

# Tokens a chunk and values a program, at most, and warps: of those tried, what
# spilled least when compiled for sm_90.
CHUNK = 16
VALUES = 64
WARPS = 8


def gated_delta_pallas_gpu(
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
  """Forward by a Triton kernel, backward by the chunked form.

  Products are of float32 operands, each split in three of TF32. Never run on a
  GPU: checked in interpret mode, where they are exact, and compiled to PTX.

  Args:
    q, a, c, u, g, initial_state, runs: as `gated_delta_pallas` takes them.
    chunk_size: tokens a chunk; divides T. At most 16 are taken at once.
    interpret: True to run on a CPU.

  Returns:
    `o` in the dtype of `u`, and the final state in float32.

  Raises:
    NotImplementedError: float64, or widths that are no power of two >= 16.
  """
  arrays = [x for x in (q, a, c, u, g, initial_state) if x is not None]
  if any(x.dtype == jnp.float64 for x in arrays):
    raise NotImplementedError(
      "got float64; the kernel computes in float32. Use implementation='chunk'."
    )
  for name, width in (('K', q.shape[-1]), ('V', u.shape[-1])):
    if width < 16 or width & (width - 1):
      raise NotImplementedError(
        f'got {name}={width}; Triton wants a power of two of at least 16. Use'
        " implementation='chunk'."
      )
  g = jnp.broadcast_to(jnp.asarray(g, jnp.float32), q.shape)
  state = jnp.asarray(initial_state, jnp.float32)
  return _gated_delta(chunk_size, interpret, q, a, c, u, g, state, runs)


def _dot(x, y, interpret):
  split = lax.DotAlgorithmPreset.TF32_TF32_F32_X3
  return jnp.dot(
    *(x, y),
    precision=lax.Precision.HIGHEST if interpret else split,
    preferred_element_type=jnp.float32,
  )


def _scores(q, a, c, g, same, dot):
  """P and T of a chunk, and whole sums before, after and over its rows."""
  size = g.shape[0]
  i = lax.broadcasted_iota(jnp.int32, (size, size), 0)
  j = lax.broadcasted_iota(jnp.int32, (size, size), 1)
  p = jnp.where(i == j, jnp.sum(q * c, axis=1)[:, None], 0.0)
  inverse = jnp.where(i == j, 1.0, 0.0)

  def sums(bits):
    """In blocks of 2 ** bits rows: up to a row, and after it."""
    block = (i >> bits) == (j >> bits)
    return (
      dot(jnp.where(block & (j <= i), 1.0, 0.0), g),
      dot(jnp.where(block & (j > i), 1.0, 0.0), g),
    )

  bits = 0
  while 1 << bits < size:
    pre, suf = sums(bits)
    pair = ((i ^ j) >> bits == 1) & (i > j)
    pair = pair if same is None else pair & same
    right, left = jnp.exp(pre), (c * jnp.exp(suf)).T
    p = jnp.where(pair, dot(q * right, left), p)
    below = jnp.where(pair, dot(a * right, left), 0.0)
    inverse = inverse - dot(inverse, dot(below, inverse))
    bits += 1
  return p, inverse, *sums(bits)


def _kernel(*refs, size, symmetric, packed, interpret):
  dot = functools.partial(_dot, interpret=bool(interpret))
  q_ref, c_ref, u_ref, g_ref, start_ref = refs[:5]
  a_ref = c_ref if symmetric else refs[5]
  run_ref, before_ref = refs[6 - symmetric :][:2] if packed else (None, None)
  o_ref, end_ref = refs[-2:]

  def step(t, state):
    at = pl.ds(t * size, size)
    q, a, c, u, g = (
      ref[0, at, 0, :].astype(jnp.float32)
      for ref in (q_ref, a_ref, c_ref, u_ref, g_ref)
    )
    run = run_ref[0, at] if packed else None
    same = run[:, None] == run[None, :] if packed else None
    p, inverse, pre, suf = _scores(q, a, c, g, same, dot)
    head, tail = jnp.exp(pre), jnp.exp(suf)
    keep = jnp.exp(jnp.sum(g, axis=0))
    if packed:
      before, end = before_ref[0, t], jnp.max(run)
      head = jnp.where((run == before)[:, None], head, 0.0)
      tail = jnp.where((run == end)[:, None], tail, 0.0)
      keep = jnp.where(before == end, keep, 0.0)
    n = dot(inverse, u - dot(a * head, state))
    o = dot(q * head, state) + dot(p, n)
    o_ref[0, at, 0, :] = o.astype(o_ref.dtype)
    return keep[:, None] * state + dot((c * tail).T, n)

  chunks = q_ref.shape[1] // size
  end_ref[0, 0] = lax.fori_loop(0, chunks, step, start_ref[0, 0])


def _call(chunk, interpret, q, a, c, u, g, state, runs):
  rows, length, heads, k = q.shape
  v = u.shape[-1]
  size, values = min(chunk, CHUNK), min(v, VALUES)
  keys = pl.BlockSpec((1, length, 1, k), lambda b, h, i: (b, 0, h, 0))
  value = pl.BlockSpec((1, length, 1, values), lambda b, h, i: (b, 0, h, i))
  states = pl.BlockSpec((1, 1, k, values), lambda b, h, i: (b, h, 0, i))
  operands, kinds = [q, c, u, g, state], [keys, keys, value, keys, states]
  if a is not None:
    operands.append(a)
    kinds.append(keys)
  if runs is not None:
    runs = jnp.asarray(runs)
    ends = runs[:, size - 1 : -1 : size]
    operands += [runs, jnp.concatenate([runs[:, :1], ends], axis=1)]
    kinds += [
      pl.BlockSpec((1, length), lambda b, h, i: (b, 0)),
      pl.BlockSpec((1, length // size), lambda b, h, i: (b, 0)),
    ]
  return pl.pallas_call(
    functools.partial(
      _kernel,
      size=size,
      symmetric=a is None,
      packed=runs is not None,
      interpret=interpret,
    ),
    grid=(rows, heads, v // values),
    in_specs=kinds,
    out_specs=[value, states],
    out_shape=[
      jax.ShapeDtypeStruct(u.shape, u.dtype),
      jax.ShapeDtypeStruct(state.shape, jnp.float32),
    ],
    compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=1),
    interpret=interpret,
    name='gated_delta_forward_gpu',
  )(*operands)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gated_delta(chunk, interpret, q, a, c, u, g, state, runs):
  return tuple(_call(chunk, interpret, q, a, c, u, g, state, runs))


def _forward(chunk, interpret, *operands):
  return tuple(_call(chunk, interpret, *operands)), operands


def _backward(chunk, interpret, operands, gradients):
  del interpret
  *operands, runs = operands

  def run(*operands):
    return chunked.gated_delta_chunked(*operands, runs, chunk_size=chunk)

  (o, state), pull = jax.vjp(run, *operands)
  do, dstate = gradients
  return (*pull((do.astype(o.dtype), dstate.astype(state.dtype))), None)


_gated_delta.defvjp(_forward, _backward)
