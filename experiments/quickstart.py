"""The main job from nothing: warm start, then SDAR, in household games.

  python -m experiments.quickstart --workdir=runs/quickstart

Run again to go on where it stopped.
"""

import json
import pathlib
import time

from absl import app, flags

from experiments import run
from experiments.configs import sdar_alfworld, sft_alfworld
from jaxagent.report import markdown
from jaxagent.training import metrics

_WORKDIR = flags.DEFINE_string(
  'workdir',
  'runs/quickstart',
  'Folder for both runs.',
  allow_override=True,  # other scripts have one too, and tests import several
)
_ARG = flags.DEFINE_string('arg', '', "'debug' for a run of seconds.")


def quickstart(workdir: pathlib.Path, arg: str = '') -> dict:
  """Runs both stages and says what came of it.

  Args:
    workdir: gets a folder for each stage.
    arg: of the configs.

  Returns:
    `{'before': ..., 'after': ...}` by split, of the second stage.
  """
  began = time.time()
  model = run.run(sft_alfworld.get_config(arg), workdir / 'sft')
  config = sdar_alfworld.get_config(arg)
  config.model.init = str(model)
  config.tokenizer = 'model'
  run.run(config, workdir / 'sdar')
  results = json.loads((workdir / 'sdar' / 'evaluations.json').read_text())
  rows = []
  for split, before in results['before'].items():
    after = results['after'][split]
    rows.append(
      {
        'split': split,
        'before RL': _percent(before),
        'after RL': _percent(after),
        'change': str(markdown.difference(before, after)),
      }
    )
  metrics.print_table('Success on held-out games, with 95 % intervals', rows)
  print(
    f'{(time.time() - began) / 60:.1f} minutes. Report, curves and trajectories:'
    f' {workdir / "sdar" / "report.md"}, curves.png, trajectories.html.'
  )
  return results


def _percent(result) -> str:
  return (
    f'{100 * result["success"]:.0f} %'
    f' [{100 * result["low"]:.0f}, {100 * result["high"]:.0f}]'
  )


def main(_):
  quickstart(pathlib.Path(_WORKDIR.value).resolve(), _ARG.value)


if __name__ == '__main__':
  app.run(main)
