"""Programs of this package that the ahead-of-time gate compiles for TPUs."""

import functools

import jax
import jax.numpy as jnp

from kernels_pallas import testing
from kernels_pallas.fg2_gdn import pallas


def forward(q, a, c, u, g, state, runs, *, chunk_size):
  """The op as in inference: no states are saved."""
  return pallas.gated_delta_pallas(
    *(q, a, c, u, g, state, runs), chunk_size=chunk_size
  )


def gradient(q, a, c, u, g, state, runs, *, chunk_size):
  """The op and the gradients of every operand, as in training."""
  operands = {'q': q, 'a': a, 'c': c, 'u': u, 'g': g, 'initial_state': state}

  def run(operands):
    return pallas.gated_delta_pallas(
      **operands, runs=runs, chunk_size=chunk_size
    )

  out, pull = jax.vjp(run, operands)
  return out, pull(out)


def _avals(dtype, *, asymmetric=False, packed=False, width=128):
  rows, length, heads = 2, 512, 2

  def aval(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

  x = aval(dtype, rows, length, heads, width)
  return (
    *(x, x if asymmetric else None, x, x),
    aval('float32', rows, length, heads, width),
    aval('float32', rows, heads, width, width),
    aval('int32', rows, length) if packed else None,
  )


def _case(function, dtype, chunk_size=64, **options):
  name = ' '.join(
    [f'fg2_gdn {function.__name__} {dtype} C={chunk_size}']
    + [
      key if value is True else f'{key}={value}'
      for key, value in options.items()
    ]
  )
  partial = functools.partial(function, chunk_size=chunk_size)
  return testing.Case(name, partial, _avals(dtype, **options))


# What every commit compiles, and what is compiled besides by the slow tests.
CASES = (
  _case(forward, 'float32'),
  _case(forward, 'bfloat16'),
  _case(gradient, 'float32'),
  _case(gradient, 'bfloat16'),
)
MORE_CASES = (
  _case(gradient, 'float32', packed=True, asymmetric=True),
  _case(gradient, 'bfloat16', packed=True, asymmetric=True),
  _case(gradient, 'bfloat16', width=64),
  _case(gradient, 'float32', 16),
  _case(gradient, 'bfloat16', 16, packed=True),
  _case(gradient, 'bfloat16', 32),
  _case(gradient, 'float32', 128),
  _case(gradient, 'bfloat16', 128, packed=True),
)
