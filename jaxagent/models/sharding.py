"""Where arrays live on a mesh: one rule a parameter name.

Axes of a mesh: `data` replicates parameters, `fsdp` splits them by width and
`tensor` by heads and units. Rows are split over `data` and `fsdp` together. A
dimension that an axis does not divide is left whole.
"""

from collections.abc import Callable
import contextlib

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

AXES = ('data', 'fsdp', 'tensor')

RULES: dict[str, tuple[str | None, ...]] = {
  'embed': ('tensor', 'fsdp'),
  'unembed': ('fsdp', 'tensor'),
  'query': ('fsdp', 'tensor'),
  'key': ('fsdp', 'tensor'),
  'value': ('fsdp', 'tensor'),
  'output': ('tensor', 'fsdp'),
  'query_bias': ('tensor',),
  'key_bias': ('tensor',),
  'value_bias': ('tensor',),
  'gate': ('fsdp', 'tensor'),
  'up': ('fsdp', 'tensor'),
  'down': ('tensor', 'fsdp'),
  # Gated delta layers.
  'query_conv': (None, 'tensor'),
  'key_conv': (None, 'tensor'),
  'value_conv': (None, 'tensor'),
  'decay_rate': ('tensor',),
  'decay_bias': ('tensor',),
  'decay': ('fsdp', 'tensor'),
  'decay_down': ('fsdp', None),
  'decay_up': (None, 'tensor'),
  'beta': ('fsdp', 'tensor'),
  'beta_down': ('fsdp', None),
  'beta_up': (None, 'tensor'),
  'key_beta': ('fsdp', 'tensor'),
  'key_beta_down': ('fsdp', None),
  'key_beta_up': (None, 'tensor'),
  'value_beta': ('fsdp', 'tensor'),
  'value_beta_down': ('fsdp', None),
  'value_beta_up': (None, 'tensor'),
  'gate_down': ('fsdp', None),
  'gate_up': (None, 'tensor'),
  # Mixtures of experts: each is split as a network of its own.
  'router': ('fsdp', None),
  'expert_gate': (None, 'fsdp', 'tensor'),
  'expert_up': (None, 'fsdp', 'tensor'),
  'expert_down': (None, 'tensor', 'fsdp'),
  'shared_gate': ('fsdp', 'tensor'),
  'shared_up': ('fsdp', 'tensor'),
  'shared_down': ('tensor', 'fsdp'),
}

BATCH = PartitionSpec(('data', 'fsdp'))


def make_mesh(*, data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
  """A mesh over the first `data * fsdp * tensor` devices.

  Raises:
    ValueError: there are fewer devices.
  """
  shape = (data, fsdp, tensor)
  want, got = data * fsdp * tensor, jax.device_count()
  if want > got:
    raise ValueError(
      f'A mesh of data={data}, fsdp={fsdp}, tensor={tensor} needs {want}'
      f' devices; there are {got}. Make one of the three smaller.'
    )
  devices = jax.devices()[:want]
  kinds = (AxisType.Auto,) * len(AXES)
  return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)


def spec(path: tuple, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  """The rule of one array, from the last name on its path in a pytree."""
  names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
  rule = RULES.get(names[-1], ()) if names else ()
  if len(rule) != len(shape):
    return PartitionSpec()
  fits = [
    axis if size % mesh.shape.get(axis, 1) == 0 else None
    for axis, size in zip(rule, shape, strict=True)
  ]
  return PartitionSpec(*fits)


def specs(tree: PyTree, mesh: Mesh) -> PyTree:
  """A `PartitionSpec` for each array of `tree`.

  Works on parameters and on whatever repeats their names, such as optimiser
  state; arrays without a rule are replicated.
  """
  return jax.tree.map_with_path(lambda p, x: spec(p, x.shape, mesh), tree)


def shardings(tree: PyTree, mesh: Mesh) -> PyTree:
  """`specs` as `NamedSharding`s."""
  return jax.tree.map_with_path(
    lambda p, x: NamedSharding(mesh, spec(p, x.shape, mesh)), tree
  )


def shard(tree: PyTree, mesh: Mesh) -> PyTree:
  """Places the arrays of `tree` by their rules."""
  return jax.device_put(tree, shardings(tree, mesh))


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
  """Splits the first dimension of every array over the rows' axes.

  Raises:
    ValueError: some first dimension is not divisible.
  """
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  odd = {x.shape[0] for x in jax.tree.leaves(batch) if x.shape[0] % ways}
  if odd:
    raise ValueError(
      f'Batches of {sorted(odd)} rows do not split {ways} ways (data x fsdp).'
      ' Pad the batch with inactive rows, or change the mesh.'
    )
  return jax.device_put(batch, NamedSharding(mesh, BATCH))


def use(mesh: Mesh) -> contextlib.AbstractContextManager:
  """Tells what is traced inside which mesh it is for; see `each_part`."""
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def by_rows(x: jax.Array) -> jax.Array:
  """`x` [B, ...] with its rows split over the mesh, and nothing else.

  Left to itself the partitioner keeps hidden states split by width, as the
  embedding is, and sums every product over `fsdp`. Outside of `use`, and where
  the rows do not divide, nothing is asked.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  if x.shape[0] % (mesh.shape['data'] * mesh.shape['fsdp']):
    return x
  return jax.lax.with_sharding_constraint(x, BATCH)


def each_part(function: Callable, *arrays: jax.Array) -> PyTree:
  """`function(*arrays)`, on every device for its own rows and heads.

  The partitioner cannot look into a TPU kernel and refuses to split it. Outside
  of `use`, and on one device, this is a plain call.

  Args:
    function: to [B, T, H, *] or several of it, rows and heads apart from each
      other.
    arrays: [B, T, H, *], all with head counts that the function maps onto each
      other group by group, or [B, T]. `T` may be any length, each its own.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return function(*arrays)
  wide = [x for x in arrays if x.ndim > 2]
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  split = all(x.shape[2] % mesh.shape['tensor'] == 0 for x in wide)
  rows = BATCH[0] if arrays[0].shape[0] % ways == 0 else None
  whole = PartitionSpec(rows, None, 'tensor' if split else None)
  specs = tuple(whole if x.ndim > 2 else PartitionSpec(rows) for x in arrays)
  return jax.shard_map(
    function, in_specs=specs, out_specs=whole, check_vma=False
  )(*arrays)
