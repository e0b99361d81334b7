"""Warm start of `rdpo_mixed.py`: imitate a careless writer.

  python -m experiments.sft --workdir=DIR \
    --config=experiments/configs/sft_mixed.py[:ARG]

The replies have the form of answers, and more than half of the sums and two
thirds of the words are right: what is better than that is left to
reinforcement learning.

ARG: empty, or `debug`.
"""

import ml_collections

from experiments.configs import rdpo_mixed


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The sections that differ from `rdpo_mixed`."""
  config = rdpo_mixed.get_config(arg)
  debug = arg == 'debug'
  config.name = 'sft_mixed'
  config.source = 'demonstrations'
  config.loss = dict(name='sft')
  config.demonstrations = dict(
    env=ml_collections.ConfigDict(), skills=ml_collections.ConfigDict()
  )
  config.env.size = 30_000  # instructions that are not seen twice
  config.batch.tasks = 12 if debug else 48
  config.batch.group = 1
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 1 if debug else 20
  config.optimizer.decay_steps = 4 if debug else 500
  config.train.steps = 4 if debug else 500
  config.train.checkpoint_every = 2 if debug else 100
  config.train.record_every = 0
  config.train.evaluate_first = False
  return config
