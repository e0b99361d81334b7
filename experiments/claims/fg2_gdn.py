"""FG2-GDN against its relatives: associative recall, and a little real text.

  python -m experiments.claims.fg2_gdn                      # hours; resumable
  python -m experiments.claims.fg2_gdn --settings=mqar_64 --arms=kda,fg2_plus

Every arm is a two-layer model of the same width, state size and number of
parameters (within 1 %: the feed-forward width evens them out). Learning rates
are swept on the first seed, the best on validation rows is used for the other
seeds; reported are test rows that neither saw. A finished run is one file under
`results/fg2_gdn/`; those are skipped, so the command goes on where it stopped.

Recall: MQAR (2312.04927), trained on a mixture of few and many keys and tested
on many, and keys of shared parts that are overwritten. Text: the topics of
Python's own documentation, which every Python brings along.
"""

import dataclasses
import functools
import importlib
import json
import pathlib
import time
from typing import NamedTuple

from absl import app, flags, logging
import jax
import numpy as np

from experiments import run
from experiments.claims import options, recall, recall_report, sequence
from jaxagent import registry, tokens
from jaxagent.models import config as config_lib
from jaxagent.models import policy as policy_lib

_SETTINGS = flags.DEFINE_list('settings', [], 'Which; all by default.')

RESULTS = pathlib.Path(__file__).parent / 'results' / 'fg2_gdn'
ARMS = ('gdn', 'kda', 'fg2', 'fg2_plus', 'attention')
LEARNING_RATES = (2e-3, 4e-3, 8e-3)
MIXTURE = (4, 2, 1)  # batches of recall have a quarter of the keys, half, all
HELD_OUT = 512  # rows of a held-out set
NARROW = 32  # width of the feed-forward part of the largest arm


class Setting(NamedTuple):
  """One task at one size.

  Attributes:
    task: 'multi_query', 'overwriting' or 'text'.
    length: tokens a row.
    pairs: keys of a row when scored, see `MIXTURE`; 0 for text.
    width: K = V, so that a head remembers width x width numbers.
    steps: updates.
    vocab: ids.
    rows: of a batch.
  """

  task: str
  length: int
  pairs: int
  width: int
  steps: int
  vocab: int = 64
  rows: int = 32


SETTINGS = {
  'mqar_64': Setting('multi_query', 64, 8, 16, 800),
  'interference_96': Setting('overwriting', 96, 12, 16, 1000, rows=16),
  'text_256': Setting('text', 256, 0, 32, 300, vocab=1024, rows=16),
  'mqar_128': Setting('multi_query', 128, 16, 16, 600, rows=16),
  'mqar_64_narrow': Setting('multi_query', 64, 8, 8, 800),
}


def arm_config(arm: str, setting: Setting) -> config_lib.ModelConfig:
  """The model of an arm, as large as the largest of all arms."""
  largest = max(_size(_config(a, setting, NARROW)) for a in ARMS)
  grown = NARROW + 1
  unit = _size(_config(arm, setting, grown)) - _size(
    _config(arm, setting, NARROW)
  )
  missing = largest - _size(_config(arm, setting, NARROW))
  return _config(arm, setting, NARROW + round(missing / unit))


def _config(arm, setting, intermediate):
  registry.one_of('arm', arm, ARMS)
  shared = {
    'vocab': setting.vocab,
    'hidden': 64,
    'heads': 2,
    'kv_heads': 2,
    'head_dim': setting.width,
    'intermediate': intermediate,
    'init_std': 0.05,
  }
  if arm == 'attention':
    return config_lib.ModelConfig(
      family='qwen3', layers=2, qk_norm=True, **shared
    )
  delta = config_lib.GatedDelta(
    heads=2,
    key_dim=setting.width,
    value_dim=setting.width,
    variant=arm,
    gate_rank=setting.width,
  )
  return config_lib.ModelConfig(
    family='hybrid', layers=('gated_delta',) * 2, gated_delta=delta, **shared
  )


def _size(config):
  shapes = jax.eval_shape(policy_lib.build(config).init, jax.random.key(0))
  return sum(x.size for x in jax.tree.leaves(shapes))


def batch(setting: Setting, stream: str, index: int, seed: int) -> recall.Batch:
  """Rows of a setting: `stream` is 'train', 'validation' or 'test'."""
  if setting.task == 'text':
    return _text(setting, stream, index, seed)
  rng = np.random.default_rng([_STREAMS.index(stream), seed, index])
  fewer = MIXTURE[index % len(MIXTURE)] if stream == 'train' else 1
  return recall.TASKS[setting.task](
    rng,
    batch=setting.rows,
    length=setting.length,
    pairs=setting.pairs // fewer,
    vocab=setting.vocab,
  )


_STREAMS = ('train', 'validation', 'test')


@functools.cache
def _corpus():
  """Ids of the documentation topics: {stream: i32[N]}, a tenth held out each."""
  topics = importlib.import_module('pydoc_data.topics').topics
  tokenizer = tokens.default()
  parts = {stream: [] for stream in _STREAMS}
  for index, name in enumerate(sorted(topics)):
    stream = {8: 'validation', 9: 'test'}.get(index % 10, 'train')
    parts[stream] += tokenizer.encode(topics[name])
  return {stream: np.asarray(ids, np.int32) for stream, ids in parts.items()}


def _text(setting, stream, index, seed):
  ids = _corpus()[stream]
  rng = np.random.default_rng([_STREAMS.index(stream), seed, index])
  start = rng.integers(0, len(ids) - setting.length, setting.rows)
  rows = ids[start[:, None] + np.arange(setting.length + 1)]
  return recall.Batch(rows[:, :-1], rows[:, 1:])


def run_one(
  name: str, arm: str, learning_rate: float, seed: int
) -> pathlib.Path:
  """Trains one model unless its result is there; returns its file."""
  path = RESULTS / f'{name}-{arm}-{learning_rate:g}-{seed}.json'
  if path.exists():
    return path
  setting = SETTINGS[registry.one_of('setting', name, SETTINGS)]
  config = arm_config(arm, setting)
  started = time.perf_counter()
  result = sequence.train(
    policy_lib.build(config),
    lambda step: batch(setting, 'train', step, seed),
    {
      stream: [
        batch(setting, stream, i, 0) for i in range(HELD_OUT // setting.rows)
      ]
      for stream in ('validation', 'test')
    },
    steps=setting.steps,
    learning_rate=learning_rate,
    seed=seed,
    label=path.stem,
  )
  result |= {
    'setting': name,
    'sizes': setting._asdict(),
    'arm': arm,
    'learning_rate': learning_rate,
    'seed': seed,
    'parameters': _size(config),
    'intermediate': config.intermediate,
    'model': dataclasses.asdict(config),
    'seconds': time.perf_counter() - started,
    **run.circumstances(),
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(result, indent=1))
  return path


def best_rate(name: str, arm: str) -> float:
  """The learning rate with the lowest validation loss on the first seed."""

  def loss(rate):
    result = json.loads(run_one(name, arm, rate, 0).read_text())
    value = result['validation']['loss']
    return value if np.isfinite(value) else np.inf

  return min(LEARNING_RATES, key=loss)


def main(_):
  logging.set_verbosity(logging.WARNING)
  if not options.SUMMARY.value:
    for name in _SETTINGS.value or SETTINGS:
      for arm in options.ARMS.value or ARMS:
        rate = best_rate(name, arm)
        for seed in map(int, options.SEEDS.value):
          run_one(name, arm, rate, seed)
  print(recall_report.write(RESULTS, ARMS, SETTINGS))


if __name__ == '__main__':
  app.run(main)
