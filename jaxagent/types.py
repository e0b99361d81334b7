"""Core records. Text lives left of `Trajectory`, arrays right of it.

Letters in shapes: `B` rows, `T` tokens of a row, `U` tokens of a row as the
teacher sees it, `R` reward components, `K` teacher candidates a token.

A row is one context in which the policy generated: by default a whole episode,
and one turn where a program opens a fresh row each turn. Rows are padded on the
right; a padded token has `action_mask` False. `x[:, t]` always speaks of
`tokens[:, t]`; in particular `logprobs[:, t]` is the log-probability of
`tokens[:, t]` given the tokens before it.
"""

from collections.abc import Callable
import dataclasses
import enum

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int
import numpy as np

Array = jax.Array | np.ndarray


class Status(enum.IntEnum):
  """How an episode ended."""

  DONE = 0  # the environment said so
  TURN_LIMIT = 1
  CONTEXT_LIMIT = 2  # the next request did not fit the cache
  ENV_ERROR = 3  # exception or time-out of the environment; never trained on


class Part(enum.IntEnum):
  """What a row is for; advantages are computed inside (group, part)."""

  ACT = 0
  QUERY = 1
  RERANK = 2
  DISTILL = 3
  MAP = 4
  THINK = 5
  SUMMARIZE = 6


@struct.dataclass
class TeacherView:
  """The same rows as a teacher with privileged text in the prompt sees them."""

  tokens: Int[Array, 'B U']
  # Student position t stands at t + shift; only the opening prompt differs.
  shift: Int[Array, 'B']
  # False where nothing privileged was found: the teacher is the student.
  available: Bool[Array, 'B']


@struct.dataclass
class Trajectory:
  """A batch of rows as arrays; what a rollout hands to training."""

  tokens: Int[Array, 'B T']
  action_mask: Bool[Array, 'B T']  # sampled by the policy
  logprobs: Float[Array, 'B T']  # of the sampler, 0 where not sampled
  turn: Int[Array, 'B T']  # index of the token's turn in its row
  anchor: Int[Array, 'B T']  # names the state the turn acted in; -1: none
  step_reward: Float[Array, 'B T']  # what the token's turn earned by itself
  rewards: Float[Array, 'B R']
  active: Bool[Array, 'B R']  # this reward was observed for this row
  group: Int[Array, 'B']  # rows that share a task
  episode: Int[Array, 'B']
  part: Int[Array, 'B']
  status: Int[Array, 'B']
  teacher: TeacherView | None = None
  positions: Int[Array, 'B T'] | None = None  # only where rows are packed
  segment_ids: Int[Array, 'B T'] | None = None  # only where rows are packed


@struct.dataclass
class Rewards:
  """Reward components of rows, before and after each `RewardTransform`."""

  values: Float[Array, 'B R']
  active: Bool[Array, 'B R']
  group: Int[Array, 'B']
  episode: Int[Array, 'B']
  part: Int[Array, 'B']


@struct.dataclass
class Candidates:
  """The teacher's top-k tokens at each position, scored by both."""

  ids: Int[Array, 'B T K']
  logprobs: Float[Array, 'B T K']  # the policy's: differentiable
  teacher_logprobs: Float[Array, 'B T K']


@struct.dataclass
class LossInputs:
  """Everything a loss term may read; optional fields are paid for on demand.

  Gradients flow through `logprobs`, and through `entropy`, `candidates` and
  the divergences where a term asks for them; the rest is data.
  """

  logprobs: Float[Array, 'B T']
  old_logprobs: Float[Array, 'B T']  # of the policy that sampled
  advantages: Float[Array, 'B T']
  mask: Bool[Array, 'B T']
  step: Int[Array, '']
  entropy: Float[Array, 'B T'] | None = None  # nats
  ref_logprobs: Float[Array, 'B T'] | None = None
  teacher_logprobs: Float[Array, 'B T'] | None = None
  teacher_mask: Bool[Array, 'B'] | None = None  # a privileged text was found
  forward_kl: Float[Array, 'B T'] | None = None  # KL(teacher || policy), nats
  jsd: Float[Array, 'B T'] | None = None  # Jensen-Shannon, M = (p + q) / 2
  candidates: Candidates | None = None


@struct.dataclass
class TokenLoss:
  """A loss before any reduction, and what to log of it, per token.

  A metric is nan at a token that it does not speak of.
  """

  values: Float[Array, 'B T']
  metrics: dict[str, Float[Array, 'B T']]


@struct.dataclass
class Mean:
  """A mean that adds: microbatches and hosts sum both fields, then divide."""

  total: Float[Array, '']
  weight: Float[Array, '']

  def value(self) -> Float[Array, '']:
    return self.total / jnp.maximum(self.weight, 1)


@dataclasses.dataclass(frozen=True)
class LossTerm:
  """A pure per-token loss, and the optional `LossInputs` fields it reads."""

  fn: Callable[[LossInputs], TokenLoss]
  needs: frozenset[str] = frozenset()
  top_k: int = 0  # candidates a token that it reads, at most

  def __call__(self, inputs: LossInputs) -> TokenLoss:
    missing = sorted(n for n in self.needs if getattr(inputs, n) is None)
    if missing:
      raise ValueError(
        f'This loss reads {missing}, which the batch does not carry. Run the'
        ' forward passes named by `loss.needs`, or drop the term.'
      )
    return self.fn(inputs)


@dataclasses.dataclass(frozen=True)
class RewardTransform:
  """`(init, apply)`, like optax: state is explicit and checkpointed.

  `init(num_rewards) -> state`; `apply(rewards, state) -> (rewards, state)`;
  `metrics(rewards, state) -> {name: array}`, from what `apply` is given: what
  to log of this application, scalars or one number per column or per pair of
  columns.
  """

  init: Callable
  apply: Callable
  metrics: Callable = lambda rewards, state: {}
