"""Looking names up: in a registry of recipes, or among what is known."""

from collections.abc import Callable, Collection, Mapping
import difflib
import inspect
from typing import Any


def one_of(what: str, got: Any, known: Collection[str]) -> Any:
  """Returns `got` if it is known.

  Raises:
    ValueError: otherwise, naming what is known and what may have been meant.
  """
  if got in known:
    return got
  names = list(known)
  close = difflib.get_close_matches(str(got), names, n=1)
  hint = f' Did you mean {close[0]!r}?' if close else ''
  few = names if len(names) <= 24 else [*names[:3], '…']
  raise ValueError(f'Unknown {what} {got!r}.{hint} Known: {", ".join(few)}.')


def build(
  kind: str,
  recipes: Mapping[str, Callable],
  config: Any,
  *,
  rest: Callable | None = None,
) -> Any:
  """Calls the recipe that a config names with the config's other entries.

  Args:
    kind: what is built, for errors.
    recipes: the registry.
    config: a mapping (a dict or a ConfigDict) with `name`, a key of `recipes`,
      and any keyword argument of that recipe.
    rest: the function whose arguments a recipe's `**rest` takes.

  Raises:
    ValueError: for an unknown name or argument.
  """
  arguments = dict(config)
  name = one_of(kind, arguments.pop('name', None), recipes)
  parameters = inspect.signature(recipes[name]).parameters
  accepted = [
    p.name
    for p in parameters.values()
    if p.kind != inspect.Parameter.VAR_KEYWORD
  ]
  if rest is not None and len(accepted) < len(parameters):
    accepted += inspect.signature(rest).parameters
  for argument in arguments:
    one_of(f'argument of {kind} {name!r}', argument, accepted)
  return recipes[name](**arguments)
