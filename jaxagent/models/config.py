"""`ModelConfig`: the shape of a policy, and its presets."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, Literal

Family = Literal['llama', 'qwen2', 'qwen3', 'qwen3_next', 'hybrid']
KINDS = ('attention', 'sparse_attention', 'gated_delta')
DTYPES = ('float32', 'bfloat16', 'float16')


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama 3.1's stretching of the slow rotary frequencies (2407.21783)."""

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_positions: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedDelta:
  """A gated delta layer: a matrix for a memory instead of a cache.

  Attributes:
    heads: memories, H, each `[key_dim, value_dim]`.
    key_heads: heads of queries and keys, a divisor of `heads`; 0 is `heads`.
    key_dim: rows of a memory.
    value_dim: columns of a memory.
    conv_width: tokens that the short convolutions read, the current included.
    variant: 'gdn' (2412.06464) has one decay and one learning rate a head,
      'kda' (2510.26692) a decay a channel, 'fg2' (2604.19021) also a learning
      rate a channel, 'fg2_plus' one for keys and one for values.
    beta_rank: of the projection to the learning rates; 0 is full.
    gate_rank: of the projections to the output gate and to decays by channel;
      0 is full.
    gate: what the output gate goes through, 'sigmoid' or 'silu'.
    allow_neg_eigval: learning rates up to 2 instead of 1.
  """

  heads: int
  key_heads: int = 0
  key_dim: int = 128
  value_dim: int = 128
  conv_width: int = 4
  variant: str = 'fg2_plus'
  beta_rank: int = 0
  gate_rank: int = 128
  gate: str = 'sigmoid'
  allow_neg_eigval: bool = False

  def __post_init__(self):
    object.__setattr__(self, 'key_heads', self.key_heads or self.heads)
    if self.heads % self.key_heads:
      raise ValueError(
        f'gated_delta: heads={self.heads} is no multiple of'
        f' key_heads={self.key_heads}. Change one of them.'
      )
    if self.variant not in ('gdn', 'kda', 'fg2', 'fg2_plus'):
      raise ValueError(
        f'gated_delta: variant={self.variant!r} is unknown; choose gdn, kda,'
        ' fg2 or fg2_plus.'
      )
    if self.gate not in ('sigmoid', 'silu'):
      raise ValueError(
        f'gated_delta: gate={self.gate!r} is unknown; choose sigmoid or silu.'
      )
    if self.variant == 'fg2' and self.key_dim != self.value_dim:
      raise ValueError(
        "gated_delta: variant 'fg2' shares its learning rates between keys"
        f' ({self.key_dim}) and values ({self.value_dim}), which must be'
        " equally wide. Use 'fg2_plus' otherwise."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseAttention:
  """Attention to the best blocks of keys (2502.13189).

  Attributes:
    budget: blocks that a query attends, its own included.
    block_size: tokens of a block; 128 or 256 for the TPU kernel.
  """

  budget: int
  block_size: int = 64

  def __post_init__(self):
    if self.budget < 1 or self.block_size < 1:
      raise ValueError(
        f'sparse_attention: budget={self.budget} and'
        f' block_size={self.block_size}; both are at least 1.'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
  """A mixture of small SwiGLU networks in place of one (2401.06066).

  Attributes:
    count: networks in a layer.
    active: those that a token is sent to.
    intermediate: units of each.
    shared: units of one more that every token is sent to, behind a gate.
    normalise: the weights of the active ones sum to one.
  """

  count: int
  active: int
  intermediate: int
  shared: int
  normalise: bool = True

  def __post_init__(self):
    if not 0 < self.active <= self.count:
      raise ValueError(
        f'experts: active={self.active} of count={self.count}; choose at'
        ' least one and at most all.'
      )


_PARTS = {
  'rope_scaling': RopeScaling,
  'gated_delta': GatedDelta,
  'sparse_attention': SparseAttention,
  'experts': Experts,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """A decoder: pre-norm layers that mix tokens and then channels.

  `dtype` is what matrix products run in, `param_dtype` what is stored; norms,
  softmax and log-probabilities are float32 whatever they are.

  Attributes:
    layers: how many attention layers, or the kind of each layer in order.
    rotary_fraction: share of a head that RoPE turns.
    attention_gate: attention's output goes through a gate (2505.06708).
    centred_norms: the weights of norms are stored as their distance from 1.
    gated_delta: of the layers of that kind.
    sparse_attention: of the layers of that kind; their heads are those of
      attention.
    experts: in place of the SwiGLU network of each layer.

  A mapping of fields stands for any of the records.
  """

  family: Family
  vocab: int
  hidden: int
  layers: int | Sequence[str]
  heads: int
  kv_heads: int
  head_dim: int
  intermediate: int
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | Mapping[str, Any] | None = None
  rotary_fraction: float = 1.0
  norm_eps: float = 1e-6
  tie_embeddings: bool = True
  attention_bias: bool = False
  attention_gate: bool = False
  qk_norm: bool = False
  centred_norms: bool = False
  gated_delta: GatedDelta | Mapping[str, Any] | None = None
  sparse_attention: SparseAttention | Mapping[str, Any] | None = None
  experts: Experts | Mapping[str, Any] | None = None
  max_positions: int = 2048
  init_std: float = 0.02
  dtype: str = 'float32'
  param_dtype: str = 'float32'

  def __post_init__(self):
    for name, part in _PARTS.items():
      if isinstance(value := getattr(self, name), Mapping):
        object.__setattr__(self, name, part(**value))
    self._check_layers()
    if self.heads % self.kv_heads:
      raise ValueError(
        f'heads={self.heads} is no multiple of kv_heads={self.kv_heads}; every'
        ' key head serves the same number of query heads. Change one of them.'
      )
    if self.rotary_dim % 2:
      raise ValueError(
        f'head_dim={self.head_dim} is odd (or the {self.rotary_fraction} of it'
        ' that is turned); RoPE turns pairs. Use an even one.'
      )
    for name in ('dtype', 'param_dtype'):
      if getattr(self, name) not in DTYPES:
        raise ValueError(
          f'{name}={getattr(self, name)!r} is not one of {list(DTYPES)}.'
        )

  def _check_layers(self):
    if isinstance(self.layers, int):
      return
    layers = tuple(self.layers)
    if not layers or (unknown := sorted(set(layers) - set(KINDS))):
      raise ValueError(
        f'layers={self.layers!r}: give a number of attention layers, or the'
        f' kind of each out of {list(KINDS)}'
        + (f'; unknown are {unknown}.' if layers else '.')
      )
    # One way to say it, so that equal models have equal configs.
    plain = set(layers) == {'attention'}
    object.__setattr__(self, 'layers', len(layers) if plain else layers)
    if not plain and self.family not in ('qwen3_next', 'hybrid'):
      raise ValueError(
        f"A {self.family} model has attention layers only; use family='hybrid'"
        f' for layers={layers}.'
      )
    for name, least in (
      ('gated_delta', 'heads'),
      ('sparse_attention', 'budget'),
    ):
      if name in layers and getattr(self, name) is None:
        raise ValueError(
          f'layers has {name!r}, but the field {name}, which describes such a'
          f' layer, is None. Give at least its {least}.'
        )

  @property
  def kinds(self) -> tuple[str, ...]:
    """The kind of each layer."""
    if isinstance(self.layers, int):
      return ('attention',) * self.layers
    return self.layers

  @property
  def recurrent(self) -> bool:
    """Whether a row's cache can only be continued where it stands: what
    entered a memory cannot be taken out again."""
    return 'gated_delta' in self.kinds

  @property
  def rotary_dim(self) -> int:
    """Channels of a head that RoPE turns."""
    return int(self.head_dim * self.rotary_fraction)

  @property
  def output_bias(self) -> bool:
    """Qwen2 biases queries, keys and values only; the others also outputs."""
    return self.attention_bias and self.family != 'qwen2'


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


def _hybrid(hidden, groups, heads, kv_heads, intermediate, **kw):
  """Three FG2-GDN layers and one of attention, `groups` times."""
  return ModelConfig(
    **{
      'family': 'hybrid',
      'vocab': 32_000,
      'hidden': hidden,
      'layers': (*('gated_delta',) * 3, 'attention') * groups,
      'heads': heads,
      'kv_heads': kv_heads,
      'head_dim': hidden // heads,
      'intermediate': intermediate,
      'qk_norm': True,
      'max_positions': 32_768,
      'gated_delta': GatedDelta(
        heads=heads,
        key_dim=hidden // heads,
        value_dim=hidden // heads,
        gate_rank=hidden // heads,
      ),
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
  'qwen3-next-80b-a3b': ModelConfig(
    family='qwen3_next',
    vocab=151_936,
    hidden=2048,
    layers=(*('gated_delta',) * 3, 'attention') * 12,
    heads=16,
    kv_heads=2,
    head_dim=256,
    intermediate=5120,
    rope_theta=1e7,
    rotary_fraction=0.25,
    tie_embeddings=False,
    attention_gate=True,
    qk_norm=True,
    centred_norms=True,
    gated_delta=GatedDelta(
      heads=32, key_heads=16, variant='gdn', gate_rank=0, gate='silu'
    ),
    experts=Experts(count=512, active=10, intermediate=512, shared=512),
    max_positions=262_144,
  ),
  'hybrid-1.3b': _hybrid(2048, 6, 16, 4, 5120),
  'tiny_hybrid': _hybrid(128, 1, 4, 2, 352, **_TINY),
  'debug_hybrid': _hybrid(
    32, 1, 2, 1, 64, layers=('gated_delta', 'attention'), **_TINY
  ),
}
