"""The gated delta rule as its definition; every other form is tested on it.

    S_t = (I - c_t a_t^T) Diag(exp(g_t)) S_{t-1} + c_t u_t^T
    o_t = S_t^T q_t

Letters here and in the package: `B` rows, `T` tokens, `H` heads, `K` width of
queries and keys, `V` width of values. `S` is [K, V] per row and head; `G` is
`K`, or 1 for one decay a head.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

Array = jax.Array | np.ndarray


def gated_delta_step(
  q: Float[Array, '*B H K'],
  a: Float[Array, '*B H K'] | None,
  c: Float[Array, '*B H K'],
  u: Float[Array, '*B H V'],
  g: Float[Array, '*B H G'],
  state: Float[Array, '*B H K V'],
) -> tuple[Float[Array, '*B H V'], Float[Array, '*B H K V']]:
  """One token: decay, erase, write, read, in the dtype of the state.

  Reads the state once: `o = Sh^T q + (q.c) n` with the decayed state `Sh` and
  the written row `n = u - Sh^T a`, which is what reading after the write gives.
  """
  q, c, u, g = (jnp.asarray(x, state.dtype) for x in (q, c, u, g))
  a = c if a is None else jnp.asarray(a, state.dtype)
  decayed = jnp.exp(g)[..., None] * state

  def read(x):
    return jnp.einsum(
      '...kv,...k->...v', decayed, x, precision=lax.Precision.HIGHEST
    )

  new = u - read(a)
  o = read(q) + jnp.sum(q * c, -1, keepdims=True) * new
  return o, decayed + c[..., None] * new[..., None, :]


@functools.partial(jax.jit, static_argnames='chunk_size')
def gated_delta_recurrent(
  q: Float[Array, 'B T H K'],
  a: Float[Array, 'B T H K'] | None,
  c: Float[Array, 'B T H K'],
  u: Float[Array, 'B T H V'],
  g: Float[Array, 'B T H G'],
  initial_state: Float[Array, 'B H K V'],
  runs: Int[Array, 'B T'] | None,
  *,
  chunk_size: int | None = None,
) -> tuple[Float[Array, 'B T H V'], Float[Array, 'B H K V']]:
  """The recurrence, token by token under `lax.scan`.

  Computes in the dtype of `initial_state` (float64 under `jax.enable_x64`).
  The derivative is JAX's own; it keeps every state, K x V a token and head.

  Args:
    q: queries, already scaled.
    a: erase directions; None where they equal `c`.
    c: write directions.
    u: values.
    g: log decays, <= 0.
    initial_state: the state before the first token.
    runs: index of each token's document, non-decreasing along T; the state is
      forgotten where it changes. None: one document a row.
    chunk_size: not used; the forms share one signature.

  Returns:
    `o`, in the dtype of `u`, and the state after the last token.
  """
  del chunk_size
  rows, length = q.shape[:2]
  if runs is None:
    runs = jnp.zeros((rows, length), jnp.int32)
  xs = [q, c if a is None else a, c, u, g, runs]

  def step(carry, x):
    state, last = carry
    *token, run = x
    same = (run == last)[:, None, None, None]
    o, state = gated_delta_step(*token, jnp.where(same, state, 0))
    return (state, run), o

  (state, _), o = lax.scan(
    step,
    (jnp.asarray(initial_state), runs[:, 0]),
    [jnp.moveaxis(jnp.asarray(x), 1, 0) for x in xs],
  )
  return jnp.moveaxis(o, 0, 1).astype(u.dtype), state
