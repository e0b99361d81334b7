"""SDAR in a household text world: https://arxiv.org/abs/2605.15155.

  python -m experiments.train --workdir=DIR \
    --config=experiments/configs/sdar_alfworld.py[:ARG]

Start from a policy that can read a skill: `--config.model.init=FOLDER`, made by
`sft_alfworld.py`; `make quickstart` does both. On two CPU cores an update takes
about a second; `experiments/claims/sdar.py` reports what to expect.

ARG: empty, or `debug` (a few updates of a tiny model; for tests).
Real games: `--config.env.source=folder --config.env.path=$ALFWORLD_DATA
--config.env.split=train --config.eval.splits="('valid_seen',)"`.
A real model: `--config.model.init=FOLDER --config.tokenizer=model
--config.agent.style=instruct`, larger `rollout.cache_lengths` and `max_new`.
"""

import ml_collections


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The paper's table, at laptop size; `arg` is '' or 'debug'."""
  if arg not in ('', 'debug'):
    raise ValueError(f"Unknown argument {arg!r}; choose '' or 'debug'.")
  debug = arg == 'debug'
  config = ml_collections.ConfigDict()
  config.name = 'sdar_alfworld'
  config.seed = 0
  config.source = 'rollouts'  # or 'demonstrations'
  _policy(config, debug)
  _world(config)
  _learning(config, debug)
  config.eval = dict(
    # '+skills' shows the policy the skills.
    splits=('seen',) if debug else ('seen', 'unseen', 'seen+skills'),
    tasks=8 if debug else 256,
    repeats=1,
    temperature=0.4,
    seed=0,
  )
  config.mesh = dict(data=1, fsdp=1, tensor=1)  # data=0: all devices
  return config


def _policy(config, debug):
  config.model = dict(
    # A preset of `models.config.PRESETS`, a Hugging Face folder, a GGUF file.
    init='debug' if debug else 'tiny_qwen3',
    dtype='',  # of computation; '' is the checkpoint's or the preset's
    overrides=ml_collections.ConfigDict(),  # fields of a preset
    scan=False,  # compile one layer and loop; for many layers
    remat=False,  # compute the layers again backward; for large ones
  )
  config.tokenizer = 'household'  # or 'model', or a folder
  config.rollout = dict(
    slots=8 if debug else 64,
    cache_lengths=(192, 320) if debug else (128, 192, 256, 320),
    max_new=16,
    chunk=16,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    driver='python',
    timeout=0.0,  # seconds an environment may take for a step; 0 is no limit
  )


def _world(config):
  config.env = dict(
    name='alfworld',
    source='generated',  # or 'folder', 'packed', 'engine'
    path='',
    split='train',
    size=2000,  # games of a generated split
    seed=0,
    homes='true',
    receptacles=5,  # places a room has at most
    things=(1, 3),  # beside those of the goal
  )
  config.agent = dict(
    name='react',
    max_turns=10,
    style='compact',
    rows='episode',
    history=2,
    skills=dict(mode='privileged', strategy='keyword', limit=2, homes=True),
  )


def _learning(config, debug):
  config.loss = dict(
    name='sdar', weight=0.01, beta=5.0, kl_weight=0.01, entropy_weight=0.01
  )
  config.reduce = 'token_mean'
  config.rewards = dict(
    names=('success', 'invalid'),
    transform=dict(name='group_normalize', weights=(10.0, -0.1)),
    advantages=dict(name='episode'),
  )
  config.batch = dict(
    tasks=2 if debug else 8,
    group=4 if debug else 8,
    teacher_extra=64,  # tokens that the skill block may add
    chunk=256,  # action tokens that meet the vocabulary at once
  )
  config.optimizer = dict(
    learning_rate=4e-4,
    warmup_steps=0,
    decay_steps=0,
    b1=0.9,
    b2=0.95,
    weight_decay=0.01,
    clip_norm=1.0,
  )
  config.train = dict(
    steps=4 if debug else 100,
    microbatch=8,  # rows; on CPU small ones stay in the cache
    minibatches=1,
    evaluate_every=0,
    evaluate_first=True,
    checkpoint_every=2 if debug else 10,
    record_every=2 if debug else 25,
    teacher='self',  # or 'initial', or 'external', see aopd_chains.py
  )
