"""Trains one sequence model on arrays: the inner loop of `claims.fg2_gdn`."""

from collections.abc import Callable, Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.claims import recall
from jaxagent.models import policy as policy_lib
from jaxagent.training import metrics
from jaxagent.training import state as train_state


class Score(NamedTuple):
  """Over all positions that are asked for."""

  accuracy: float
  loss: float  # nats a position


def train(
  policy: policy_lib.Policy,
  batches: Callable[[int], recall.Batch],
  held_out: Mapping[str, list[recall.Batch]],
  *,
  steps: int,
  learning_rate: float,
  seed: int,
  evaluations: int = 10,
  weight_decay: float = 0.1,
  label: str = 'train',
) -> dict[str, Any]:
  """AdamW with a tenth of warm-up and a cosine to a tenth.

  Args:
    policy: the model.
    batches: the batch of a step; all rows of a batch ask at equally many
      positions. A program is compiled for each number of them.
    held_out: name -> batches that are scored.
    steps: updates.
    learning_rate: at its highest.
    seed: of the initial parameters.
    evaluations: how often the curve of the first of `held_out` is taken.
    weight_decay: decoupled.
    label: of the progress bar.

  Returns:
    `curve`: [(step, accuracy, loss)] of the first held-out set, and under each
    name of `held_out` the final `Score` as a dict. A run whose loss stops being
    finite ends there, with `diverged` set and the scores it has.
  """
  params = policy.init(jax.random.key(seed))

  def scores(name):
    values = [_score(policy, params, *_asked(b)) for b in held_out[name]]
    return Score(*np.mean(np.asarray(values, np.float64), axis=0).tolist())

  optimizer = _optimizer(steps, weight_decay)
  state = optimizer.init(params)
  first = next(iter(held_out))
  curve, diverged = [], False
  with metrics.progress(steps, label=label, every=25) as advance:
    for step in range(steps):
      params, state = _update(
        policy, optimizer, params, state, *_asked(batches(step)), learning_rate
      )
      if (step + 1) % max(steps // evaluations, 1) == 0:
        got = scores(first)
        curve.append((step + 1, *got))
        diverged = not np.isfinite(got.loss)
        advance(
          step + 1 - (curve[-2][0] if len(curve) > 1 else 0), **got._asdict()
        )
      if diverged:
        break
  return {
    'curve': curve,
    'diverged': bool(diverged),
    **{name: scores(name)._asdict() for name in held_out},
  }


@functools.cache
def _optimizer(steps, weight_decay):
  """The optimizer at a learning rate of 1: a change of AdamW is linear in it.

  So that one program serves a whole sweep.
  """
  return train_state.optimizer(
    learning_rate=1.0,
    warmup_steps=max(steps // 10, 1),
    decay_steps=steps,
    weight_decay=weight_decay,
  )


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _update(policy, optimizer, params, state, batch, where, learning_rate):
  gradients, _ = jax.grad(_loss, has_aux=True)(params, policy, batch, where)
  with jax.numpy_dtype_promotion('standard'):  # optax: floats to counts
    changes, state = optimizer.update(gradients, state, params)
    changes = jax.tree.map(lambda x: learning_rate * x, changes)
  return optax.apply_updates(params, changes), state


@functools.partial(jax.jit, static_argnums=0)
def _score(policy, params, batch, where):
  loss, right = _loss(params, policy, batch, where)
  return right.mean(), loss


def _loss(params, policy, batch, where):
  """Mean cross-entropy where asked, and which answers are right."""
  hidden = policy.apply(params, batch.tokens)
  hidden = jnp.take_along_axis(hidden, where[..., None], axis=1)
  targets = jnp.take_along_axis(batch.targets, where, axis=1)
  logits = (hidden @ policy.unembed(params)).astype(jnp.float32)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  return loss.mean(), logits.argmax(-1) == targets


def _asked(batch):
  """The batch, and the positions [B, N] at which something is asked."""
  rows, where = np.nonzero(batch.targets >= 0)
  counts = np.bincount(rows, minlength=len(batch.tokens))
  if len(set(counts.tolist())) != 1:
    raise ValueError(
      f'Rows ask at {sorted(set(counts.tolist()))} positions; all rows of a'
      ' batch have to ask at equally many.'
    )
  return batch, where.reshape(len(batch.tokens), -1).astype(np.int32)
