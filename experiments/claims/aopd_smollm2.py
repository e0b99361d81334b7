"""AOPD and OPD with real weights: SmolLM2-135M as teacher and student.

  JAXAGENT_SMOLLM2=FILE.gguf python -m experiments.claims.aopd_smollm2

The specialist is SmolLM2-135M-Instruct after 40 updates of imitating right
sums; the student is the model as it was published, distilled for 20 updates on
its own replies. See `configs/aopd_smollm2.py`. Held out are a quarter of the
400 sums of numbers up to 20; 64 of them are asked, greedily, before and after.
About an hour on one CPU core. Finished runs are files under
`results/aopd_smollm2/`; those are skipped.
"""

import pathlib

from absl import app, logging

from experiments.claims import options, paired, runs
from experiments.configs import aopd_smollm2
from jaxagent.report import markdown

RESULTS = pathlib.Path(__file__).parent / 'results' / 'aopd_smollm2'
ARMS = ('specialist', 'aopd', 'opd')
CURVES = (
  'evaluation/*', 'policy/entropy', 'gradient/norm', 'reward/success', 'loss',
)  # fmt: skip


def run_arm(arm: str, workdir: pathlib.Path) -> pathlib.Path:
  """Runs an arm unless its result is there; returns its file."""
  path = RESULTS / f'{arm}.json'
  if path.exists():
    return path
  if arm == 'specialist':
    config = aopd_smollm2.get_config('teacher')
  else:
    run_arm('specialist', workdir)
    config = aopd_smollm2.get_config(arm)
    config.teacher.init = str(workdir / 'specialist')
  return runs.record(path, config, workdir / arm, curves=CURVES, arm=arm)


def summarize() -> str:
  """A table from the result files, which also goes to `RESULTS.md`.

  Raises:
    FileNotFoundError: there is no result yet.
  """
  results = runs.load(RESULTS)
  results.sort(key=lambda r: ARMS.index(r['arm']))
  rows = []
  for r in results:
    before, after = (r['evaluations'][w]['test'] for w in ('before', 'after'))
    curve = r['curves']['evaluation/test/success']
    rows.append(
      [
        r['arm'],
        _share(before),
        _share(after),
        ' → '.join(f'{100 * x:.0f}' for x in curve),
        f'{r["curves"]["policy/entropy"][-1]:.2f}',
        f'{r["seconds"] / 60:.0f}',
      ]
    )
  head = [
    'run', 'before [95 % Wilson]', 'after', 'each evaluation, %',
    'entropy at the end, nats', 'minutes',
  ]  # fmt: skip
  text = '\n\n'.join(
    [
      '# SmolLM2-135M learns sums of a specialist of its size',
      'Right of 64 held-out sums, greedy; one seed.',
      markdown.table(head, rows),
      '## Where it was run',
      paired.where(results),
    ]
  )
  RESULTS.with_suffix('.md').write_text(text + '\n')
  return text


def _share(summary):
  low, high = (100 * summary[k] for k in ('low', 'high'))
  return f'{summary["success"]:.1%} [{low:.1f}, {high:.1f}]'


def main(_):
  logging.set_verbosity(logging.WARNING)
  if not options.SUMMARY.value:
    workdir = pathlib.Path(
      options.WORKDIR.value or 'runs/claims/aopd_smollm2'
    ).resolve()
    for arm in options.ARMS.value or ARMS:
      run_arm(arm, workdir)
  print(summarize())


if __name__ == '__main__':
  app.run(main)
