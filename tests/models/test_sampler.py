"""The sampler: what it may draw, and that the trainer agrees with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxagent.models import config, logprobs, sampler, transformer
from jaxagent.models import policy as policy_lib

M = 48  # length of the cache
UNTIED = 'untied'


def _policy(name, layers=1):
  base = config.PRESETS['tiny_qwen2' if name == UNTIED else name]
  return policy_lib.build(
    dataclasses.replace(
      base,
      hidden=32,
      head_dim=8,
      intermediate=64,
      vocab=101,
      layers=layers,
      init_std=0.3,
      tie_embeddings=name != UNTIED,
    )
  )


def _params(c):
  """Drawn by numpy: compiling the initial draw would be half of the test."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: jnp.asarray(
      rng.normal(len(x.shape) == 1, c.init_std, x.shape), x.dtype
    ),
    transformer.shapes(c),
  )


@pytest.fixture(scope='module')
def prompts():
  rng = np.random.default_rng(0)
  return [rng.integers(0, 101, n).tolist() for n in (17, 3, 9, 1, 12)]


def _pad(rows, width):
  out = np.zeros((len(rows), width), np.int32)
  for i, row in enumerate(rows):
    out[i, : len(row)] = row
  return jnp.asarray(out)


def _round(policy, sampling, slots):
  """One jitted turn: feed what is pending, then sample."""

  def run(params, key, cache, start, ids, num, uid):
    cache, logits = sampler.prefill(
      policy, params, cache, start, ids, num, sampling.chunk
    )
    return sampler.decode(
      policy, params, key, cache, start + num, logits, num > 0, uid, sampling
    )

  return jax.jit(run)


def _converse(policy, params, sampling, prompts, *, slots, turns=2, seed=5):
  """Two turns of every prompt, `slots` at a time; rows of (token, logprob)."""
  turn = _round(policy, sampling, slots)
  rows = []
  for first in range(0, len(prompts), slots):
    batch = prompts[first : first + slots]
    batch = batch + [[]] * (slots - len(batch))
    ids = [list(p) for p in batch]
    scores = [[None] * len(p) for p in batch]
    cached = np.zeros(slots, np.int32)
    cache = policy.empty_cache(slots, M)
    uid = jnp.arange(first, first + slots)
    for _ in range(turns):
      pending = [row[c:] for row, c in zip(ids, cached, strict=True)]
      cache, tokens, lps, n, _ = turn(
        params,
        jax.random.key(seed),
        cache,
        jnp.asarray(cached),
        _pad(pending, 24),
        jnp.array([len(p) for p in pending], jnp.int32),
        uid,
      )
      for i, row in enumerate(ids):
        if not row:
          assert n[i] == 0
          continue
        row += tokens[i, : n[i]].tolist()
        scores[i] += lps[i, : n[i]].tolist()
        cached[i] = len(row) - 1
        row += [7, 8]  # what the environment answers
        scores[i] += [None, None]
    rows += [(r, s) for r, s in zip(ids, scores, strict=True) if r]
  return rows


@pytest.mark.parametrize(
  'name, top_p',
  [
    ('tiny_llama', 1.0),
    ('tiny_qwen2', 0.8),
    ('tiny_qwen3', 0.8),
    (UNTIED, 1.0),
  ],
)
def test_log_probs_are_the_trainers(prompts, name, top_p):
  """Also at top_p = 0.8, so that the ratio of an unchanged policy is 1."""
  policy = _policy(name, layers=2)
  params = _params(policy.config)
  sampling = sampler.Sampling(
    max_new=8, chunk=5, temperature=0.7, top_p=top_p, stop_ids=(11, 12)
  )
  rows = _converse(policy, params, sampling, prompts, slots=3)
  tokens = _pad([r for r, _ in rows], M)
  got = np.zeros(tokens.shape)
  mask = np.zeros(tokens.shape, bool)
  for i, (_, scores) in enumerate(rows):
    for t, score in enumerate(scores):
      if score is not None:
        got[i, t], mask[i, t] = score, True
  assert mask.sum() > 30

  @jax.jit
  def train(params):
    return logprobs.score(
      policy.apply(params, tokens),
      policy.unembed(params),
      tokens,
      jnp.asarray(mask),
      budget=128,
      chunk=32,
      temperature=sampling.score_temperature,
    ).logprobs

  want = np.asarray(train(params))
  assert np.abs(got - want).max() < 1e-5
  ratio = np.exp(want - got)[mask]
  assert abs(ratio.mean() - 1) < 1e-5
  assert (want[mask] < 0).all()


