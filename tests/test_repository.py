"""What holds of the repository as a whole: sizes, names, commands, paths."""

import ast
import pathlib
import re
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxagent import agents, envs, losses, rewards, types
from jaxagent.agents import protocol
from jaxagent.language_models import scripted
from jaxagent.rollouts import drive

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENTS = ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', '.ci/run')
# Absolute paths that mean something on one machine only.
MACHINE_PATH = re.compile(
  r'(?<![\w./:~$}-])/(?:work|tmp|home|root|Users|mnt|scratch)/\w'
)
EXTRAS = {
  'alfworld', 'gguf', 'search', 'http', 'arc', 'mcp', 'reasoning', 'tpu', 'dev',
}  # fmt: skip
# import name -> distribution, where the two differ
DISTRIBUTIONS = {'absl': 'absl-py', 'orbax': 'orbax-checkpoint'}
# import name -> the dependency that cannot do without it
BROUGHT = {'ml_dtypes': 'jax', 'scipy': 'jax', 'markupsafe': 'jinja2'}


def files(*suffixes):
  """Every file of the repository that git does not ignore."""
  if not shutil.which('git') or not (ROOT / '.git').exists():
    pytest.skip('needs git and a checkout, to tell sources from results')
  listed = subprocess.run(
    ['git', '-C', ROOT, 'ls-files', '-z', '-co', '--exclude-standard'],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.split('\0')
  paths = (ROOT / name for name in listed if name.endswith(suffixes or ('',)))
  return sorted(path for path in paths if path.is_file())


def machine_paths(text):
  return [line for line in text.splitlines() if MACHINE_PATH.search(line)]


def longest_function(source):
  """(lines of code without docstring and blank lines, name)."""
  lines, found = source.splitlines(), [(0, '')]
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      body = node.body
      first = body[0].lineno
      if ast.get_docstring(node, clean=False) is not None:
        first = body[0].end_lineno + 1
      code = lines[node.lineno - 1 : body[0].lineno - 1]
      code += lines[first - 1 : node.end_lineno]
      found.append((sum(bool(line.strip()) for line in code), node.name))
  return max(found)


def setup_literal(name):
  for node in ast.parse((ROOT / 'setup.py').read_text()).body:
    if isinstance(node, ast.Assign) and node.targets[0].id == name:
      return ast.literal_eval(node.value)
  raise AssertionError(f'setup.py has no {name}')


def documents():
  return {
    name: (ROOT / name).read_text()
    for name in DOCUMENTS
    if (ROOT / name).exists()
  }


def test_no_file_names_a_path_of_one_machine():
  found = {}
  for path in files():
    try:
      told = machine_paths(path.read_text())
    except UnicodeDecodeError:  # an array or a picture
      continue
    if told and path != pathlib.Path(__file__).resolve():
      found[str(path.relative_to(ROOT))] = told[:3]
  assert not found


@pytest.mark.parametrize(
  'text, told',
  [
    ('open("/work/main/x")', True),
    ('--workdir=/tmp/run', True),
    ('cd /home/someone', True),
    ('https://example.org/home/page', False),
    ('runs/tmp/x and ./work/x', False),
    ('$HOME/work/x', False),
  ],
)
def test_a_machine_path_is_told_from_others(text, told):
  assert bool(machine_paths(text)) == told


def test_files_stay_short():
  long = {}
  for path in files('.py'):
    name = str(path.relative_to(ROOT))
    limit = 700 if name.startswith('kernels_pallas/') else 400
    count = sum(bool(line.strip()) for line in path.read_text().splitlines())
    if count > limit:
      long[name] = count
  assert not long, 'Split them by idea.'


def test_functions_stay_short():
  long = {
    str(path.relative_to(ROOT)): longest
    for path in files('.py')
    if not path.is_relative_to(ROOT / 'kernels_pallas')
    and path.parent != ROOT / 'experiments' / 'configs'  # a config is a table
    and (longest := longest_function(path.read_text()))[0] > 80
  }
  assert not long


def test_length_is_of_code_and_not_of_its_contract():
  docstring = '  """One.\n\n  Two.\n  """\n'
  code = f'def f(\n  x\n):\n{docstring}\n  y = x\n\n  return y\n'
  assert longest_function(code) == (5, 'f')
  assert longest_function('x = 1') == (0, '')


def test_extras_are_those_of_the_design():
  extras = setup_literal('EXTRAS')
  assert set(extras) == EXTRAS and all(extras.values())


def test_every_import_has_its_dependency():
  """What a module imports when it is imported comes with a plain install."""
  core = {re.split(r'[^\w-]', line)[0] for line in setup_literal('CORE')}
  missing = {}
  for path in files('.py'):
    top = path.relative_to(ROOT).parts[0]
    if top not in ('jaxagent', 'kernels_pallas', 'experiments'):
      continue
    for node in ast.parse(path.read_text()).body:
      names = [a.name for a in getattr(node, 'names', ())]
      if isinstance(node, ast.ImportFrom):
        names = [node.module]
      elif not isinstance(node, ast.Import):
        continue
      for name in (name.split('.')[0] for name in names):
        known = BROUGHT.get(name, DISTRIBUTIONS.get(name, name))
        if not (
          name in sys.stdlib_module_names
          or name in ('jaxagent', 'kernels_pallas', 'experiments')
          or known in core
        ):
          missing.setdefault(name, str(path.relative_to(ROOT)))
  assert not missing, 'Name them in CORE of setup.py, or import them lazily.'


def test_commands_in_the_documents_exist():
  makefile = (ROOT / 'Makefile').read_text()
  targets = set(re.findall(r'^([\w-]+):', makefile, re.MULTILINE))
  seen = set()
  for name, text in documents().items():
    for target in re.findall(
      r'^\s*make ([a-z][\w-]*)|`make ([\w-]+)', text, re.M
    ):
      target = ''.join(target)
      assert target in targets, f'{name}: make {target}'
      seen.add(target)
    for module in re.findall(
      r'python3? -m ((?:experiments|jaxagent)[\w.]*)', text
    ):
      path = ROOT.joinpath(*module.split('.'))
      assert (
        path.with_suffix('.py').exists() or (path / '__main__.py').exists()
      ), f'{name}: {module}'
    for path in re.findall(r'--config=([\w/]+\.py)', text):
      assert (ROOT / path).exists(), f'{name}: {path}'
    for extra in re.findall(r'jaxagent\[(\w+)\]', text):
      assert extra in EXTRAS, f'{name}: {extra}'
  assert {'quickstart', 'test'} <= seen


def test_make_targets_are_all_phony():
  makefile = (ROOT / 'Makefile').read_text()
  phony = set(re.search(r'^\.PHONY: (.*)$', makefile, re.M)[1].split())
  targets = set(re.findall(r'^([a-z][\w-]*):', makefile, re.MULTILINE))
  assert phony == targets


def example(heading):
  """The names that an example of CONTRIBUTING.md defines."""
  text = (ROOT / 'CONTRIBUTING.md').read_text()
  section = text.split(f'\n## {heading}\n')[1].split('\n## ')[0]
  (code,) = re.findall(r'```python\n(.*?)```', section, re.S)
  names = {'__name__': 'example'}
  exec(compile(code, f'CONTRIBUTING.md, {heading}', 'exec'), names)
  return names


def test_contributing_a_loss(monkeypatch):
  reinforce = example('A loss')['reinforce']
  monkeypatch.setitem(losses.RECIPES, 'reinforce', reinforce)
  loss = losses.from_config({'name': 'reinforce', 'baseline': 1.0})
  inputs = types.LossInputs(
    logprobs=jnp.array([[-1.0, -2.0]]),
    old_logprobs=jnp.zeros((1, 2)),
    advantages=jnp.array([[3.0, jnp.nan]]),
    mask=jnp.array([[True, False]]),
    step=jnp.asarray(0),
  )
  np.testing.assert_array_equal(loss(inputs).values, [[2.0, 0.0]])


def test_contributing_a_reward_transform(monkeypatch):
  clipped = example('A reward transform')['clipped']
  monkeypatch.setitem(rewards.RECIPES, 'clipped', clipped)
  transform = rewards.from_config({'name': 'clipped', 'limit': 0.25})
  zeros = jnp.zeros(3, jnp.int32)
  got, _ = transform.apply(
    types.Rewards(
      values=jnp.array([[0.0], [1.0], [0.0]]),
      active=jnp.ones((3, 1), bool),
      group=zeros,
      episode=jnp.arange(3, dtype=jnp.int32),
      part=zeros,
    ),
    transform.init(1),
  )
  np.testing.assert_allclose(got.values[:, 0], [-0.25, 0.25, -0.25])


def test_contributing_an_environment_and_an_agent(monkeypatch):
  opened = example('An environment')['from_config']
  monkeypatch.setitem(envs.ENVIRONMENTS, 'spelling', opened)
  games, make_env = envs.from_config({'name': 'spelling', 'split': 'train'})
  monkeypatch.setitem(agents.PROGRAMS, 'twice', example('An agent')['twice'])
  agent = agents.from_config({'name': 'twice'}, make_env)
  for answer, success in (('nap', 1.0), ('pan', 0.0)):
    transcript = drive.drive(
      agent(protocol.Task(episode=0, group=0, seed=0, game=1)),
      scripted.scripted(['a draft', answer]),
      max_new=16,
    )
    assert transcript.outcome.rewards == {'success': success}
    assert len(transcript.rows) == 1 and len(transcript.rows[0].replies) == 2
  assert games.names == ['cup', 'pan']


def test_contributing_a_kernel():
  names = example('A kernel')
  x, y = jnp.arange(7.0), jnp.linspace(-1.0, 1.0, 7)
  want = np.arange(7) * (np.linspace(-1, 1, 7) + 1)
  for implementation in (None, *names['IMPLEMENTATIONS']):
    got = names['multiply_add'](x, y, implementation=implementation)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_the_citation_names_ten_papers_once():
  text = (ROOT / 'CITATION.cff').read_text()
  papers = re.findall(r'url: "https://arxiv.org/abs/(\d{4}\.\d{5})"', text)
  assert len(papers) == len(set(papers)) == 10
  assert all(text.count(f'"arXiv:{paper}"') == 1 for paper in papers)
  version = re.search(r"version='([\d.]+)'", (ROOT / 'setup.py').read_text())[1]
  assert f'version: {version}' in text
