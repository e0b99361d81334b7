"""Rollouts of a hybrid: what holds for caches holds for memories."""

import chex
import jax
import pytest
import worlds

from jaxagent import tokens
from jaxagent.agents import protocol
from jaxagent.models import config as config_lib
from jaxagent.models import gated_delta, logprobs, sampler, sharding
from jaxagent.models import policy as policy_lib
from jaxagent.rollouts import assemble, collect, host, local_policy

TOKENIZER = tokens.default()
POLICY = policy_lib.build(
  config_lib.ModelConfig(
    family='hybrid',
    vocab=TOKENIZER.vocab_size,
    hidden=16,
    layers=('gated_delta', 'attention'),
    heads=2,
    kv_heads=1,
    head_dim=8,
    intermediate=32,
    qk_norm=True,
    gated_delta=config_lib.GatedDelta(
      heads=2, key_dim=8, value_dim=8, gate_rank=4
    ),
    init_std=0.3,
  )
)
KEY = jax.random.key(7)
MAX_NEW = 6


@pytest.fixture(scope='module')
def params():
  return jax.jit(POLICY.init)(jax.random.key(3))


def rollout(slots=4, chunk=8, lengths=(256,), driver='python'):
  return collect.Rollout(
    POLICY,
    TOKENIZER,
    worlds.echo,
    host.Limits(slots, MAX_NEW, lengths, None),
    sampler.Sampling(max_new=MAX_NEW, stop_ids=TOKENIZER.stop_ids, chunk=chunk),
    driver=driver,
  )


def contents(episodes):
  return [(row.uid, row.ids, row.mask) for e in episodes for row in e.rows]


def test_tokens_depend_on_neither_slots_chunk_cache_nor_order(params):
  tasks = worlds.tasks(18)
  base = rollout()
  episodes, _ = base(params, KEY, tasks)
  want = contents(episodes)
  assert contents(base(params, KEY, tasks[::-1])[0]) == want
  for other in (rollout(1, 3), rollout(16, 64, (96, 256))):
    assert contents(other(params, KEY, tasks)[0]) == want
  assert base.compiled._cache_size() == 1
  batch = assemble.assemble(
    episodes, reward_names=('success',), length=256, rows=18
  )
  scores = logprobs.score(
    jax.jit(POLICY.apply)(params, batch.tokens),
    POLICY.unembed(params),
    batch.tokens,
    batch.action_mask,
    budget=1024,
  )
  assert batch.action_mask.sum() > 100
  chex.assert_trees_all_close(scores.logprobs, batch.logprobs, atol=1e-4)


@pytest.mark.parametrize('driver', collect.DRIVERS)
def test_a_mesh_plays_as_one_device_does(params, driver, monkeypatch):
  """And hands the delta rule, a kernel on a TPU, whole rows and heads."""
  seen, rule = [], gated_delta.fg2_gdn.fg2_gdn_prescaled

  def watched(q, *args, **keywords):
    seen.append(q.shape[0::2])
    return rule(q, *args, **keywords)

  monkeypatch.setattr(gated_delta.fg2_gdn, 'fg2_gdn_prescaled', watched)
  tasks = worlds.tasks(6)
  want, _ = rollout()(params, KEY, tasks)
  assert set(seen) == {(4, 2)}
  seen.clear()
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  with sharding.use(mesh):
    got, _ = rollout(driver=driver)(sharding.shard(params, mesh), KEY, tasks)
  assert set(seen) == {(1, 1)}
  assert contents(got) == contents(want)


def test_a_conversation_that_turns_back_begins_again(params):
  """A memory has no way back to where two conversations part."""

  def make():
    return local_policy.LocalPolicy(
      POLICY,
      params,
      TOKENIZER,
      sampling=sampler.Sampling(temperature=0.0, max_new=MAX_NEW, chunk=8),
      cache_lengths=(128,),
      key=KEY,
    )

  asked = [[protocol.user(f'look at shelf {n}')] for n in (1, 2)]
  model = make()
  first = model(asked[0], max_new=MAX_NEW)
  more = [
    *asked[0],
    {'role': 'assistant', 'content': first.text},
    protocol.user('go on'),
  ]
  for messages in (asked[1], asked[0], more, asked[0]):
    got, want = (m(messages, max_new=MAX_NEW) for m in (model, make()))
    if messages is not more:  # a fresh one tokenises what it did not sample
      assert got.tokens == want.tokens
    assert model(messages, max_new=2).tokens == got.tokens[:2]
  assert model(asked[0], max_new=MAX_NEW).tokens == first.tokens
