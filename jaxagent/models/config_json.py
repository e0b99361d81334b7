"""`config.json` of Hugging Face, read and written.

A field is read, or known not to touch the forward pass, or refused: none is
ignored in silence.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from jaxagent.models import config as config_lib

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

# What only Qwen3-Next has.
_NEXT_MEMORY = {
  'heads': 'linear_num_value_heads',
  'key_heads': 'linear_num_key_heads',
  'key_dim': 'linear_key_head_dim',
  'value_dim': 'linear_value_head_dim',
  'conv_width': 'linear_conv_kernel_dim',
}
_NEXT_EXPERTS = {
  'count': 'num_experts',
  'active': 'num_experts_per_tok',
  'intermediate': 'moe_intermediate_size',
  'shared': 'shared_expert_intermediate_size',
  'normalise': 'norm_topk_prob',
}
_NEXT_KINDS = {
  'linear_attention': 'gated_delta',
  'full_attention': 'attention',
}
_NEXT_FIXED = {
  'attention_bias': False,
  'decoder_sparse_step': 1,
  'mlp_only_layers': [],
}
# Of the balancing loss, which the routers were trained with.
_NEXT_HARMLESS = frozenset({'output_router_logits', 'router_aux_loss_coef'})

_OWN = 'jaxagent_hybrid'
_FAMILIES = ('llama', 'qwen2', 'qwen3', 'qwen3_next')


def _either(fields: Mapping[str, Any], old: str, new: str) -> Any:
  """The value under either spelling; an error where the two disagree."""
  values = [fields[k] for k in (old, new) if fields.get(k) is not None]
  if len(values) == 2 and values[0] != values[1]:
    raise ValueError(
      f'config.json says {old}={values[0]!r} and {new}={values[1]!r}. Keep the'
      ' one that the weights were trained with.'
    )
  return values[0] if values else None


def _rope(
  fields: Mapping[str, Any],
) -> tuple[float, config_lib.RopeScaling | None]:
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
  return theta, config_lib.RopeScaling(
    **{k: scaling[v] for k, v in _ROPE_SCALING.items()}
  )


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


def _next(
  fields: Mapping[str, Any], ignore: frozenset[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """What Qwen3-Next shares with other families, and what it says besides."""
  problems = [
    f'{k}={fields[k]!r} (supported: {v!r})'
    for k, v in _NEXT_FIXED.items()
    if k not in ignore and fields.get(k, v) not in (v, None)
  ]
  read = {*_NEXT_MEMORY.values(), *_NEXT_EXPERTS.values()}
  missing = sorted(read - fields.keys())
  depth = fields.get('num_hidden_layers', 0)
  every = fields.get('full_attention_interval') or 4
  kinds = fields.get('layer_types') or [
    'linear_attention' if (i + 1) % every else 'full_attention'
    for i in range(depth)
  ]
  if len(kinds) != depth or not set(kinds) <= _NEXT_KINDS.keys():
    problems.append(
      f'layer_types={kinds} (wanted: {depth} out of {sorted(_NEXT_KINDS)})'
    )
  if problems or missing:
    lacks = f'\n  It lacks {missing}.' if missing else ''
    raise ValueError(
      'config.json asks for what this Qwen3-Next does not do:\n  '
      + '\n  '.join(problems)
      + lacks
    )
  rope = dict(fields.get('rope_parameters') or {})
  turned = {
    'partial_rotary_factor': fields.get('partial_rotary_factor'),
    'new': rope.pop('partial_rotary_factor', None),
  }
  own = {'layer_types', 'full_attention_interval', 'partial_rotary_factor'}
  own |= read | _NEXT_FIXED.keys() | _NEXT_HARMLESS
  rest = {k: v for k, v in fields.items() if k not in own}
  turned = _either(turned, 'partial_rotary_factor', 'new')
  return rest | {'rope_parameters': rope}, {
    'layers': tuple(_NEXT_KINDS[kind] for kind in kinds),
    'rotary_fraction': 0.25 if turned is None else turned,
    'attention_gate': True,
    'qk_norm': True,
    'centred_norms': True,
    'gated_delta': config_lib.GatedDelta(
      **{k: fields[v] for k, v in _NEXT_MEMORY.items()},
      **_NEXT_LAYER,
    ),
    'experts': config_lib.Experts(
      **{k: fields[v] for k, v in _NEXT_EXPERTS.items()}
    ),
  }


_NEXT_LAYER = {'variant': 'gdn', 'gate_rank': 0, 'gate': 'silu'}


def _own(
  fields: Mapping[str, Any], dtype: str | None, ignore: frozenset[str]
) -> config_lib.ModelConfig:
  """The fields of a `ModelConfig` as they are, in one type throughout."""
  known = {field.name for field in dataclasses.fields(config_lib.ModelConfig)}
  skip = {'model_type', 'architectures', 'dtype', *ignore}
  if unknown := sorted(fields.keys() - known - skip):
    raise ValueError(
      f'config.json of a {_OWN} has {unknown}, which this version does not'
      ' know. Was it written by a newer one?'
    )
  dtype = dtype or fields['dtype']
  return config_lib.ModelConfig(
    **{k: v for k, v in fields.items() if k not in skip},
    family='hybrid',
    dtype=dtype,
    param_dtype=dtype,
  )


def from_hugging_face(
  fields: Mapping[str, Any],
  *,
  dtype: str | None = None,
  ignore: frozenset[str] = frozenset(),
) -> config_lib.ModelConfig:
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
  if family == _OWN:
    return _own(fields, dtype, ignore)
  if family not in _FAMILIES:
    raise ValueError(
      f'model_type={family!r} is not supported; use one of'
      f' {", ".join(_FAMILIES)} or {_OWN}.'
    )
  more = {'qk_norm': family == 'qwen3'}
  if family == 'qwen3_next':
    fields, more = _next(fields, ignore)
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
  return config_lib.ModelConfig(
    **plain | more,
    family=family,
    kv_heads=fields.get('num_key_value_heads') or plain['heads'],
    head_dim=fields.get('head_dim') or plain['hidden'] // plain['heads'],
    rope_theta=theta,
    rope_scaling=scaling,
    tie_embeddings=bool(fields.get('tie_word_embeddings', False)),
    attention_bias=family == 'qwen2' or bool(fields.get('attention_bias')),
    init_std=float(fields.get('initializer_range', 0.02)),
    dtype=dtype,
    param_dtype=dtype,
  )


def to_hugging_face(config: config_lib.ModelConfig) -> dict[str, Any]:
  """The `config.json` of a config, in both spellings at once.

  Raises:
    ValueError: the family has no way to say what the config says.
  """
  if config.family == 'hybrid':
    out = dataclasses.asdict(config)
    del out['family'], out['param_dtype']
    return {'model_type': _OWN} | out | {'dtype': config.param_dtype}
  out = _plain(config)
  if config.family == 'qwen3_next':
    out |= _next_out(config)
  read = from_hugging_face(out)
  unsaid = sorted(
    f'{field.name}={got!r}'
    for field in dataclasses.fields(config)
    if field.name != 'dtype'
    and (got := getattr(config, field.name)) != getattr(read, field.name)
  )
  if unsaid:
    raise ValueError(
      f'A {config.family} folder cannot say {", ".join(unsaid)}. Choose another'
      " family; 'hybrid' can say everything, to this project alone."
    )
  return out


def _plain(config) -> dict[str, Any]:
  """What all families of Hugging Face say."""
  names = {
    'llama': 'Llama',
    'qwen2': 'Qwen2',
    'qwen3': 'Qwen3',
    'qwen3_next': 'Qwen3Next',
  }
  out = {
    'architectures': [f'{names[config.family]}ForCausalLM'],
    'model_type': config.family,
    **{v: getattr(config, k) for k, v in _PLAIN.items()},
    'num_hidden_layers': len(config.kinds),
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


def _next_out(config) -> dict[str, Any]:
  """What only Qwen3-Next says."""
  spelled = {kind: name for name, kind in _NEXT_KINDS.items()}
  memory, experts = config.gated_delta, config.experts
  if memory is None or experts is None:
    raise ValueError(
      'A qwen3_next folder needs gated_delta and experts, and the config has'
      f' {memory} and {experts}. Choose another family.'
    )
  turned = {'partial_rotary_factor': config.rotary_fraction}
  return (
    {v: getattr(memory, k) for k, v in _NEXT_MEMORY.items()}
    | {v: getattr(experts, k) for k, v in _NEXT_EXPERTS.items()}
    | {
      'layer_types': [spelled.get(kind, kind) for kind in config.kinds],
      'rope_parameters': {
        'rope_type': 'default',
        'rope_theta': config.rope_theta,
        **turned,
      },
      **_NEXT_FIXED,
      **turned,
    }
  )
