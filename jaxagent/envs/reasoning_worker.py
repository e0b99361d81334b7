"""Generators of reasoning-gym and their scorers; run by `child.Children`.

Some scorers hand a reply to Python's or sympy's eval. Here the first reads
literals only, and the second refuses whatever is no formula; that and the
limits of the process are no sandbox, but stop what a policy stumbles upon.
"""

import ast
import builtins
import functools
import importlib
import json
import re

_EVAL = (
  'algorithmic.string_insertion',
  'algorithmic.spiral_matrix',
  'algorithmic.binary_matrix',
  'games.n_queens',
)
_PARSE = ('games.countdown', 'games.puzzle24')
_NAME = re.compile(r'[^\W\d]\w*')
_FORMULA = re.compile(r"[\w\s+\-*/^().,=<>']*")
_ATTRIBUTE = re.compile(r'\.\s*[^\W\d]|__')
_HARMLESS = {'abs', 'pow', 'max', 'min'}


def answer(request):
  """{'questions': [index, …]} or {'score': index, 'reply': text} of a dataset.

  A dataset is given by 'dataset', 'options', 'seed' and 'size'. {'names': True}
  asks which there are.
  """
  if 'names' in request:
    _guarded()
    factory = importlib.import_module('reasoning_gym.factory')
    return {'names': sorted(factory.DATASETS)}
  dataset = _dataset(
    request['dataset'],
    json.dumps(request['options'], sort_keys=True),
    request['seed'],
    request['size'],
  )
  if 'questions' in request:
    return {'questions': [dataset[i]['question'] for i in request['questions']]}
  entry = dataset[request['score']]
  if entry['question'] != request['question']:
    return {'changed': True}
  return {'score': float(dataset.score_answer(request['reply'], entry))}


@functools.lru_cache(maxsize=64)
def _dataset(name, options, seed, size):
  gym = _guarded()
  return gym.create_dataset(name, seed=seed, size=size, **json.loads(options))


@functools.cache
def _guarded():
  import reasoning_gym
  import sympy

  for name in _EVAL:
    importlib.import_module(f'reasoning_gym.{name}').eval = ast.literal_eval
  sympy.parse_expr = _formula(sympy.parse_expr)
  for name in _PARSE:
    module = importlib.import_module(f'reasoning_gym.{name}')
    module.parse_expr = sympy.parse_expr
  return reasoning_gym


def _formula(parse):
  @functools.wraps(parse)
  def parsed(text, *arguments, **options):
    names = set(_NAME.findall(text))
    if (
      not _FORMULA.fullmatch(text)
      or _ATTRIBUTE.search(text)
      or (names - _HARMLESS) & set(dir(builtins))
    ):
      raise ValueError(f'{text[:80]!r} is no formula.')
    return parse(text, *arguments, **options)

  return parsed


_guarded()
