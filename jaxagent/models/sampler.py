"""Sampling: one draw, chunked prefill, and decode until every slot stopped.

Letters: `S` slots, `P` pending tokens, `V` vocabulary, `N` most new tokens.
The key of a draw is folded from the row's identity and the position alone, so
that in float32 the tokens depend on neither slot, chunk, nor batch.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key, PyTree

from jaxagent.models import logprobs
from jaxagent.models import policy as policy_lib
from jaxagent.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How to sample.

  Attributes:
    temperature: of the softmax; 0 takes the likeliest token.
    top_k: draw among the k likeliest; 0 is all.
    top_p: draw from the smallest set of likeliest tokens with at least this
      mass (1904.09751), taken after `top_k`; 1 is all.
    max_new: most tokens of one reply, N.
    stop_ids: a reply ends after any of these, which is part of it.
    chunk: tokens that prefill feeds at once; near the length of a typical
      observation is best, since every slot pays for every chunk.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  max_new: int = 64
  stop_ids: tuple[int, ...] = ()
  chunk: int = 32

  def __post_init__(self):
    if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
      raise ValueError(
        'Sampling wants temperature >= 0, top_k >= 0 and 0 < top_p <= 1; got'
        f' {self.temperature}, {self.top_k} and {self.top_p}.'
      )
    if self.max_new < 1 or self.chunk < 1:
      raise ValueError(
        f'max_new and chunk are at least 1; got {self.max_new}, {self.chunk}.'
      )

  @property
  def score_temperature(self) -> float:
    """The temperature of the returned log-probs; greedy scores at 1."""
    return self.temperature or 1.0


def _threshold(bits, weights, target):
  """Largest t per row with `sum(weights where bits >= t) >= target`.

  Bisection over int32: no sort, and exact, since non-negative floats are
  ordered as their bits are. It stops early once one candidate is left.
  """

  def halve(state):
    low, high, _ = state
    middle = low + (high - low) // 2
    mass = jnp.sum(jnp.where(bits >= middle[:, None], weights, 0), axis=-1)
    enough = mass >= target
    low = jnp.where(enough, middle, low)
    high = jnp.where(enough, high, middle)
    between = (bits >= low[:, None]) & (bits < high[:, None])
    left = jnp.sum(between, axis=-1, dtype=jnp.int32)
    return low, high, jnp.any((left > 1) & (high - low > 1))

  low = jnp.zeros(bits.shape[:1], jnp.int32)
  high = jnp.max(bits, axis=-1) + 1
  more = jnp.bool_(True)
  low, *_ = jax.lax.while_loop(lambda s: s[2], halve, (low, high, more))
  return low


def keep(
  scaled: Float[Array, 'S V'], *, top_k: int, top_p: float
) -> Bool[Array, 'S V']:
  """Which tokens top-k and then top-p leave; ties at the edge all stay."""
  probs = jax.nn.softmax(scaled, axis=-1)
  bits = jax.lax.bitcast_convert_type(probs, jnp.int32)
  kept = jnp.ones(scaled.shape, bool)
  if top_k:
    k = jnp.full(scaled.shape[:1], min(top_k, scaled.shape[1]), jnp.int32)
    edge = _threshold(bits, jnp.ones(bits.shape, jnp.int32), k)
    kept = bits >= edge[:, None]
  if top_p < 1:
    weights = jnp.where(kept, probs, 0)
    target = top_p * jnp.sum(weights, axis=-1)
    edge = _threshold(bits, weights, target)
    kept = kept & (bits >= edge[:, None])
  return kept


def draw(
  key: Key[Array, ''],
  uid: Int[Array, 'S'],
  position: Int[Array, 'S'],
  logits: Float[Array, 'S V'],
  sampling: Sampling,
) -> tuple[Int[Array, 'S'], Float[Array, 'S']]:
  """One token a slot, and its log-prob.

  The log-prob is that of the full vocabulary at `score_temperature`, whatever
  top-k and top-p cut: it is what the trainer computes for the same token, so
  that the ratio of an unchanged policy is 1.
  """
  scaled = logits / sampling.score_temperature
  if sampling.temperature == 0:
    token = jnp.argmax(scaled, axis=-1).astype(jnp.int32)
  else:
    allowed = scaled
    if sampling.top_k or sampling.top_p < 1:
      kept = keep(scaled, top_k=sampling.top_k, top_p=sampling.top_p)
      allowed = jnp.where(kept, scaled, -jnp.inf)

    def one(uid, position, row):
      folded = jax.random.fold_in(jax.random.fold_in(key, uid), position)
      return jax.random.categorical(folded, row).astype(jnp.int32)

    token = jax.vmap(one)(uid, position, allowed)
  chosen = jnp.take_along_axis(scaled, token[:, None], axis=-1)[:, 0]
  return token, chosen - jax.nn.logsumexp(scaled, axis=-1)


def prefill(
  policy: policy_lib.Policy,
  params: PyTree,
  cache: PyTree,
  start: Int[Array, 'S'],
  ids: Int[Array, 'S P'],
  num: Int[Array, 'S'],
  chunk: int,
) -> tuple[PyTree, Float[Array, 'S V']]:
  """Feeds each slot its pending tokens.

  Args:
    start: length of each slot's row in the cache.
    ids: pending tokens, of which the first `num` count; 0 leaves a slot alone.
    chunk: tokens fed at once.

  Returns:
    The cache, and the logits after each slot's last pending token (those of
    the zero vector for a slot that had none).
  """
  slots, pending = ids.shape
  chunk = min(chunk, pending)
  padded = jnp.pad(ids, ((0, 0), (0, chunk)))

  def feed(state):
    cache, done, last = state
    index = done + jnp.arange(chunk)[None]
    hidden, cache = policy.extend(
      params,
      jax.lax.dynamic_slice_in_dim(padded, done, chunk, axis=1),
      start[:, None] + index,
      index < num[:, None],
      cache,
    )
    ends = (num > done) & (num <= done + chunk)
    column = jnp.clip(num - 1 - done, 0, chunk - 1)
    final = hidden[jnp.arange(slots), column]
    return cache, done + chunk, jnp.where(ends[:, None], final, last)

  config = policy.config
  last = jnp.zeros((slots, config.hidden), config.dtype)
  cache, _, last = jax.lax.while_loop(
    lambda s: jnp.any(s[1] < num), feed, (cache, jnp.int32(0), last)
  )
  return cache, logprobs.logits(last, policy.unembed(params))


def decode(
  policy: policy_lib.Policy,
  params: PyTree,
  key: Key[Array, ''],
  cache: PyTree,
  start: Int[Array, 'S'],
  logits: Float[Array, 'S V'],
  active: Bool[Array, 'S'],
  uid: Int[Array, 'S'],
  sampling: Sampling,
) -> tuple[
  PyTree,
  Int[Array, 'S N'],
  Float[Array, 'S N'],
  Int[Array, 'S'],
  Int[Array, ''],
]:
  """Samples until every slot has stopped or written `max_new` tokens.

  The last token of a reply is sampled but not fed: its keys and values are
  still missing from the cache, and the next prefill begins with it.

  Args:
    key: of the rollout; draws fold in `uid` and the position in the row.
    start: position of the first token to sample, that is the row's length.
    logits: of the first token, from `prefill`.
    active: which slots take part; the others write nothing anywhere.
    uid: identity of each slot's row, unique in the rollout.

  Returns:
    Cache, tokens and their log-probs (0 beyond each reply), the length of
    each reply, and the number of forward passes run.
  """
  slots, most = start.shape[0], sampling.max_new
  rows = jnp.arange(slots)
  unembedding = policy.unembed(params)

  def emit(logits, tokens, scores, n, active):
    token, score = draw(key, uid, start + n, logits, sampling)
    at = jnp.where(active, n, most)
    tokens = tokens.at[rows, at].set(token, mode='drop')
    scores = scores.at[rows, at].set(score, mode='drop')
    n = n + active.astype(jnp.int32)
    stops = jnp.zeros(slots, bool)
    for stop in sampling.stop_ids:
      stops = stops | (token == stop)
    return token, tokens, scores, n, active & ~stops & (n < most)

  def step(state):
    cache, token, tokens, scores, n, active, steps = state
    hidden, cache = policy.extend(
      params, token[:, None], (start + n - 1)[:, None], active[:, None], cache
    )
    logits = logprobs.logits(hidden[:, 0], unembedding)
    out = emit(logits, tokens, scores, n, active)
    return cache, *out, steps + 1

  first = emit(
    logits,
    jnp.zeros((slots, most), jnp.int32),
    jnp.zeros((slots, most), jnp.float32),
    jnp.zeros(slots, jnp.int32),
    active,
  )
  cache, _, tokens, scores, n, _, steps = jax.lax.while_loop(
    lambda s: jnp.any(s[5]), step, (cache, *first, jnp.int32(0))
  )
  return cache, tokens, scores, n, steps
