"""The gates fail on kernels that are wrong, and for the right reason."""

import os
import time

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import testing

Aval = jax.ShapeDtypeStruct
X = Aval((16, 128), jnp.float32)
ONES = np.ones((16, 128), np.float32)

needs_libtpu = pytest.mark.skipif(
  testing.unavailable() is not None, reason=str(testing.unavailable())
)


def double(x):
  def kernel(x_ref, out_ref):
    out_ref[...] = 2 * x_ref[...]

  return pl.pallas_call(kernel, out_shape=Aval(x.shape, x.dtype))(x)


def ordered(x):
  def kernel(x_ref, out_ref):
    out_ref[...] = jnp.sort(x_ref[...], axis=1)

  return pl.pallas_call(kernel, out_shape=Aval(x.shape, x.dtype))(x)


def past_the_end(i, x):
  def kernel(i_ref, x_ref, out_ref):
    out_ref[...] = x_ref[pl.ds(i_ref[0], 8), :]

  return pl.pallas_call(
    kernel,
    in_specs=[
      pl.BlockSpec(memory_space=pltpu.SMEM),
      pl.BlockSpec(memory_space=pltpu.VMEM),
    ],
    out_shape=Aval((8, 128), jnp.float32),
    interpret=testing.STRICT,
  )(i, x)


def copied(x, *, wait_first):
  """Reads what a copy brings, after it has ended or too early."""

  def kernel(x_ref, out_ref, scratch, semaphore):
    copy = pltpu.make_async_copy(x_ref, scratch, semaphore)
    copy.start()
    if wait_first:
      copy.wait()
    out_ref[...] = scratch[...]
    if not wait_first:
      copy.wait()

  return pl.pallas_call(
    kernel,
    in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
    out_shape=Aval(x.shape, x.dtype),
    scratch_shapes=[
      pltpu.VMEM(x.shape, x.dtype),
      pltpu.SemaphoreType.DMA,
    ],
    interpret=testing.STRICT,
  )(x)


def two_writers(x, *, parallel):
  """Two grid steps add to one block; wrong if two cores share them."""

  def kernel(x_ref, out_ref):
    out_ref[...] = x_ref[...]

  return pl.pallas_call(
    kernel,
    grid=(2,),
    in_specs=[pl.BlockSpec((8, 128), lambda i: (i, 0))],
    out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)),
    out_shape=Aval((8, 128), jnp.float32),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel' if parallel else 'arbitrary',)
    ),
    interpret=testing.TWO_CORES,
  )(x)


def never_written(x):
  def kernel(x_ref, out_ref, scratch):
    out_ref[...] = x_ref[...] + scratch[...]

  return pl.pallas_call(
    kernel,
    out_shape=Aval(x.shape, x.dtype),
    scratch_shapes=[pltpu.VMEM(x.shape, x.dtype)],
    interpret=testing.STRICT,
  )(x)


def test_lowering_finds_missing_primitives():
  assert testing.lowered(double, X).count('@tpu_custom_call') == 1
  with pytest.raises(NotImplementedError, match='Unimplemented primitive'):
    testing.lowered(ordered, X)


def test_strict_finds_reads_out_of_bounds():
  inside = testing.run_strict(past_the_end, np.array([8], np.int32), ONES)
  np.testing.assert_array_equal(inside, ONES[:8])
  with pytest.raises(Exception, match='(?i)out-of-bounds read'):
    testing.run_strict(past_the_end, np.array([12], np.int32), ONES)


def test_strict_finds_early_reads():
  good = testing.run_strict(lambda x: copied(x, wait_first=True), ONES)
  np.testing.assert_array_equal(good, ONES)
  with pytest.raises(testing.RaceError, match='RACE DETECTED'):
    testing.run_strict(lambda x: copied(x, wait_first=False), ONES)


def test_two_cores_find_two_writers():
  good = testing.run_strict(lambda x: two_writers(x, parallel=False), ONES)
  np.testing.assert_array_equal(good, ONES[:8])
  with pytest.raises(testing.RaceError, match='RACE DETECTED'):
    testing.run_strict(lambda x: two_writers(x, parallel=True), ONES)


def test_strict_shows_memory_that_was_never_written():
  assert np.isnan(testing.run_strict(never_written, ONES)).all()


def dies(x):
  os._exit(3)


def hangs(x):
  time.sleep(600)


@needs_libtpu
def test_a_case_that_dies_does_not_take_others_along():
  cases = [
    testing.Case('dies', dies, (X,)),
    testing.Case('good', double, (X,)),
  ]
  dead, good = testing.tpu_compile_all(cases, 'v5e')
  assert 'ended with code 3' in dead.error
  assert good.error is None and good.kernels == 1


@needs_libtpu
@pytest.mark.slow
def test_a_case_that_hangs_is_ended():
  result = testing.tpu_compile(hangs, X, generation='v5e', seconds=1)
  assert 'not compiled within 31 s' in result.error


@needs_libtpu
def test_static_counts():
  result = testing.tpu_compile(double, X, generation='v5e', schedule=True)
  (kernel,) = result.schedule
  assert kernel.bundles > 0 and kernel.spills == 0
  # Both windows of 16 x 128 float32 are in VMEM.
  assert kernel.vmem_bytes >= 2 * ONES.nbytes
