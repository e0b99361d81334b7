"""Block-sparse causal attention whose budget is a run-time value.

Mixture of block attention (arXiv 2502.13189) with budgets that may change from
call to call, layer to layer and row to row (arXiv 2604.13847) without a new
compilation. `routing` defines what a query attends.
"""

import importlib

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from kernels_pallas import dispatch
from kernels_pallas.sparse_attention import chunked, reference, routing, specs

Array = routing.Array


def sparse_attention(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B T G K'],
  v: Float[Array, 'B T G V'],
  *,
  budget: Int[Array, '...'] | int,
  block_size: int = 64,
  max_budget: int | None = None,
  segment_ids: Int[Array, 'B T'] | None = None,
  per: str = 'query',
  implementation: str | None = None,
  scale: float | None = None,
) -> Float[Array, 'B T H V']:
  """Each query attends its own block and the `budget - 1` best before it.

  Args:
    q: queries; a group of H / G consecutive heads shares a key head. Each of
      the H heads chooses its own blocks.
    k: keys.
    v: values.
    budget: blocks a query attends, its own included: an integer, a traced int32
      scalar or [B], one a row. 1 is local attention; as many as a document has
      blocks, or more, is dense causal attention.
    block_size: tokens a block. For the TPU kernel 128 or 256.
    max_budget: no budget will exceed this; larger ones count as it. Bounds the
      working memory of 'chunked'; changes no result. None: no bound.
    segment_ids: document of each token, for packed rows: a document attends
      itself only, and the same keys as if it were alone in a row, wherever it
      begins. A run of equal ids is a document; padding is one too.
    per: 'query', each query chooses for itself, or 'tile', the queries of a
      block choose together by their mean: cheaper for a kernel, but a token's
      output then depends on later tokens of its block (`routing.tile_queries`).
    implementation: 'reference' (the definition, quadratic memory), 'chunked'
      (plain XLA, time follows the budget), 'pallas' (TPU),
      'pallas_interpret'; None picks (see `choice`).
    scale: of the logits; None is K ** -0.5.

  Returns:
    The attended values, in the dtype of v. Gradients reach q, k and v through
    the attention; the choice of blocks has none.

  Raises:
    ValueError: a shape or number that does not fit.
    TypeError: a dtype that does not fit.
  """
  args, keywords = _prepare(
    *(q, k, v, budget),
    block_size=block_size,
    max_budget=max_budget,
    segment_ids=segment_ids,
    per=per,
    scale=scale,
  )
  out = dispatch.call(
    IMPLEMENTATIONS,
    implementation,
    *args,
    automatic=automatic(),
    **keywords,
  )
  return out[:, : q.shape[1]]


def choice(
  q, k, v, *, budget=1, implementation: str | None = None, **keywords
) -> dispatch.Choice:
  """Says which implementation `sparse_attention` would run, and why.

  Arrays may be `jax.ShapeDtypeStruct`; nothing is computed.
  """
  defaults = {
    'block_size': 64,
    'max_budget': None,
    'segment_ids': None,
    'per': 'query',
    'scale': None,
  }
  options = {**defaults, **keywords}
  segments = options.pop('segment_ids')
  args = jax.eval_shape(
    lambda *x: _prepare(*x[:4], segment_ids=x[4], **options)[0],
    *(q, k, v, budget, segments),
  )
  shapes = {'block_size': options['block_size'], 'per': options['per']}
  return dispatch.choice(
    IMPLEMENTATIONS,
    implementation,
    *args,
    automatic=automatic(),
    max_budget=args[1].shape[1] // options['block_size'],
    scale=1.0,
    **shapes,
  )


def automatic(platform: str | None = None) -> tuple[str, ...]:
  """The implementations that None tries, in order."""
  platform = jax.default_backend() if platform is None else platform
  return AUTOMATIC.get(platform, ('chunked',))


def _prepare(
  q, k, v, budget, *, block_size, max_budget, segment_ids, per, scale
):
  """Operands as every implementation takes them: whole blocks, budget [B]."""
  specs.check_operands(
    *(q, k, v),
    budget=budget,
    block_size=block_size,
    max_budget=max_budget,
    segment_ids=segment_ids,
    per=per,
  )
  extra = -q.shape[1] % block_size
  if extra:
    # Behind every query of the row, so that none of them sees it.
    pad = ((0, 0), (0, extra), (0, 0), (0, 0))
    q, k, v = (jnp.pad(x, pad) for x in (q, k, v))
    if segment_ids is not None:
      segment_ids = jnp.pad(segment_ids, pad[:2], mode='edge')
  blocks = q.shape[1] // block_size
  most = blocks if max_budget is None else min(max_budget, blocks)
  budget = jnp.clip(jnp.asarray(budget, jnp.int32), 1, most)
  budget = jnp.broadcast_to(budget, q.shape[:1])
  return (q, k, v, budget, segment_ids), {
    'block_size': block_size,
    'max_budget': most,
    'per': per,
    'scale': q.shape[-1] ** -0.5 if scale is None else scale,
  }


def _pallas(interpret: bool):
  """The TPU kernel, imported when it is first run."""

  def run(*args, **keywords):
    path = 'kernels_pallas.sparse_attention.pallas'
    attend = importlib.import_module(path).attend
    return attend(*args, interpret=interpret, **keywords)

  return run


IMPLEMENTATIONS = {
  'reference': reference.attend,
  'chunked': chunked.attend,
  'pallas': _pallas(False),
  'pallas_interpret': _pallas(True),
}

AUTOMATIC = {'tpu': ('pallas', 'chunked')}
