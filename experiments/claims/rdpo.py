"""RDPO against GRPO, GDPO and its own halves: training, and scores by hand.

  python -m experiments.claims.rdpo                       # rewards of one scale
  python -m experiments.claims.rdpo --setting=scaled      # length counts tenfold
  python -m experiments.claims.rdpo --setting=loud        # the judge tenfold
  python -m experiments.claims.rdpo --study=synthetic     # no model, a minute

Training: every arm starts from one warm start, sees the same tasks of
`configs/rdpo_mixed.py` in the same order, and differs in the reward transform
alone. A finished (arm, seed) is one file under `results/rdpo/SETTING/`; those
are skipped, so the command goes on where it was stopped. The tables and the
figures are made from these files, see `rdpo_report.py`. What the transforms
make of rewards of known quality is the other study, see `rdpo_synthetic.py`.
"""

import pathlib

from absl import app, flags, logging
import ml_collections

from experiments.claims import (
  options,
  paired,
  rdpo_report,
  rdpo_synthetic,
  rdpo_synthetic_report,
  runs,
)
from experiments.configs import rdpo_mixed, sft_mixed
from jaxagent import registry

_STUDY = flags.DEFINE_enum(
  'study', 'training', ['training', 'synthetic'], 'Which; see above.'
)

RESULTS = pathlib.Path(__file__).parent / 'results' / 'rdpo'

# arm -> config.rewards.transform; the caps are the setting's.
ARMS = {
  'grpo': {'name': 'group_normalize'},
  'gdpo': {'name': 'gdpo'},
  'quantile': {'name': 'quantile'},
  'whitening': {'name': 'whitening'},
  'rdpo': {'name': 'rdpo'},
  # Options that the paper does not have.
  'rdpo_centred': {'name': 'rdpo', 'quantile': {'center_group': True}},
  'rdpo_by_set': {'name': 'rdpo', 'whitening': {'scope': 'active_set'}},
  'rdpo_guarded': {'name': 'rdpo', 'whitening': {'guard_sign': True}},
}
# setting -> the factors of rewards, and whether a failed primary reward caps
# the others: with caps, what is not right earns nothing however loud it is.
SETTINGS = {
  'equal': ({}, True),
  'scaled': ({'length': 10.0}, True),
  'loud': ({'style': 10.0}, False),
}
_PAPER = ('grpo', 'gdpo', 'quantile', 'whitening', 'rdpo')
ARMS_OF = {
  'equal': (*_PAPER, 'rdpo_guarded'),
  # No other arm depends on scales: their runs of 'equal' are shown.
  'scaled': ('grpo',),
  'loud': (*_PAPER, 'rdpo_centred', 'rdpo_by_set'),
  'synthetic': (*_PAPER, 'rdpo_centred'),
}
_PRIMARY = (
  ('test/instruction', 'instructions'),
  ('train/both', 'sums with style'),
  ('reward/success', 'training'),
)


def _of_success(text, arm, other):
  """A claim of held-out instructions, trained sums, and all training."""
  return [
    paired.Claim(f'{text}: {label}', arm, other, of=of)
    for of, label in _PRIMARY
  ]


_MECHANISM = [
  paired.Claim(f'(a) {text} than GDPO', 'rdpo', 'gdpo', expected, of)
  for text, expected, of in (
    (
      'RDPO spreads scores over more of a group',
      'more',
      'scores/participation',
    ),
    ('RDPO is less dominated', 'less', 'scores/domination'),
    ('what RDPO sums is less correlated', 'more', 'summed/eta_corr'),
    ('RDPO is more efficient', 'more', 'summed/eta_eff'),
  )
]
_ORDER = [
  *_of_success('(b) RDPO is better than GDPO', 'rdpo', 'gdpo'),
  *_of_success('(b) GDPO is better than GRPO', 'gdpo', 'grpo'),
  *_of_success('(b) RDPO is better than GRPO', 'rdpo', 'grpo'),
]
_HALVES = [
  *_of_success('(c) quantiles help GDPO', 'quantile', 'gdpo'),
  *_of_success('(c) whitening helps GDPO', 'whitening', 'gdpo'),
  *_of_success('RDPO is better than quantiles alone', 'rdpo', 'quantile'),
  *_of_success('RDPO is better than whitening alone', 'rdpo', 'whitening'),
]
_SUFFER = _of_success(
  '(b) GRPO is better with equal scales', 'grpo, equal', 'grpo'
)
CLAIMS = {
  'equal': [
    *_MECHANISM,
    *_ORDER,
    *_HALVES,
    *_of_success('(e) guarded signs help', 'rdpo_guarded', 'rdpo'),
  ],
  'scaled': [*_MECHANISM, *_ORDER, *_SUFFER],
  'loud': [
    *_MECHANISM,
    *_ORDER,
    *_HALVES,
    *_of_success('ours: centred quantiles help', 'rdpo_centred', 'rdpo'),
    *_of_success('ours: a covariance by set helps', 'rdpo_by_set', 'rdpo'),
    paired.Claim(
      'ours: a covariance by set decorrelates better',
      'rdpo_by_set',
      'rdpo',
      of='summed/eta_corr',
    ),
  ],
}
ABOUT = {
  'equal': (
    'RDPO: rewards of equal scale',
    'Every reward is in [0, 1]; a failed primary reward caps the others.',
  ),
  'scaled': (
    'RDPO: length counts tenfold',
    'As with equal scales, but for length in [0, 10]. GDPO, its halves and RDPO'
    ' do not depend on scales: their runs are those with equal scales. A wrong'
    ' sum has no length to gain, so that even the louder reward mostly says'
    ' whether the sum is right.',
  ),
  'loud': (
    'RDPO: the noisy judge counts tenfold',
    'Style is in [0, 10] and nothing caps it: most of what is summed is a judge'
    ' that follows length or constraints, and noise.',
  ),
}
# Kept of each run.
CURVES = (
  'reward/*', 'groups/*', 'policy/*', 'scores/*', 'summed/*', 'whitening/*',
  'rewards/*', 'episode/tokens', 'gradient/norm',
)  # fmt: skip


