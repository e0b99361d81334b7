"""Every notebook runs from its first cell to its last.

A notebook whose metadata say `"slow": true` runs with the slow tests. Its cells
may read the environment variable `JAXAGENT_TEST` to be brief under test.
"""

import os
import pathlib

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / 'colab').glob('*.ipynb'))


def _cases():
  for path in NOTEBOOKS:
    slow = nbformat.read(path, as_version=4).metadata.get('slow', False)
    marks = [pytest.mark.slow] if slow else []
    yield pytest.param(path, id=path.stem, marks=marks)


def _is_install(cell):
  return 'install' in cell.metadata.get('tags', ())


@pytest.mark.parametrize('path', list(_cases()))
def test_notebook_runs(path, monkeypatch):
  notebook = nbformat.read(path, as_version=4)
  notebook.cells = [c for c in notebook.cells if not _is_install(c)]
  inherited = os.environ.get('PYTHONPATH')
  monkeypatch.setenv(
    'PYTHONPATH', os.pathsep.join(filter(None, [str(ROOT), inherited]))
  )
  monkeypatch.setenv('JAXAGENT_TEST', '1')
  nbclient.NotebookClient(
    notebook,
    timeout=1800,
    kernel_name='python3',
    resources={'metadata': {'path': str(path.parent)}},
  ).execute()
  ran = [c for c in notebook.cells if c.cell_type == 'code']
  assert ran and all(c.execution_count for c in ran)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_opens_with_its_installation_and_holds_no_output(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  code = [c for c in notebook.cells if c.cell_type == 'code']
  assert [_is_install(c) for c in code].index(True) == 0
  assert all(not c.outputs and c.execution_count is None for c in code)


def test_there_are_notebooks():
  assert NOTEBOOKS
