"""The TPU kernels: values and races in interpret mode, compiled ahead of time."""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest

from kernels_pallas import testing
from kernels_pallas.sparse_attention import (
  aot,
  pallas,
  routing,
  sparse_attention,
  work,
)

BLOCK = 8
SEGMENTS = jnp.array([[1] * 9 + [2] * 18 + [0] * 5])


def operands(*, length=32, heads=4, groups=2, dtype=jnp.float32, wide=8):
  keys = jax.random.split(jax.random.key(5), 4)
  shapes = ((heads, 16), (groups, 16), (groups, wide), (heads, wide))
  return [
    jax.random.normal(key, (1, length, *shape)).astype(dtype)
    for key, shape in zip(keys, shapes, strict=True)
  ]


def gradients(function):
  """Jitted `(q, k, v, weight, *rest) -> (output, gradients)`."""

  def loss(q, k, v, weight, *rest):
    out = function(q, k, v, *rest)
    return (out.astype(jnp.float32) * weight.astype(jnp.float32)).sum(), out

  def run(*args):
    grads, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*args)
    return out, grads

  return jax.jit(run)


@functools.cache
def op(implementation, packed=False, per='query'):
  return gradients(
    lambda q, k, v, budget: sparse_attention(
      *(q, k, v),
      budget=budget,
      block_size=BLOCK,
      segment_ids=SEGMENTS if packed else None,
      per=per,
      implementation=implementation,
    )
  )


def strictly(interpret):
  """The kernels on whole blocks, interpreted as a TPU would run them."""
  return gradients(
    lambda q, k, v, budget: pallas.attend(
      *(q, k, v, budget[None], SEGMENTS),
      block_size=BLOCK,
      max_budget=4,
      per='query',
      scale=0.25,
      interpret=interpret,
    )
  )


@pytest.mark.parametrize('packed', [False, True])
def test_kernels_are_the_definition(packed):
  """Values and gradients, all budgets in one trace."""
  args = operands()
  run = op('pallas_interpret', packed)
  for budget in (1, 2, 3, 9):
    got = run(*args, jnp.int32(budget))
    wanted = op('reference', packed)(*args, jnp.int32(budget))
    chex.assert_trees_all_close(got, wanted, atol=2e-5)
  assert run._cache_size() == 1


def test_bfloat16():
  args = operands(dtype=jnp.bfloat16)
  got = op('pallas_interpret')(*args, jnp.int32(3))
  wide = [x.astype(jnp.float32) for x in args]
  wanted = op('reference')(*wide, jnp.int32(3))
  assert got[0].dtype == jnp.bfloat16
  got = jax.tree.map(lambda x: x.astype(jnp.float32), got)
  largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(wanted))
  chex.assert_trees_all_close(got, wanted, atol=1e-2 * largest)


def test_no_race_no_unwritten_memory_nothing_out_of_bounds():
  args = operands()
  got = testing.run_strict(strictly(testing.STRICT), *args, jnp.int32(2))
  wanted = op('reference', packed=True)(*args, jnp.int32(2))
  chex.assert_trees_all_close(got, wanted, atol=2e-5)


@pytest.mark.slow
def test_two_cores_do_not_race():
  args = operands()
  got = testing.run_strict(strictly(testing.TWO_CORES), *args, jnp.int32(2))
  wanted = op('reference', packed=True)(*args, jnp.int32(2))
  chex.assert_trees_all_close(got, wanted, atol=2e-5)


def test_lists_cut_into_pieces_and_calls_change_nothing(monkeypatch):
  args = operands()
  wanted = op('reference')(*args, jnp.int32(3))
  monkeypatch.setattr(work, 'TABLE', 8)
  assert work.pieces(4, 4) == 2 and work.pieces(4, 8) == 4
  used = jnp.ones((10, 1, 4), bool)
  assert work.lists(used).count.shape == (5, 2)
  with pytest.raises(NotImplementedError, match='larger block_size'):
    work.pieces(4, 9)
  cut = gradients(
    lambda q, k, v, budget: sparse_attention(
      *(q, k, v),
      budget=budget,
      block_size=BLOCK,
      implementation='pallas_interpret',
    )
  )
  chex.assert_trees_all_close(cut(*args, jnp.int32(3)), wanted, atol=2e-5)


@pytest.mark.parametrize('packed', [False, True])
def test_steps_follow_the_budget(packed):
  """Lists hold the ranges that some query of a tile attends, and no other."""
  q, k, *_ = operands()
  ids = SEGMENTS if packed else None
  steps = []
  for budget in (1, 2, 5):
    plan = work.plan(
      q, k, jnp.array([budget]), ids, block_size=BLOCK, per='query'
    )
    chosen = routing.block_mask(
      q, k, budget=budget, block_size=BLOCK, segment_ids=ids
    )
    seen = routing.token_mask(
      chosen, length=32, block_size=BLOCK, segment_ids=ids
    )
    needed = seen.reshape(4, 4, BLOCK, 4, BLOCK).any((2, 4))
    assert not (needed & ~plan.used).any()
    if not packed:
      assert (plan.used == needed).all()
    steps.append(int(work.lists(plan.used).count.sum()))
  assert steps == sorted(steps) and steps[0] < steps[-1]
  assert packed or (steps[0], steps[-1]) == (4 * 4, 4 * 10)


