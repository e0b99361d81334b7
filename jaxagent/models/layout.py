"""How a checkpoint lays the parameters out: names, shapes, and order of axes.

Most tensors are one parameter each, a kernel stored `[out, in]`. Qwen3-Next
stores several kernels in one tensor, and experts one by one.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from jaxagent.models import config as config_lib
from jaxagent.models import transformer

EMBED, UNEMBED = 'model.embed_tokens.weight', 'lm_head.weight'

_TOP = {'embed': EMBED, 'norm': 'model.norm.weight', 'unembed': UNEMBED}
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
_NEXT = {
  'gated_delta/decay_rate': 'linear_attn.A_log',
  'gated_delta/decay_bias': 'linear_attn.dt_bias',
  'gated_delta/norm': 'linear_attn.norm.weight',
  'gated_delta/output': 'linear_attn.out_proj.weight',
  'experts/router': 'mlp.gate.weight',
  'experts/shared_gate': 'mlp.shared_expert.gate_proj.weight',
  'experts/shared_up': 'mlp.shared_expert.up_proj.weight',
  'experts/shared_down': 'mlp.shared_expert.down_proj.weight',
  'experts/shared_switch': 'mlp.shared_expert_gate.weight',
}


@dataclasses.dataclass(frozen=True)
class Piece:
  """Tensors of a checkpoint and the parameters that they hold.

  Attributes:
    tensors: shape by name.
    parameters: names as `name_of` gives them.
    read: from the tensors to the parameters, both in order.
    write: the inverse.
  """

  tensors: dict[str, tuple[int, ...]]
  parameters: tuple[str, ...]
  read: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]
  write: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


def name_of(path: tuple[Any, ...]) -> str:
  """A parameter's place in the tree, such as 'layers/0/mlp/up'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def pieces(config: config_lib.ModelConfig) -> list[Piece]:
  """A whole checkpoint, in the order of the parameters."""
  shapes = {
    name_of(path): x.shape
    for path, x in jax.tree.leaves_with_path(transformer.shapes(config))
  }
  joint = _joint(config) if config.family == 'qwen3_next' else {}
  out, done = [], set()
  for name, shape in shapes.items():
    prefix, _, rest = _split(name)
    if name in done:
      continue
    if rest in joint:
      names = tuple(prefix + other for other in joint[rest][0])
      tensors, read, write = joint[rest][1](prefix, [shapes[n] for n in names])
      out.append(Piece(tensors, names, read, write))
      done |= set(names)
    else:
      out.append(_single(name, shape))
  return out


def _split(name):
  """('layers/3/', 3, 'mlp/up'), or ('', None, name) at the top."""
  if not name.startswith('layers/'):
    return '', None, name
  _, index, rest = name.split('/', 2)
  return f'layers/{index}/', int(index), rest


def _stored(name):
  """The tensor that is one parameter."""
  _, index, rest = _split(name)
  if index is None:
    return _TOP[rest]
  there = _LAYER.get(rest) or _NEXT.get(rest) or rest.replace('/', '.')
  return f'model.layers.{index}.{there}'


def _layer(prefix):
  return f'model.layers.{_split(prefix + "x")[1]}.'


def _single(name, shape):
  stored = _stored(name)
  if stored == EMBED or len(shape) != 2:
    same = tuple
    return Piece({stored: shape}, (name,), same, same)
  turned = lambda arrays: [arrays[0].T]  # noqa: E731
  return Piece({stored: shape[::-1]}, (name,), turned, turned)


def _joint(config) -> dict[str, tuple[tuple[str, ...], Callable]]:
  """What Qwen3-Next stores together: parameter -> (all of them, maker)."""
  c, e = config.gated_delta, config.experts
  repeats = c.heads // c.key_heads
  rows = (c.key_dim, c.key_dim, repeats * c.value_dim, repeats * c.value_dim)
  groups = {
    ('attention/query', 'attention/gate'): functools.partial(
      _fused, 'self_attn.q_proj.weight', config.heads, (config.head_dim,) * 2
    ),
    tuple(f'gated_delta/{n}' for n in ('query', 'key', 'value', 'gate')): (
      functools.partial(
        _fused, 'linear_attn.in_proj_qkvz.weight', c.key_heads, rows
      )
    ),
    ('gated_delta/beta', 'gated_delta/decay'): functools.partial(
      _fused, 'linear_attn.in_proj_ba.weight', c.key_heads, (repeats,) * 2
    ),
    tuple(f'gated_delta/{n}_conv' for n in ('query', 'key', 'value')): (
      _convolutions
    ),
  }
  for name in ('gate', 'up', 'down') if e else ():
    groups[f'experts/expert_{name}',] = functools.partial(_one_by_one, name)
  return {
    name: (names, make) for names, make in groups.items() for name in names
  }


def _fused(tensor, heads, rows, prefix, shapes):
  """Kernels of which each head has its `rows` in one tensor."""
  hidden = shapes[0][0]
  cuts = np.cumsum(rows)[:-1].tolist()

  def read(arrays):
    split = np.split(arrays[0].reshape(heads, sum(rows), hidden), cuts, axis=1)
    return [x.reshape(-1, hidden).T for x in split]

  def write(arrays):
    split = [x.T.reshape(heads, -1, hidden) for x in arrays]
    return [np.concatenate(split, axis=1).reshape(-1, hidden)]

  name = _layer(prefix) + tensor
  return {name: (heads * sum(rows), hidden)}, read, write


def _convolutions(prefix, shapes):
  """Kernels `[W, out]`, stored as one `[out, 1, W]`."""
  width = shapes[0][0]
  sizes = [shape[1] for shape in shapes]
  cuts = np.cumsum(sizes)[:-1].tolist()
  name = _layer(prefix) + 'linear_attn.conv1d.weight'
  return (
    {name: (sum(sizes), 1, width)},
    lambda arrays: [x[:, 0].T for x in np.split(arrays[0], cuts)],
    lambda arrays: [np.concatenate([x.T for x in arrays])[:, None]],
  )


def _one_by_one(name, prefix, shapes):
  """Kernels `[X, in, out]`, stored as X times `[out, in]`."""
  ((count, *shape),) = shapes
  start = f'{_layer(prefix)}mlp.experts'
  return (
    {
      f'{start}.{i}.{name}_proj.weight': tuple(shape[::-1])
      for i in range(count)
    },
    lambda arrays: [np.stack([x.T for x in arrays])],
    lambda arrays: [x.T for x in arrays[0]],
  )
