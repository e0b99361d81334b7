"""What reward transforms make of rewards whose quality is known; no model.

A reply has three independent aspects u ~ N(0, 1); two of the rewards show one
each, and one follows another by `rho`:
  z_1 = u_1,   z_2 = rho u_1 + sqrt(1 - rho^2) u_2,   z_3 = u_3
Every prompt shifts its rewards by its difficulty, and reward 1 is distorted:
  r_1 = scale g(z_1 + d_1),   r_2 = z_2 + d_2,   r_3 = z_3 + d_3
with g(x) = x exp(h x^2 / 2), whose tails grow with h, or the indicator of a
rare success. A dial turns one of these from harmless to severe.

How good an advantage is, over the rows of a batch:
  aspects       its correlation with u_1 + u_2 + u_3: each counts once
  rewards       its correlation with z_1 + z_2 + z_3: each reward counts once
  first         the share of its variance that u_1 explains; 1/3 is even
  wrong_order   among pairs of a group of which one is better in every reward,
                the share in which it gets the lower advantage
and `participation`, `domination`, `eta_proj`, `eta_corr` and `min_weight` of
`jaxagent.rewards.diagnostics` and `whitening`.
"""

from collections.abc import Mapping, Sequence
import functools
import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxagent import rewards as rewards_lib
from jaxagent import types
from jaxagent.rewards import base, diagnostics, recipes, whitening
from jaxagent.training import metrics

PROMPTS, GROUP, REWARDS = 16, 8, 3
BATCHES, MEASURED = 30, 20  # the last are measured: covariances are learned
SEEDS = 10


class World(NamedTuple):
  """How rewards are made.

  Attributes:
    tail: h of reward 1.
    rho: how much reward 2 follows aspect 1.
    scale: of reward 1 beside the others.
    success: share of replies with reward 1, which then is 0 or 1; 0 leaves it
      continuous.
  """

  tail: float = 0.0
  rho: float = 0.0
  scale: float = 1.0
  success: float = 0.0


# dial -> (what it is, label -> world), from harmless to severe.
DIALS: dict[str, tuple[str, dict[str, World]]] = {
  'tail': (
    'tails of reward 1, h',
    {f'{h:g}': World(tail=h) for h in (0.0, 0.25, 0.5, 1.0, 2.0)},
  ),
  'rho': (
    'correlation of rewards 1 and 2',
    {f'{r:g}': World(rho=r) for r in (0.0, 0.3, 0.6, 0.8, 0.95)},
  ),
  'scale': (
    'scale of reward 1',
    {f'{s:g}': World(scale=s) for s in (1.0, 3.0, 10.0, 30.0)},
  ),
  'success': (
    'share of successes in reward 1',
    {f'{p:g}': World(success=p) for p in (0.5, 0.25, 0.1, 0.05)},
  ),
  'together': (
    'h, correlation and scale at once',
    {
      f'{x:g}, {0.9 * x:g}, {10**x:.3g}': World(x, 0.9 * x, 10**x)
      for x in (0.0, 0.25, 0.5, 1.0)
    },
  ),
}


class Sample(NamedTuple):
  """Batches of rewards and what is behind them; rows of a prompt are adjacent."""

  rewards: np.ndarray  # f32[T, B, R]
  aspects: np.ndarray  # f64[T, B, R]
  latent: np.ndarray  # f64[T, B, R], z


def sample(world: World, seed: int) -> Sample:
  """Batches of a world, `T = BATCHES` and `B = PROMPTS * GROUP`.

  Worlds share aspects and difficulties, so that they differ by the dial alone.
  """
  rng = np.random.default_rng(seed)
  shape = (BATCHES, PROMPTS, GROUP, REWARDS)
  aspects = rng.normal(size=shape)
  difficulty = rng.normal(size=(BATCHES, PROMPTS, 1, REWARDS))
  latent = aspects.copy()
  own = np.sqrt(1 - world.rho**2)
  latent[..., 1] = world.rho * aspects[..., 0] + own * aspects[..., 1]
  found = latent + difficulty
  first = found[..., 0]
  if world.success:
    # z + d has the variance 2.
    first = first > np.sqrt(2) * stats.norm.ppf(1 - world.success)
  else:
    first = first * np.exp(world.tail * first**2 / 2)
  found[..., 0] = world.scale * first

  def rows(x):
    return x.reshape(BATCHES, PROMPTS * GROUP, REWARDS)

  return Sample(rows(found).astype(np.float32), rows(aspects), rows(latent))