def test_a_list_is_in_order_and_counted():
  used = jnp.array([[[True, False, True], [False, True, False]]])
  made = work.lists(used)
  assert int(made.count[0, 0]) == 3
  assert made.items[0, :3].tolist() == [0, 2, 4]


@pytest.mark.slow
def test_vmap_and_shard_map():
  args = [jnp.concatenate([x, -2 * x]) for x in operands()]
  budget = jnp.array([2, 3])
  wanted = op('reference')(*args, budget)
  mapped = jax.vmap(op('pallas_interpret'))(*(x[:, None] for x in args), budget)
  mapped = jax.tree.map(lambda x: x[:, 0], mapped)
  chex.assert_trees_all_close(mapped, wanted, atol=2e-5)
  mesh = jax.make_mesh(
    (2, 2), ('row', 'head'), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  spec = jax.sharding.PartitionSpec('row', None, 'head')
  sharded = jax.shard_map(
    lambda q, k, v, budget: sparse_attention(
      *(q, k, v),
      budget=budget,
      block_size=BLOCK,
      implementation='pallas_interpret',
    ),
    mesh=mesh,
    in_specs=(spec, spec, spec, jax.sharding.PartitionSpec('row')),
    out_specs=spec,
    check_vma=False,
  )
  got = jax.jit(sharded)(*args[:3], budget)
  chex.assert_trees_all_close(got, wanted[0], atol=2e-5)


@pytest.mark.slow
def test_splash_attention_agrees_on_the_same_blocks():
  q, k, v, weight = operands(length=256, heads=2, groups=2, wide=16)

  def both(q, k, v, weight, budget):
    chosen = routing.block_mask(q, k, budget=budget, block_size=32)
    mask = routing.token_mask(chosen, length=256, block_size=32)

    def ours(q, k, v):
      out = sparse_attention(
        *(q, k, v),
        budget=budget,
        block_size=32,
        implementation='pallas_interpret',
      )
      return (out * weight).sum(), out

    def splash(q, k, v):
      run = aot.splash_kernel(mask[0], 128, interpret=True)
      out = run(*(jnp.swapaxes(x[0], 0, 1) for x in (q / 4, k, v)))
      out = jnp.swapaxes(out, 0, 1)[None]
      return (out * weight).sum(), out

    return [
      jax.grad(f, argnums=(0, 1, 2), has_aux=True)(q, k, v)
      for f in (ours, splash)
    ]

  with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
    run = jax.jit(both)
    for budget in (1, 3, 8):
      ours, splash = run(q, k, v, weight, jnp.int32(budget))
      chex.assert_trees_all_close(ours, splash, atol=2e-5)


@pytest.mark.parametrize(
  'dtype, block, words',
  [(jnp.bfloat16, 8, 'multiple of 16'), (jnp.float32, 12, 'multiple of 8')],
)
def test_blocks_that_no_tile_holds_are_refused(dtype, block, words):
  q, k, v, _ = operands(dtype=dtype)
  with pytest.raises(NotImplementedError, match=words):
    sparse_attention(
      q, k, v, budget=2, block_size=block, implementation='pallas'
    )


def test_kernels_lower_for_a_tpu():
  text = testing.lowered(
    aot.CASES[1].function, *aot.CASES[1].avals, platform='tpu'
  )
  assert text.count('stablehlo.custom_call @tpu_custom_call') == 3


def check(cases, generation):
  """Every case compiles to its kernels; the crowded one must not."""
  results = testing.tpu_compile_all(
    [*cases, aot.CROWDED], generation, seconds=300
  )
  names = [(case.name, generation) for case in (*cases, aot.CROWDED)]
  assert [(r.case, r.generation) for r in results] == names
  for result in results[:-1]:
    assert result.error is None, result
    assert result.kernels == (3 if 'gradient' in result.case else 1), result
  assert 'smem' in (results[-1].error or '').lower(), results[-1]


needs_compiler = pytest.mark.skipif(
  testing.unavailable() is not None, reason=str(testing.unavailable())
)


@needs_compiler
@pytest.mark.parametrize('generation', testing.TOPOLOGIES)
def test_kernels_compile(generation):
  check(aot.CASES, generation)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize('generation', testing.TOPOLOGIES)
def test_more_kernels_compile(generation):
  check(aot.MORE_CASES, generation)
