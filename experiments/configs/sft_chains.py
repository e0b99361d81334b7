"""Teacher and student of `aopd_chains.py`: both imitate right answers.

  python -m experiments.sft --workdir=DIR \
    --config=experiments/configs/sft_chains.py[:ARG]

ARG: empty for the student (2 layers of width 96), `teacher` (3 of 128), or
`debug`. How well a student starts is a matter of `--config.train.steps`.
"""

import ml_collections

from experiments.configs import aopd_chains


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """`arg` is '', 'teacher' or 'debug'."""
  if arg not in ('', 'teacher', 'debug'):
    raise ValueError(
      f"Unknown argument {arg!r}; choose '', 'teacher' or 'debug'."
    )
  debug, teacher = arg == 'debug', arg == 'teacher'
  config = aopd_chains.get_config('debug' if debug else '')
  config.name = 'sft_chains_teacher' if teacher else 'sft_chains'
  config.source = 'demonstrations'
  config.demonstrations = dict(
    env=ml_collections.ConfigDict(), skills=ml_collections.ConfigDict()
  )
  config.env.split = 'train'  # both tasks
  config.env.size = 200_000
  config.env.rare = 0.7 if teacher else 0.0
  config.eval.splits = ('test_sum', 'test_product')
  config.loss = dict(name='sft')
  del config.teacher
  if not debug:
    wide = dict(layers=3, hidden=128, heads=4, kv_heads=2, intermediate=384)
    small = dict(layers=2, hidden=96, heads=3, kv_heads=1, intermediate=256)
    config.model.overrides = wide if teacher else small
  steps = 4 if debug else 1000 if teacher else 400
  config.optimizer.update(
    learning_rate=2e-3, warmup_steps=steps // 20, decay_steps=steps
  )
  config.optimizer.clip_norm = 1.0
  config.train.update(
    steps=steps,
    teacher='self',
    evaluate_every=0,
    evaluate_first=False,
    checkpoint_every=2 if debug else 200,
    record_every=0,
  )
  return config
