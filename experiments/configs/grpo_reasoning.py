"""GRPO on questions with a verifiable answer: https://arxiv.org/abs/2402.03300.

  python -m experiments.train --workdir=DIR \
    --config=experiments/configs/grpo_reasoning.py[:ARG]

ARG: empty for the 64 sample questions that come with the project, which show
that all parts work; `debug`, the same with a tiny model; `files` for your own,
such as GSM8K or MATH: a folder with train.jsonl and test.jsonl (or .parquet) in
JAXAGENT_QUESTIONS or `--config.env.path`; or `gym` for generated tasks with
their own scorers (`pip install 'jaxagent[reasoning]'`).

All but `debug` start from SmolLM2-135M-Instruct, see `grpo.py`, and need its
memory and time; a larger model is `--config.model.init=FOLDER`.
"""

import os

import ml_collections

from experiments.configs import grpo


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The sections that differ from `grpo`; `arg` as above."""
  if arg not in ('', 'debug', 'files', 'gym'):
    raise ValueError(
      f"Unknown argument {arg!r}; choose '', 'debug', 'files' or 'gym'."
    )
  debug = arg == 'debug'
  config = grpo.get_config('debug' if debug else 'smollm2')
  config.name = f'grpo_reasoning_{arg}' if arg else 'grpo_reasoning'
  config.env = dict(
    name='questions',
    path='',  # a folder; '' is the sample
    split='train',
    question='',  # fields of the files; '' guesses
    answer='',
    instruction='Put the final answer in \\boxed{}.',
    verifier='own',  # or 'math_verify'; '' asks it where 'own' cannot tell
  )
  config.agent = dict(
    name='single_turn', system='', skills=dict(mode='none'), require_stop=True
  )
  config.loss = dict(name='grpo', kl_weight=0.01, entropy_weight=0.01)
  config.rewards = dict(
    names=('success',),
    transform=dict(name='group_normalize'),
    advantages=dict(name='episode'),
  )
  config.eval.update(splits=('test',), tasks=8 if debug else 16)
  if not debug:
    config.rollout.update(cache_lengths=(192, 256, 384), max_new=128)
  if arg == 'files':
    config.env.path = os.environ.get('JAXAGENT_QUESTIONS', 'questions')
    config.eval.tasks = 256
  if arg == 'gym':
    config.env = dict(
      name='reasoning',
      datasets=('chain_sum', 'gsm_symbolic'),
      options=dict(chain_sum=dict(max_terms=3, max_digits=2)),
      split='train',
      sizes=dict(train=2000, validation=100, test=256),
      seed=0,
    )
    config.eval.tasks = 256
  return config