def test_tokens_depend_on_neither_slots_nor_chunk(prompts):
  policy = _policy('tiny_qwen3')
  params = _params(policy.config)
  sampling = sampler.Sampling(max_new=6, chunk=4, stop_ids=(11,))
  want = [r for r, _ in _converse(policy, params, sampling, prompts, slots=5)]
  for slots, chunk in ((1, 4), (2, 16), (7, 64)):
    other = dataclasses.replace(sampling, chunk=chunk)
    rows = _converse(policy, params, other, prompts, slots=slots)
    assert [r for r, _ in rows] == want, (slots, chunk)
  rekeyed = _converse(policy, params, sampling, prompts, slots=5, seed=6)
  assert all(r != w for (r, _), w in zip(rekeyed, want, strict=True))


def test_prefill_gives_the_logits_of_each_slots_last_token(prompts):
  policy = _policy('tiny_llama')
  params = _params(policy.config)
  ids, num = _pad(prompts, 20), jnp.array([len(p) for p in prompts])
  cache = policy.empty_cache(5, M)
  start = jnp.zeros(5, jnp.int32)
  _, got = sampler.prefill(policy, params, cache, start, ids, num, 8)
  hidden = policy.apply(params, ids)[jnp.arange(5), num - 1]
  want = logprobs.logits(hidden, policy.unembed(params))
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_stop_tokens_end_a_reply_and_belong_to_it():
  """Greedy; the stop is the token that the first slot writes third."""
  policy = _policy('tiny_qwen2')
  params = _params(policy.config)
  prompts = [[1, 2, 3], [50, 60]]
  free = sampler.Sampling(temperature=0.0, max_new=6)
  written = [
    row[len(p) : len(p) + 6]
    for p, (row, _) in zip(
      prompts,
      _converse(policy, params, free, prompts, slots=2, turns=1),
      strict=True,
    )
  ]
  stop = written[0][2]
  sampling = dataclasses.replace(free, stop_ids=(stop,))
  num = jnp.array([3, 2])
  args = (jnp.zeros(2, jnp.int32), _pad(prompts, 4), num)
  cache = policy.empty_cache(2, M)
  cache, logits = sampler.prefill(policy, params, cache, *args, 4)
  _, tokens, scores, n, steps = sampler.decode(
    policy,
    params,
    jax.random.key(0),
    cache,
    num,
    logits,
    jnp.array([True, True]),
    jnp.arange(2),
    sampling,
  )
  for i, row in enumerate(written):
    want = row[: row.index(stop) + 1] if stop in row else row
    assert tokens[i, : n[i]].tolist() == want
    assert (scores[i, n[i] :] == 0).all() and (tokens[i, n[i] :] == 0).all()
  assert steps == n.max() - 1


def test_idle_slots_write_nothing():
  policy = _policy('tiny_llama')
  params = _params(policy.config)
  cache = jax.tree.map(lambda x: x + 2.0, policy.empty_cache(2, M))
  sampling = sampler.Sampling(max_new=4, chunk=4)
  start = jnp.array([5, 0])
  after, tokens, _, n, _ = _round(policy, sampling, 2)(
    params,
    jax.random.key(0),
    cache,
    start,
    _pad([[1, 2], []], 4),
    jnp.array([2, 0]),
    jnp.arange(2),
  )
  assert n.tolist() == [4, 0] and (tokens[1] == 0).all()
  for leaf in jax.tree.leaves(after):
    written = np.any(np.asarray(leaf) != 2.0, axis=(1, 3))
    assert not written[1].any()
    np.testing.assert_array_equal(np.flatnonzero(written[0]), np.arange(5, 10))


