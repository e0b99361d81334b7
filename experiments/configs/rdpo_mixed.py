"""RDPO on tasks with different rewards: https://arxiv.org/abs/2605.13641.

  python -m experiments.train --workdir=DIR \
    --config=experiments/configs/rdpo_mixed.py[:ARG]

Sums, instructions and both in one run (`jaxagent/envs/mixed.py`): each has its
own set of the four rewards. Start from a policy that can write a reply:
`--config.model.init=FOLDER`, made by `sft_mixed.py`. An update takes half a
second on a CPU core; `experiments/claims/rdpo.py` reports what to expect.

ARG: empty, or `debug`.
The baselines, on the same run: `--config.rewards.transform.name=` gdpo,
quantile or whitening; for GRPO group_normalize. Options of the parts go into
`config.rewards.transform.quantile` and `.whitening` in this file.
Rewards of unequal scale: `--config.env.scales.length=10`. How much style
repeats another reward: `--config.env.rho=0.95`.
"""

import ml_collections

from experiments.configs import sdar_alfworld


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The sections that differ from `sdar_alfworld`."""
  if arg not in ('', 'debug'):
    raise ValueError(f"Unknown argument {arg!r}; choose '' or 'debug'.")
  debug = arg == 'debug'
  config = sdar_alfworld.get_config(arg)
  config.name = 'rdpo_mixed'
  config.env = dict(
    name='mixed',
    split='train',
    size=240,
    largest=9,
    kinds=('sum', 'instruction', 'both'),
    seed=0,
    target=3.0,  # words
    rho=0.8,
    scales=dict(length=1.0),
  )
  config.agent = dict(
    name='single_turn',
    require_stop=not debug,  # without a warm start hardly any reply stops
    skills=dict(mode='none'),
  )
  config.rollout.update(cache_lengths=(32, 48), max_new=12)
  config.loss = dict(name='grpo', kl_weight=0.0)
  config.rewards = dict(
    names=('correct', 'length', 'constraints', 'style'),
    transform=dict(
      name='rdpo',
      # A wrong sum is not to be short or pretty, nor a list beside the point.
      caps=() if debug else ((0, 1), (0, 3), (2, 3)),
    ),
    advantages=dict(name='episode'),
  )
  config.batch.update(tasks=3 if debug else 9, group=4 if debug else 8)
  config.optimizer.learning_rate = 2e-4
  config.train.update(steps=4 if debug else 150, microbatch=12)
  config.eval.update(splits=('test',), tasks=9 if debug else 240)
  return config
