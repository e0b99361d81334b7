"""One implementation of the gated delta rule in a process of its own.

`bench_kernels` starts this file with the Python of the implementation, pinned to
one core, and talks with it in lines of JSON. Nothing of an implementation is in
here but how it is called. Inputs are arrays of an `.npz` file: q, k, v
[1,T,H,D], g [1,T,H] or [1,T,H,D], its raw gate x with g = -5 sigmoid(x), beta
[1,T,H], beta_k, beta_v [1,T,H,D], and the cotangent of the output, do.
"""

import ast
import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import sys
import time
import traceback

GRADIENTS = ('q', 'k', 'v', 'g', 'beta')


def in_jax(function, inputs, backward, names=GRADIENTS):
  """A call without arguments of a jitted function of the named inputs."""
  import jax

  arrays = [jax.numpy.asarray(inputs[name]) for name in names]
  cotangent = jax.numpy.asarray(inputs['do'])

  @jax.jit
  def both(arrays, cotangent):
    out, vjp = jax.vjp(function, *arrays)
    grads = vjp(cotangent)
    return {'o': out} | {f'd_{n}': x for n, x in zip(names, grads, strict=True)}

  forward = jax.jit(lambda arrays: {'o': function(*arrays)})

  def call():
    out = both(arrays, cotangent) if backward else forward(arrays)
    return jax.block_until_ready(out)

  return call


def in_torch(function, inputs, backward):
  """The same for a torch function."""
  import torch

  torch.set_num_threads(1)
  arrays = [torch.from_numpy(inputs[name]) for name in GRADIENTS]
  cotangent = torch.from_numpy(inputs['do'])

  def call():
    if not backward:
      with torch.no_grad():
        return {'o': function(*arrays)}
    leaves = [x.detach().requires_grad_() for x in arrays]
    out = function(*leaves)
    out.backward(cotangent)
    grads = zip(GRADIENTS, leaves, strict=True)
    return {'o': out.detach()} | {f'd_{n}': x.grad for n, x in grads}

  return call


def scan(inputs, backward, options):
  """The plain recurrence under `lax.scan`, token by token."""
  del options
  import jax
  import jax.numpy as jnp

  def rule(q, k, v, g, beta):
    decay = (
      jnp.exp(g)[..., None] if g.ndim == 4 else jnp.exp(g)[..., None, None]
    )

    def step(state, x):  # state [H, K, V]
      q, k, v, decay, beta = x
      state = state * decay
      error = v - jnp.einsum('hk,hkv->hv', k, state)
      state = state + k[..., None] * (beta[..., None] * error)[:, None, :]
      return state, jnp.einsum('hk,hkv->hv', q, state)

    heads, width, values = *q.shape[2:], v.shape[3]
    q = q * jnp.asarray(width**-0.5, q.dtype)
    start = jnp.zeros((heads, width, values), jnp.float32)
    xs = [x[0] for x in (q, k, v, decay, beta)]
    return jax.lax.scan(step, start, xs)[1][None]

  return in_jax(rule, inputs, backward)


def ours(variant, inputs, backward, options):
  """`kernels_pallas.fg2_gdn`: gdn or kda by the decay, or fg2_plus."""
  from kernels_pallas import fg2_gdn

  choice = {'implementation': options.get('implementation')}
  if variant == 'fg2_plus':
    names = ('q', 'k', 'v', 'g', 'beta_k', 'beta_v')

    def rule(*arrays):
      return fg2_gdn.fg2_plus(*arrays, **choice)[0]

    return in_jax(rule, inputs, backward, names)

  def rule(q, k, v, g, beta):
    if g.ndim == 4:
      return fg2_gdn.kda(q, k, v, g, beta[..., None], **choice)[0]
    return fg2_gdn.gdn(q, k, v, g[..., None], beta[..., None], **choice)[0]

  return in_jax(rule, inputs, backward)


def maxtext(inputs, backward, options):
  """MaxText's `jax_chunk_gated_delta_rule`, of a checkout, in float32."""
  import jax
  import jax.numpy as jnp

  found = sorted(pathlib.Path(options['maxtext']).rglob('models/qwen3.py'))
  if not found:
    raise FileNotFoundError(
      f'no models/qwen3.py under {options["maxtext"]}; give a checkout of'
      ' github.com/AI-Hypercomputer/maxtext'
    )
  name = 'jax_chunk_gated_delta_rule'
  tree = ast.parse(found[0].read_text())
  tree.body = [
    node
    for node in tree.body
    if isinstance(node, ast.FunctionDef) and node.name == name
  ]
  scope = {'jax': jax, 'jnp': jnp, 'lax': jax.lax, 'Array': jax.Array}
  exec(compile(tree, str(found[0]), 'exec'), scope)  # the function alone
  rule = functools.partial(scope[name], compute_dtype=jnp.float32)
  return in_jax(lambda *arrays: rule(*arrays)[0], inputs, backward)


