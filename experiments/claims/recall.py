"""Associative recall as arrays: what a fixed-size memory can hold.

Every task gives `tokens i32[B, T]` and `targets i32[B, T]`: the value that is
right after a token, or -1 where nothing is asked. Keys are the ids 1 … V/2 - 1,
values the ids V/2 … V - 1, and 0 fills.
"""

from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
  """Inputs and what is asked of them; -1 is nothing."""

  tokens: np.ndarray
  targets: np.ndarray


def multi_query(
  rng: np.random.Generator,
  *,
  batch: int,
  length: int,
  pairs: int,
  vocab: int,
  power: float = 0.01,
) -> Batch:
  """Multi-query associative recall: arXiv 2312.04927, its synthetic task.

  A row opens with `pairs` key-value pairs of distinct keys. Then every key comes
  once more, at a distance drawn from a power law, and its value is asked for;
  the places between hold random tokens.

  Args:
    rng: source of all draws.
    batch: rows B.
    length: tokens T of a row; at least four times `pairs`.
    pairs: of a row.
    vocab: ids V.
    power: exponent a of p(distance) ~ distance^(a - 1); small is near.

  Raises:
    ValueError: the row or the vocabulary is too small for the pairs.
  """
  half = vocab // 2
  _check(pairs, length >= 4 * pairs, f'length={length}', 4 * pairs)
  _check(pairs, half > pairs, f'vocab={vocab}', 2 * (pairs + 1))
  keys = 1 + _distinct(rng, np.ones(half - 1), batch, pairs)
  values = rng.integers(half, vocab, (batch, pairs))
  tokens = rng.integers(half, vocab, (batch, length))  # no key by accident
  tokens[:, 0 : 2 * pairs : 2] = keys
  tokens[:, 1 : 2 * pairs : 2] = values
  places = (length - 2 * pairs) // 2
  gaps = _distinct(rng, np.arange(1, places + 1.0) ** (power - 1), batch, pairs)
  return _ask(tokens, 2 * pairs + 2 * gaps, keys, values)


def overwriting(
  rng: np.random.Generator,
  *,
  batch: int,
  length: int,
  pairs: int,
  vocab: int,
  shared: int = 8,
) -> Batch:
  """Recall of two-token keys that share their parts and are written anew.

  A key is two of `shared` tokens, so that keys interfere: each part occurs in
  many of them. A row writes `length // 2` tokens of (part, part, value)
  triples over only `pairs` keys, later values replacing earlier ones; then keys
  are asked for, two tokens and a blank each, and the last value written counts.

  Args:
    rng: source of all draws.
    batch: rows B.
    length: tokens T of a row.
    pairs: distinct keys of a row.
    vocab: ids V.
    shared: tokens that keys are made of.

  Raises:
    ValueError: the sizes allow fewer keys than asked for.
  """
  half = vocab // 2
  writes, asks = length // 6, length // 2 // 3
  _check(pairs, shared**2 >= pairs, f'shared={shared}', int(pairs**0.5) + 1)
  _check(pairs, writes >= pairs, f'length={length}', 6 * pairs)
  _check(pairs, half > shared, f'vocab={vocab}', 2 * (shared + 1))
  parts = _distinct(rng, np.ones(shared**2), batch, pairs)
  which = np.concatenate(
    [  # every key at least once, in random order, then again at random
      rng.permuted(np.tile(np.arange(pairs), (batch, 1)), axis=1),
      rng.integers(0, pairs, (batch, writes - pairs)),
    ],
    axis=1,
  )
  written = rng.integers(half, vocab, (batch, writes))
  last = np.zeros((batch, pairs), int)
  rows = np.arange(batch)
  for step in range(writes):
    last[rows, which[:, step]] = written[:, step]
  asked = rng.integers(0, pairs, (batch, asks))
  tokens = np.zeros((batch, length), int)
  end = 3 * writes

  def put(start, count, index):
    key = np.take_along_axis(parts, index, axis=1)
    stop = start + 3 * count
    tokens[:, start:stop:3] = 1 + key // shared
    tokens[:, start + 1 : stop : 3] = 1 + key % shared

  put(0, writes, which)
  tokens[:, 2:end:3] = written
  put(end, asks, asked)
  targets = np.full((batch, length), -1)
  answers = np.take_along_axis(last, asked, axis=1)
  targets[:, end + 1 : end + 3 * asks : 3] = answers
  return Batch(tokens.astype(np.int32), targets.astype(np.int32))


def _distinct(rng, weights, batch, count):
  """Draws without replacement by weight, a row at a time (Gumbel top-k)."""
  scores = np.log(weights) + rng.gumbel(size=(batch, len(weights)))
  return np.argsort(-scores, axis=1)[:, :count]


def _ask(tokens, where, keys, values):
  targets = np.full(tokens.shape, -1)
  np.put_along_axis(tokens, where, keys, axis=1)
  np.put_along_axis(targets, where, values, axis=1)
  return Batch(tokens.astype(np.int32), targets.astype(np.int32))


def _check(pairs, enough, what, least):
  if not enough:
    raise ValueError(
      f'{what} is too small for pairs={pairs}; take at least {least}.'
    )


TASKS = {'multi_query': multi_query, 'overwriting': overwriting}
