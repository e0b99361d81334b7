"""Mosaic compiles the kernels for TPUs that are not there.

Next to the kernels, programs that must fail are compiled each time, and must
fail for their reason: else a gate that rejects or accepts everything passes.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import pytest

from kernels_pallas import testing
from kernels_pallas.fg2_gdn import aot

pytestmark = pytest.mark.skipif(
  testing.unavailable() is not None, reason=str(testing.unavailable())
)

Aval = jax.ShapeDtypeStruct


def times_itself(x):
  def kernel(x_ref, out_ref):
    out_ref[...] = jnp.dot(x_ref[...], x_ref[...].T)

  return pl.pallas_call(kernel, out_shape=Aval((128, 128), jnp.float32))(x)


def rows_at(i, x, *, aligned):
  """Eight rows from a place that is known when the kernel runs."""

  def kernel(i_ref, x_ref, out_ref):
    at = i_ref[0]
    at = pl.multiple_of(at, 8) if aligned else at
    out_ref[...] = x_ref[pl.ds(at, 8), :]

  return pl.pallas_call(
    kernel,
    in_specs=[
      pl.BlockSpec(memory_space=pltpu.SMEM),
      pl.BlockSpec(memory_space=pltpu.VMEM),
    ],
    out_shape=Aval((8, x.shape[1]), x.dtype),
  )(i, x)


def huge_scratch(x):
  def kernel(x_ref, out_ref, scratch):
    scratch[:128, :128] = x_ref[...]
    out_ref[...] = scratch[:128, :128]

  return pl.pallas_call(
    kernel,
    out_shape=Aval(x.shape, x.dtype),
    scratch_shapes=[pltpu.VMEM((16384, 4096), jnp.float32)],
  )(x)


def row_by_row(x):
  """Stores one row a step, which packed bfloat16 cannot."""

  def kernel(x_ref, out_ref):
    def step(i, carry):
      out_ref[pl.ds(i, 1), :] = x_ref[pl.ds(i, 1), :]
      return carry

    jax.lax.fori_loop(0, x_ref.shape[0], step, 0)

  return pl.pallas_call(kernel, out_shape=Aval(x.shape, x.dtype))(x)


def no_kernel(x):
  return x @ x.T


SQUARE = Aval((128, 128), jnp.float32)
# One vector of lanes of float32 may be read from any row.
WIDE = Aval((128, 256), jnp.float32)
HALF = Aval((128, 128), jnp.bfloat16)
INDEX = Aval((1,), jnp.int32)

anywhere = functools.partial(rows_at, aligned=False)
in_eights = functools.partial(rows_at, aligned=True)

# Each with the number of kernels in it, or with what its error says.
CONTROLS = (
  (testing.Case('a product', times_itself, (SQUARE,)), 1),
  (testing.Case('plain jax', no_kernel, (SQUARE,)), 0),
  (testing.Case('rows from anywhere', anywhere, (INDEX, WIDE)), 'E2003'),
  (testing.Case('rows in eights', in_eights, (INDEX, WIDE)), 1),
  (testing.Case('huge scratch', huge_scratch, (SQUARE,)), 'RESOURCE_EXHAUSTED'),
  (testing.Case('float32 row by row', row_by_row, (SQUARE,)), 1),
  (testing.Case('bfloat16 row by row', row_by_row, (HALF,)), 'E2003'),
)


def check(cases, generation):
  """Compiles kernels and controls; every one must do what it should."""
  controls = [case for case, _ in CONTROLS]
  results = testing.tpu_compile_all([*cases, *controls], generation)
  registered = [(case.name, generation) for case in (*cases, *controls)]
  assert [(r.case, r.generation) for r in results] == registered
  for result in results[: len(cases)]:
    assert result.error is None, result
    assert result.kernels == (2 if 'gradient' in result.case else 1), result
  for result, (_, wanted) in zip(results[len(cases) :], CONTROLS, strict=True):
    if isinstance(wanted, str):
      assert wanted in (result.error or ''), result
    else:
      assert (result.error, result.kernels) == (None, wanted), result


@pytest.mark.parametrize('generation', testing.TOPOLOGIES)
def test_kernels_compile_and_controls_fail(generation):
  check(aot.CASES, generation)


@pytest.mark.slow
@pytest.mark.parametrize('generation', testing.TOPOLOGIES)
def test_more_kernels_compile(generation):
  check(aot.MORE_CASES, generation)


def test_versions_are_those_of_the_tables():
  got, libtpu = testing.versions()
  assert testing.PINS.get(got) == libtpu, (
    f'jax {got} with libtpu {libtpu}; the compile gate is pinned to'
    f' {testing.PINS}. Install one of these pairs, or try the new one and add'
    ' it to kernels_pallas.testing.PINS.'
  )
