import jax
import numpy as np
import pytest
import worlds

from jaxagent import tokens
from jaxagent.agents import protocol
from jaxagent.language_models import base
from jaxagent.models import config as config_lib
from jaxagent.models import policy as policy_lib
from jaxagent.models import sampler
from jaxagent.rollouts import collect, drive, host, local_policy

TOKENIZER = tokens.default()
POLICY = policy_lib.build(
  config_lib.ModelConfig(
    family='qwen3',
    vocab=TOKENIZER.vocab_size,
    hidden=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    intermediate=32,
    qk_norm=True,
    init_std=0.3,
  )
)
PARAMS = POLICY.init(jax.random.key(3))
MAX_NEW = 6
LENGTHS = (64, 128)


@pytest.fixture
def make():
  def make(temperature=0.0):
    return local_policy.LocalPolicy(
      POLICY,
      PARAMS,
      TOKENIZER,
      sampling=sampler.Sampling(
        temperature=temperature, max_new=MAX_NEW, chunk=8
      ),
      cache_lengths=LENGTHS,
      key=jax.random.key(5),
    )

  return make


def sampled(row):
  return [i for i, mask in zip(row.ids, row.mask, strict=True) if mask]


@pytest.mark.parametrize(
  'program', [worlds.echo, worlds.map_then_act, worlds.counts_turns]
)
def test_drive_gives_the_transcript_of_the_rollout(program, make):
  """Greedy: same ids, same rows, same outcomes, log-probs to 1e-5."""
  tasks = worlds.tasks(8)
  rollout = collect.Rollout(
    POLICY,
    TOKENIZER,
    program,
    host.Limits(slots=4, max_new=MAX_NEW, cache_lengths=LENGTHS),
    sampler.Sampling(temperature=0.0, chunk=8, max_new=MAX_NEW,
                     stop_ids=TOKENIZER.stop_ids),
  )  # fmt: skip
  episodes, _ = rollout(PARAMS, jax.random.key(0), tasks)
  model = make()
  for episode in episodes:
    transcript = drive.drive(
      program(episode.task), model, max_new=MAX_NEW, fits=model.fits
    )
    assert transcript.outcome == episode.outcome
    assert len(transcript.rows) == len(episode.rows)
    for ours, theirs in zip(transcript.rows, episode.rows, strict=True):
      assert ours.part == theirs.part
      ids = [i for reply in ours.replies for i in reply.tokens]
      scores = [x for reply in ours.replies for x in reply.logprobs]
      assert ids == sampled(theirs)
      reference = np.asarray(theirs.logprobs)[np.asarray(theirs.mask)]
      np.testing.assert_allclose(scores, reference, atol=1e-5)


def test_reply_is_the_decoded_tokens(make):
  reply = make()([protocol.user('go to desk 1')], max_new=MAX_NEW)
  assert 1 <= len(reply.tokens) <= MAX_NEW
  assert reply.text == TOKENIZER.completion(reply.tokens)
  ended = reply.tokens[-1] in TOKENIZER.stop_ids
  assert reply.truncated == (not ended)


def test_a_smaller_max_new_cuts(make):
  question = [protocol.user('go to desk 1')]
  whole = make()(question, max_new=MAX_NEW)
  cut = make()(question, max_new=2)
  assert len(whole.tokens) > 2
  assert cut.tokens == whole.tokens[:2]
  assert cut.truncated


def test_what_is_cached_does_not_change_a_greedy_reply(make):
  """After a related, an unrelated and the same conversation, and afresh."""
  long = [protocol.user('You see a desk 1, a shelf 2, and a mug 3. ' * 2)]
  near = [protocol.user('You see a desk 1, a shelf 2, and a pan 1.')]
  far = [protocol.user('look')]
  model = make()
  replies = [model(m, max_new=MAX_NEW) for m in (near, far, long, long)]
  fresh = make()(long, max_new=MAX_NEW)
  assert replies[2].tokens == replies[3].tokens == fresh.tokens
  np.testing.assert_allclose(replies[3].logprobs, fresh.logprobs, atol=1e-5)


def test_samples_differ_and_repeat_with_the_key(make):
  question = [protocol.user('go')]
  draws = [
    [model(question, max_new=MAX_NEW).tokens for _ in range(4)]
    for model in (make(temperature=1.0), make(temperature=1.0))
  ]
  assert draws[0] == draws[1]
  assert len(set(draws[0])) > 1


def test_limits(make):
  model = make()
  with pytest.raises(base.LanguageModelError, match='max_new=7 exceeds the 6'):
    model([protocol.user('go')], max_new=7)
  long = [protocol.user('shelf ' * 200)]
  assert not model.fits(long)
  assert model.fits([protocol.user('go')])
  with pytest.raises(base.LanguageModelError, match='a context of 128'):
    model(long, max_new=1)