def tokamax(inputs, backward, options):
  """tokamax's chunked KDA, which takes the raw gate."""
  del options
  import jax.numpy as jnp
  from tokamax._src.ops.kda import api

  heads = inputs['q'].shape[2]

  def rule(q, k, v, x, beta):
    out, _ = api.kimi_delta_attention(
      *(jnp.moveaxis(y, 2, 0) for y in (q, k, v, x, beta)),
      a_log=jnp.zeros(heads),
      use_gate_in_kernel=True,
      lower_bound=-5.0,
      implementation='xla_chunked',
    )
    return jnp.moveaxis(out, 0, 2)

  return in_jax(rule, inputs, backward, ('q', 'k', 'v', 'x', 'beta'))


def fla(inputs, backward, options):
  """flash-linear-attention's torch forms, by file: no GPU, no triton."""
  del options
  channel = inputs['g'].ndim == 4
  folder = importlib.util.find_spec('fla').submodule_search_locations[0]
  op = 'kda' if channel else 'gated_delta_rule'
  path = pathlib.Path(folder, 'ops', op, 'naive.py')
  spec = importlib.util.spec_from_file_location(f'fla_{op}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  rule = (
    module.naive_chunk_kda if channel else module.naive_chunk_gated_delta_rule
  )
  return in_torch(
    lambda q, k, v, g, beta: rule(q, k, v, g=g, beta=beta)[0], inputs, backward
  )


def transformers(inputs, backward, options):
  """transformers' torch forms, of Qwen3-Next and of Kimi Linear."""
  del options
  sys.modules['fla'] = None  # found, it is imported, and wants a GPU
  if inputs['g'].ndim == 4:
    from transformers.models.kimi_linear import modeling_kimi_linear

    rule = modeling_kimi_linear.chunk_kimi_delta_attention
  else:
    from transformers.models.qwen3_next import modeling_qwen3_next

    rule = modeling_qwen3_next.torch_chunk_gated_delta_rule
  return in_torch(
    lambda q, k, v, g, beta: rule(q, k, v, g=g, beta=beta)[0], inputs, backward
  )


ARMS = {
  'scan': scan,
  'ours': functools.partial(ours, 'ours'),
  'kda': functools.partial(ours, 'ours'),
  'fg2_plus': functools.partial(ours, 'fg2_plus'),
  'maxtext': maxtext,
  'tokamax': tokamax,
  'fla': fla,
  'transformers': transformers,
}
PACKAGES = (
  'jax',
  'torch',
  'tokamax',
  'transformers',
  'flash-linear-attention',
)


def _rss(field: str) -> int:
  """VmRSS or VmHWM of this process in bytes."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(field):
      return 1024 * int(line.split()[1])
  return 0


def peak(call) -> int:
  """Bytes that a call adds at most to what was there before it."""
  time.sleep(0.2)  # the last call's arrays are freed by another thread
  ctypes.CDLL(None).malloc_trim(0)
  before = _rss('VmRSS')
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # VmHWM starts anew
  call()
  return max(_rss('VmHWM') - before, 0)


def answer(calls: dict, request: dict) -> dict:
  """Does what a line asks for.

  Args:
    calls: functions without arguments, by name; `load` adds one.
    request: `op` is 'load' (`name`, `inputs`, `backward`, `options`), 'save'
      (`name`, `path`), 'time' (`name`, `calls`) or 'peak' (`name`).
  """
  import numpy as np

  op, name = request['op'], request['name']
  if op == 'load':
    inputs = dict(np.load(request['inputs']))
    calls[name] = ARMS[name](inputs, request['backward'], request['options'])
    calls[name]()
    return {'versions': _versions()}
  call = calls[name]
  if op == 'save':
    np.savez(request['path'], **{n: np.asarray(x) for n, x in call().items()})
    return {}
  if op == 'peak':
    return {'bytes': peak(call)}
  wall, cpu = time.perf_counter(), time.process_time()
  for _ in range(request['calls']):
    call()
  cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
  return {'cpu': cpu, 'wall': wall}


def _versions() -> dict:
  found = {'python': sys.version.split()[0]}
  for name in PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def main(core: int):
  """Answers lines until there are no more."""
  os.sched_setaffinity(0, {core})
  replies = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print must not look like a reply
  calls = {}
  for line in sys.stdin:
    try:
      reply = answer(calls, json.loads(line))
    except Exception as error:
      traceback.print_exc()
      reply = {'error': f'{type(error).__name__}: {error}'[:400]}
    replies.write(json.dumps(reply) + '\n')
    replies.flush()


if __name__ == '__main__':
  main(int(sys.argv[1]))
