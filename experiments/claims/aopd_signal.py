"""What the first gradients of OPD and AOPD are made of, without a step taken.

AOPD's paper (arXiv 2605.06387) names three weaknesses of OPD, each measured
here on rows that a student samples and its teacher reads:

  noise  the negative advantages are heavy-tailed, and so is their gradient
  zero   where the advantage vanishes nothing is learned, though the teacher's
         distribution may still differ
  hole   a token that the student ignores gets no probability back
"""

import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import jax
from jax import flatten_util
import jax.numpy as jnp
import ml_collections
import numpy as np
from scipy import stats

from experiments import run
from experiments.claims import runs
from jaxagent import losses, types
from jaxagent.envs import chains
from jaxagent.losses import base, on_policy_distillation
from jaxagent.training import build, loop, metrics
from jaxagent.training import update as update_lib

BATCHES = 24
NEAR = 0.05  # nats: an advantage as good as none
LIKED = 0.3  # a teacher that gives ';' this much is at a separator
_GATE = on_policy_distillation.imitation_gate()
_OPD = on_policy_distillation.opd()
_NEGATIVE = base.gate(_OPD, _GATE)
_KL = on_policy_distillation.forward_kl_top_k
# Whose gradients are looked at. AOPD is OPD's positive part, with a forward KL
# in the place of the negative one.
TERMS = {
  'OPD': _OPD,
  'OPD, A > 0': base.add(all=_OPD, less=base.scale(_NEGATIVE, -1.0)),
  'OPD, A <= 0': _NEGATIVE,
  'forward KL, A <= 0': base.gate(_KL(fkl_scale='one'), _GATE),
  'AOPD': losses.from_config({'name': 'aopd'}),
  'AOPD without 1/K': losses.from_config({'name': 'aopd', 'fkl_scale': 'one'}),
  'GKD': losses.from_config({'name': 'gkd'}),
}


def hole(token: int) -> types.LossTerm:
  """`-log P_S(token)` where the teacher likes the token: 0 elsewhere."""

  def fn(x):
    at = (x.candidates.ids == token) & (
      x.candidates.teacher_logprobs >= np.log(LIKED)
    )
    value = -jnp.sum(jnp.where(at, x.candidates.logprobs, 0), axis=-1)
    return types.TokenLoss(value, {'at': jnp.any(at, axis=-1).astype(float)})

  return base.term(fn, {'candidates'}, top_k=32)


class _Rows(NamedTuple):
  """Rows in microbatches, and what the teacher says about them."""

  batch: update_lib.Batch
  fixed: update_lib.Fixed
  head: Any
  budget: int


def record(
  path: pathlib.Path,
  config: ml_collections.ConfigDict,
  *,
  batches: int = BATCHES,
  **about,
) -> pathlib.Path:
  """Measures a student and its teacher, and writes a file.

  Args:
    path: of the result, JSON.
    config: of a run of `aopd_chains.py`; its student is not trained.
    batches: how many to sample.
    **about: what the result is of.
  """
  setup = build.from_config(config.to_dict())
  (token,) = setup.tokenizer.encode(chains.RARE)
  everything = base.add(
    hole=hole(token),
    kl=base.term(lambda x: types.TokenLoss(x.forward_kl, {}), {'forward_kl'}),
    opd=_OPD,
  )
  passes = dataclasses.replace(setup.passes, loss=everything)
  rows = [_rows(setup, passes, index) for index in range(batches)]
  found = {
    name: gradients(setup, term, rows, label=name)
    for name, term in {**TERMS, 'hole': hole(token)}.items()
  }
  up = -found.pop('hole').mean(0)  # raises the token's log-probability
  result = {
    **about,
    'terms': {
      name: {**noise(g), 'towards_hole': _cosine(-g.mean(0), up)}
      for name, g in found.items()
    },
    **_tokens(setup, passes, rows),
    'rows': batches * config.batch.tasks,
    **run.circumstances(),
  }
  return runs.write(path, result)


def _rows(setup, passes, index):
  trajectory = setup.source.next(setup.params, index).trajectory
  nothing = np.zeros(trajectory.tokens.shape, np.float32)
  batch = update_lib.microbatches(
    trajectory, nothing, setup.schedule.microbatch
  )
  budget = loop.budget_of(batch.mask)
  fixed = passes.fixed(setup.teacher_params, setup.params, batch, budget)
  return _Rows(
    batch, fixed, passes.unembed_teacher(setup.teacher_params), budget
  )


def gradients(setup, term, rows, *, label):
  """f32[batches, parameters]: the gradient of each batch."""
  passes = dataclasses.replace(setup.passes, loss=term)
  gradient = jax.jit(
    update_lib.make_gradient(passes, setup.reduce), static_argnums=5
  )
  out = []
  with metrics.progress(len(rows), label=label) as bar:
    for batch, fixed, head, budget in rows:
      found, _ = gradient(setup.params, batch, fixed, 0, head, budget)
      out.append(np.asarray(flatten_util.ravel_pytree(found)[0]))
      bar()
  return np.stack(out)


def noise(gradients):
  """Size of the mean gradient, and of what one batch adds to it.

  The squared norm of a mean of n has the noise of one batch over n in it.
  """
  n = len(gradients)
  variance = float(np.sum(gradients.var(0, ddof=1)))
  squared = float(np.sum(gradients.mean(0) ** 2)) - variance / n
  norms = np.linalg.norm(gradients, axis=1)
  return {
    'signal': max(squared, 0.0) ** 0.5,
    'noise': variance**0.5,
    'noise_over_signal': (variance / squared) ** 0.5 if squared > 0 else None,
    'largest_over_median_norm': float(norms.max() / np.median(norms)),
  }


def _cosine(a, b):
  """None where one of them is 0."""
  norms = np.linalg.norm(a) * np.linalg.norm(b)
  return float(a @ b / norms) if norms else None


def _tokens(setup, passes, rows):
  """Advantages, forward KLs and the hole, over the tokens of all rows."""

  @functools.partial(jax.jit, static_argnums=3)
  def look(batch, fixed, head, budget):
    def one(xs):
      step = jnp.zeros((), jnp.int32)
      inputs = passes.inputs(setup.params, *xs, step, budget, head)
      found = passes.loss(inputs).metrics
      return (
        found['opd/gap'],
        found['kl/loss'],
        found['hole/at'],
        (found['hole/loss']),
      )

    return jax.lax.map(one, (batch, fixed))

  seen = [
    [np.asarray(x)[np.asarray(r.batch.mask)] for x in look(*r)] for r in rows
  ]
  gap, kl, at, nll = map(np.concatenate, zip(*seen, strict=True))
  near, at = np.abs(gap) < NEAR, at > 0.5
  negative = gap <= 0
  return {
    'tokens': len(gap),
    'advantage': {
      'negative_share': float(negative.mean()),
      'negative_share_of_squares': float(
        (gap[negative] ** 2).sum() / (gap**2).sum()
      ),
      'excess_kurtosis': float(stats.kurtosis(gap)),
      'quantiles': {
        f'{q:g}': float(np.quantile(gap, q))
        for q in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
      },
    },
    'zero': {
      'share': float(near.mean()),
      'share_of_forward_kl': float(kl[near].sum() / kl.sum()),
      'mean_forward_kl': float(kl[near].mean()) if near.any() else 0.0,
      'share_of_advantage': float(np.abs(gap[near]).sum() / np.abs(gap).sum()),
    },
    'hole': {
      'positions': int(at.sum()),
      'geometric_mean_probability': float(np.exp(-nll[at].mean()))
      if at.any()
      else None,
    },
  }
