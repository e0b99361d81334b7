"""Block-sparse causal attention with run-time budgets; see `api`."""

from kernels_pallas.sparse_attention import routing
from kernels_pallas.sparse_attention.api import choice, sparse_attention

__all__ = ['choice', 'routing', 'sparse_attention']
