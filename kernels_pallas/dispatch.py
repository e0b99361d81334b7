"""Which implementation runs, and why.

An op lists its implementations in one mapping, name to callable, and names in
order those that may be picked without being asked for. An implementation that
cannot run says so by raising `NotImplementedError` (or `ImportError`, where its
module is missing) while it is traced; any other exception is an error and goes
to the caller.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax

REFUSALS = (NotImplementedError, ImportError)


@dataclasses.dataclass(frozen=True)
class Choice:
  """What `call` would run.

  Attributes:
    name: the implementation.
    why: one sentence.
    refused: `(name, reason)` of each that was tried before it.
  """

  name: str
  why: str
  refused: tuple[tuple[str, str], ...] = ()


def call(
  implementations: Mapping[str, Callable],
  name: str | None,
  *args: Any,
  automatic: Sequence[str],
  **kwargs: Any,
) -> Any:
  """Runs the implementation `name`, or the first of `automatic` that can run.

  Args:
    implementations: name to callable; all take the same arguments.
    name: an explicit choice, which runs or raises and never falls back, or
      None.
    *args: for the callable.
    automatic: names to try in order when `name` is None.
    **kwargs: for the callable.

  Raises:
    ValueError: `name` is not in `implementations`.
    NotImplementedError: nothing can run; every reason is given.
  """
  return _first(implementations, name, automatic, args, kwargs)[1]


def choice(
  implementations: Mapping[str, Callable],
  name: str | None,
  *args: Any,
  automatic: Sequence[str],
  **kwargs: Any,
) -> Choice:
  """Says which implementation `call` would run, and why; computes nothing.

  Arguments as `call`; arrays may be `jax.ShapeDtypeStruct`. Raises what `call`
  raises while it traces.
  """
  shaped = {
    key: functools.partial(_shapes_of, function)
    for key, function in implementations.items()
  }
  chosen, _, refused = _first(shaped, name, automatic, args, kwargs)
  if name is not None:
    why = f'{chosen!r} was asked for.'
  elif refused:
    said = '; '.join(f'{key!r}: {reason}' for key, reason in refused)
    why = f'{chosen!r} is the first that can run here; refused: {said}.'
  else:
    why = (
      f'{chosen!r} is the first choice on {jax.default_backend()!r} of'
      f' {tuple(automatic)}.'
    )
  return Choice(chosen, why, refused)


def _first(implementations, name, automatic, args, kwargs):
  for key in (*automatic, *(() if name is None else (name,))):
    if key not in implementations:
      raise ValueError(
        f'Got implementation={key!r}; wanted one of'
        f' {sorted(implementations)}, or None to have one picked.'
      )
  if name is not None:
    return name, implementations[name](*args, **kwargs), ()
  refused = []
  for key in automatic:
    try:
      return key, implementations[key](*args, **kwargs), tuple(refused)
    except REFUSALS as error:
      refused.append((key, str(error) or type(error).__name__))
  said = '\n'.join(f'  {key!r}: {reason}' for key, reason in refused)
  raise NotImplementedError(
    f'No implementation can run on {jax.default_backend()!r}:\n{said}\n'
    'Change the operands as the reasons say, or pass implementation= by name.'
  )


def _shapes_of(function, *args, **kwargs):
  """Traces with every array abstract and everything else as it is."""
  leaves, tree = jax.tree.flatten((args, kwargs))
  spots = [i for i, x in enumerate(leaves) if hasattr(x, 'shape')]

  def run(arrays):
    filled = list(leaves)
    for spot, array in zip(spots, arrays, strict=True):
      filled[spot] = array
    args, kwargs = jax.tree.unflatten(tree, filled)
    return function(*args, **kwargs)

  return jax.eval_shape(run, [leaves[i] for i in spots])
