"""Checkpoints: parity with transformers, exact round trips, clear refusals."""

import dataclasses
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from jaxagent.models import (
  config,
  config_json,
  gguf_file,
  logprobs,
  sharding,
  transformer,
  weights,
)
from jaxagent.models import policy as policy_lib

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
FAMILIES = ['llama', 'qwen2', 'qwen3']


def _logits(c, params, ids):
  policy = policy_lib.build(c)

  @jax.jit
  def run(params):
    hidden = policy.apply(params, ids)
    return logprobs.logits(hidden[0], policy.unembed(params))

  return np.asarray(run(params))


def _golden(family):
  golden = np.load(GOLDEN / family / 'golden.npz')
  return golden, jnp.asarray(golden['input_ids'], jnp.int32)


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_and_loss_of_transformers(family):
  golden, ids = _golden(family)
  c, params = weights.load(GOLDEN / family)
  logits = _logits(c, params, ids)
  np.testing.assert_allclose(logits, golden['logits'][0], atol=1e-4)
  scores = jax.nn.log_softmax(logits[:-1])
  loss = -jnp.take_along_axis(scores, ids[0, 1:, None], axis=-1).mean()
  np.testing.assert_allclose(loss, golden['loss'], atol=1e-5)


@pytest.mark.parametrize(
  'family, change',
  [
    ('llama', {'rope_theta': 1e6}),
    ('qwen2', {'rope_theta': 1e6}),
    ('qwen3', {'rope_theta': 1e6}),
    ('qwen3', {'norm_eps': 1e-2}),
    ('llama', {'rope_scaling': config.RopeScaling(8.0, 1.0, 4.0, 16)}),
    ('qwen2', {'heads': 2, 'kv_heads': 1, 'head_dim': 16}),
    ('llama', {'layers': 1}),
  ],
)
def test_every_number_of_the_config_reaches_the_logits(family, change):
  golden, ids = _golden(family)
  c, params = weights.load(GOLDEN / family)
  if change == {'layers': 1}:
    params = params | {'layers': params['layers'][:1]}
  changed = dataclasses.replace(c, **change)
  difference = np.abs(_logits(changed, params, ids) - golden['logits'][0]).max()
  assert difference > 1e-3


@pytest.mark.parametrize(
  'change',
  [
    {'vocab_size': 98},
    {'hidden_size': 48},
    {'intermediate_size': 65},
    {'num_hidden_layers': 3},
    {'num_attention_heads': 8},
    {'num_key_value_heads': 4},
    {'head_dim': 32},
    {'tie_word_embeddings': False},
    {'attention_bias': True},
    {'model_type': 'qwen2'},
  ],
)
def test_a_config_of_another_shape_is_refused(tmp_path, change):
  folder = _copy(tmp_path, 'qwen3')
  fields = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(fields | change))
  with pytest.raises(ValueError, match='missing|extra|mis-shaped'):
    weights.load(folder)


def _copy(tmp_path, family):
  folder = tmp_path / family
  shutil.copytree(GOLDEN / family, folder)
  return folder


def _edit(folder, change):
  path = folder / 'model.safetensors'
  tensors = safetensors_numpy.load_file(path)
  safetensors_numpy.save_file(change(tensors), path)


def test_all_wrong_tensors_are_listed_at_once(tmp_path):
  folder = _copy(tmp_path, 'llama')

  def change(tensors):
    del tensors['model.layers.0.self_attn.q_proj.weight']
    del tensors['model.layers.1.mlp.up_proj.weight']
    return tensors | {
      'model.norm.weight': np.ones(31, np.float32),
      'model.surprise': np.ones(3, np.float32),
    }

  _edit(folder, change)
  with pytest.raises(ValueError) as caught:
    weights.load(folder)
  message = str(caught.value)
  for line in (
    'missing     model.layers.0.self_attn.q_proj.weight (32, 32)',
    'missing     model.layers.1.mlp.up_proj.weight (64, 32)',
    'extra       model.surprise (3,)',
    'mis-shaped  model.norm.weight: (31,), wanted (32,)',
  ):
    assert line in message


def test_a_tied_file_may_repeat_its_embedding_but_not_differ(tmp_path):
  folder = _copy(tmp_path, 'llama')
  name = 'model.embed_tokens.weight'
  _edit(folder, lambda t: t | {'lm_head.weight': t[name].copy()})
  assert 'unembed' not in weights.load(folder)[1]
  _edit(folder, lambda t: t | {'lm_head.weight': t[name] + 1})
  with pytest.raises(ValueError, match='extra       lm_head.weight'):
    weights.load(folder)


def test_missing_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='neither a folder'):
    weights.load(tmp_path / 'nowhere')
  with pytest.raises(FileNotFoundError, match='config.json'):
    weights.load(tmp_path)
  folder = _copy(tmp_path, 'llama')
  (folder / 'model.safetensors').unlink()
  with pytest.raises(FileNotFoundError, match='model.safetensors'):
    weights.load(folder)


def _random(c):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype),
    transformer.shapes(c),
  )


