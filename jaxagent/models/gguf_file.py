"""GGUF files, presented as a Hugging Face folder would be.

Quantised tensors are widened and rounded to bfloat16, the type they were
quantised from: full float32 would claim digits that no one trained.
"""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

_FIELDS = {
  'block_count': 'num_hidden_layers',
  'context_length': 'max_position_embeddings',
  'embedding_length': 'hidden_size',
  'feed_forward_length': 'intermediate_size',
  'attention.head_count': 'num_attention_heads',
  'attention.head_count_kv': 'num_key_value_heads',
  'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
  'attention.key_length': 'head_dim',
  'rope.freq_base': 'rope_theta',
}
_CHECKED = {'attention.value_length', 'rope.dimension_count', 'vocab_size'}

_TOP = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
}
_LAYER = {
  'attn_norm': 'input_layernorm',
  'ffn_norm': 'post_attention_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'attn_q_norm': 'self_attn.q_norm',
  'attn_k_norm': 'self_attn.k_norm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A model on disk: `config.json` fields, shapes by name, and a reader."""

  fields: Mapping[str, Any]
  shapes: Mapping[str, tuple[int, ...]]
  read: Callable[[str], np.ndarray]


def _config(reader, shapes) -> dict[str, Any]:
  family = reader.fields['general.architecture'].contents()
  prefix = f'{family}.'
  given = {
    k.removeprefix(prefix): f.contents()
    for k, f in reader.fields.items()
    if k.startswith(prefix)
  }
  if unknown := sorted(given.keys() - _FIELDS.keys() - _CHECKED):
    raise ValueError(
      f'The GGUF header has {[prefix + k for k in unknown]}, which this model'
      ' does not do. Use a plain llama, qwen2 or qwen3 file.'
    )
  fields = {_FIELDS[k]: v for k, v in given.items() if k in _FIELDS}
  # The header stores float32: 9.9999997e-06 was written for 1e-05.
  for name in ('rms_norm_eps', 'rope_theta'):
    if name in fields:
      fields[name] = float(str(np.float32(fields[name])))
  width = fields.get(
    'head_dim', fields['hidden_size'] // fields['num_attention_heads']
  )
  for name in ('rope.dimension_count', 'attention.value_length'):
    if given.get(name, width) != width:
      raise ValueError(
        f'GGUF: {prefix}{name}={given[name]} but heads are {width} wide;'
        ' partial rotation and unequal heads are not supported.'
      )
  return fields | {
    'model_type': family,
    'vocab_size': shapes['model.embed_tokens.weight'][0],
    'tie_word_embeddings': 'lm_head.weight' not in shapes,
    'dtype': 'bfloat16',
  }


def _name(name: str) -> str:
  """Hugging Face's name of a GGUF tensor; its own where there is none."""
  if name in _TOP:
    return _TOP[name]
  parts = name.split('.')
  if len(parts) == 4 and parts[0] == 'blk' and parts[2] in _LAYER:
    return f'model.layers.{parts[1]}.{_LAYER[parts[2]]}.{parts[3]}'
  return name


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
  """Rows of a llama query or key kernel, from pairwise to half-split RoPE."""
  half = weight.shape[0] // heads // 2
  split = weight.reshape(heads, half, 2, *weight.shape[1:])
  return split.swapaxes(1, 2).reshape(weight.shape)


def open_gguf(path: pathlib.Path) -> Checkpoint:
  """Opens a GGUF file of a llama, qwen2 or qwen3 model.

  Raises:
    ImportError: the `gguf` package is absent.
    ValueError: the header asks for what the model does not do.
  """
  try:
    import gguf
  except ImportError as e:
    raise ImportError(
      'Reading GGUF files needs the `gguf` package: pip install jaxagent[gguf]'
    ) from e
  reader = gguf.GGUFReader(path)
  tensors = {_name(t.name): t for t in reader.tensors}
  shapes = {
    name: tuple(int(n) for n in reversed(t.shape))
    for name, t in tensors.items()
  }
  fields = _config(reader, shapes)
  plain = {gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16}
  heads = {
    'q_proj': fields['num_attention_heads'],
    'k_proj': fields.get('num_key_value_heads', fields['num_attention_heads']),
  }

  def read(name: str) -> np.ndarray:
    tensor = tensors[name]
    weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    weight = weight.reshape(shapes[name])
    if tensor.tensor_type not in plain:
      weight = weight.astype(ml_dtypes.bfloat16)
    projection = name.split('.')[-2]
    if fields['model_type'] == 'llama' and projection in heads:
      weight = _unpermute(weight, heads[projection])
    return weight

  return Checkpoint(fields=fields, shapes=shapes, read=read)
