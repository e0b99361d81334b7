"""Warm start from a scripted player: `train.py` with another default config.

python -m experiments.sft --workdir=runs/sft
"""

from absl import app, flags
from ml_collections import config_flags

from experiments import run

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  str(run.ROOT / 'experiments/configs/sft_alfworld.py'),
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
flags.mark_flag_as_required('workdir')


def main(_):
  run.run(_CONFIG.value, _WORKDIR.value)


if __name__ == '__main__':
  app.run(main)
