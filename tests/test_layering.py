"""Who may import whom: this table is the architecture.

`experiments` may import everything; nobody imports `experiments`. Imports are
read from the source, also those inside functions.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIRST_PARTY = ('jaxagent', 'kernels_pallas', 'experiments')

# module or package -> what else of the project it may import
BASIS = {'jaxagent.types', 'jaxagent.registry'}
WORLD = {'jaxagent.tokens'} | BASIS
STATISTICS = {'jaxagent.masked'} | BASIS
PARTS = {
  'jaxagent.models',
  'jaxagent.envs',
  'jaxagent.agents',
  'jaxagent.language_models',
}
RUNS = {'jaxagent.rollouts', 'jaxagent.answers'} | PARTS | WORLD
ALLOWED = {
  'kernels_pallas': set(),
  'jaxagent.__init__': set(),
  'jaxagent.types': set(),
  'jaxagent.registry': set(),
  'jaxagent.masked': {'jaxagent.types'},
  'jaxagent.tokens': {'jaxagent.types'},
  'jaxagent.answers': {'jaxagent.registry'},
  'jaxagent.losses': STATISTICS,
  'jaxagent.rewards': STATISTICS,
  'jaxagent.models': {'kernels_pallas', 'jaxagent.types'},
  # An environment over a file of questions reads it and judges by `answers`.
  'jaxagent.envs': WORLD | {'jaxagent.answers', 'jaxagent.data'},
  'jaxagent.agents': WORLD,
  # The protocol is the contract of both sides, as `types` is of the arrays.
  'jaxagent.language_models': WORLD | {'jaxagent.agents.protocol'},
  'jaxagent.rollouts': PARTS | WORLD,
  'jaxagent.data': WORLD | {'jaxagent.answers'},
  'jaxagent.balance': {'jaxagent.types'},
  'jaxagent.training': {
    'jaxagent.losses',
    'jaxagent.rewards',
    'jaxagent.data',
    'jaxagent.balance',
    'jaxagent.masked',
  }
  | RUNS,
  'jaxagent.judges': RUNS,
  'jaxagent.benchmarks': RUNS,
  'jaxagent.report': {'jaxagent.training.metrics', 'jaxagent.types'},
}

# package -> outside libraries that stay out of it
BANNED = {
  'kernels_pallas': {'flax', 'gymnasium', 'ml_collections', 'optax'},
  'jaxagent.losses': {'gymnasium'},
  'jaxagent.rewards': {'gymnasium'},
  'jaxagent.models': {'gymnasium'},
  'jaxagent.answers': {'jax', 'jaxlib', 'flax', 'optax', 'sympy', 'numpy'},
  'jaxagent.envs': {'jax', 'jaxlib', 'flax', 'optax'},
  'jaxagent.agents': {'jax', 'jaxlib', 'flax', 'optax'},
  'jaxagent.judges': {'jax', 'jaxlib', 'flax', 'optax'},
}


def files_of(module, root=ROOT):
  """The source files of a package or of one module."""
  path = root.joinpath(*module.split('.'))
  return (
    sorted(path.rglob('*.py')) if path.is_dir() else [path.with_suffix('.py')]
  )


def imports(path):
  """Yields `(imported name, line, names of the enclosing functions)`."""

  def walk(node, functions):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      functions = (*functions, node.name)
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, node.lineno, functions
    elif isinstance(node, ast.ImportFrom):
      module = '.' * node.level + (node.module or '')
      for alias in node.names:
        yield f'{module}.{alias.name}', node.lineno, functions
    for child in ast.iter_child_nodes(node):
      yield from walk(child, functions)

  yield from walk(ast.parse(path.read_text(), str(path)), ())


def is_inside(name, package):
  return name == package or name.startswith(f'{package}.')


def breaches(module, root=ROOT):
  """One sentence per import in `module` that the tables do not allow."""
  allowed = {module} | ALLOWED[module]
  found = []
  for path in files_of(module, root):
    for name, line, functions in imports(path):
      where = f'{path.relative_to(root)}:{line} imports {name}; '
      top = name.split('.')[0]
      if name.startswith('.'):
        found.append(where + 'write imports absolutely.')
      elif top in FIRST_PARTY:
        if not any(is_inside(name, package) for package in allowed):
          found.append(
            where + f'{module} may import only {sorted(allowed - {module})}.'
          )
      elif top in BANNED.get(module, ()):
        found.append(where + f'{module} does without {top}.')
      elif top == 'ml_collections' and 'from_config' not in functions:
        found.append(where + 'only from_config functions may.')
  return found


def modules_of(root=ROOT):
  """Every top-level module of the project's packages, as the table names it."""
  return {
    f'jaxagent.{path.stem}'
    for path in root.joinpath('jaxagent').iterdir()
    if path.suffix == '.py' or any(path.rglob('*.py'))
  } | {'kernels_pallas' for p in root.glob('kernels_pallas') if p.is_dir()}


@pytest.mark.parametrize('module', sorted(modules_of() & set(ALLOWED)))
def test_imports_point_down(module):
  assert breaches(module) == []


def test_every_module_has_its_place_in_the_table():
  missing = sorted(modules_of() - set(ALLOWED))
  assert not missing, f'Give {missing} a row in ALLOWED.'


@pytest.mark.parametrize(
  'module, source, told',
  [
    ('jaxagent.losses', 'from jaxagent import models', 'may import only'),
    ('jaxagent.losses', 'import jaxagent.models.layers', 'may import only'),
    ('jaxagent.types', 'from jaxagent import masked', 'may import only'),
    ('jaxagent.training', 'import experiments.train', 'may import only'),
    ('jaxagent.models', 'from jaxagent.modelsx import a', 'may import only'),
    ('jaxagent.agents', 'def f():\n  import jax.numpy', 'does without jax'),
    ('jaxagent.rewards', 'from gymnasium import spaces', 'does without gym'),
    ('jaxagent.training', 'import ml_collections', 'from_config'),
    ('jaxagent.envs', 'from . import base', 'absolutely'),
    ('kernels_pallas', 'from jaxagent import types', 'may import only'),
  ],
)
def test_a_breach_is_told(module, source, told, tmp_path):
  path = tmp_path.joinpath(*module.split('.'), 'breach.py')
  path.parent.mkdir(parents=True)
  path.write_text(source)
  (found,) = breaches(module, tmp_path)
  assert told in found and 'breach.py:' in found


@pytest.mark.parametrize(
  'module, source',
  [
    ('jaxagent.losses', 'from jaxagent import masked, types'),
    ('jaxagent.losses', 'from jaxagent.losses import base\nimport jax'),
    ('jaxagent.models', 'import kernels_pallas.dispatch'),
    ('jaxagent.data', 'def from_config():\n  import ml_collections'),
  ],
)
def test_what_the_table_allows_passes(module, source, tmp_path):
  path = tmp_path.joinpath(*module.split('.'), 'fine.py')
  path.parent.mkdir(parents=True)
  path.write_text(source)
  assert breaches(module, tmp_path) == []
