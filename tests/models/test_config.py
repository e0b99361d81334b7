"""`ModelConfig`: presets, and every field of a config.json honoured."""

import dataclasses
import json
import math

import jax
import pytest

from jaxagent.models import config, config_json, transformer

# Sizes that the publishers state, tied embeddings counted once.
PUBLISHED = {
  'qwen2.5-0.5b': 494_032_768,
  'qwen2.5-1.5b': 1_543_714_304,
  'qwen2.5-3b': 3_085_938_688,
  'qwen2.5-7b': 7_615_616_512,
  'qwen3-0.6b': 596_049_920,
  'qwen3-1.7b': 1_720_574_976,
  'qwen3-4b': 4_022_468_096,
  'qwen3-8b': 8_190_735_360,
  'smollm2-135m': 134_515_008,
  'smollm2-360m': 361_821_120,
  'smollm2-1.7b': 1_711_376_384,
}

# As transformers 4 wrote them to the hub.
QWEN25 = {
  'architectures': ['Qwen2ForCausalLM'],
  'attention_dropout': 0.0,
  'bos_token_id': 151643,
  'eos_token_id': 151645,
  'hidden_act': 'silu',
  'hidden_size': 896,
  'initializer_range': 0.02,
  'intermediate_size': 4864,
  'max_position_embeddings': 32768,
  'max_window_layers': 21,
  'model_type': 'qwen2',
  'num_attention_heads': 14,
  'num_hidden_layers': 24,
  'num_key_value_heads': 2,
  'rms_norm_eps': 1e-06,
  'rope_theta': 1000000.0,
  'sliding_window': 32768,
  'tie_word_embeddings': True,
  'torch_dtype': 'bfloat16',
  'transformers_version': '4.43.1',
  'use_cache': True,
  'use_sliding_window': False,
  'vocab_size': 151936,
}
LLAMA3 = {
  'factor': 32.0,
  'high_freq_factor': 4.0,
  'low_freq_factor': 1.0,
  'original_max_position_embeddings': 8192,
}


@pytest.mark.parametrize('name', config.PRESETS)
def test_presets_have_their_published_size_and_trace(name):
  c = config.PRESETS[name]
  shapes = transformer.shapes(c)
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  assert count == PUBLISHED.get(name, count)
  key = jax.eval_shape(lambda: jax.random.key(0))
  params = jax.eval_shape(lambda k: transformer.init(c, k), key)
  assert params == shapes
  tokens = jax.ShapeDtypeStruct((2, 8), 'int32')
  hidden = jax.eval_shape(
    lambda p, t: transformer.apply(c, p, t), params, tokens
  )
  assert hidden.shape == (2, 8, c.hidden)


@pytest.mark.parametrize('name', config.PRESETS)
def test_config_json_round_trip(name):
  written = json.loads(
    json.dumps(config_json.to_hugging_face(config.PRESETS[name]))
  )
  assert config_json.from_hugging_face(written) == config.PRESETS[name]


def test_old_spelling_is_the_preset():
  read = config_json.from_hugging_face(QWEN25, dtype='float32')
  assert read == config.PRESETS['qwen2.5-0.5b']
  assert config_json.from_hugging_face(QWEN25).param_dtype == 'bfloat16'


def test_new_spelling_equals_old():
  new = dict(QWEN25)
  new['dtype'] = new.pop('torch_dtype')
  new['rope_parameters'] = {
    'rope_type': 'default',
    'rope_theta': new.pop('rope_theta'),
  }
  new['layer_types'] = ['full_attention'] * 24
  assert config_json.from_hugging_face(new) == config_json.from_hugging_face(
    QWEN25
  )


@pytest.mark.parametrize('where', ['rope_scaling', 'rope_parameters'])
def test_llama3_scaling_in_both_spellings(where):
  scaling = LLAMA3 | {'rope_type': 'llama3'}
  read = config_json.from_hugging_face(QWEN25 | {where: scaling})
  assert read.rope_scaling == config.RopeScaling(32.0, 1.0, 4.0, 8192)
  assert read.rope_theta == 1e6
  assert (
    config_json.from_hugging_face(config_json.to_hugging_face(read)) == read
  )


@pytest.mark.parametrize(
  'change, match',
  [
    ({'model_type': 'mamba'}, 'llama, qwen2, qwen3'),
    ({'hidden_act': 'gelu'}, 'hidden_act'),
    ({'mlp_bias': True}, 'mlp_bias'),
    ({'use_sliding_window': True}, 'use_sliding_window'),
    ({'layer_types': ['sliding_attention'] * 24}, 'sliding_attention'),
    ({'attention_dropout': 0.1}, 'attention_dropout'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor'),
    ({'rope_parameters': {'partial_rotary_factor': 0.5}}, 'partial_rotary'),
    ({'rope_parameters': {'rope_theta': 1e4}}, 'rope_theta'),
    ({'rope_scaling': {'type': 'yarn', 'factor': 4.0}}, 'yarn'),
    ({'rope_scaling': {'rope_type': 'linear', 'factor': 2.0}}, 'linear'),
    ({'rope_scaling': {'rope_type': 'llama3', 'factor': 2.0}}, 'exactly'),
    ({'quantization_config': {'bits': 4}}, 'quantization_config'),
    ({'residual_multiplier': 0.2}, 'residual_multiplier.*unknown'),
    ({'dtype': 'float32'}, 'dtype'),
    ({'torch_dtype': 'int8'}, 'int8'),
    ({'num_key_value_heads': 5}, 'kv_heads'),
  ],
)
def test_what_is_not_done_is_refused(change, match):
  with pytest.raises(ValueError, match=match):
    config_json.from_hugging_face(QWEN25 | change)


def test_all_refusals_come_at_once_and_can_be_waived():
  bad = QWEN25 | {'mlp_bias': True, 'novelty': 1}
  with pytest.raises(ValueError, match='mlp_bias(.|\n)*novelty'):
    config_json.from_hugging_face(bad)
  waived = frozenset({'mlp_bias', 'novelty'})
  assert config_json.from_hugging_face(bad, ignore=waived).hidden == 896


def test_missing_field_is_named():
  short = {k: v for k, v in QWEN25.items() if k != 'hidden_size'}
  with pytest.raises(ValueError, match='hidden_size'):
    config_json.from_hugging_face(short)


def test_head_dim_falls_back_to_width_over_heads():
  assert config_json.from_hugging_face(QWEN25).head_dim == 64
  assert config_json.from_hugging_face(QWEN25 | {'head_dim': 32}).head_dim == 32


def test_a_config_that_no_file_can_say_is_not_written():
  odd = dataclasses.replace(config.PRESETS['tiny_qwen2'], qk_norm=True)
  with pytest.raises(ValueError, match='family'):
    config_json.to_hugging_face(odd)
