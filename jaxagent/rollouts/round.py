"""One round on the device: prefill what is pending, decode until all stop.

Pure and free of callbacks, so that both drivers of `collect` share it.
"""

from typing import NamedTuple

from jax import lax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxagent import types
from jaxagent.models import policy as policy_lib
from jaxagent.models import sampler
from jaxagent.rollouts.host import IDLE, OPEN


class Command(NamedTuple):
  """What the host asks of each of `S` slots. `M` is the cache length."""

  mode: Int[types.Array, 'S']  # IDLE | OPEN | EXTEND
  ids: Int[types.Array, 'S M']  # tokens that are not in the cache yet
  num: Int[types.Array, 'S']  # how many of them
  uid: Int[types.Array, 'S']  # names the row for its sampling keys
  bucket: Int[types.Array, '']  # index into the cache lengths
  alive: Bool[types.Array, '']  # False: the rollout is over


class Sampled(NamedTuple):
  """What each slot wrote this round; `N` is the longest reply."""

  tokens: Int[types.Array, 'S N']
  logprobs: Float[types.Array, 'S N']
  num: Int[types.Array, 'S']


def nothing(slots: int, max_new: int) -> Sampled:
  """What was sampled before the first round."""
  return Sampled(
    jnp.zeros((slots, max_new), jnp.int32),
    jnp.zeros((slots, max_new), jnp.float32),
    jnp.zeros((slots,), jnp.int32),
  )


def round_(
  policy: policy_lib.Policy,
  params,
  key,
  cache,
  length: Int[types.Array, 'S'],
  command: Command,
  *,
  sampling: sampler.Sampling,
  cache_lengths: tuple[int, ...],
):
  """Advances every slot by one reply.

  A finished or idle slot writes nothing. The last sampled token is not fed to
  the model; the host sends it with the next pending tokens. An opened slot
  needs no clearing: its length is 0 and attention never looks past a query.

  Args:
    policy: the token model.
    params: its parameters.
    key: root key of the rollout; folded with row and position inside.
    cache: of `policy.empty_cache(S, cache_lengths[-1])`.
    length: tokens already in the cache, per slot.
    command: from the host; every row must fit `cache_lengths[command.bucket]`
      with `sampling.max_new` tokens to spare.
    sampling: the sampling distribution and its limits.
    cache_lengths: ascending; attention reads only the chosen length.

  Returns:
    `(cache, length, Sampled, decode_steps)`.
  """
  length = jnp.where(command.mode == OPEN, 0, length)

  def at(size):
    def run(cache):
      live, logits = sampler.prefill(
        policy, params, policy.crop(cache, size), length,
        command.ids[:, :size], command.num, chunk=sampling.chunk,
      )  # fmt: skip
      live, *sampled, steps = sampler.decode(
        policy, params, key, live, length + command.num, logits,
        command.mode != IDLE, command.uid, sampling,
      )  # fmt: skip
      return policy.paste(cache, live), Sampled(*sampled), steps

    return run

  cache, sampled, steps = lax.switch(
    command.bucket, [at(size) for size in cache_lengths], cache
  )
  length = length + command.num + jnp.maximum(sampled.num - 1, 0)
  return cache, length, sampled, steps
