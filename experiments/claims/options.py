"""Flags of the claim scripts: defined once, since tests import several."""

from absl import flags

ARMS = flags.DEFINE_list('arms', [], 'Arms to run; all by default.')
SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds.')
SETTING = flags.DEFINE_string(
  'setting', '', 'One of the script; its first by default.'
)
WORKDIR = flags.DEFINE_string(
  'workdir', '', 'Of the runs; runs/claims/SCRIPT by default.'
)
SUMMARY = flags.DEFINE_bool('summary', False, 'Only tables and figure.')
