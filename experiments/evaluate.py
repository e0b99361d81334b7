"""Success of a policy on a split, with a 95 % interval.

  python -m experiments.evaluate --policy=runs/sdar --split=unseen --tasks=256

`--policy` is the workdir of a run (its newest checkpoint), a Hugging Face folder
or a GGUF file. Add '+skills' to a split to show the policy the skills. Other
fields come from `--config`, or from the run.
"""

import json
import pathlib

from absl import app, flags, logging
import jax
import ml_collections
from ml_collections import config_flags

from experiments import run
from jaxagent.training import build, checkpoint, loop, metrics, records

_CONFIG = config_flags.DEFINE_config_file('config', None, lock_config=True)
_POLICY = flags.DEFINE_string('policy', None, 'Workdir, folder or GGUF file.')
_SPLIT = flags.DEFINE_list('split', ['seen'], 'Splits; see above.')
_TASKS = flags.DEFINE_integer('tasks', 256, 'Tasks of each split.')
_REPEATS = flags.DEFINE_integer('repeats', 1, 'Episodes of each task.')
_TEMPERATURE = flags.DEFINE_float('temperature', 0.4, '0 is greedy.')
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the result.')
_TRAJECTORIES = flags.DEFINE_string(
  'trajectories', None, 'JSONL file for the episodes.'
)
flags.mark_flag_as_required('policy')


def evaluate(
  policy: pathlib.Path,
  config: ml_collections.ConfigDict | None,
  *,
  splits=('seen',),
  tasks: int = 256,
  repeats: int = 1,
  temperature: float = 0.4,
) -> tuple[dict, dict]:
  """Evaluates a policy on splits.

  Args:
    policy: workdir of a run, Hugging Face folder or GGUF file.
    config: None takes the run's own.
    splits: names of splits, with '+skills' to show skills.
    tasks: of each split, the first ones.
    repeats: episodes of each task.
    temperature: of sampling.

  Returns:
    `{split: summary}` (see `evaluation.summarize`) and `{split: records}`.

  Raises:
    FileNotFoundError: the policy, or the config of its run, is absent.
  """
  policy = pathlib.Path(policy)
  trained = (policy / 'checkpoints').is_dir()
  if config is None:
    path = policy / 'config.json'
    if not (trained and path.is_file()):
      raise FileNotFoundError(
        f'{policy} is no workdir of a run, so --config must say how to play;'
        ' for instance --config=experiments/configs/sdar_alfworld.py.'
      )
    config = ml_collections.ConfigDict(_tuples(json.loads(path.read_text())))
  with config.unlocked():
    config.eval = dict(
      splits=tuple(splits),
      tasks=tasks,
      repeats=repeats,
      temperature=temperature,
      seed=0,
    )
    config.train.teacher = 'self'  # none is read, and none has to be there
    if not trained:
      config.model.update(init=str(policy), dtype='', overrides={})
      if (policy / 'tokenizer.json').exists() or policy.suffix == '.gguf':
        config.tokenizer = 'model'
  setup = build.from_config(config.to_dict())
  params = setup.params
  if trained:
    _, state = loop.start(setup)
    restored = checkpoint.Checkpointer(policy / 'checkpoints').restore(state)
    if restored is None:
      raise FileNotFoundError(f'{policy} has no finished checkpoint yet.')
    params = restored[0].params
  summaries, episodes = {}, {}
  for evaluator in setup.evaluators:
    with metrics.progress(len(evaluator.tasks), label=evaluator.name) as bar:
      summary, played = evaluator(params, lambda episode: bar())
    summaries[evaluator.name] = summary
    episodes[evaluator.name] = records.records(played, setup.tokenizer, step=0)
  return summaries, episodes


def _tuples(value):
  """JSON has no tuples; configs have no lists."""
  if isinstance(value, dict):
    return {name: _tuples(item) for name, item in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def main(_):
  logging.set_verbosity(logging.WARNING)
  summaries, episodes = evaluate(
    _POLICY.value,
    _CONFIG.value,
    splits=_SPLIT.value,
    tasks=_TASKS.value,
    repeats=_REPEATS.value,
    temperature=_TEMPERATURE.value,
  )
  if jax.process_index() != 0:
    return
  metrics.print_table(
    'Success',
    [
      {'split': f'{split} {kind}'.strip(), **_row(result)}
      for split, summary in summaries.items()
      for kind, result in {'': summary, **summary['by_type']}.items()
    ],
  )
  if _OUTPUT.value:
    result = {'results': summaries, **run.circumstances()}
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(result, indent=1))
  if _TRAJECTORIES.value:
    rows = [row for rows in episodes.values() for row in rows]
    records.write(_TRAJECTORIES.value, rows)


def _row(result):
  return {
    'success': result['success'],
    '95 % low': result['low'],
    '95 % high': result['high'],
    'n': result['n'],
  }


if __name__ == '__main__':
  app.run(main)
