"""Flags that every claim script has."""

from absl import flags

ARMS = flags.DEFINE_list('arms', [], 'Arms to run; all by default.')
SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds.')
SUMMARY = flags.DEFINE_bool('summary', False, 'Only tables and figure.')