def _nucleus(scaled, top_k, top_p):
  """The definition, by sorting."""
  order = np.argsort(-scaled, kind='stable')[: top_k or len(scaled)]
  probs = np.exp(scaled[order].astype(np.float64) - scaled.max())
  probs /= probs.sum()
  before = np.cumsum(probs) - probs
  kept = np.zeros(len(scaled), bool)
  kept[order[(before < top_p) | (top_p == 1)]] = True
  return kept


@pytest.mark.parametrize('top_k', [0, 1, 7, 1000])
@pytest.mark.parametrize('top_p', [1.0, 0.9, 0.5, 0.01])
def test_exactly_the_nucleus_is_kept(top_k, top_p):
  rng = np.random.default_rng(3)
  scales = np.array([0.0001, 0.5, 1, 3, 8, 30])[:, None]
  scaled = (rng.normal(size=(6, 300)) * scales).astype(np.float32)
  keep = jax.jit(lambda x: sampler.keep(x, top_k=top_k, top_p=top_p))
  want = np.stack([_nucleus(row, top_k, top_p) for row in scaled])
  np.testing.assert_array_equal(keep(jnp.asarray(scaled)), want)


def test_ties_at_the_edge_stay():
  probs = np.array([[0.4, 0.2, 0.2, 0.1, 0.1]])
  scaled = jnp.log(jnp.asarray(probs, jnp.float32))
  keep = lambda **kw: sampler.keep(scaled, **kw)[0].tolist()  # noqa: E731
  assert keep(top_k=2, top_p=1.0) == [True, True, True, False, False]
  assert keep(top_k=0, top_p=0.5) == [True, True, True, False, False]
  assert keep(top_k=0, top_p=0.3) == [True, False, False, False, False]


def _frequencies(sampling, logits, count=20_000):
  uid = jnp.arange(count)
  token, score = jax.jit(
    lambda x: sampler.draw(jax.random.key(0), uid, uid * 0, x, sampling)
  )(jnp.broadcast_to(jnp.asarray(logits, jnp.float32)[None], (count, 6)))
  return np.bincount(token, minlength=6) / count, token, score


@pytest.mark.parametrize(
  'kwargs',
  [
    {},
    {'temperature': 0.5},
    {'temperature': 2.0, 'top_k': 4},
    {'top_p': 0.8},
  ],
)
def test_draws_follow_the_distribution(kwargs):
  logits = np.array([2.0, 1.0, 0.0, 1.5, -1.0, -3.0])
  sampling = sampler.Sampling(**kwargs)
  scaled = logits / sampling.temperature
  full = np.exp(scaled - np.log(np.exp(scaled).sum()))
  want = np.where(_nucleus(scaled, sampling.top_k, sampling.top_p), full, 0)
  want /= want.sum()
  got, token, score = _frequencies(sampling, logits)
  sigma = np.sqrt(want * (1 - want) / len(token))
  assert (np.abs(got - want) <= 5 * sigma).all()
  np.testing.assert_allclose(score, np.log(full)[token], atol=1e-5)


def test_greedy_takes_the_likeliest_and_scores_at_temperature_one():
  logits = np.array([2.0, 1.0, 0.0, 1.5, -1.0, -3.0])
  got, _, score = _frequencies(sampler.Sampling(temperature=0.0), logits)
  assert got[0] == 1
  want = 2 - np.log(np.exp(logits).sum())
  np.testing.assert_allclose(score, want, atol=1e-6)


@pytest.mark.parametrize(
  'bad',
  [
    {'temperature': -1.0},
    {'top_p': 0.0},
    {'top_p': 1.5},
    {'top_k': -1},
    {'max_new': 0},
    {'chunk': 0},
  ],
)
def test_impossible_sampling_is_refused(bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    sampler.Sampling(**bad)


def test_one_compilation_whatever_the_lengths(prompts):
  policy = _policy('tiny_qwen3')
  params = _params(policy.config)
  turn = _round(policy, sampler.Sampling(max_new=3, chunk=4), 2)
  for num in ([1, 9], [24, 0], [0, 0]):
    turn(
      params,
      jax.random.key(0),
      policy.empty_cache(2, M),
      jnp.array([0, 4]),
      _pad([[1] * n for n in num], 24),
      jnp.array(num),
      jnp.arange(2),
    )
  assert turn._cache_size() == 1
