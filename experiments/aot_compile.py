"""One program of the training step, compiled ahead of time for a TPU slice.

`aot_plan` starts this module as a child process for every compilation:

  python -m experiments.aot_compile REQUEST.json RESULT.json

No array of the model is made: parameters, optimiser state and rows are shapes
with shardings, and the functions are those that `training.loop` calls.
"""

import collections
from collections.abc import Mapping
import dataclasses
import json
import math
import pathlib
import re
import sys
import time
from typing import Any

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxagent import losses, tokens
from jaxagent.losses import base
from jaxagent.models import config as config_lib
from jaxagent.models import config_json, sharding
from jaxagent.models import policy as policy_lib
from jaxagent.training import state as state_lib
from jaxagent.training import update as update_lib

KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_BYTES = {'pred': 1, 's4': 0.5, 'u4': 0.5, 'bf16': 2, 'token': 0}


def make_mesh(topology: str, axes: Mapping[str, int]) -> Mesh:
  """The mesh of a TPU slice that is not there.

  Args:
    topology: such as 'v5e:16x16'.
    axes: sizes of `data`, `fsdp` and `tensor`.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or split an
      axis of the chips.
  """
  kwargs = {}
  if topology.endswith(':1x1'):
    kwargs['chips_per_host_bounds'] = [1, 1, 1]
  slice_ = topologies.get_topology_desc(topology, 'tpu', **kwargs)
  shape = tuple(axes[name] for name in sharding.AXES)
  if math.prod(shape) != len(slice_.devices):
    raise ValueError(
      f'{topology} has {len(slice_.devices)} devices; the mesh {dict(axes)} has'
      f' {math.prod(shape)}. Make data x fsdp x tensor equal to the former.'
    )
  try:
    devices = topologies.make_mesh(slice_, shape, sharding.AXES).devices
  except NotImplementedError as error:
    raise ValueError(
      f'The mesh {dict(axes)} does not lie on the chips of {topology}: an axis'
      ' takes whole axes of the chips, or all of them. Choose such sizes.'
    ) from error
  return Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 3)


def model_config(config: Mapping[str, Any]) -> config_lib.ModelConfig:
  """The model that `training.build.load_model` would make of a config."""
  section = config['model']
  changes = dict(section['overrides'])
  if section['init'] in config_lib.PRESETS:
    model = config_lib.PRESETS[section['init']]
    if config['tokenizer'] == 'household':
      changes = {'vocab': tokens.default().vocab_size, **changes}
  else:
    fields = pathlib.Path(section['init']) / 'config.json'
    model = config_json.from_hugging_face(json.loads(fields.read_text()))
  if section['dtype']:
    changes = {'dtype': section['dtype'], **changes}
  return dataclasses.replace(model, **changes)


@dataclasses.dataclass(frozen=True)
class Step:
  """The two programs of a step, with the shapes of all that they read."""

  passes: update_lib.Passes
  optimizer: Any
  reduce: Any
  params: Any
  state: state_lib.TrainState
  batch: update_lib.Batch
  fixed: update_lib.Fixed
  unembedding: jax.ShapeDtypeStruct
  budget: int

  def inputs(self, program: str) -> tuple:
    """Shapes of the arrays that 'fixed' or 'update' reads."""
    if program == 'fixed':
      return self.params, self.params, self.batch
    return self.state, self.batch, self.fixed, self.unembedding

  def trace(self, program: str):
    """The traced program."""
    arrays = self.inputs(program)
    if program == 'fixed':
      return update_lib.Passes.fixed.trace(self.passes, *arrays, self.budget)
    update = update_lib.make_update(self.passes, self.optimizer, self.reduce)
    return update.trace(*arrays, self.budget)

  def resident(self, program: str, *, copies: int) -> int:
    """Bytes a device holds beside the program's own arguments.

    Args:
      program: 'fixed' or 'update'.
      copies: of the parameters that the loop keeps beside the state.
    """
    if program == 'fixed':
      return size(self.state.opt_state)
    return copies * size(self.params)


