"""The verifier of answers, which environments share; see `jaxagent.answers`."""

from jaxagent.answers.verify import (
  IMPLEMENTATIONS,
  KINDS,
  Verdict,
  extract,
  kind_of,
  verify,
)

__all__ = (
  'IMPLEMENTATIONS',
  'KINDS',
  'Verdict',
  'extract',
  'kind_of',
  'verify',
)
