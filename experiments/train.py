"""Trains a policy by a config; run again with the same workdir to resume.

  python -m experiments.train --workdir=runs/sdar \
    --config=experiments/configs/sdar_alfworld.py --config.loss.weight=0.1
"""

from absl import app, flags
from ml_collections import config_flags

from experiments import run

_CONFIG = config_flags.DEFINE_config_file('config', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
flags.mark_flags_as_required(['config', 'workdir'])


def main(_):
  run.run(_CONFIG.value, _WORKDIR.value)


if __name__ == '__main__':
  app.run(main)
