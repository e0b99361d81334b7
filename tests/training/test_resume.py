"""A run killed at any moment goes on as if nothing had happened."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import numpy as safetensors

ROOT = pathlib.Path(__file__).resolve().parents[2]
# UCB retrieval has a state of its own, beside parameters and optimiser.
FLAGS = [
  '--config=experiments/configs/sdar_alfworld.py:debug',
  '--config.train.steps=6',
  '--config.train.checkpoint_every=2',
  '--config.agent.skills.strategy=ucb',
  "--config.eval.splits=('seen',)",
]


def start(workdir, *flags):
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'experiments.train',
      f'--workdir={workdir}',
      *FLAGS,
      *flags,
    ],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process):
  output, _ = process.communicate(timeout=900)
  assert process.returncode == 0, output[-3000:]


def rows(workdir):
  timed = ('seconds/', 'rollout/seconds', 'rollout/host', 'time')
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  out = []
  for line in path.read_text().splitlines():
    row = json.loads(line)
    out.append({k: v for k, v in row.items() if not k.startswith(timed)})
  return out


def weights(workdir):
  return safetensors.load_file(
    pathlib.Path(workdir) / 'model' / 'model.safetensors'
  )


def kill_at(process, workdir, lines):
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  deadline = time.monotonic() + 600
  while time.monotonic() < deadline and process.poll() is None:
    if path.exists() and path.read_text().count('"loss"') >= lines:
      break
    time.sleep(0.002)
  assert process.poll() is None, process.communicate()[0][-3000:]
  process.send_signal(signal.SIGKILL)
  process.wait()


def test_sigkill_and_resume_is_bit_for_bit(tmp_path):
  finish(start(tmp_path / 'whole'))
  cut = tmp_path / 'cut'
  # In the middle of step 4, then again later: checkpoints exist and some
  # may be half written.
  kill_at(start(cut), cut, 3)
  kill_at(start(cut), cut, 5)
  finish(start(cut))
  want, got = weights(tmp_path / 'whole'), weights(cut)
  assert want.keys() == got.keys()
  for name, array in want.items():
    np.testing.assert_array_equal(array, got[name], err_msg=name)
  assert rows(tmp_path / 'whole') == rows(cut)
  usage = [
    json.loads((folder / 'checkpoints/6/host/metadata').read_text())
    for folder in (tmp_path / 'whole', cut)
  ]
  assert usage[0] == usage[1] and usage[0]['source']['queries']


def test_another_config_in_the_same_workdir_is_refused(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  process = start(tmp_path)
  output, _ = process.communicate(timeout=300)
  assert process.returncode != 0 and 'another config' in output


@pytest.mark.parametrize('processes', [2])
def test_two_processes_equal_one(tmp_path, processes):
  """Each drives its own tasks; what they learn together is the same."""
  one = start(tmp_path / 'one', '--config.train.steps=2')
  finish(one)
  port = 20000 + os.getpid() % 20000
  many = [
    start(
      tmp_path / 'many',
      '--config.train.steps=2',
      '--config.mesh.data=0',
      '--config.train.microbatch=4',
      f'--coordinator=localhost:{port}',
      f'--num_processes={processes}',
      f'--process_id={k}',
    )
    for k in range(processes)
  ]
  for process in many:
    finish(process)
  want, got = weights(tmp_path / 'one'), weights(tmp_path / 'many')
  for name, array in want.items():
    np.testing.assert_allclose(got[name], array, atol=2e-5, err_msg=name)
  first, other = rows(tmp_path / 'one'), rows(tmp_path / 'many')
  losses = [[r['loss'] for r in rows if 'loss' in r] for rows in (first, other)]
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3, atol=1e-5)
