"""The public op, by its definition and by its XLA form."""

import collections
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import sparse_attention as package
from kernels_pallas.sparse_attention import routing, sparse_attention

BLOCK = 8
TRACES = collections.Counter()
SEGMENTS = jnp.array([[1] * 21 + [2] * 39, [4] * 3 + [5] * 47 + [0] * 10])


def operands(
  *, rows=2, length=60, heads=4, groups=2, width=16, wide=8, dtype=jnp.float32
):
  keys = jax.random.split(jax.random.key(3), 4)
  shapes = (
    (rows, length, heads, width),
    (rows, length, groups, width),
    (rows, length, groups, wide),
    (rows, length, heads, wide),
  )
  return [
    jax.random.normal(key, shape).astype(dtype)
    for key, shape in zip(keys, shapes, strict=True)
  ]


@functools.cache
def gradients(implementation, per='query', packed=False, max_budget=None):
  """Jitted `(q, k, v, weight, budget) -> (output, gradients)`."""

  def loss(q, k, v, weight, budget):
    out = sparse_attention(
      *(q, k, v),
      budget=budget,
      block_size=BLOCK,
      segment_ids=SEGMENTS if packed else None,
      per=per,
      max_budget=max_budget,
      implementation=implementation,
    )
    return (out.astype(jnp.float32) * weight.astype(jnp.float32)).sum(), out

  def run(q, k, v, weight, budget):
    TRACES[implementation, per, packed, max_budget, q.dtype, budget.shape] += 1
    grad = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    grads, out = grad(q, k, v, weight, budget)
    return out, grads

  return jax.jit(run)


@pytest.mark.parametrize(
  'per, packed', [('query', False), ('query', True), ('tile', True)]
)
@pytest.mark.parametrize('budget', [[1, 1], [2, 5], [3, 3], [99, 99]])
def test_chunked_is_the_definition(budget, per, packed):
  args = (*operands(), jnp.array(budget))
  got = gradients('chunked', per, packed)(*args)
  wanted = gradients('reference', per, packed)(*args)
  chex.assert_trees_all_close(got, wanted, atol=2e-5)


def test_bfloat16_against_the_definition_in_float32():
  args = operands(dtype=jnp.bfloat16)
  got = gradients('chunked')(*args, jnp.array(3))
  exact = gradients('reference')(
    *(x.astype(jnp.float32) for x in args), jnp.array(3)
  )
  got = jax.tree.map(lambda x: x.astype(jnp.float32), got)
  scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(exact))
  chex.assert_trees_all_close(got, exact, atol=1e-2 * scale)


def test_float64_keeps_its_digits():
  with jax.enable_x64(True):
    args = operands(dtype=jnp.float64)
    got = gradients('chunked')(*args, jnp.int32(3))
    wanted = gradients('reference')(*args, jnp.int32(3))
    assert got[0].dtype == jnp.float64
    chex.assert_trees_all_close(got, wanted, atol=1e-12)


@pytest.mark.parametrize('implementation', ['reference', 'chunked'])
def test_all_blocks_is_dense_causal_attention(implementation):
  q, k, v, weight = operands()
  out, grads = gradients(implementation)(q, k, v, weight, jnp.array(8))

  def dense(q, k, v):
    out = jax.nn.dot_product_attention(
      q, k, jnp.pad(v, ((0, 0),) * 3 + ((0, 8),)), is_causal=True
    )[..., :8]
    return (out * weight).sum(), out

  wanted, aux = jax.grad(dense, argnums=(0, 1, 2), has_aux=True)(q, k, v)
  chex.assert_trees_all_close(out, aux, atol=1e-5)
  chex.assert_trees_all_close(grads, wanted, atol=2e-5)


def test_budget_one_is_local_attention():
  q, k, v, weight = operands()
  out, _ = gradients('chunked')(q, k, v, weight, jnp.array(1))
  at = jnp.arange(60) // BLOCK
  ids = jnp.broadcast_to(at, (2, 60))
  local = sparse_attention(
    *(q, k, v),
    budget=99,
    block_size=60,
    segment_ids=ids,
    implementation='reference',
  )
  chex.assert_trees_all_close(out, local, atol=1e-5)


def test_one_trace_for_all_budgets():
  args = operands()
  run = gradients('chunked')
  outs = [run(*args, jnp.array(b))[0] for b in (1, 2, 4, 8, 100)]
  key = ('chunked', 'query', False, None, args[0].dtype, ())
  assert TRACES[key] == 1
  for x, y in zip(outs[:3], outs[1:4], strict=True):
    assert not np.allclose(x, y)
  chex.assert_trees_all_equal(outs[3], outs[4])


def test_max_budget_changes_no_result_and_caps_the_budget():
  args = operands()
  wide = gradients('chunked')(*args, jnp.array(3))
  tight = gradients('chunked', max_budget=3)(*args, jnp.array(3))
  chex.assert_trees_all_close(wide, tight, atol=1e-6)
  capped = gradients('chunked', max_budget=3)(*args, jnp.array(7))
  chex.assert_trees_all_equal(tight, capped)


@pytest.mark.parametrize('implementation', ['reference', 'chunked'])
def test_a_packed_document_is_as_alone(implementation):
  args = operands()
  packed = gradients(implementation, packed=True)(*args, jnp.array(3))
  ends = ((21, 60), (3, 50))

  def to_front(x):
    """One document of each row, at its beginning, and zeros behind it."""
    cut = [x[row, begin:end] for row, (begin, end) in enumerate(ends)]
    return jnp.stack(
      [jnp.pad(x, ((0, 60 - len(x)), (0, 0), (0, 0))) for x in cut]
    )

  alone = gradients(implementation)(*map(to_front, args), jnp.array(3))
  packed = jax.tree.map(to_front, packed)
  for row, (begin, end) in enumerate(ends):
    chex.assert_trees_all_close(
      *(
        jax.tree.map(lambda x, r=row, n=end - begin: x[r, :n], tree)
        for tree in (packed, alone)
      ),
      atol=2e-5,
    )


