"""AOPD against OPD, ExOPD, GKD and SeqKD, from a weak and a strong start.

  python -m experiments.claims.aopd                       # about an hour
  python -m experiments.claims.aopd --starts=weak --arms=opd,aopd --seeds=0

One teacher has learned chains of sums and of products (`envs/chains.py`); the
student imitated right answers for a few steps (weak) or more (strong). Each arm
distils sums for 100 steps, then products for 40, after which sums are measured
again. All arms of a seed see the same questions. A third student (hole) was
warmed up like the strong one, but all but never with the ';' that the teacher
writes between most values: how long does it take to find it?

Learning rates are swept on the first seed; the best by success in training is
used for the other seeds and stages. A finished run is a file under
`results/aopd/START_STAGE/`; those are skipped, so the command goes on where it was stopped. `signal_START.json`
has what the papers' three weaknesses of OPD look like in the first gradients
(see `aopd_signal.py`). Tables and figures are made from these files.
"""

import pathlib
from typing import NamedTuple

from absl import app, flags, logging
import ml_collections

from experiments.claims import aopd_report, aopd_signal, options, runs
from experiments.configs import aopd_chains, sft_chains

_STARTS = flags.DEFINE_list('starts', [], 'Students; all by default.')

RESULTS = pathlib.Path(__file__).parent / 'results' / 'aopd'


class Start(NamedTuple):
  """A student.

  Attributes:
    steps: of its warm start.
    rare: how often ';' stood between two values there; the teacher's is 0.7.
    stages: of `STAGES`, in order.
  """

  steps: int
  rare: float = 0.5
  stages: tuple[str, ...] = ('first', 'second')


# Weak is about a fifth, strong four fifths of the teacher's sums.
STARTS = {
  'weak': Start(340),
  'strong': Start(520),
  'hole': Start(520, rare=0.002, stages=('first',)),
}
STAGES = {'first': ('train_sum', 100), 'second': ('train_product', 40)}
ARMS = {
  'seqkd': 'seqkd',
  'opd': 'opd',
  'exopd': 'exopd',
  'gkd': 'gkd',
  'aopd': 'aopd',
  'aopd_one': {**aopd_chains.METHODS['aopd'], 'fkl_scale': 'one'},
}
LEARNING_RATES = (3e-4, 1e-3)
CURVES = (
  'evaluation/*/success', 'policy/entropy', 'gradient/norm', 'reward/rare',
  'reward/success',
  'teacher/gap', '*/gate', '*/near_zero', '*/teacher_mass', '*/gap_*',
)  # fmt: skip


def teacher_config() -> ml_collections.ConfigDict:
  """The teacher's warm start, which is all of its training."""
  return _measured(sft_chains.get_config('teacher'))


def student_config(start: str) -> ml_collections.ConfigDict:
  """The warm start of a student."""
  config = sft_chains.get_config()
  config.train.steps = STARTS[start].steps
  config.env.rare = STARTS[start].rare
  config.optimizer.update(warmup_steps=20, decay_steps=0)
  return _measured(config)


def arm_config(
  arm: str,
  stage: str,
  seed: int,
  rate: float,
  model: pathlib.Path | str,
  teacher: pathlib.Path | str,
) -> ml_collections.ConfigDict:
  """The run of one arm, stage and seed.

  Args:
    arm: of `ARMS`.
    stage: of `STAGES`.
    seed: of the run.
    rate: learning rate.
    model: folder of the student; the reference of 'exopd' too.
    teacher: folder of the teacher.
  """
  method = ARMS[arm]
  named = isinstance(method, str)
  config = aopd_chains.get_config(method if named else 'aopd')
  if not named:
    config.loss = method
  split, steps = STAGES[stage]
  config.name = f'{arm}_{stage}_{seed}'
  config.seed = seed
  config.optimizer.learning_rate = rate
  config.model.init = str(model)
  config.teacher.init = str(teacher)
  config.tokenizer = 'model'
  config.env.split = split
  config.train.update(
    steps=steps, evaluate_every=10, record_every=0, checkpoint_every=50
  )
  return _measured(config)


def _measured(config):
  """Pass@1 and Pass@4 of both tasks, sampled as in training."""
  config.eval.update(
    splits=('test_sum', 'test_product'), tasks=64, repeats=4, temperature=1.0
  )
  return config


def run_arm(start: str, arm: str, seed: int, workdir: pathlib.Path) -> None:
  """Runs the stages of an arm, as far as results are missing."""
  first, *later = STARTS[start].stages
  paths = {
    rate: run_stage(start, first, arm, rate, 0, workdir)
    for rate in LEARNING_RATES
  }
  rate = max(LEARNING_RATES, key=lambda r: aopd_report.trained(paths[r]))
  for stage in (first, *later):
    run_stage(start, stage, arm, rate, seed, workdir)


def run_stage(
  start: str,
  stage: str,
  arm: str,
  rate: float,
  seed: int,
  workdir: pathlib.Path,
) -> pathlib.Path:
  """Runs one stage unless its result is there; returns its file."""
  path = RESULTS / f'{start}_{stage}' / f'{arm}_{rate:g}_{seed}.json'
  if path.exists():
    return path
  of = dict(start=start, stage=stage, arm=arm, rate=rate, seed=seed)
  config, folder = _run(**of, workdir=workdir)
  return runs.record(path, config, folder, curves=CURVES, **of)


def _run(start, stage, arm, rate, seed, workdir):
  """Config and folder of a run; what it goes on from is trained if absent."""
  teacher, model = warm(start, workdir)
  stages = STARTS[start].stages
  if stage != stages[0]:
    before = stages[stages.index(stage) - 1]
    config, folder = _run(start, before, arm, rate, seed, workdir)
    model = runs.warm_start(lambda: config, folder)
  config = arm_config(arm, stage, seed, rate, model, teacher)
  return config, workdir / start / f'{arm}_{stage}_{rate:g}_{seed}'


def warm(start: str, workdir: pathlib.Path):
  """Folders of the teacher and of a start, trained unless they are there."""
  teacher = runs.warm_start(teacher_config, workdir / 'teacher')
  student = runs.warm_start(lambda: student_config(start), workdir / start)
  return teacher, student


def main(_):
  logging.set_verbosity(logging.WARNING)
  if not options.SUMMARY.value:
    workdir = pathlib.Path(
      options.WORKDIR.value or 'runs/claims/aopd'
    ).resolve()
    starts = _STARTS.value or tuple(STARTS)
    for start in starts:
      path = RESULTS / f'signal_{start}.json'
      if not path.exists():
        teacher, student = warm(start, workdir)
        config = arm_config(
          'opd', 'first', 0, LEARNING_RATES[0], student, teacher
        )
        aopd_signal.record(path, config, start=start)
    for seed in map(int, options.SEEDS.value):
      for start in starts:
        for arm in options.ARMS.value or ARMS:
          run_arm(start, arm, seed, workdir)
  print(aopd_report.write(RESULTS, tuple(ARMS), tuple(STARTS)))


if __name__ == '__main__':
  app.run(main)