@pytest.mark.parametrize('shard_bytes', [5 * 1024**3, 20_000])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('tied', [True, False])
def test_saved_models_load_bit_for_bit(tmp_path, shard_bytes, dtype, tied):
  c = dataclasses.replace(
    config.PRESETS['debug'],
    tie_embeddings=tied,
    attention_bias=True,
    dtype=dtype,
    param_dtype=dtype,
    rope_scaling=config.RopeScaling(8.0, 1.0, 4.0, 64),
  )
  params = _random(c)
  (tmp_path / 'model-00001-of-00009.safetensors').write_text('stale')
  weights.save(tmp_path, c, params, shard_bytes=shard_bytes)
  files = list(tmp_path.glob('*.safetensors'))
  assert (len(files) == 1) == (shard_bytes > 20_000)
  again, loaded = weights.load(tmp_path)
  assert again == c
  _assert_same(loaded, params)


def _assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_saving_checks_the_parameters(tmp_path):
  c = config.PRESETS['debug']
  params = _random(c)
  params['norm'] = jnp.ones(5)
  with pytest.raises(ValueError, match='norm.*float32.5'):
    weights.save(tmp_path, c, params)
  assert not list(tmp_path.iterdir())


def test_loading_places_parameters_on_a_mesh():
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  _, params = weights.load(GOLDEN / 'qwen3', mesh=mesh)
  kernel = params['layers'][0]['mlp']['gate']
  assert kernel.sharding.spec == jax.sharding.PartitionSpec('fsdp', 'tensor')
  _, plain = weights.load(GOLDEN / 'qwen3')
  _assert_same(params, plain)


def _write_gguf(path, family, *, quantised):
  """A golden model as a GGUF file, query and key rows interleaved."""
  gguf = pytest.importorskip('gguf')
  tensors = safetensors_numpy.load_file(GOLDEN / family / 'model.safetensors')
  c = config_json.from_hugging_face(
    json.loads((GOLDEN / family / 'config.json').read_text())
  )
  writer = gguf.GGUFWriter(path, family)
  writer.add_block_count(c.layers)
  writer.add_context_length(c.max_positions)
  writer.add_embedding_length(c.hidden)
  writer.add_feed_forward_length(c.intermediate)
  writer.add_head_count(c.heads)
  writer.add_head_count_kv(c.kv_heads)
  writer.add_key_length(c.head_dim)
  writer.add_layer_norm_rms_eps(c.norm_eps)
  writer.add_rope_freq_base(c.rope_theta)
  back = {v: k for k, v in gguf_file._LAYER.items()}
  tops = {v: k for k, v in gguf_file._TOP.items()}
  for name, x in tensors.items():
    if name in tops:
      new = tops[name]
    else:
      _, _, layer, *middle, kind = name.split('.')
      new = f'blk.{layer}.{back[".".join(middle)]}.{kind}'
    projection = name.split('.')[-2]
    heads = {'q_proj': c.heads, 'k_proj': c.kv_heads}.get(projection)
    if family == 'llama' and heads:
      x = x.reshape(heads, 2, -1, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)
    kind = gguf.GGMLQuantizationType.Q8_0
    if quantised and x.ndim == 2:
      writer.add_tensor(new, gguf.quants.quantize(x, kind), raw_dtype=kind)
    else:
      writer.add_tensor(new, np.ascontiguousarray(x))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


@pytest.mark.parametrize('family', FAMILIES)
def test_gguf_holds_the_same_model(tmp_path, family):
  golden, ids = _golden(family)
  path = tmp_path / 'model.gguf'
  _write_gguf(path, family, quantised=False)
  c, params = weights.load(path, dtype='float32')
  want = weights.load(GOLDEN / family)[0]
  assert dataclasses.replace(c, init_std=want.init_std) == want
  np.testing.assert_allclose(
    _logits(c, params, ids), golden['logits'][0], atol=1e-4
  )


def test_quantised_gguf_is_rounded_to_bfloat16(tmp_path):
  path = tmp_path / 'model.gguf'
  _write_gguf(path, 'qwen2', quantised=True)
  _, params = weights.load(path, dtype='float32')
  kernel = params['layers'][0]['mlp']['gate']
  rounded = kernel.astype(jnp.bfloat16).astype(jnp.float32)
  np.testing.assert_array_equal(kernel, rounded)
  exact = weights.load(GOLDEN / 'qwen2')[1]['layers'][0]['mlp']['gate']
  assert 0 < np.abs(kernel - exact).max() < 0.01


def test_smollm2_is_the_model_that_transformers_runs():
  path = os.environ.get('JAXAGENT_SMOLLM2')
  if not path:
    pytest.skip(
      'needs the SmolLM2 file; set JAXAGENT_SMOLLM2 to its path (see the'
      ' docstring of jaxagent.models.weights)'
    )
  golden = np.load(GOLDEN / 'smollm2_135m.npz')
  c, params = weights.load(path, dtype='float32')
  assert c == config.PRESETS['smollm2-135m']
  logits = _logits(c, params, jnp.asarray(golden['ids'], jnp.int32)[None])
  top = jax.lax.top_k(jnp.asarray(logits[-1]), 5)[1].tolist()
  assert top == [11452, 4521, 422, 34391, 4528]
  np.testing.assert_allclose(logits[-1], golden['logits_last'], atol=2e-4)
  scores = jax.nn.log_softmax(logits[:-1])
  picked = jnp.take_along_axis(scores, golden['ids'][1:, None], axis=-1)[:, 0]
  np.testing.assert_allclose(picked, golden['token_logprobs'], atol=5e-5)
  assert abs(-picked.mean() - 1.999841) < 5e-5