@functools.partial(jax.jit, static_argnums=0)
def advantages(
  transform: types.RewardTransform, values: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Applies a transform to batch after batch, as training does.

  Args:
    transform: to one column.
    values: f32[S, T, B, R] for S seeds; groups are `GROUP` adjacent rows.

  Returns:
    f32[S, T, B], and the transform's metrics, `[S, T, ...]` each.
  """
  rows, columns = values.shape[2:]
  index = jnp.arange(rows)
  blank = types.Rewards(
    values=values[0, 0],
    active=jnp.ones((rows, columns), bool),
    group=index // GROUP,
    episode=index,
    part=jnp.zeros_like(index),
  )

  def step(state, batch):
    out, state, found = diagnostics.observe(
      transform, blank.replace(values=batch), state
    )
    return state, (out.values[:, 0], found)

  def one(batches):
    return jax.lax.scan(step, transform.init(columns), batches)[1]

  return jax.vmap(one)(values)


def measured(
  transform: types.RewardTransform, samples: Sequence[Sample]
) -> dict[str, list[float]]:
  """The numbers of the module's docstring: name -> one value a sample."""
  values = jnp.asarray(np.stack([made.rewards for made in samples]))
  found = jax.tree.map(np.asarray, advantages(transform, values))
  rows = [
    measure(*jax.tree.map(lambda x, s=s: x[s], found), made)
    for s, made in enumerate(samples)
  ]
  return {name: [row[name] for row in rows] for name in rows[0]}


def measure(
  advantage: np.ndarray, found: Mapping[str, np.ndarray], made: Sample
) -> dict[str, float]:
  """The numbers of one sample, means over the last batches.

  Args:
    advantage: [T, B].
    found: metrics of the transform, `[T, ...]`.
    made: the batches.
  """
  late = slice(-MEASURED, None)
  rows = []
  for a, u, z, r in zip(
    advantage[late], made.aspects[late], made.latent[late], made.rewards[late],
    strict=True,
  ):  # fmt: skip
    rows.append(
      (
        _correlation(a, u.sum(1)),
        _correlation(a, z.sum(1)),
        _correlation(a, u[:, 0]) ** 2,
        _wrong_order(a, r),
      )
    )
  names = ('aspects', 'rewards', 'first', 'wrong_order')
  means = dict(zip(names, np.mean(rows, axis=0), strict=True))
  means |= {
    key.rsplit('/', 1)[-1]: np.mean(np.asarray(value, float)[late])
    for key, value in found.items()
    if value.ndim == 1
    and key.startswith(('scores/', 'summed/', 'whitening/min_weight'))
  }
  return {name: round(float(x), 5) for name, x in means.items()}


def _correlation(x, y):
  return np.corrcoef(x, y)[0, 1] if np.ptp(x) > 0 else 0.0


def _wrong_order(advantage, rewards):
  a = advantage.reshape(-1, GROUP)
  r = rewards.reshape(-1, GROUP, rewards.shape[1])
  gap = r[:, :, None] - r[:, None]  # of every pair
  better = (gap >= 0).all(-1) & (gap > 0).any(-1)
  lower = a[:, :, None] - a[:, None] < -1e-5
  return (better & lower).sum() / max(better.sum(), 1)


# What is wrong with the literal root: a weight below 0.
STRESSES = {
  # Scores of unequal variance, given as they are.
  'variances 4 and 1, rho = 0.95': ((4.0, 1.9), (1.9, 1.0)),
  # Rewards of a task, through whole recipes.
  'a reward that follows two others': (
    (1.0, 0.85, 0.45), (0.85, 1.0, 0.85), (0.45, 0.85, 1.0)
  ),
}  # fmt: skip


def correlated(covariance: Sequence, seed: int) -> Sample:
  """Rewards of a covariance; no prompt is harder than another."""
  rng = np.random.default_rng(seed)
  aspects = rng.normal(size=(BATCHES, PROMPTS * GROUP, len(covariance)))
  rewards = aspects @ np.linalg.cholesky(np.asarray(covariance)).T
  latent = rewards / np.sqrt(np.diag(covariance))
  return Sample(rewards.astype(np.float32), aspects, latent)


def balanced(seed: int, *, isotropic: bool) -> np.ndarray:
  """f32[T, B, R] of rewards that are 1 in one half of a group, else 0.

  Args:
    seed: of the order.
    isotropic: a group has every combination once, so that rewards are
      uncorrelated to the bit; else each reward is dealt by itself.
  """
  rng = np.random.default_rng(seed)
  group = np.arange(GROUP)[:, None] >> np.arange(REWARDS) & 1
  groups = np.tile(group, (BATCHES * PROMPTS, 1, 1)).astype(np.float32)
  if isotropic:
    groups = np.stack([rng.permutation(group) for group in groups])
  else:
    groups = rng.permuted(groups, axis=1)
  return groups.reshape(BATCHES, PROMPTS * GROUP, REWARDS)


def run(
  arms: Mapping[str, Mapping], folder: pathlib.Path, seeds: int = SEEDS
) -> None:
  """Measures what is not in the folder yet, one file a dial or check.

  Args:
    arms: name -> config of a reward transform; with 'gdpo' and 'rdpo'.
    folder: of the results. `DIAL.json` and `stress.json` have {where: {arm:
      {measure: [a value a seed]}}}, `control.json` {case: [the largest
      difference of RDPO's advantages from GDPO's, a value a seed]}.
    seeds: how many.
  """
  # Built once: a program is compiled for each.
  transforms = {a: rewards_lib.from_config(c) for a, c in arms.items()}
  parts = {
    **{dial: functools.partial(_dial, dial) for dial in DIALS},
    'stress': _stress,
    'control': _control,
  }
  folder.mkdir(parents=True, exist_ok=True)
  with metrics.progress(len(parts), label='synthetic', every=1) as advance:
    for name, part in parts.items():
      path = folder / f'{name}.json'
      if not path.exists():
        path.write_text(json.dumps(part(transforms, range(seeds))))
      advance()


def _dial(dial, transforms, seeds):
  result = {}
  for label, world in DIALS[dial][1].items():
    made = [sample(world, seed) for seed in seeds]
    result[label] = {a: measured(t, made) for a, t in transforms.items()}
  return result


def _stress(transforms, seeds):
  whiten = whitening.mahalanobis_whiten
  rest = (base.combine(), base.batch_normalize())
  given = {
    'sum': base.chain(*rest),
    'whitened': base.chain(whiten(), *rest),
    'whitened, guarded': base.chain(whiten(guard_sign=True), *rest),
  }
  guarded = {'whitening': {'guard_sign': True}}
  whole = transforms | {
    'whitening, guarded': recipes.whitening(**guarded),
    'rdpo, guarded': recipes.rdpo(**guarded),
  }
  result = {}
  for name, arms in zip(STRESSES, (given, whole), strict=True):
    made = [correlated(STRESSES[name], seed) for seed in seeds]
    result[name] = {a: measured(t, made) for a, t in arms.items()}
  return result


def _control(transforms, seeds):
  result = {}
  for name in ('isotropic', 'by chance'):
    values = jnp.asarray(
      np.stack([balanced(s, isotropic=name == 'isotropic') for s in seeds])
    )
    ours, theirs = (
      np.asarray(advantages(transforms[arm], values)[0])[:, -MEASURED:]
      for arm in ('rdpo', 'gdpo')
    )
    result[name] = np.abs(ours - theirs).max((1, 2)).tolist()
  return result
