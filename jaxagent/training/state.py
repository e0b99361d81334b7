"""What training carries from step to step, and how it is optimised."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Int
import optax

from jaxagent import types


class TrainState(NamedTuple):
  """Everything on the device that a resumed run needs.

  Random keys are no part of it: every key is folded from `config.seed`, a name
  and the step.
  """

  step: Int[types.Array, '']
  params: Any
  opt_state: Any
  reward_state: Any


_NO_DECAY = frozenset({'decay_rate', 'decay_bias'})


def optimizer(
  *,
  learning_rate: float,
  warmup_steps: int = 0,
  decay_steps: int = 0,
  b1: float = 0.9,
  b2: float = 0.95,
  weight_decay: float = 0.01,
  clip_norm: float = 1.0,
) -> optax.GradientTransformation:
  """AdamW with a clipped global gradient norm.

  Args:
    learning_rate: the peak.
    warmup_steps: linear from 0.
    decay_steps: cosine to a tenth of the peak, counted from step 0; 0 keeps
      the peak.
    b1: decay of the first moment.
    b2: decay of the second moment.
    weight_decay: decoupled; of all parameters but the rates of decay of gated
      delta layers, whose zero is no neutral value (2604.19021).
    clip_norm: largest global gradient norm.
  """
  if decay_steps:
    schedule = optax.warmup_cosine_decay_schedule(
      0.0 if warmup_steps else learning_rate,
      learning_rate,
      warmup_steps,
      decay_steps,
      learning_rate / 10,
    )
  elif warmup_steps:
    schedule = optax.linear_schedule(0.0, learning_rate, warmup_steps)
  else:
    schedule = learning_rate
  return optax.chain(
    optax.clip_by_global_norm(clip_norm),
    optax.adamw(
      schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=_decayed
    ),
  )


def _decayed(params):
  def decays(path, _):
    return getattr(path[-1], 'key', None) not in _NO_DECAY

  return jax.tree.map_with_path(decays, params)


def optimizer_from_config(
  config: Mapping[str, Any],
) -> optax.GradientTransformation:
  """`optimizer` with the fields of a config."""
  return optimizer(**dict(config))


def init(
  params, optimizer: optax.GradientTransformation, reward_state
) -> TrainState:
  """The state before the first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=jax.jit(optimizer.init)(params),
    reward_state=reward_state,
  )
