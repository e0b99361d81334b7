"""Warm start: imitate a scripted player in household games.

  python -m experiments.sft --workdir=DIR \
    --config=experiments/configs/sft_alfworld.py[:ARG]

Every second game shows skills, which the player follows; in the others it goes
round the room from a random place. All games are played in houses where things
are kept at random places, so that what is learned is to read a skill and to
play, not where things are: that is left to reinforcement learning.

ARG: empty, or `debug`.
"""

import ml_collections

from experiments.configs import sdar_alfworld


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The run's sections that differ from `sdar_alfworld`."""
  config = sdar_alfworld.get_config(arg)
  debug = arg == 'debug'
  config.name = 'sft_alfworld'
  config.source = 'demonstrations'
  config.loss = dict(name='sft')
  config.demonstrations = dict(
    env=dict(homes='random'),
    skills=dict(strategy='keyword'),
    recipe='known',  # 'unknown': without a skill the player has to guess
  )
  config.env.size = 100_000
  config.batch.tasks = 8 if debug else 32
  config.batch.group = 1
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_steps = 1 if debug else 20
  config.optimizer.decay_steps = 4 if debug else 600
  config.train.steps = 4 if debug else 600
  config.train.checkpoint_every = 2 if debug else 100
  config.train.record_every = 0
  config.train.evaluate_first = False
  config.eval.splits = ('seen',) if debug else ('seen', 'seen+skills')
  return config
