"""`ModelConfig`: the shape of a policy, its presets, and `config.json`.

A field of a `config.json` is read, or known not to touch the forward pass, or
refused: none is ignored in silence.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

Family = Literal['llama', 'qwen2', 'qwen3']


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama 3.1's stretching of the slow rotary frequencies (2407.21783)."""

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_positions: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """A decoder-only transformer: pre-norm, RoPE, grouped queries, SwiGLU.

  `dtype` is what matrix products run in, `param_dtype` what is stored; norms,
  softmax and log-probabilities are float32 whatever they are.
  """

  family: Family
  vocab: int
  hidden: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  intermediate: int
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  norm_eps: float = 1e-6
  tie_embeddings: bool = True
  attention_bias: bool = False
  qk_norm: bool = False
  max_positions: int = 2048
  init_std: float = 0.02
  dtype: str = 'float32'
  param_dtype: str = 'float32'

  def __post_init__(self):
    if self.heads % self.kv_heads:
      raise ValueError(
        f'heads={self.heads} is no multiple of kv_heads={self.kv_heads}; every'
        ' key head serves the same number of query heads. Change one of them.'
      )
    if self.head_dim % 2:
      raise ValueError(
        f'head_dim={self.head_dim} is odd; RoPE turns pairs. Use an even one.'
      )
    for name in ('dtype', 'param_dtype'):
      if getattr(self, name) not in DTYPES:
        raise ValueError(
          f'{name}={getattr(self, name)!r} is not one of {list(DTYPES)}.'
        )

  @property
  def output_bias(self) -> bool:
    """Qwen2 biases queries, keys and values only; the others also outputs."""
    return self.attention_bias and self.family != 'qwen2'


DTYPES = ('float32', 'bfloat16', 'float16')

# Keys of config.json that a forward pass of these families never reads.
_HARMLESS = frozenset({
  '_attn_implementation_autoset',
  '_name_or_path',
  'architectures',
  'bos_token_id',
  'chunk_size_feed_forward',
  'eos_token_id',
  'id2label',
  'is_llama_config',
  'label2id',
  'model_type',
  'output_attentions',
  'output_hidden_states',
  'pad_token_id',
  'pretraining_tp',
  'problem_type',
  'return_dict',
  'transformers.js_config',
  'transformers_version',
  'unsloth_fixed',
  'use_cache',
})  # fmt: skip

# Keys that are honoured only at the value given here.
_FIXED = {
  'attention_dropout': 0.0,
  'hidden_act': 'silu',
  'is_encoder_decoder': False,
  'mlp_bias': False,
  'partial_rotary_factor': 1.0,
  'rope_interleaved': False,
  'use_sliding_window': False,
}

_PLAIN = {
  'vocab': 'vocab_size',
  'hidden': 'hidden_size',
  'layers': 'num_hidden_layers',
  'heads': 'num_attention_heads',
  'intermediate': 'intermediate_size',
  'norm_eps': 'rms_norm_eps',
  'max_positions': 'max_position_embeddings',
}

_ROPE_SCALING = {
  'factor': 'factor',
  'low_freq_factor': 'low_freq_factor',
  'high_freq_factor': 'high_freq_factor',
  'original_max_positions': 'original_max_position_embeddings',
}

_READ = frozenset(_PLAIN.values()) | {
  'attention_bias',
  'dtype',
  'head_dim',
  'initializer_range',
  'layer_types',
  'max_window_layers',
  'num_key_value_heads',
  'rope_parameters',
  'rope_scaling',
  'rope_theta',
  'sliding_window',
  'tie_word_embeddings',
  'torch_dtype',
}


def _either(fields: Mapping[str, Any], old: str, new: str) -> Any:
  """The value under either spelling; an error where the two disagree."""
  values = [fields[k] for k in (old, new) if fields.get(k) is not None]
  if len(values) == 2 and values[0] != values[1]:
    raise ValueError(
      f'config.json says {old}={values[0]!r} and {new}={values[1]!r}. Keep the'
      ' one that the weights were trained with.'
    )
  return values[0] if values else None


