"""AOPD with real weights: SmolLM2-135M learns sums of a specialist of its size.

  python -m experiments.sft --config=experiments/configs/aopd_smollm2.py:teacher \
    --workdir=runs/specialist
  python -m experiments.train --config=experiments/configs/aopd_smollm2.py \
    --config.teacher.init=runs/specialist --workdir=runs/aopd_smollm2

The specialist is SmolLM2-135M-Instruct after it imitated right answers; the
student is the same model as it was published. See `grpo.py` for where to get
it, and what it wants: 6 GB of memory here, and on one CPU core a minute an
update.

ARG: empty or `aopd`; `opd`, `exopd` or `gkd`, see `aopd_chains.py`; `teacher`;
`debug`, the parts with tiny models that know nothing.
"""

import ml_collections

from experiments.configs import aopd_chains, grpo


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """`arg` is '', 'teacher', 'debug' or a method of `aopd_chains.METHODS`."""
  methods = [name for name in aopd_chains.METHODS if name != 'seqkd']
  if arg not in ('', 'teacher', 'debug', *methods):
    raise ValueError(
      f"Unknown argument {arg!r}; choose '', 'teacher', 'debug' or one of"
      f' {methods}.'
    )
  debug = arg == 'debug'
  config = grpo.get_config('smollm2')
  config.env.largest = 20
  config.reduce = 'sequence_mean'
  config.rollout.update(cache_lengths=(64,), max_new=16)
  config.train.update(microbatch=8, checkpoint_every=20, record_every=0)
  config.eval.tasks = 64
  if arg == 'teacher':
    config.name = 'sft_smollm2'
    config.source = 'answers'
    config.loss = dict(name='sft')
    config.batch.update(tasks=16, group=1)
    config.train.steps = 40
    return config
  method = 'aopd' if arg in ('', 'debug') else arg
  config.name = f'{method}_smollm2'
  config.loss = aopd_chains.METHODS[method]
  config.teacher = dict(
    init='', dtype='float32', overrides=ml_collections.ConfigDict()
  )
  config.rollout.temperature = 1.0
  config.rewards.transform = dict(name='combine')
  config.batch.update(tasks=32, group=1, teacher_extra=0)
  config.train.update(steps=20, teacher='external', evaluate_every=5)
  if debug:
    config.model.init, config.tokenizer = 'debug', 'household'
    config.teacher.init = 'tiny_qwen3'
    config.rollout.update(slots=8, cache_lengths=(64, 96), chunk=16)
    config.batch.tasks = 8
    config.eval.tasks = 8
    config.train.update(steps=4, checkpoint_every=2, evaluate_every=0)
  return config
