"""Peers' kernels as functions that a compiling process can import by name."""

import jax


def tokamax_forward(q, k, v, g, beta):
  """tokamax's Pallas kernels for a TPU, as in inference."""
  from tokamax._src import config
  from tokamax._src.ops.kda import api

  with config.cross_compile(True):
    return api.kimi_delta_attention(
      *(q, k, v, g, beta), lower_bound=-5.0, implementation='mosaic'
    )[0]


def tokamax_gradient(*operands):
  """The op and the gradients of its operands."""
  out, pull = jax.vjp(tokamax_forward, *operands)
  return out, pull(out)