@pytest.mark.parametrize('implementation', ['reference', 'chunked'])
def test_nothing_leaks_across_documents(implementation):
  q, k, v, weight = operands()
  other = [x.at[0, 21:].set(x[0, 21:] * -3 + 1) for x in (q, k, v)]
  run = gradients(implementation, packed=True)
  before, grads = run(q, k, v, weight, jnp.array(3))
  after, moved = run(*other, weight, jnp.array(3))
  np.testing.assert_array_equal(before[0, :21], after[0, :21])
  for x, y in zip(grads, moved, strict=True):
    np.testing.assert_array_equal(x[0, :21], y[0, :21])
  assert (before[0, 21:] != after[0, 21:]).any()


def test_the_gradient_takes_the_choice_as_given():
  q, k, v, weight = operands(rows=1)
  mask = routing.token_mask(
    routing.block_mask(
      *(jnp.pad(x, ((0, 0), (0, 4), (0, 0), (0, 0))) for x in (q, k)),
      budget=3,
      block_size=BLOCK,
    ),
    length=64,
    block_size=BLOCK,
  )[:, :, :60, :60]

  def loss(q, k, v):
    logits = jnp.einsum('bshk,bthk->bhst', q, k.repeat(2, axis=2)) / 4
    weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf))
    out = jnp.einsum('bhst,bthv->bshv', weights, v.repeat(2, axis=2))
    return (out * weight).sum()

  wanted = jax.grad(loss, argnums=(0, 1, 2))(q, k, v)
  _, got = gradients('chunked')(q, k, v, weight, jnp.array(3))
  chex.assert_trees_all_close(got, wanted, atol=2e-5)


def test_vmap_over_budgets_and_layers():
  q, k, v, weight = operands()
  run = gradients('chunked')
  budgets = jnp.array([[2, 5], [4, 1], [1, 1]])
  stacked = [jnp.stack([x, -x, 2 * x]) for x in (q, k, v, weight)]
  got = jax.vmap(run)(*stacked, budgets)
  for i in range(3):
    alone = run(*(x[i] for x in stacked), budgets[i])
    chex.assert_trees_all_close(
      jax.tree.map(lambda x, i=i: x[i], got), alone, atol=2e-5
    )


def test_shard_map_over_rows_and_heads():
  q, k, v, weight = operands()
  mesh = jax.make_mesh(
    (2, 2), ('row', 'head'), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  spec = jax.sharding.PartitionSpec('row', None, 'head')
  sharded = jax.shard_map(
    lambda q, k, v, budget: sparse_attention(
      q, k, v, budget=budget, block_size=BLOCK, implementation='chunked'
    ),
    mesh=mesh,
    in_specs=(spec, spec, spec, jax.sharding.PartitionSpec('row')),
    out_specs=spec,
    check_vma=False,
  )
  budget = jnp.array([2, 5])
  out, _ = gradients('chunked')(q, k, v, weight, budget)
  chex.assert_trees_all_close(jax.jit(sharded)(q, k, v, budget), out, atol=1e-5)


def test_prefill_is_decode():
  """A token against the cache of those before it, as a sampler does it."""
  q, k, v, weight = operands(rows=1)
  out, _ = gradients('reference')(q, k, v, weight, jnp.array(3))
  pad = ((0, 0), (0, 4), (0, 0), (0, 0))
  cache = [jnp.pad(x, pad, constant_values=7.0) for x in (k, v)]
  for at in (0, 7, 8, 37, 59):
    position = jnp.array([[at]])
    mask = routing.token_mask(
      routing.block_mask(
        q[:, at : at + 1],
        cache[0],
        budget=3,
        block_size=BLOCK,
        positions=position,
      ),
      length=64,
      block_size=BLOCK,
      positions=position,
    )
    got = package.reference.masked_attention(
      q[:, at : at + 1], *cache, mask, scale=0.25
    )
    chex.assert_trees_all_close(got[:, 0], out[:, at], atol=1e-5)


@pytest.mark.parametrize(
  'change, error, words',
  [
    ({'budget': 0}, ValueError, 'budget=0'),
    ({'budget': 1.5}, TypeError, 'budget'),
    ({'budget': jnp.ones(3, jnp.int32)}, ValueError, r'\(2,\)'),
    ({'per': 'head'}, ValueError, "'tile'"),
    ({'block_size': 0}, ValueError, 'block_size'),
    ({'max_budget': 0}, ValueError, 'max_budget'),
    ({'implementation': 'splash'}, ValueError, 'chunked'),
    ({'segment_ids': jnp.zeros((2, 9), jnp.int32)}, TypeError, 'segment_ids'),
  ],
)
def test_errors_say_what_was_wanted(change, error, words):
  q, k, v, _ = operands()
  keywords = {'budget': 2, 'block_size': BLOCK, **change}
  with pytest.raises(error, match=words):
    sparse_attention(q, k, v, **keywords)


def test_heads_must_share_keys_evenly():
  q, k, v, _ = operands()
  with pytest.raises(ValueError, match='multiple'):
    sparse_attention(q[:, :, :3], k, v, budget=2)


def test_the_choice_on_a_processor_is_the_xla_form():
  q, k, v, _ = operands()
  made = package.choice(q, k, v, block_size=BLOCK)
  assert made.name == 'chunked' and "'cpu'" in made.why