def size(tree) -> int:
  """Bytes of one device's part of the arrays of `tree`."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def make_step(config: Mapping[str, Any], mesh: Mesh) -> Step:
  """The step of a training config on a mesh.

  Args:
    config: see `experiments/configs/sdar_alfworld.py`; every row is taken to be
      as long as the longest cache, and all of it to be action tokens.
    mesh: of devices, present or not.

  Raises:
    ValueError: a microbatch does not split over the mesh.
  """
  section, batch = config['model'], config['batch']
  policy = policy_lib.build(
    model_config(config),
    scan=section['scan'],
    remat=section['remat'],
  )
  loss = losses.from_config(config['loss'])
  passes = update_lib.Passes(policy, loss, chunk=batch['chunk'])
  optimizer = state_lib.optimizer_from_config(config['optimizer'])

  def placed(tree):
    return jax.tree.map(_struct, tree, sharding.shardings(tree, mesh))

  params = jax.eval_shape(policy.init, jax.random.key(0))
  count = len(config['rewards']['names'])
  rewards = jax.ShapeDtypeStruct((count,), jnp.float32)
  state = jax.eval_shape(
    lambda p: state_lib.init(p, optimizer, rewards), params
  )  # the reward state is a few numbers
  params, state = placed(params), placed(state)
  size_ = config['train']['microbatch']
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  if size_ % ways:
    raise ValueError(
      f'train.microbatch={size_} rows do not split {ways} ways (data x fsdp).'
      f' Use a multiple of {ways}, or another mesh.'
    )
  count = -(-batch['tasks'] * batch['group'] // size_)
  count = max(1, count // config['train']['minibatches'])
  rows, fixed = _rows(loss.needs, (count, size_), config, policy.config, mesh)
  unembedding = jax.eval_shape(policy.unembed, params)
  place = sharding.spec(
    (jax.tree_util.DictKey('unembed'),), unembedding.shape, mesh
  )
  return Step(
    passes=passes,
    optimizer=optimizer,
    reduce=base.REDUCERS[config['reduce']],
    params=params,
    state=state,
    batch=rows,
    fixed=fixed,
    unembedding=_struct(unembedding, NamedSharding(mesh, place)),
    budget=size_ * max(config['rollout']['cache_lengths']),
  )


def _struct(x, place):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def _rows(needs, shape, config, model, mesh):
  """Shapes of a batch and of what fixed weights say about it."""
  place = NamedSharding(mesh, PartitionSpec(None, *sharding.BATCH))
  length = max(config['rollout']['cache_lengths'])
  wide = length + config['batch']['teacher_extra']

  def array(dtype, *rest):
    return jax.ShapeDtypeStruct(shape + rest, dtype, sharding=place)

  teacher = bool(needs & update_lib.OF_TEACHER)
  batch = update_lib.Batch(
    tokens=array(jnp.int32, length),
    mask=array(jnp.bool_, length),
    old_logprobs=array(jnp.float32, length),
    advantages=array(jnp.float32, length),
    teacher_tokens=array(jnp.int32, wide) if teacher else None,
    teacher_shift=array(jnp.int32) if teacher else None,
    teacher_mask=array(jnp.bool_) if teacher else None,
  )
  hidden = bool(needs & {'forward_kl', 'jsd', 'candidates'})
  alone = 'teacher_logprobs' in needs and not hidden
  fixed = update_lib.Fixed(
    array(jnp.float32, length) if 'ref_logprobs' in needs else None,
    array(jnp.float32, length) if alone else None,
    array(model.dtype, length, model.hidden) if hidden else None,
  )
  return batch, fixed


def flops(jaxpr) -> int:
  """Operations of all matrix products, loops times their trip counts.

  Counts the whole mesh, forward, backward and what is recomputed. The trips of
  a `while` are not known: one is counted.
  """
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  total = 0
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    out = math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
    if name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      shape = eqn.invars[0].aval.shape
      total += 2 * out * math.prod(shape[i] for i in contracted)
    elif name.startswith('ragged_dot'):
      total += 2 * out * eqn.invars[0].aval.shape[-1]
    elif name == 'conv_general_dilated':
      kernel = eqn.invars[1].aval.shape
      channels = kernel[eqn.params['dimension_numbers'].rhs_spec[0]]
      total += 2 * out * math.prod(kernel) // channels
    inner = [flops(sub) for sub in _inner(eqn)]
    if inner:
      total += _times(eqn) * (max if name == 'cond' else sum)(inner)
  return total


def _inner(eqn):
  """The programs inside an equation."""
  for value in eqn.params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if hasattr(getattr(item, 'jaxpr', item), 'eqns'):
        yield item


def _times(eqn) -> int:
  """How often an equation runs what is inside it."""
  name, params = eqn.primitive.name, eqn.params
  if name == 'scan':
    return params['length']
  if name == 'shard_map':
    return params['mesh'].size
  if name == 'pallas_call':
    return math.prod(params['grid_mapping'].grid)
  return 1


def collectives(hlo: str) -> dict[str, dict[str, float]]:
  """Collectives of a compiled program, by kind.

  Args:
    hlo: `compiled.as_text()`.

  Returns:
    For each kind that occurs: `count` in the program, `runs` a step (loops
    times their trip counts), and `bytes` of their results a device and step.
  """
  bodies, entry = _computations(hlo)
  times = _executions(bodies, entry)
  found = {}
  pattern = re.compile(rf' = (.*?) ({"|".join(KINDS)})(-start)?\(')
  for name, lines in bodies.items():
    for number, line in enumerate(lines):
      if match := pattern.search(line):
        shape, kind, start = match.groups()
        # An asynchronous one is told in several pieces, with one channel.
        channel = re.search(r'channel_id=(\d+)', line)
        key = (kind, channel.group(1) if channel else (name, number))
        sizes = _sizes(shape)
        paired = start and kind != 'all-reduce'  # operands, then results
        size = max(sizes) if paired else sum(sizes)
        runs = times[name]
        found[key] = max(found.get(key, (0, 0)), (runs, size))
  out = {}
  for (kind, _), (runs, size) in found.items():
    entry = out.setdefault(kind, {'count': 0, 'runs': 0, 'bytes': 0})
    entry['count'] += 1
    entry['runs'] += runs
    entry['bytes'] += int(runs * size)
  return out


def _sizes(shape: str) -> list[float]:
  sizes = []
  for dtype, dims in re.findall(r'\b([a-z]+\d*\w*)\[([\d,]*)\]', shape):
    bits = re.search(r'\d+', dtype)
    width = _BYTES.get(dtype, int(bits.group()) / 8 if bits else 1)
    sizes.append(width * math.prod(int(d) for d in dims.split(',') if d))
  return sizes or [0]


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
  """Lines of each computation by its name, and the name of the first to run."""
  bodies, entry, name = {}, '', None
  for line in hlo.splitlines():
    head = re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{\s*$', line)
    if head and not line.startswith(' '):
      name = head.group(2)
      entry = name if head.group(1) else entry
      bodies[name] = []
    elif line.startswith('}'):
      name = None
    elif name:
      bodies[name].append(line)
  return bodies, entry


def _executions(bodies, entry) -> collections.Counter:
  """How often each computation runs when the program runs once."""
  calls = {name: [] for name in bodies}
  for name, lines in bodies.items():
    for line in lines:
      trips = 1
      if condition := re.search(r'condition=%?([\w.\-]+)', line):
        trips = _trips(bodies[condition.group(1)])
      called = re.findall(
        r'(?:calls|to_apply|body|branch_computations|called_computations)='
        r'(\{[^}]*\}|%?[\w.\-]+)',
        line,
      )
      for names in called:
        for callee in re.findall(r'[\w.\-]+', names):
          if callee in bodies:
            calls[name].append((callee, trips))
  order, seen = [], set()

  def visit(name):
    seen.add(name)
    for callee, _ in calls[name]:
      if callee not in seen:
        visit(callee)
    order.append(name)

  visit(entry)
  times = collections.Counter({entry: 1})
  for name in reversed(order):  # callers before those whom they call
    for callee, trips in calls[name]:
      times[callee] += times[name] * trips
  return times


def _trips(condition: list[str]) -> int:
  """The bound that a loop's counter is compared with; 1 if there is none."""
  bounds = [
    int(bound)
    for line in condition
    for bound in re.findall(r's32\[\][^=]* constant\((\d+)\)', line)
  ]
  return max(bounds, default=1)


