"""Rows and metrics of an invented run."""

import numpy as np
import pytest


@pytest.fixture
def make_row():
  """One row: a prompt, then `turns` actions of three tokens each."""

  def make(*, episode=0, step=0, group=0, success=1.0, turns=2, **changes):
    tokens, action, turn, numbers = (
      ['user: ', 'find the apple\n'],
      [0] * 2,
      [0] * 2,
      [None] * 2,
    )
    for t in range(turns):
      tokens += ['open', ' fri', 'dge 1', f'you see an egg {t}\n']
      action += [1, 1, 1, 0]
      turn += [t, t, t, t + 1]
      numbers += [0.5, -0.25, 0.0, None]
    row = {
      'step': step,
      'episode': episode,
      'group': group,
      'row': 0,
      'part': 'ACT',
      'status': 'DONE' if success else 'TURN_LIMIT',
      'game': f'game-{group}',
      'goal': 'put a hot apple in cabinet.',
      'task_type': 'heat',
      'rewards': {'success': success},
      'advantage': 1.0 if success else -0.5,
      'tokens': tokens,
      'action': action,
      'turn': turn,
      'logprob': [None if x is None else -0.25 - abs(x) for x in numbers],
      'advantages': [None if x is None else 1.0 for x in numbers],
      'gate': [None if x is None else 0.5 + x for x in numbers],
      'gap': numbers,
      'privileged': 'An apple is often in the fridge.',
    }
    return row | changes

  return make


@pytest.fixture
def curve_rows():
  """(step, values) of a short SDAR run, with two evaluations."""
  rng = np.random.default_rng(0)
  rows = []
  for step in range(20):
    rows.append(
      (
        step,
        {
          'rollout/success': step / 40,
          'policy/entropy': 1 - step / 40,
          'sdar/gate': 0.3 + step / 100,
          'sdar/gate_open': 0.25 + step / 100,
          'sdar/gap': -0.1 + step / 1000,
          'groups/live': 0.5,
          'groups/all_fail': 0.25,
          'groups/all_pass': 0.25,
          'policy/ratio_error': 10 ** rng.normal(-5, 0.1),
          'seconds/rollout': 3.0,
          'seconds/update': 1.0,
        },
      )
    )
    if step in (0, 19):
      evaluation = {'success': step / 40, 'low': 0.0, 'high': 0.7}
      rows.append(
        (step, {f'evaluation/seen/{k}': v for k, v in evaluation.items()})
      )
  return rows
