"""The GPU kernel: values in interpret mode, lowering, and a compile to PTX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import testing
from kernels_pallas.fg2_gdn import pallas_gpu, reference


def run(q, c, u, g, state, runs, *, a=None, interpret=False):
  return pallas_gpu.gated_delta_pallas_gpu(
    *(q, a, c, u, g, state, runs), chunk_size=32, interpret=interpret
  )


def avals(dtype, *, packed):
  rows, length, heads, width = 2, 96, 2, 128

  def aval(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype)

  x = aval(dtype, rows, length, heads, width)
  return (
    *(x, x, x, aval(jnp.float32, *x.shape)),
    aval(jnp.float32, rows, heads, width, width),
    aval(jnp.int32, rows, length) if packed else None,
  )


CASES = tuple(
  testing.Case(f'{dtype.dtype} {packed=}', run, avals(dtype, packed=packed))
  for dtype in (jnp.float32, jnp.bfloat16)
  for packed in (False, True)
)


def test_values_and_gradients():
  random = np.random.default_rng(0)
  shape = (1, 64, 2, 16)
  q, a, c = (random.standard_normal(shape) / 4 for _ in range(3))
  u, do = random.standard_normal(shape), random.standard_normal(shape)
  g = -5 * random.uniform(size=shape) ** 4
  state, ds = random.standard_normal((2, 1, 2, 16, 16))
  runs = np.repeat([0, 1, 2], [20, 9, 35])[None].astype(np.int32)

  def solve(function, dtype):
    operands = [jnp.asarray(x, dtype) for x in (q, a, c, u, g, state)]
    out, pull = jax.vjp(
      lambda q, a, c, u, g, state: function(q, a, c, u, g, state, runs),
      *operands,
    )
    cotangents = (jnp.asarray(do, dtype), jnp.asarray(ds, dtype))
    leaves = jax.tree.leaves((out, pull(cotangents)))
    return [np.asarray(x, np.float64) for x in leaves]

  with jax.enable_x64(True):
    wanted = solve(reference.gated_delta_recurrent, jnp.float64)
  got = solve(
    functools.partial(
      pallas_gpu.gated_delta_pallas_gpu, chunk_size=32, interpret=True
    ),
    jnp.float32,
  )
  for i, (x, y) in enumerate(zip(got, wanted, strict=True)):
    error = np.abs(x - y).max() / np.abs(y).max()
    assert error < (2e-5 if i < 2 else 1e-4), i


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_lowers_for_cuda(case):
  text = testing.lowered(case.function, *case.avals, platform='cuda')
  assert text.count('gpu.triton') == 1


def test_widths_that_triton_lacks_are_refused():
  x = jnp.zeros((1, 32, 1, 24))
  with pytest.raises(NotImplementedError, match='power of two'):
    run(x, x, x, x, jnp.zeros((1, 1, 24, 24)), None)


@pytest.mark.slow
@pytest.mark.skipif(
  testing.unavailable(testing.GPU) is not None,
  reason=str(testing.unavailable(testing.GPU)),
)
def test_compiles_for_an_h100():
  results = testing.tpu_compile_all(CASES, testing.GPU, seconds=300)
  for result in results:
    assert (result.error, result.kernels) == (None, 1), result