def warm_config(arg: str = '') -> ml_collections.ConfigDict:
  """The warm start of all settings: a reply, often a wrong or wordy one."""
  return sft_mixed.get_config(arg)


def arm_config(
  setting: str, arm: str, seed: int, model: pathlib.Path | str, arg: str = ''
) -> ml_collections.ConfigDict:
  """The run of one arm and seed.

  Args:
    setting: of `SETTINGS`.
    arm: of `ARMS`.
    seed: of the run.
    model: folder of the warm start.
    arg: of `rdpo_mixed.get_config`.
  """
  config = rdpo_mixed.get_config(arg)
  scales, capped = SETTINGS[setting]
  caps = config.rewards.transform.caps if capped else ()
  config.name = f'{arm}_{seed}'
  config.seed = seed
  config.model.init = str(model)
  config.tokenizer = 'model'
  config.env.scales = scales
  config.rewards.transform = {**ARMS[arm], 'caps': caps}
  if not arg:
    config.train.steps = 100
  config.train.update(record_every=0, checkpoint_every=50)
  # The policy as it is trained; a colder one is right more often, with or
  # without RL. There are only 61 sums to train on, and few to hold out. One
  # reply a task would add 5 points of noise to the success of a kind.
  config.eval.update(splits=('test', 'train'), temperature=1.0, repeats=4)
  return config


def run_arm(
  setting: str, arm: str, seed: int, workdir: pathlib.Path
) -> pathlib.Path:
  """Runs one arm and seed unless its result is there; returns its file."""
  path = RESULTS / setting / f'{arm}_{seed}.json'
  if path.exists():
    return path
  model = runs.warm_start(warm_config, workdir / 'warm_start')
  return runs.record(
    path,
    arm_config(setting, arm, seed, model),
    workdir / setting / f'{arm}_{seed}',
    curves=CURVES,
    setting=setting,
    arm=arm,
    seed=seed,
    scales=SETTINGS[setting][0],
  )


def summarize(setting: str) -> str:
  """Tables, figure and verdicts from the result files of a setting.

  Returns:
    The text, which also goes to `results/rdpo_SETTING.md`.

  Raises:
    FileNotFoundError: there is no result yet.
  """
  results = runs.load(RESULTS / setting)
  if setting == 'scaled':
    for result in runs.load(RESULTS / 'equal'):
      arm = result['arm']
      results.append(result | {'arm': 'grpo, equal' if arm == 'grpo' else arm})
  title, about = ABOUT[setting]
  text = rdpo_report.report(
    results,
    title=title,
    about=about,
    arms=_PAPER if setting == 'scaled' else ARMS_OF[setting],
    claims=CLAIMS[setting],
    figure=RESULTS.parent / f'rdpo_{setting}.png',
  )
  (RESULTS.parent / f'rdpo_{setting}.md').write_text(text)
  return text


def main(_):
  logging.set_verbosity(logging.WARNING)
  if _STUDY.value == 'synthetic':
    arms = {name: ARMS[name] for name in ARMS_OF['synthetic']}
    folder = RESULTS / 'synthetic'
    if not options.SUMMARY.value:
      rdpo_synthetic.run(arms, folder)
    stem = RESULTS.parent / 'rdpo_synthetic'
    print(rdpo_synthetic_report.write(folder, stem))
    return
  setting = registry.one_of(
    'setting', options.SETTING.value or 'equal', SETTINGS
  )
  if not options.SUMMARY.value:
    workdir = pathlib.Path(
      options.WORKDIR.value or 'runs/claims/rdpo'
    ).resolve()
    for seed in map(int, options.SEEDS.value):
      for arm in options.ARMS.value or ARMS_OF[setting]:
        run_arm(setting, arm, seed, workdir)
  print(summarize(setting))


if __name__ == '__main__':
  app.run(main)
