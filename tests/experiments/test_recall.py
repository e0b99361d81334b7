"""The recall tasks ask for what a reader of the row would answer."""

import numpy as np
import pytest

from experiments.claims import recall


def make(name, **changes):
  sizes = {'batch': 64, 'length': 64, 'pairs': 8, 'vocab': 64, **changes}
  return recall.TASKS[name](np.random.default_rng(0), **sizes)


def test_multi_query_asks_every_key_once_for_its_value():
  batch = make('multi_query')
  for tokens, targets in zip(*batch, strict=True):
    memory = dict(zip(tokens[0:16:2], tokens[1:16:2], strict=True))
    assert len(memory) == 8
    where = np.flatnonzero(targets >= 0)
    assert sorted(tokens[where]) == sorted(memory)
    assert [memory[key] for key in tokens[where]] == list(targets[where])
    assert (where >= 16).all()
    others = np.delete(tokens[16:], where - 16)
    assert not set(others) & set(memory)  # nothing else looks like a question


def test_multi_query_asks_near_keys_more_often():
  where = np.argwhere(make('multi_query', length=256).targets >= 0)[:, 1]
  near, far = (where < 136).mean(), (where >= 136).mean()
  assert near > 1.5 * far


def test_overwriting_asks_for_the_last_value():
  tokens, targets = make('overwriting', length=96, pairs=6, shared=3)
  replaced = 0
  for row, wanted in zip(tokens, targets, strict=True):
    memory = {}
    for a, b, value in row[:48].reshape(-1, 3):
      replaced += memory.get((a, b), value) != value
      memory[a, b] = value
    assert len(memory) == 6
    asked = row[48:].reshape(-1, 3)
    answers = wanted[48:].reshape(-1, 3)
    assert [memory[a, b] for a, b, _ in asked] == list(answers[:, 1])
    assert (asked[:, 2] == 0).all()
    assert (np.delete(answers, 1, axis=1) == -1).all()
    assert (wanted[:48] == -1).all()
  assert replaced > 100


@pytest.mark.parametrize('name', recall.TASKS)
def test_rows_differ_and_repeat_with_the_seed(name):
  one, two = make(name), make(name)
  np.testing.assert_array_equal(one.tokens, two.tokens)
  assert len(np.unique(one.tokens, axis=0)) == 64


@pytest.mark.parametrize(
  'name, changes, told',
  [
    ('multi_query', {'pairs': 20}, 'length=64'),
    ('multi_query', {'vocab': 8}, 'vocab=8'),
    ('overwriting', {'shared': 2}, 'shared=2'),
    ('overwriting', {'pairs': 12}, 'length=64'),
  ],
)
def test_sizes_that_do_not_fit(name, changes, told):
  with pytest.raises(ValueError, match=f'{told} is too small.*at least'):
    make(name, **changes)
