"""Qwen3-Next: parity with transformers, and its mixture of experts."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from jaxagent.models import config, config_json, experts, logprobs, weights
from jaxagent.models import policy as policy_lib

FOLDER = pathlib.Path(__file__).parents[1] / 'golden' / 'qwen3_next'


@pytest.fixture(scope='module')
def golden():
  c, params = weights.load(FOLDER)
  stored = np.load(FOLDER / 'golden.npz')
  return c, params, stored, jnp.asarray(stored['input_ids'], jnp.int32)


def _logits(c, params, ids):
  policy = policy_lib.build(c)

  @jax.jit
  def run(params):
    hidden = policy.apply(params, ids)
    return logprobs.logits(hidden[0], policy.unembed(params))

  return np.asarray(run(params))


def test_logits_and_loss_of_transformers(golden):
  c, params, stored, ids = golden
  logits = _logits(c, params, ids)
  np.testing.assert_allclose(logits, stored['logits'][0], atol=1e-4)
  scores = jax.nn.log_softmax(logits[:-1])
  loss = -jnp.take_along_axis(scores, ids[0, 1:, None], axis=-1).mean()
  np.testing.assert_allclose(loss, stored['loss'], atol=1e-5)


def test_prefill_in_chunks_and_decode_give_the_same_logits(golden):
  c, params, stored, ids = golden
  policy = policy_lib.build(c)
  extend = jax.jit(policy.extend)
  cache, got = policy.empty_cache(1, 32), []
  for start, stop in ((0, 6), (6, 12), *((i, i + 1) for i in range(12, 16))):
    at = jnp.arange(start, stop)[None]
    hidden, cache = extend(params, ids[:, start:stop], at, at >= 0, cache)
    got.append(logprobs.logits(hidden[0], policy.unembed(params)))
  np.testing.assert_allclose(
    jnp.concatenate(got), stored['logits'][0], atol=1e-4
  )


@pytest.fixture(scope='module')
def short(golden):
  """The last two layers, one of each kind."""
  c, params, _, ids = golden
  c = dataclasses.replace(c, layers=c.layers[2:])
  params = params | {'layers': params['layers'][2:]}
  return c, params, ids, _logits(c, params, ids)


@pytest.mark.parametrize(
  'change',
  [
    {'rope_theta': 1e6},
    {'rotary_fraction': 0.5},
    {'norm_eps': 1e-2},
    {'centred_norms': False},
    {'gated_delta': {'gate': 'sigmoid'}},
    {'gated_delta': {'allow_neg_eigval': True}},
    {'experts': {'active': 1}},
    {'experts': {'normalise': False}},
  ],
)
def test_every_number_of_the_config_reaches_the_logits(short, change):
  c, params, ids, want = short
  fields = {
    name: dataclasses.replace(getattr(c, name), **value)
    if isinstance(value, dict)
    else value
    for name, value in change.items()
  }
  other = _logits(dataclasses.replace(c, **fields), params, ids)
  assert np.abs(other - want).max() > 1e-3


@pytest.mark.parametrize('shard_bytes', [5 * 1024**3, 50_000])
def test_saving_gives_the_file_back(golden, tmp_path, shard_bytes):
  c, params, _, _ = golden
  weights.save(tmp_path, c, params, shard_bytes=shard_bytes)
  files = list(tmp_path.glob('*.safetensors'))
  assert (len(files) == 1) == (shard_bytes > 50_000)
  want = safetensors_numpy.load_file(FOLDER / 'model.safetensors')
  got = {}
  for file in files:
    got |= safetensors_numpy.load_file(file)
  assert got.keys() == want.keys()
  for name, array in want.items():
    np.testing.assert_array_equal(got[name], array, err_msg=name)
  assert weights.load(tmp_path)[0] == c


def test_what_is_not_of_the_model_is_not_read(golden, tmp_path):
  """The layer that predicts further ahead; but no other stranger."""
  folder = shutil.copytree(FOLDER, tmp_path / 'model')
  path = folder / 'model.safetensors'
  tensors = safetensors_numpy.load_file(path)
  extra = {'mtp.fc.weight': np.ones((2, 2), np.float32)}
  safetensors_numpy.save_file(tensors | extra, path)
  assert weights.load(folder)[0] == golden[0]
  extra['model.layers.0.mlp.experts.4.up_proj.weight'] = extra['mtp.fc.weight']
  safetensors_numpy.save_file(tensors | extra, path)
  with pytest.raises(ValueError, match='extra       model.layers.0.mlp.exp'):
    weights.load(folder)


# As published, in the spelling of transformers 4.
PUBLISHED = {
  'architectures': ['Qwen3NextForCausalLM'],
  'attention_bias': False,
  'attention_dropout': 0.0,
  'bos_token_id': 151643,
  'decoder_sparse_step': 1,
  'eos_token_id': 151645,
  'full_attention_interval': 4,
  'head_dim': 256,
  'hidden_act': 'silu',
  'hidden_size': 2048,
  'initializer_range': 0.02,
  'intermediate_size': 5120,
  'linear_conv_kernel_dim': 4,
  'linear_key_head_dim': 128,
  'linear_num_key_heads': 16,
  'linear_num_value_heads': 32,
  'linear_value_head_dim': 128,
  'max_position_embeddings': 262144,
  'mlp_only_layers': [],
  'model_type': 'qwen3_next',
  'moe_intermediate_size': 512,
  'norm_topk_prob': True,
  'num_attention_heads': 16,
  'num_experts': 512,
  'num_experts_per_tok': 10,
  'num_hidden_layers': 48,
  'num_key_value_heads': 2,
  'output_router_logits': False,
  'partial_rotary_factor': 0.25,
  'rms_norm_eps': 1e-06,
  'rope_scaling': None,
  'rope_theta': 10000000,
  'router_aux_loss_coef': 0.001,
  'shared_expert_intermediate_size': 512,
  'tie_word_embeddings': False,
  'torch_dtype': 'bfloat16',
  'transformers_version': '4.57.0.dev0',
  'use_cache': True,
  'use_sliding_window': False,
  'vocab_size': 151936,
}


def test_the_published_config_is_the_preset():
  read = config_json.from_hugging_face(PUBLISHED, dtype='float32')
  assert read == config.PRESETS['qwen3-next-80b-a3b']


@pytest.mark.parametrize(
  'change, told',
  [
    ({'decoder_sparse_step': 2}, 'decoder_sparse_step=2'),
    ({'mlp_only_layers': [0]}, 'mlp_only_layers'),
    ({'attention_bias': True}, 'attention_bias'),
    ({'layer_types': ['sliding_attention'] * 48}, 'sliding_attention'),
    ({'layer_types': ['linear_attention'] * 3}, 'wanted: 48'),
    ({'novelty': 1}, 'novelty=1 .unknown'),
    ({'rope_parameters': {'partial_rotary_factor': 1.0}}, 'partial_rotary'),
  ],
)
def test_what_is_not_done_is_refused(change, told):
  with pytest.raises(ValueError, match=told):
    config_json.from_hugging_face(PUBLISHED | change)
  lacking = {k: v for k, v in PUBLISHED.items() if k != 'num_experts'}
  with pytest.raises(ValueError, match='num_experts'):
    config_json.from_hugging_face(lacking)


def test_what_no_such_file_can_say_is_not_written():
  c = config.PRESETS['qwen3-next-80b-a3b']
  other = dataclasses.replace(c.gated_delta, variant='kda', gate_rank=128)
  with pytest.raises(ValueError, match='kda.*family'):
    config_json.to_hugging_face(dataclasses.replace(c, gated_delta=other))
  assert json.loads(json.dumps(config_json.to_hugging_face(c)))


# --- experts --------------------------------------------------------------------


def _dense(c, params, x):
  """Every expert on every token, weighted by what the router says."""
  e = c.experts
  probs = jax.nn.softmax(x @ params['router'])
  order = jnp.argsort(-probs, axis=-1)[..., : e.active]
  chosen = jnp.zeros(probs.shape, bool)
  chosen = jnp.put_along_axis(chosen, order, True, axis=-1, inplace=False)
  weight = jnp.where(chosen, probs, 0)
  if e.normalise:
    weight = weight / weight.sum(-1, keepdims=True)
  out = 0.0 * x
  for i in range(e.count):
    hidden = jax.nn.silu(x @ params['expert_gate'][i])
    hidden = hidden * (x @ params['expert_up'][i])
    out = out + weight[..., i : i + 1] * (hidden @ params['expert_down'][i])
  shared = jax.nn.silu(x @ params['shared_gate']) * (x @ params['shared_up'])
  switch = jax.nn.sigmoid(x @ params['shared_switch'])
  return out + switch * (shared @ params['shared_down'])


@pytest.mark.parametrize('normalise', [True, False])
def test_routed_experts_equal_the_dense_sum_with_its_gradients(normalise):
  c = dataclasses.replace(
    config.PRESETS['debug'],
    experts=config.Experts(
      count=5, active=3, intermediate=6, shared=7, normalise=normalise
    ),
  )
  rng = np.random.default_rng(0)
  params = {
    name: jnp.asarray(rng.normal(0, 0.3, shape), jnp.float32)
    for name, shape in experts.shapes(c).items()
  }
  # One expert that nobody is sent to.
  params['router'] = params['router'].at[:, 0].set(-3 * params['router'][:, 1])
  x = jnp.asarray(rng.normal(size=(2, 7, c.hidden)), jnp.float32)

  def both(f):
    loss = lambda p, x: jnp.sum(jnp.sin(f(c, p, x)))  # noqa: E731
    return f(c, params, x), jax.grad(loss, argnums=(0, 1))(params, x)

  got, want = jax.jit(lambda: both(experts.apply))(), both(_dense)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
  assert np.abs(want[1][0]['router']).max() > 1e-3
