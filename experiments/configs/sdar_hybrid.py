"""SDAR with a hybrid policy: FG2-GDN layers and attention, three to one.

  python -m experiments.train --workdir=DIR \
    --config=experiments/configs/sdar_hybrid.py[:debug]

`sdar_alfworld.py` with another model and nothing else: the rollouts keep a
memory for each gated delta layer (https://arxiv.org/abs/2604.19021) next to the
caches of attention. For a warm start run `sft_alfworld.py` with
`--config.model.init=tiny_hybrid` first, and give its folder here as
`--config.model.init=FOLDER`. A larger one: `hybrid-1.3b` among the presets.
"""

import ml_collections

from experiments.configs import sdar_alfworld


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """`arg` is '' or 'debug'."""
  config = sdar_alfworld.get_config(arg)
  config.name = 'sdar_hybrid'
  config.model.init = 'debug_hybrid' if arg == 'debug' else 'tiny_hybrid'
  return config
