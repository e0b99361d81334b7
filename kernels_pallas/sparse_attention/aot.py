"""Programs that the ahead-of-time gate compiles for TPUs; splash beside ours."""

import functools

import jax
from jax.experimental.pallas.ops.tpu import splash_attention as splash
import jax.numpy as jnp

from kernels_pallas import testing
from kernels_pallas.sparse_attention import api, work

Aval = jax.ShapeDtypeStruct


def forward(q, k, v, budget, segment_ids, *, block_size, per='query'):
  """The op as in inference."""
  return api.sparse_attention(
    *(q, k, v),
    budget=budget,
    block_size=block_size,
    segment_ids=segment_ids,
    per=per,
    implementation='pallas',
  )


def gradient(q, k, v, budget, segment_ids, **keywords):
  """The op and the gradients of its operands, as in training."""
  out, pull = jax.vjp(
    lambda *x: forward(*x, budget, segment_ids, **keywords), q, k, v
  )
  return out, pull(out)


def crowded(q, k, v, budget, segment_ids, *, block_size):
  """`forward` with lists that scalar memory cannot hold; must not compile."""
  limit, work.TABLE = work.TABLE, 1 << 24
  try:
    return forward(q, k, v, budget, segment_ids, block_size=block_size)
  finally:
    work.TABLE = limit


def splash_forward(q, k, v, mask, *, block_size):
  """jax's splash attention under a mask of tokens that is a run-time value."""
  return jax.vmap(splash_kernel(mask, block_size))(
    *(jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  )


def splash_gradient(q, k, v, mask, *, block_size):
  """Splash attention and the gradients of its operands."""
  out, pull = jax.vjp(
    lambda *x: splash_forward(*x, mask, block_size=block_size), q, k, v
  )
  return out, pull(out)


def splash_kernel(mask, size, *, interpret=False):
  """Splash attention under a mask of tokens [H, T, T], tiles of `size`."""
  blocks = ('block_q', 'block_kv', 'block_kv_compute')
  blocks += ('block_q_dkv', 'block_kv_dkv', 'block_kv_dkv_compute')
  blocks += ('block_q_dq', 'block_kv_dq')
  kernel = splash.splash_attention_kernel.make_splash_mha(
    mask,
    block_sizes=splash.splash_attention_kernel.BlockSizes(
      **dict.fromkeys(blocks, size)
    ),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
  # It asks this flag in Python, and made it an array; a mask made under jit
  # fails there. The flag names the scope and does nothing else here.
  kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=None)
  return kernel


def _avals(dtype, *, length=1024, heads=4, groups=2, width=128, packed=False):
  key = Aval((1, length, groups, width), jnp.dtype(dtype))
  return (
    Aval((1, length, heads, width), jnp.dtype(dtype)),
    *(key, key, Aval((), jnp.int32)),
    Aval((1, length), jnp.int32) if packed else None,
  )


def _case(function, dtype, block_size=128, per='query', **options):
  name = ' '.join(
    [f'sparse_attention {function.__name__} {dtype} block={block_size}']
    + ([] if per == 'query' else [per])
    + [
      key if value is True else f'{key}={value}'
      for key, value in options.items()
    ]
  )
  partial = functools.partial(function, block_size=block_size)
  if per != 'query':
    partial = functools.partial(partial, per=per)
  return testing.Case(name, partial, _avals(dtype, **options))


def _peer(function, dtype):
  """As `_case`, with keys for every head: one group, one splash kernel."""
  q, _, _, _, _ = _avals(dtype)
  mask = Aval((q.shape[2], q.shape[1], q.shape[1]), bool)
  return testing.Case(
    f'{function.__name__} {dtype} block=128',
    functools.partial(function, block_size=128),
    (q, q, q, mask),
  )


# What every commit compiles, and what is compiled besides by the slow tests.
CASES = (
  _case(gradient, 'float32'),
  _case(gradient, 'bfloat16', packed=True),
)
LONG = _case(forward, 'bfloat16', length=32768, heads=8)
MORE_CASES = (
  _case(forward, 'float32'),
  _case(forward, 'bfloat16'),
  _case(gradient, 'bfloat16'),
  _case(gradient, 'float32', packed=True),
  _case(gradient, 'float32', 64),
  _case(gradient, 'bfloat16', 256, width=64, length=2048),
  _case(gradient, 'bfloat16', per='tile'),
  _case(gradient, 'bfloat16', length=32768, heads=8),
  LONG,
  _peer(splash_forward, 'float32'),
  _peer(splash_forward, 'bfloat16'),
  _peer(splash_gradient, 'float32'),
  _peer(splash_gradient, 'bfloat16'),
)
# Must fail, so that passing means something.
CROWDED = LONG._replace(
  name='sparse_attention crowded scalar memory',
  function=functools.partial(crowded, block_size=128),
)
