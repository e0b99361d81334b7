"""A policy on the device as a `LanguageModel`: text in, text out."""

from collections.abc import Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Key, PyTree
import numpy as np

from jaxagent import tokens as tokens_lib
from jaxagent.agents import protocol
from jaxagent.language_models import base
from jaxagent.models import policy as policy_lib
from jaxagent.models import sampler
from jaxagent.rollouts import host
from jaxagent.rollouts import round as round_lib
from jaxagent.types import Array

MAX_REMEMBERED = 1024  # conversations whose sampled ids are kept


class LocalPolicy:
  """Writes with a policy and its tokenizer, one conversation at a time.

  A conversation that continues an earlier reply of this object keeps the ids
  that were sampled for it, so that a program driven with it reads and writes
  the ids of a rollout; other conversations are tokenised. Keys and values of
  the beginning that a call shares with the one before are used again (with a
  recurrent model, where it continues all of the one before).

  Calls must not overlap. A greedy reply depends on its conversation alone, a
  sampled one also on `key` and the number of calls so far.

  Args:
    policy: the token model.
    params: its parameters.
    tokenizer: of the model.
    sampling: `max_new` is the longest reply; its stop ids are replaced by the
      tokenizer's.
    cache_lengths: ascending; the last one is the longest context.
    key: of sampling.
  """

  def __init__(
    self,
    policy: policy_lib.Policy,
    params: PyTree,
    tokenizer: tokens_lib.Tokenizer,
    *,
    sampling: sampler.Sampling,
    cache_lengths: tuple[int, ...],
    key: Key[Array, ''],
  ):
    self._limits = host.Limits(
      slots=1, max_new=sampling.max_new, cache_lengths=cache_lengths
    )
    self._step = _compiled(
      policy,
      dataclasses.replace(sampling, stop_ids=tokenizer.stop_ids),
      tuple(cache_lengths),
    )
    self._recurrent = policy.config.recurrent
    self._params = params
    self._tokenizer = tokenizer
    self._key = key
    self._calls = 0
    self._cache = policy.empty_cache(1, cache_lengths[-1])
    self._cached: list[int] = []
    self._rows: dict[tuple, list[int]] = {}

  def fits(self, messages: Sequence[protocol.Message]) -> bool:
    """Whether the conversation leaves room for the longest reply."""
    most = self._limits.cache_lengths[-1] - self._limits.max_new
    return len(self._ids(messages)) <= most

  def __call__(
    self, messages: Sequence[protocol.Message], *, max_new: int
  ) -> protocol.Completion:
    """See `language_models.base.LanguageModel`.

    Raises:
      LanguageModelError: the conversation or `max_new` exceeds the limits.
    """
    ids = self._ids(messages)
    self._check(len(ids), max_new)
    reply, logprobs = self._sample(ids)
    reply, logprobs = reply[:max_new], logprobs[:max_new]
    text = self._tokenizer.completion(reply)
    answered = (*messages, {'role': 'assistant', 'content': text})
    if len(self._rows) >= MAX_REMEMBERED:
      del self._rows[next(iter(self._rows))]
    self._rows[_frozen(answered)] = ids + reply
    return protocol.Completion(
      text=text,
      tokens=tuple(reply),
      logprobs=tuple(logprobs),
      truncated=reply[-1] not in self._tokenizer.stop_ids,
    )

  def _ids(self, messages):
    *before, last = messages
    row = self._rows.get(_frozen(before))
    if row is None or last['role'] != 'user':
      return self._tokenizer.chat(messages)
    cut = row[-1] not in self._tokenizer.stop_ids
    stop = [self._tokenizer.stop_id] if cut else []
    return row + stop + self._tokenizer.extend(last['content'])

  def _check(self, length, max_new):
    limits = self._limits
    if max_new > limits.max_new:
      raise base.LanguageModelError(
        f'max_new={max_new} exceeds the {limits.max_new} tokens that this'
        ' policy was built for; raise sampling.max_new.'
      )
    if length + limits.max_new > limits.cache_lengths[-1]:
      raise base.LanguageModelError(
        f'A conversation of {length} tokens and a reply of {limits.max_new} do'
        f' not fit a context of {limits.cache_lengths[-1]}; raise'
        ' cache_lengths, or pass `fits` to `drive`.'
      )

  def _sample(self, ids):
    known = 0
    for mine, cached in zip(ids[:-1], self._cached, strict=False):
      if mine != cached:
        break
      known += 1
    if self._recurrent and known < len(self._cached):
      known = 0  # a memory cannot go back to where the two part
    longest = self._limits.cache_lengths[-1]
    pending = np.zeros((1, longest), np.int32)
    pending[0, : len(ids) - known] = ids[known:]
    bucket = np.searchsorted(
      self._limits.cache_lengths, len(ids) + self._limits.max_new
    )
    command = round_lib.Command(
      mode=np.array([host.EXTEND if known else host.OPEN], np.int32),
      ids=pending,
      num=np.array([len(ids) - known], np.int32),
      uid=np.zeros(1, np.int32),
      bucket=np.asarray(bucket, np.int32),
      alive=np.asarray(True),
    )
    self._cache, _, sampled, _ = self._step(
      self._params,
      jax.random.fold_in(self._key, self._calls),
      self._cache,
      jnp.array([known], jnp.int32),
      command,
    )
    self._calls += 1
    num = int(sampled.num[0])
    reply = np.asarray(sampled.tokens)[0, :num].tolist()
    self._cached = ids + reply[:-1]
    return reply, np.asarray(sampled.logprobs)[0, :num].tolist()


@functools.cache
def _compiled(policy, sampling, cache_lengths):
  """One compilation for all parameters of a model."""
  return jax.jit(
    functools.partial(
      round_lib.round_, policy, sampling=sampling, cache_lengths=cache_lengths
    )
  )


def _frozen(messages: Sequence[protocol.Message]) -> tuple:
  return tuple(tuple(sorted(message.items())) for message in messages)