def _rope(fields: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
  old = dict(fields.get('rope_scaling') or {})
  new = dict(fields.get('rope_parameters') or {})
  old.setdefault('rope_type', old.pop('type', None))
  theta = _either(
    {
      'rope_theta': fields.get('rope_theta'),
      'new': new.pop('rope_theta', None),
    },
    'rope_theta',
    'new',
  )
  theta = 10_000.0 if theta is None else float(theta)
  old.pop('rope_theta', None)
  scaling = {k: _either({'o': old.get(k), 'n': new.get(k)}, 'o', 'n')
             for k in old.keys() | new.keys()}  # fmt: skip
  kind = scaling.pop('rope_type', None) or 'default'
  if scaling.pop('partial_rotary_factor', None) not in (None, 1, 1.0):
    raise ValueError('partial_rotary_factor other than 1 is not supported.')
  if kind == 'default' and not scaling:
    return theta, None
  missing = sorted(set(_ROPE_SCALING.values()) ^ scaling.keys())
  if kind != 'llama3' or missing:
    raise ValueError(
      f'RoPE of type {kind!r} with {scaling} is not supported: known are'
      " 'default' without parameters and 'llama3' with exactly"
      f' {sorted(_ROPE_SCALING.values())}. Remove the stretching from'
      ' config.json if rows stay within the original context.'
    )
  return theta, RopeScaling(**{k: scaling[v] for k, v in _ROPE_SCALING.items()})


def _check_fields(fields: Mapping[str, Any], ignore: frozenset[str]) -> None:
  problems = [
    f'{k}={fields[k]!r} (supported: {v!r})'
    for k, v in _FIXED.items()
    if k not in ignore and fields.get(k, v) not in (v, None)
  ]
  kinds = set(fields.get('layer_types') or ()) - {'full_attention'}
  if kinds and 'layer_types' not in ignore:
    problems.append(f'layer_types with {sorted(kinds)} (full_attention only)')
  known = _READ | _HARMLESS | _FIXED.keys() | ignore
  problems += [f'{k}={fields[k]!r} (unknown)' for k in fields.keys() - known]
  if problems:
    raise ValueError(
      'config.json asks for what this model does not do:\n  '
      + '\n  '.join(sorted(problems))
      + '\nIf a field does not change the forward pass, pass its name in'
      ' `ignore`.'
    )


def from_hugging_face(
  fields: Mapping[str, Any],
  *,
  dtype: str | None = None,
  ignore: frozenset[str] = frozenset(),
) -> ModelConfig:
  """Reads the contents of a `config.json`, in old and new spelling.

  Args:
    fields: the parsed file (transformers 4: `rope_theta`, `torch_dtype`;
      transformers 5: `rope_parameters`, `dtype`).
    dtype: of parameters and of computation; None takes the file's.
    ignore: names of fields known not to matter that this module refuses.

  Raises:
    ValueError: a field is missing, unknown, or asks for something that the
      model does not do; all of them are listed.
  """
  family = fields.get('model_type')
  if family not in ('llama', 'qwen2', 'qwen3'):
    raise ValueError(
      f'model_type={family!r} is not supported; use one of llama, qwen2, qwen3.'
    )
  _check_fields(fields, ignore)
  missing = sorted(
    v for k, v in _PLAIN.items() if v not in fields and k != 'max_positions'
  )
  if missing:
    raise ValueError(f'config.json lacks {missing}; is it the whole file?')
  plain = {k: fields[v] for k, v in _PLAIN.items() if v in fields}
  plain['norm_eps'] = float(plain['norm_eps'])
  theta, scaling = _rope(fields)
  dtype = dtype or _either(fields, 'torch_dtype', 'dtype') or 'float32'
  return ModelConfig(
    **plain,
    family=family,
    kv_heads=fields.get('num_key_value_heads') or plain['heads'],
    head_dim=fields.get('head_dim') or plain['hidden'] // plain['heads'],
    rope_theta=theta,
    rope_scaling=scaling,
    tie_embeddings=bool(fields.get('tie_word_embeddings', False)),
    attention_bias=family == 'qwen2' or bool(fields.get('attention_bias')),
    qk_norm=family == 'qwen3',
    init_std=float(fields.get('initializer_range', 0.02)),
    dtype=dtype,
    param_dtype=dtype,
  )


def to_hugging_face(config: ModelConfig) -> dict[str, Any]:
  """The `config.json` of a config, in both spellings at once.

  Raises:
    ValueError: the family has no way to say what the config says.
  """
  expected = {'qwen2': (True, False), 'qwen3': (config.attention_bias, True)}
  got = (config.attention_bias, config.qk_norm)
  want = expected.get(config.family, (config.attention_bias, False))
  if got != want:
    raise ValueError(
      f'A {config.family} folder cannot say (attention_bias, qk_norm)={got};'
      f' the family implies {want}. Choose another family.'
    )
  names = {'llama': 'Llama', 'qwen2': 'Qwen2', 'qwen3': 'Qwen3'}
  out = {
    'architectures': [f'{names[config.family]}ForCausalLM'],
    'model_type': config.family,
    **{v: getattr(config, k) for k, v in _PLAIN.items()},
    'num_key_value_heads': config.kv_heads,
    'head_dim': config.head_dim,
    'hidden_act': 'silu',
    'initializer_range': config.init_std,
    'tie_word_embeddings': config.tie_embeddings,
    'rope_theta': config.rope_theta,
    'rope_parameters': {
      'rope_type': 'default',
      'rope_theta': config.rope_theta,
    },
    'torch_dtype': config.param_dtype,
    'dtype': config.param_dtype,
  }
  if config.family != 'qwen2':
    out['attention_bias'] = config.attention_bias
  if config.rope_scaling is not None:
    scaling = {
      v: getattr(config.rope_scaling, k) for k, v in _ROPE_SCALING.items()
    }
    out['rope_scaling'] = {'rope_type': 'llama3', **scaling}
    out['rope_parameters'] |= out['rope_scaling']
  return out


def _qwen2(hidden, layers, heads, kv_heads, intermediate, **kw) -> ModelConfig:
  return ModelConfig(
    **{
      'family': 'qwen2',
      'vocab': 151_936,
      'hidden': hidden,
      'layers': layers,
      'heads': heads,
      'kv_heads': kv_heads,
      'head_dim': hidden // heads,
      'intermediate': intermediate,
      'rope_theta': 1e6,
      'attention_bias': True,
      'max_positions': 32_768,
    }
    | kw
  )


def _qwen3(hidden, layers, heads, kv_heads, intermediate, **kw) -> ModelConfig:
  return ModelConfig(
    **{
      'family': 'qwen3',
      'vocab': 151_936,
      'hidden': hidden,
      'layers': layers,
      'heads': heads,
      'kv_heads': kv_heads,
      'head_dim': 128,
      'intermediate': intermediate,
      'rope_theta': 1e6,
      'qk_norm': True,
      'max_positions': 40_960,
    }
    | kw
  )


def _llama(hidden, layers, heads, kv_heads, intermediate, **kw) -> ModelConfig:
  return ModelConfig(
    **{
      'family': 'llama',
      'vocab': 49_152,
      'hidden': hidden,
      'layers': layers,
      'heads': heads,
      'kv_heads': kv_heads,
      'head_dim': hidden // heads,
      'intermediate': intermediate,
      'rope_theta': 1e5,
      'norm_eps': 1e-5,
      'max_positions': 8_192,
    }
    | kw
  )


_TINY = {'vocab': 512, 'max_positions': 4096, 'init_std': 0.08}

PRESETS: dict[str, ModelConfig] = {
  'qwen2.5-0.5b': _qwen2(896, 24, 14, 2, 4864),
  'qwen2.5-1.5b': _qwen2(1536, 28, 12, 2, 8960),
  'qwen2.5-3b': _qwen2(2048, 36, 16, 2, 11_008),
  'qwen2.5-7b': _qwen2(
    3584, 28, 28, 4, 18_944, vocab=152_064, tie_embeddings=False
  ),
  'qwen3-0.6b': _qwen3(1024, 28, 16, 8, 3072),
  'qwen3-1.7b': _qwen3(2048, 28, 16, 8, 6144),
  'qwen3-4b': _qwen3(2560, 36, 32, 8, 9728),
  'qwen3-8b': _qwen3(4096, 36, 32, 8, 12_288, tie_embeddings=False),
  'smollm2-135m': _llama(576, 30, 9, 3, 1536),
  'smollm2-360m': _llama(960, 32, 15, 5, 2560),
  'smollm2-1.7b': _llama(2048, 24, 32, 32, 8192, rope_theta=130_000.0),
  'tiny_llama': _llama(128, 2, 4, 2, 352, rope_theta=1e4, **_TINY),
  'tiny_qwen2': _qwen2(128, 2, 4, 2, 352, rope_theta=1e4, **_TINY),
  'tiny_qwen3': _qwen3(128, 2, 4, 2, 352, head_dim=32, rope_theta=1e4, **_TINY),
  'debug': _qwen3(32, 2, 2, 1, 64, head_dim=16, rope_theta=1e4, **_TINY),
}
