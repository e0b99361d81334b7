"""The bench compares what it times and sizes, and reads its rows rightly."""

import json
import os

import pytest

from experiments import bench, bench_transforms
from experiments.configs import rdpo_mixed

# More tokens than meet the vocabulary at once.
CASE = bench_transforms.CASES['small']._replace(vocab=4096)


def test_a_batch_of_rewards_has_every_arm():
  row = bench_transforms.reward_row(rdpo_mixed.get_config('debug'), repeats=1)
  assert (row['rows'], row['rewards']) == (12, 4)
  names = [*bench_transforms.TRANSFORMS]
  names += [f'{name}, logged' for name in names]
  assert sorted(row['arms']) == sorted([*names, 'credit', 'update'])
  assert all(len(times) == 1 for times in row['arms'].values())


@pytest.fixture(scope='module')
def row():
  return bench_transforms.distillation_row(CASE, repeats=1)


def test_distillation_has_every_arm_and_its_memory(row):
  arms = {'student forward', 'teacher forward'}
  arms |= {f'{name} update' for name in bench_transforms.LOSSES}
  arms |= {'OPD teacher pass', 'AOPD teacher pass'}
  assert set(row['arms']) == arms
  assert set(row['temporary']) == arms | {bench_transforms.NARROW, 'naive'}
  student, teacher = row['parameters']
  assert 0 < student < teacher


def test_no_logits_of_all_tokens_are_in_memory(row):
  """The naive form holds those of policy and teacher, ours some chunks."""
  sizes, logits = row['temporary'], row['logits']
  assert logits == 4 * 8 * 128 * 4096
  assert sizes['naive'] > 2 * logits
  assert sizes['naive'] > sizes['AOPD update'] + logits
  assert sizes['AOPD update'] > sizes[bench_transforms.NARROW]


@pytest.mark.parametrize('name', ['loss', 'gradient/norm'])
def test_a_wrong_form_is_not_timed(name):
  want = {'loss': 2.0, 'gradient/norm': 3.0}
  bench_transforms.check_equal(want, want)
  with pytest.raises(AssertionError, match=name):
    bench_transforms.check_equal({**want, name: 2.5}, want)
  with pytest.raises(AssertionError, match=name):
    bench_transforms.check_equal({**want, name: float('nan')}, want)


def test_extra_is_the_pass_and_what_the_update_takes_more():
  arms = {'AOPD update': [5.0], 'GRPO update': [3.0], 'teacher forward': [2.0]}
  found = bench_transforms.extra({'arms': {**arms, 'AOPD teacher pass': [1.0]}})
  assert found == {
    'ms': 3.0, 'update_ms': 2.0, 'beyond_ms': 1.0, 'forwards': 1.5
  }  # fmt: skip


def test_finished_rows_are_kept_and_shown(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(os, 'sched_setaffinity', lambda pid, cores: None)
  arms = {'RDPO': [1.0], 'update': [200.0]}
  rewards = {'72': {'rows': 72, 'rewards': 4, 'arms': arms}}
  times = {'GRPO update': [3.0], 'AOPD update': [5.0]}
  times |= {'teacher forward': [2.0], 'AOPD teacher pass': [1.0]}
  sizes = {name: 2**20 for name in times} | {'naive': 6 * 2**20}
  case = bench_transforms.CASES['large']._asdict()
  distilled = {**case, 'arms': times, 'temporary': sizes, 'logits': 2**21}
  out = tmp_path / 'found.json'
  kept = {'rewards': rewards, 'distillation': {'large': distilled}}
  out.write_text(json.dumps(kept))
  bench.main(['transforms', '--rows=72', '--cases=large', f'--out={out}'])
  text = capsys.readouterr().out
  assert '| RDPO | 1 (0.50%) |' in text
  assert '| **in teacher forwards** | **1.50x** |' in text
  assert '| **naive / AOPD update** | **6.0x** |' in text
  assert text.strip() in out.with_suffix('.md').read_text()
