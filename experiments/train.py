"""Trains a policy by a config; run again with the same workdir to resume.

  python -m experiments.train --workdir=runs/sdar \
    --config=experiments/configs/sdar_alfworld.py --config.loss.weight=0.1

On several hosts start it once on each, with `--distributed` where JAX finds the
others by itself (TPU pods, Slurm), else with `--coordinator=HOST:PORT`,
`--num_processes` and `--process_id`; and `--config.mesh.data=0`.
"""

from absl import app, flags
import jax
from ml_collections import config_flags

from experiments import run

_CONFIG = config_flags.DEFINE_config_file('config', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'Find the other hosts.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'HOST:PORT of host 0.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Of all hosts.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Of this host.')
flags.mark_flags_as_required(['config', 'workdir'])


def main(_):
  if _COORDINATOR.value:
    jax.distributed.initialize(
      _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    )
  elif _DISTRIBUTED.value:
    jax.distributed.initialize()
  run.run(_CONFIG.value, _WORKDIR.value)


if __name__ == '__main__':
  app.run(main)
