"""Runtime checks of every annotation, and one strict numeric regime."""

import os
import pathlib
import pkgutil

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_NUMPY_DTYPE_PROMOTION', 'strict')
os.environ.setdefault('JAX_NUMPY_RANK_PROMOTION', 'raise')
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

import jaxtyping  # noqa: E402
import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared'

# `types` holds pytrees, which JAX rebuilds with leaves that are no arrays.
jaxtyping.install_import_hook(
  ['kernels_pallas']
  + [
    f'jaxagent.{module.name}'
    for module in pkgutil.iter_modules([str(ROOT / 'jaxagent')])
    if module.name != 'types'
  ],
  'beartype.beartype',
)


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
  """Real data kept outside the project; tests that use it skip without it."""
  if not SHARED.is_dir():
    pytest.skip(f'needs the development data in {SHARED}, which is absent')
  return SHARED
