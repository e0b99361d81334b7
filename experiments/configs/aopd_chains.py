"""AOPD: a small model learns arithmetic of a larger one, arXiv 2605.06387.

  python -m experiments.sft --config=experiments/configs/sft_chains.py:teacher \
    --workdir=runs/teacher
  python -m experiments.sft --config=experiments/configs/sft_chains.py \
    --workdir=runs/student
  python -m experiments.train --config=experiments/configs/aopd_chains.py[:ARG] \
    --config.teacher.init=runs/teacher --config.model.init=runs/student/model \
    --workdir=runs/aopd

ARG: empty or `aopd`; `opd`, `exopd`, `gkd` or `seqkd`, the paper's baselines
(the student before training is SFT); `debug`, which needs no folders: its
teacher knows nothing. Ablations are fields of `config.loss`, such as
`--config.loss.tau=-0.2`, `--config.loss.location=zero` or
`--config.loss.fkl_scale=one`.
"""

import ml_collections

from experiments.configs import sdar_alfworld

_TOP_K = dict(top_k=32, fkl_scale='inv_k', renorm=False)
METHODS = {
  'aopd': dict(name='aopd', tau=0.0, location='negative', beta=1.0, **_TOP_K),
  'opd': dict(name='opd'),
  'exopd': dict(name='exopd', extrapolation=1.25),
  'gkd': dict(name='gkd', beta=0.5, **_TOP_K),
  'seqkd': dict(name='sft'),
}


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """`arg` is '', 'debug' or a method of `METHODS`."""
  if arg not in ('', 'debug', *METHODS):
    raise ValueError(
      f"Unknown argument {arg!r}; choose '', 'debug' or one of {list(METHODS)}."
    )
  debug = arg == 'debug'
  method = 'aopd' if arg in ('', 'debug') else arg
  config = sdar_alfworld.get_config('debug' if debug else '')
  config.name = f'{method}_chains'
  config.source = 'teacher_samples' if method == 'seqkd' else 'rollouts'
  config.loss = METHODS[method]
  config.reduce = 'sequence_mean'
  config.teacher = dict(
    # As model.init, or the workdir of a finished run; with its tokenizer.
    init='tiny_qwen3' if debug else '',
    dtype='',
    overrides=ml_collections.ConfigDict(),
  )
  _world(config)
  config.rewards = dict(
    names=('success',),
    transform=dict(name='combine'),  # 0 or 1: of no use but to location='wrong'
    advantages=dict(name='episode'),
  )
  config.batch.update(tasks=8 if debug else 64, group=1, teacher_extra=0)
  config.optimizer.update(
    learning_rate=3e-4,
    weight_decay=0.0,
    clip_norm=1e9,  # none: the tail of OPD's gradient is what the paper shows
  )
  config.train.update(microbatch=4 if debug else 16, teacher='external')
  config.train.evaluate_every = 0 if debug else 10
  config.eval.update(splits=('test_sum',), temperature=0.0)
  return config


def _world(config):
  config.env = dict(
    name='chains',
    split='train_sum',  # 'train_product' is the second task
    size=20_000,
    steps=4,
    modulus=11,
    rare=0.0,  # of ';' in demonstrations
    seed=0,
  )
  config.agent = dict(name='single_turn', skills=dict(mode='none'))
  config.rollout.update(cache_lengths=(40, 48), max_new=14)