def run(request: Mapping[str, Any]) -> dict[str, Any]:
  """Compiles one program.

  Args:
    request: `config`, `topology`, `program` ('fixed' or 'update') and
      `kernels`, whether TPU kernels may be used (read by `main`).

  Returns:
    What `aot_plan` prints; sizes in bytes a device. A program that is refused
    for lack of memory has `refused` with the compiler's words.
  """
  config, program = request['config'], request['program']
  mesh = make_mesh(request['topology'], config['mesh'])
  step = make_step(config, mesh)
  begin = time.perf_counter()
  with sharding.use(mesh):
    traced = step.trace(program)
  copies = 1 + (
    config['train']['teacher'] == 'self' and config['train']['minibatches'] > 1
  )
  result = {
    'parameters': sum(x.size for x in jax.tree.leaves(step.params)),
    'devices': mesh.size,
    'flops': flops(traced.jaxpr),
    'tokens': math.prod(step.batch.tokens.shape),
    'state': size(step.state),
    'inputs': size(step.inputs(program)),
    'resident': step.resident(program, copies=copies),
  }
  try:
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return result | {'refused': str(error)[:4000]}
  memory, hlo = compiled.memory_analysis(), compiled.as_text()
  parts = {
    'arguments': memory.argument_size_in_bytes,
    'outputs': memory.output_size_in_bytes,
    'aliased': memory.alias_size_in_bytes,
    'temporary': memory.temp_size_in_bytes,
    'code': memory.generated_code_size_in_bytes,
    'peak': getattr(memory, 'peak_memory_in_bytes', 0),
  }
  return result | parts | {
    'collectives': collectives(hlo),
    'kernel_calls': hlo.count('custom_call_target="tpu_custom_call"'),
    'seconds': time.perf_counter() - begin,
  }  # fmt: skip


def main(arguments: list[str]):
  """Reads a request, writes a result."""
  source, target = map(pathlib.Path, arguments)
  request = json.loads(source.read_text())
  # Kernels are chosen by the default backend: let it be the one planned for.
  backend = 'tpu' if request['kernels'] else 'cpu'
  jax.default_backend = lambda: backend
  target.write_text(json.dumps(run(request)))


if __name__ == '__main__':
  main(sys.argv[1:])
