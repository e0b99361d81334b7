"""Two drivers over one `round_`: a jitted loop and a ten-line Python loop.

Both give the same tokens and log-probabilities, bit for bit. The Python loop is
the default: it keeps exception types, stops within a round and may sit next to
other JAX work. The jitted loop suits devices where a dispatch is expensive.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import functools
import time

import jax
from jax.experimental import io_callback
import jax.numpy as jnp

from jaxagent.agents import protocol
from jaxagent.models import policy as policy_lib
from jaxagent.models import sampler
from jaxagent.rollouts import host as host_lib
from jaxagent.rollouts import round as round_lib


class Rollout:
  """Runs tasks under a policy; compiled on first use, never again.

  Args:
    policy: the token model.
    tokenizer: a `tokens.Tokenizer`.
    make_program: from a task to its agent program.
    limits: static sizes.
    sampling: the sampling distribution; `max_new` and `stop_ids` are taken from
      `limits` and `tokenizer`.
    driver: 'python' or 'jit'.
  """

  def __init__(
    self,
    policy: policy_lib.Policy,
    tokenizer,
    make_program: Callable[[protocol.Task], protocol.Program],
    limits: host_lib.Limits,
    sampling: sampler.Sampling,
    *,
    driver: str = 'python',
  ):
    if driver not in DRIVERS:
      raise ValueError(
        f'Unknown rollout driver {driver!r}; choose from {sorted(DRIVERS)}.'
      )
    self.host = host_lib.Host(limits, tokenizer, make_program)
    round_ = functools.partial(
      round_lib.round_,
      policy,
      sampling=sampling,
      cache_lengths=tuple(limits.cache_lengths),
    )
    empty = functools.partial(_empty, policy, limits)
    self._run = DRIVERS[driver](round_, empty, self.host, limits)
    self.compiled = self._run.compiled

  def __call__(
    self,
    params,
    key: jax.Array,
    tasks: Sequence[protocol.Task],
    on_episode: Callable[[host_lib.Episode], None] | None = None,
  ) -> tuple[list[host_lib.Episode], dict[str, float]]:
    """Plays every task once.

    Args:
      params: of the policy.
      key: root key; a token depends on it, its row and its position alone.
      tasks: in any order, with distinct episode numbers.
      on_episode: called as each episode ends, in the order they end.

    Returns:
      Episodes by ascending number, and metrics: rounds, seconds, host share,
      sampled tokens, share of slots in use, decode steps.

    Raises:
      KeyboardInterrupt, or the exception of host code, with its own type.
      RuntimeError: the environment failed in every episode.
    """
    self.host.start(tasks, on_episode)
    start = time.perf_counter()
    steps = self._run(params, key)
    seconds = time.perf_counter() - start
    episodes = self.host.episodes()
    counted = self.host.metrics
    rounds = max(counted['rounds'], 1)
    return episodes, {
      'seconds': seconds,
      'rounds': rounds,
      'decode_steps': int(steps),
      'sampled_tokens': counted['sampled_tokens'],
      'host_ms_per_round': 1e3 * counted['host_seconds'] / rounds,
      'host_share': counted['host_seconds'] / max(seconds, 1e-9),
      'slot_use': counted['slot_rounds'] / (rounds * self.host.limits.slots),
    }


def _empty(policy, limits):
  return (
    policy.empty_cache(limits.slots, limits.cache_lengths[-1]),
    jnp.zeros((limits.slots,), jnp.int32),
  )


def _python_driver(round_, empty, host, limits):
  step = jax.jit(
    lambda params, key, cache, length, command: round_(
      params, key, cache, length, command
    ),
    donate_argnums=(2, 3),
  )

  def run(params, key):
    cache, length = empty()
    sampled = round_lib.nothing(limits.slots, limits.max_new)
    steps = 0
    while True:
      command = round_lib.Command(*host(*sampled))
      if not command.alive:
        return steps
      cache, length, sampled, k = step(params, key, cache, length, command)
      steps += int(k)

  run.compiled = step
  return run


def _jit_driver(round_, empty, host, limits):
  slots, longest = limits.slots, limits.cache_lengths[-1]

  def i32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)

  shapes = (
    i32(slots), i32(slots, longest), i32(slots), i32(slots), i32(),
    jax.ShapeDtypeStruct((), jnp.bool_),
  )  # fmt: skip

  @jax.jit
  def loop(params, key):
    def body(state):
      cache, length, sampled, _, steps = state
      command = round_lib.Command(*io_callback(host, shapes, *sampled))
      cache, length, sampled, k = round_(params, key, cache, length, command)
      return cache, length, sampled, command.alive, steps + k

    init = (
      *empty(),
      round_lib.nothing(slots, limits.max_new),
      jnp.bool_(True),
      jnp.int32(0),
    )
    return jax.lax.while_loop(lambda state: state[3], body, init)[4]

  def run(params, key):
    mesh = jax.sharding.get_abstract_mesh()  # of this thread

    def whole():
      with jax.sharding.use_abstract_mesh(mesh):
        return int(loop(params, key))

    # In the main thread an interrupt would wait for the whole rollout.
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
      future = executor.submit(whole)
      try:
        return future.result()
      except KeyboardInterrupt:
        host.interrupt()
        raise

  run.compiled = loop
  return run


DRIVERS = {'python': _python_driver, 'jit': _jit_driver}
