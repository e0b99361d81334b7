"""RDPO's claims: arms that differ in one thing, known qualities, verdicts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.claims import (
  rdpo,
  rdpo_report,
  rdpo_synthetic,
  rdpo_synthetic_report,
  runs,
)
from jaxagent import envs, types
from jaxagent import rewards as rewards_lib
from jaxagent.training import metrics


@pytest.mark.parametrize('setting', rdpo.SETTINGS)
@pytest.mark.parametrize('arm', rdpo.ARMS)
def test_arms_differ_in_the_transform_alone(setting, arm):
  config = rdpo.arm_config(setting, arm, 3, 'folder', 'debug')
  rewards_lib.from_config(config.rewards.transform.to_dict())
  envs.from_config(config.env.to_dict())
  assert config.seed == 3 and config.model.init == 'folder'
  same = rdpo.arm_config(setting, 'grpo', 3, 'folder', 'debug')
  transform = config.rewards.transform.to_dict()
  if arm != 'grpo':
    assert transform != same.rewards.transform.to_dict()
  config.name, config.rewards.transform = same.name, same.rewards.transform
  assert config.to_dict() == same.to_dict()


def test_settings_differ_in_scales_and_caps():
  def of(setting):
    config = rdpo.arm_config(setting, 'rdpo', 0, 'folder')
    return config.env.scales.to_dict(), len(config.rewards.transform.caps)

  assert of('equal') == ({}, 3)
  assert of('scaled') == ({'length': 10.0}, 3)
  assert of('loud') == ({'style': 10.0}, 0)


@pytest.mark.parametrize(
  'arm, free', [('grpo', False), ('gdpo', True), ('quantile', True)]
)
def test_only_grpo_depends_on_the_scale_of_length(arm, free, make_rewards):
  equal, scaled = (
    rewards_lib.from_config(
      rdpo.arm_config(s, arm, 0, 'folder').rewards.transform.to_dict()
    )
    for s in ('equal', 'scaled')
  )
  first, _ = jax.jit(equal.apply)(make_rewards(1.0), equal.init(4))
  second, _ = jax.jit(scaled.apply)(make_rewards(10.0), scaled.init(4))
  close = np.allclose(first.values, second.values, atol=1e-4)
  assert close == free


@pytest.fixture
def make_rewards():
  """Two groups of eight sums with style; length is scaled."""

  def make(scale):
    rng = np.random.default_rng(0)
    values = rng.random((16, 4))
    values[:, 0] = np.arange(16) % 3 > 0
    values[:, 1] *= scale
    active = np.tile([True, True, False, True], (16, 1))
    index = jnp.arange(16)
    return types.Rewards(
      values=jnp.asarray(values, jnp.float32),
      active=jnp.asarray(active),
      group=index // 8,
      episode=index,
      part=jnp.zeros_like(index),
    )

  return make


def test_finished_results_are_not_run_again(tmp_path, monkeypatch):
  monkeypatch.setattr(rdpo, 'RESULTS', tmp_path)
  path = tmp_path / 'equal' / 'grpo_0.json'
  path.parent.mkdir()
  path.write_text('{}')
  monkeypatch.setattr(runs.run, 'run', lambda *a: pytest.fail('was run'))
  assert rdpo.run_arm('equal', 'grpo', 0, tmp_path / 'work') == path


def test_a_record_is_of_the_columns_that_are_asked_for(tmp_path, monkeypatch):
  folder = tmp_path / 'work'

  def run(config, workdir):
    assert config == 'config'
    with metrics.Writer(workdir) as writer:
      writer.write(0, {'reward/a': 0.123456, 'loss': 1.0})
      writer.write(1, {'loss': 1.0})
      writer.write(2, {'reward/a': 0.5, 'loss': 1.0})
    (workdir / 'evaluations.json').write_text('{"after": 1}')
    (workdir / 'meta.json').write_text('{"commit": "abc"}')

  monkeypatch.setattr(runs.run, 'run', run)
  path = tmp_path / 'results' / 'a_0.json'
  runs.record(path, 'config', folder, curves=('reward/*',), arm='a')
  (found,) = runs.load(path.parent)
  assert found.pop('seconds') >= 0
  assert found == {
    'arm': 'a',
    'evaluations': {'after': 1},
    'curves': {'reward/a': [0.12346, 0.5]},
    'commit': 'abc',
  }
  with pytest.raises(FileNotFoundError, match='No result'):
    runs.load(tmp_path)


# --- the report of the training study ----------------------------------------


def result(arm, seed, success, participation=0.7, scales=None):
  def kinds(share):
    by_type = {
      kind: {'success': share, 'n': 80}
      for kind in ('sum', 'instruction', 'both')
    }
    rewards = {
      'correct': share,
      'length': 8.0,
      'constraints': 0.6,
      'style': 0.5,
    }
    return {'success': share, 'by_type': by_type, 'rewards': rewards}

  names = ('correct', 'length', 'constraints', 'style', 'success')
  return {
    'arm': arm,
    'seed': seed,
    'scales': scales or {},
    'evaluations': {
      'before': {'test': kinds(0.1), 'train': kinds(0.3)},
      'after': {'test': kinds(success), 'train': kinds(0.8)},
    },
    'curves': {
      **{f'reward/{name}': [0.2] * 10 + [0.6] * 10 for name in names},
      'scores/participation': [participation] * 20,
      'scores/domination': [0.3] * 20,
      'summed/eta_corr': [0.5] * 20,
      'summed/eta_eff': [0.5] * 20,
      'rewards/correlation/length~style': [0.5, 0.7],
      'summed/correlation/length~style': [0.1, 0.3],
    },
    'commit': 'abc',
    'hardware': 'a laptop',
    'python': '3.11',
    'versions': {'jax': '0'},
    'command': 'claims',
  }


RESULTS = [
  result('grpo', 0, 0.50),
  result('grpo', 1, 0.60),
  result('gdpo', 0, 0.55, 0.70),
  result('gdpo', 1, 0.66, 0.71),
  result('rdpo', 0, 0.50, 0.80),
  result('rdpo', 1, 0.70, 0.82),
]


def test_a_measure_is_a_success_or_the_mean_of_a_curve():
  of = RESULTS[2]
  assert rdpo_report.measured(of, 'test/instruction') == 0.55
  assert rdpo_report.measured(of, 'train/sum') == 0.8
  assert rdpo_report.measured(of, 'reward/success') == pytest.approx(0.4)


def test_training_report_says_what_the_files_say(tmp_path, monkeypatch):
  monkeypatch.setattr(rdpo, 'RESULTS', tmp_path / 'rdpo')
  folder = tmp_path / 'rdpo' / 'equal'
  folder.mkdir(parents=True)
  for r in RESULTS:
    (folder / f'{r["arm"]}_{r["seed"]}.json').write_text(json.dumps(r))
  text = rdpo.summarize('equal')
  assert (tmp_path / 'rdpo_equal.md').read_text() == text
  assert (tmp_path / 'rdpo_equal.png').stat().st_size > 1000
  assert 'instructions, held out 10.0 % (n = 80)' in text
  line = _line(text, '| gdpo | 2 |')
  assert '60.5 % [' in line and '80.0 % [' in line
  assert '+5.5 [' in _line(text, '| gdpo | +')
  assert '0.60 → 0.20' in text  # a correlation as it comes, and as summed
  assert _line(text, '| (a) RDPO spreads').endswith('| shown |')
  assert _line(text, '| (b) RDPO is better than GDPO: instructions').endswith(
    '| not told apart |'
  )
  assert 'guarded' not in text  # has no result


def test_scaled_shows_the_runs_of_arms_that_do_not_see_scales(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(rdpo, 'RESULTS', tmp_path / 'rdpo')
  for setting, made in (
    ('equal', RESULTS),
    ('scaled', [result('grpo', s, 0.2, scales={'length': 10}) for s in (0, 1)]),
  ):
    folder = tmp_path / 'rdpo' / setting
    folder.mkdir(parents=True)
    for r in made:
      (folder / f'{r["arm"]}_{r["seed"]}.json').write_text(json.dumps(r))
  text = rdpo.summarize('scaled')
  assert '| grpo | 2 | 20.0 %' in text and '| gdpo | 2 | 60.5 %' in text
  assert '0.800 [0.800, 0.800]' in text  # length, in its own unit
  suffer = _line(text, '| (b) GRPO is better with equal scales: instructions')
  assert '+35.0 [' in suffer


def _line(text, start):
  (line,) = [line for line in text.splitlines() if line.startswith(start)][:1]
  return line


# --- rewards of known quality ------------------------------------------------


def test_a_dial_changes_what_it_says_and_nothing_else():
  plain = rdpo_synthetic.sample(rdpo_synthetic.World(), 0)
  loud = rdpo_synthetic.sample(rdpo_synthetic.World(scale=10.0), 0)
  close = rdpo_synthetic.sample(rdpo_synthetic.World(rho=0.8), 0)
  rare = rdpo_synthetic.sample(rdpo_synthetic.World(success=0.1), 0)
  np.testing.assert_allclose(
    loud.rewards, plain.rewards * [10, 1, 1], rtol=1e-5
  )
  np.testing.assert_array_equal(close.aspects, plain.aspects)
  z = close.latent.reshape(-1, 3)
  np.testing.assert_allclose(np.corrcoef(z.T)[0], [1, 0.8, 0], atol=0.04)
  assert rare.rewards[..., 0].mean() == pytest.approx(0.1, abs=0.03)
  assert set(np.unique(rare.rewards[..., 0])) == {0, 1}


def test_measures_of_the_best_and_of_the_worst_advantage():
  made = rdpo_synthetic.sample(rdpo_synthetic.World(rho=0.6), 0)
  best = rdpo_synthetic.measure(made.aspects.sum(2), {}, made)
  assert best['aspects'] == 1 and 0.9 < best['rewards'] < 0.99
  assert best['first'] == pytest.approx(1 / 3, abs=0.05)
  by_reward = made.rewards.sum(2)
  assert rdpo_synthetic.measure(by_reward, {}, made)['wrong_order'] == 0
  assert rdpo_synthetic.measure(-by_reward, {}, made)['wrong_order'] == 1


def test_grpo_degrades_with_scale_and_gdpo_does_not():
  arms = {
    name: rewards_lib.from_config(rdpo.ARMS[name]) for name in ('grpo', 'gdpo')
  }
  found = {
    scale: {
      arm: rdpo_synthetic.measured(
        transform,
        [rdpo_synthetic.sample(rdpo_synthetic.World(scale=scale), 0)],
      )['aspects'][0]
      for arm, transform in arms.items()
    }
    for scale in (1.0, 10.0)
  }
  assert found[1.0]['grpo'] > 0.85
  assert found[10.0]['grpo'] < 0.7
  assert found[10.0]['gdpo'] == pytest.approx(found[1.0]['gdpo'], abs=1e-4)


@pytest.mark.parametrize('isotropic', [True, False])
def test_balanced_groups(isotropic):
  values = rdpo_synthetic.balanced(0, isotropic=isotropic)
  groups = values.reshape(-1, rdpo_synthetic.GROUP, rdpo_synthetic.REWARDS)
  np.testing.assert_array_equal(groups.sum(1), 4)
  covariance = np.cov(values[0].T)
  off = np.abs(covariance[~np.eye(3, dtype=bool)]).max()
  assert (off < 1e-6) == isotropic
  assert not (groups == groups[0]).all()  # in another order


def test_control_takes_the_largest_difference():
  transforms = {'gdpo': rewards_lib.from_config({'name': 'gdpo'})}
  transforms['rdpo'] = transforms['gdpo']
  found = rdpo_synthetic._control(transforms, range(1))
  assert found == {'isotropic': [0.0], 'by chance': [0.0]}
  transforms['rdpo'] = rewards_lib.from_config({'name': 'combine'})
  found = rdpo_synthetic._control(transforms, range(1))
  assert max(found['isotropic']) > 0.1


def _found():
  """Results in which RDPO is best, whitening reverses nothing, (d) fails."""
  quality = {'grpo': 0.5, 'gdpo': 0.6, 'quantile': 0.65, 'whitening': 0.7}
  quality |= {'rdpo': 0.8, 'rdpo_centred': 0.75, 'sum': 0.9}
  quality |= {'whitened': 0.4, 'whitened, guarded': 0.9}
  names = ('aspects', 'rewards', 'first', 'participation', 'domination')
  rng = np.random.default_rng(0)

  def arms(chosen):
    return {
      arm: {
        **{n: list(quality[arm] + 0.01 * rng.random(3)) for n in names},
        'eta_corr': [0.5, 0.6, 0.55],
        'wrong_order': [0.0, 0.0, 0.0],
      }
      for arm in chosen
    }

  recipes = list(quality)[:6]
  found = {
    dial: {label: arms(recipes) for label in worlds}
    for dial, (_, worlds) in rdpo_synthetic.DIALS.items()
  }
  pair, judge = rdpo_synthetic.STRESSES
  found['stress'] = {pair: arms(list(quality)[6:]), judge: arms(recipes)}
  found['control'] = {'isotropic': [0.0, 0.5], 'by chance': [0.1, 0.1]}
  return found


def test_synthetic_report_says_what_the_files_say(tmp_path):
  found = _found()
  for name, content in found.items():
    (tmp_path / f'{name}.json').write_text(json.dumps(content))
  stem = tmp_path / 'page'
  text = rdpo_synthetic_report.write(tmp_path, stem)
  assert (tmp_path / 'page.md').read_text() == text
  assert (tmp_path / 'page.png').stat().st_size > 1000

  def said(start):
    return _line(text, start).rsplit('| ', 1)[-1]

  assert said('| (b) RDPO is better than GDPO; scale = 10') == 'shown |'
  assert said('| (a) RDPO is less dominated') == 'contradicted |'
  assert said('| (d) RDPO is GDPO for balanced') == 'contradicted |'
  assert said('| (e) literal whitening reverses') == 'not told apart |'
  assert said('| (e) guarded whitening reverses') == (
    'not told apart, as expected |'
  )
  (tmp_path / 'stress.json').unlink()
  with pytest.raises(FileNotFoundError, match='stress'):
    rdpo_synthetic_report.write(tmp_path, stem)
