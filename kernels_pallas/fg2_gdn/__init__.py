"""FG2-GDN and its relatives: gated delta rules by one op; see `api`."""

from kernels_pallas.fg2_gdn.api import (
  choice,
  fg2,
  fg2_gdn,
  fg2_gdn_prescaled,
  fg2_gdn_step,
  fg2_plus,
  gated_delta,
  gdn,
  gdn2,
  kda,
)

__all__ = [
  'choice',
  'fg2',
  'fg2_gdn',
  'fg2_gdn_prescaled',
  'fg2_gdn_step',
  'fg2_plus',
  'gated_delta',
  'gdn',
  'gdn2',
  'kda',
]
