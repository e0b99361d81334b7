"""From a config to a `Setup`: the only place that knows a config's sections."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import jax

from jaxagent import agents, envs, losses, registry, rewards, tokens
from jaxagent.agents import demonstrations, protocol
from jaxagent.envs.alfworld import expert
from jaxagent.losses import base
from jaxagent.models import config as config_lib
from jaxagent.models import policy as policy_lib
from jaxagent.models import sampler, sharding, weights
from jaxagent.rollouts import collect
from jaxagent.rollouts import host as host_lib
from jaxagent.training import evaluation, loop, sources, vocabularies
from jaxagent.training import state as state_lib
from jaxagent.training import tasks as tasks_lib
from jaxagent.training import update as update_lib

# Names of streams of random numbers, folded into the seed.
_ROLLOUT, _EVALUATION, _INIT, _TEACHER = range(4)

# The sections that are read here, field by field; the others are arguments of
# a function, which checks them itself.
_FIELDS = {
  'model': ('init', 'dtype', 'overrides', 'scan', 'remat'),
  'rollout': (
    'slots',
    'cache_lengths',
    'max_new',
    'chunk',
    'temperature',
    'top_k',
    'top_p',
    'driver',
    'timeout',
  ),
  'rewards': ('names', 'transform', 'advantages'),
  'batch': ('tasks', 'group', 'teacher_extra', 'chunk'),
  'eval': ('splits', 'tasks', 'repeats', 'temperature', 'seed'),
  'teacher': ('init', 'dtype', 'overrides'),
}
_OPTIONAL = {'teacher'}  # sections that only some runs have


def from_config(config: Mapping[str, Any]) -> loop.Setup:
  """Everything a run is made of.

  Args:
    config: see `experiments/configs/sdar_alfworld.py`, which names and
      explains every field.

  Raises:
    ValueError: naming the field that is wrong and what it may be.
  """
  _check(config)
  tokenizer = load_tokenizer(config)
  policy, params = load_model(config, tokenizer)
  loss = losses.from_config(config['loss'])
  reads_teacher = bool(loss.needs & update_lib.OF_TEACHER)
  teacher = teacher_params = None
  if reads_teacher and config['train']['teacher'] == 'external':
    teacher, teacher_params = load_teacher(config, tokenizer)
  temperature = config['rollout']['temperature'] or 1.0
  layout = sources.Layout(
    lengths=tuple(config['rollout']['cache_lengths']),
    teacher_extra=config['batch']['teacher_extra'],
    multiple=config['train']['microbatch'],
    reward_names=tuple(config['rewards']['names']),
    teacher=reads_teacher,
  )
  make_source = SOURCES[_choice(config, 'source', SOURCES)]
  transform = estimator = None
  if config['source'] == 'rollouts':
    transform = rewards.from_config(config['rewards']['transform'])
    estimator = rewards.advantages_from_config(config['rewards']['advantages'])
  return loop.Setup(
    params=params,
    tokenizer=tokenizer,
    source=make_source(config, policy, tokenizer, layout),
    passes=update_lib.Passes(
      policy,
      loss,
      temperature=temperature,
      chunk=config['batch']['chunk'],
      teacher=teacher,
    ),
    optimizer=state_lib.optimizer_from_config(config['optimizer']),
    schedule=loop.Schedule(**config['train']),
    reduce=base.REDUCERS[_choice(config, 'reduce', base.REDUCERS)],
    transform=transform,
    estimator=estimator,
    reward_names=layout.reward_names,
    evaluators=evaluators(config, policy, tokenizer),
    mesh=_mesh(config['mesh']),
    teacher_params=teacher_params,
  )


def _check(config) -> None:
  for section, fields in _FIELDS.items():
    if section in _OPTIONAL and section not in config:
      continue
    for field in config[section]:
      registry.one_of(f'field of config.{section}', field, fields)
    missing = [field for field in fields if field not in config[section]]
    if missing:
      raise ValueError(
        f'config.{section} lacks {missing}; start from the sections of'
        ' experiments/configs/sdar_alfworld.py.'
      )


def _choice(config, field, known) -> str:
  return registry.one_of(f'config.{field}', config[field], tuple(known))


def load_tokenizer(config: Mapping[str, Any]) -> tokens.Tokenizer:
  """`config.tokenizer`: 'household', 'model', or a folder or GGUF file."""
  name = config['tokenizer']
  if name == 'household':
    return tokens.default()
  return load_tokenizer_of(config['model']['init'] if name == 'model' else name)


def load_tokenizer_of(path: str | pathlib.Path) -> tokens.Tokenizer:
  """The tokenizer in a folder or a GGUF file."""
  path = pathlib.Path(path)
  if path.suffix == '.gguf':
    return tokens.from_gguf(path)
  return tokens.load(path)


def load_model(
  config: Mapping[str, Any], tokenizer: tokens.Tokenizer
) -> tuple[policy_lib.Policy, Any]:
  """`config.model.init`: a preset's name, or a folder or GGUF file to read."""
  key = _key(config, _INIT)
  return _load('model', config['model'], tokenizer, key, _how(config))


def load_teacher(
  config: Mapping[str, Any], tokenizer: tokens.Tokenizer
) -> tuple[policy_lib.Policy, Any]:
  """`config.teacher`, a section like `config.model`; see `train.teacher`.

  Its `init` may also be the workdir of a finished run. A model that was saved
  brings its tokenizer, which has to be the policy's.

  Args:
    config: of the run.
    tokenizer: of the policy.

  Raises:
    ValueError: no teacher is named, or it has another tokenizer.
    FileNotFoundError: it is not there, or its run has not finished.
  """
  section = dict(config.get('teacher', {}))
  if not section.get('init'):
    raise ValueError(
      "train.teacher='external' wants a model to learn from: give"
      ' config.teacher.init, a folder, GGUF file or workdir of a finished run'
      f' (or a preset); this config says {section}.'
    )
  key = _key(config, _TEACHER)
  if section['init'] in config_lib.PRESETS:
    return _load('teacher', section, tokenizer, key, _how(config))
  path = pathlib.Path(section['init'])
  if (path / 'checkpoints').is_dir():
    path = path / 'model'
    if not path.is_dir():
      raise FileNotFoundError(
        f'The run in {str(path.parent)!r} has not finished: it has no model yet.'
        ' Repeat its command to finish it.'
      )
  told = vocabularies.differences(load_tokenizer_of(path), tokenizer)
  if told:
    raise ValueError(
      f'The teacher in {str(path)!r} has another tokenizer than the policy:'
      f' {"; ".join(told)}. Its probabilities are of other tokens; choose a'
      ' teacher and a policy of one family, or set config.tokenizer.'
    )
  section['init'] = str(path)
  return _load('teacher', section, tokenizer, key, _how(config))


def _how(config):
  """How models are compiled, whatever they are."""
  return {name: config['model'][name] for name in ('scan', 'remat')}


def _load(name, section, tokenizer, key, how):
  """The model of a section, and its parameters."""
  if section['init'] in config_lib.PRESETS:
    model = config_lib.PRESETS[section['init']]
    changes = {'vocab': tokenizer.vocab_size, **section['overrides']}
    if section['dtype']:
      changes |= {'dtype': section['dtype']}
    model = dataclasses.replace(model, **changes)
    policy = policy_lib.build(model, **how)
    return policy, policy.init(key)
  model, params = weights.load(section['init'], dtype=section['dtype'] or None)
  if section['overrides']:
    raise ValueError(
      f'{name}.overrides change a preset; the model in'
      f' {section["init"]!r} is what it is. Leave them empty.'
    )
  if model.vocab < tokenizer.vocab_size:
    raise ValueError(
      f'The tokenizer has {tokenizer.vocab_size} tokens, the model in'
      f' {section["init"]!r} only {model.vocab}: they do not belong together.'
    )
  return policy_lib.build(model, **how), params


def make_agent(
  config: Mapping[str, Any], split: str, **changes
) -> tuple[Sequence, agents.Agent]:
  """The games of a split and the agent that plays them.

  Args:
    config: of the run.
    split: of the environment.
    **changes: `env` and `skills` update those sections, so that an evaluation
      or a demonstration may differ from training.
  """
  env = {**config['env'], **changes.get('env', {}), 'split': split}
  games, make_env = envs.from_config(env)
  agent = dict(config['agent'])
  agent['skills'] = {**agent['skills'], **changes.get('skills', {})}
  return games, agents.from_config(agent, make_env)


def make_rollout(
  config: Mapping[str, Any],
  policy: policy_lib.Policy,
  tokenizer: tokens.Tokenizer,
  make_program: Callable,
  **changes,
) -> collect.Rollout:
  """A rollout with the sampling of `config.rollout`, changed by `changes`."""
  section = {**config['rollout'], **changes}
  limits = host_lib.Limits(
    slots=section['slots'],
    max_new=section['max_new'],
    cache_lengths=tuple(section['cache_lengths']),
    timeout=section['timeout'] or None,
  )
  sampling = sampler.Sampling(
    temperature=section['temperature'],
    top_k=section['top_k'],
    top_p=section['top_p'],
    max_new=section['max_new'],
    stop_ids=tokenizer.stop_ids,
    chunk=section['chunk'],
  )
  return collect.Rollout(
    policy,
    tokenizer,
    make_program,
    limits,
    sampling,
    driver=section['driver'],
  )


def evaluators(
  config: Mapping[str, Any],
  policy: policy_lib.Policy,
  tokenizer: tokens.Tokenizer,
) -> list[evaluation.Evaluator]:
  """One for each of `config.eval.splits`, without skills in the prompt.

  A split named 'SPLIT+skills' shows the policy the skills.
  """
  section = config['eval']
  out = []
  for name in section['splits']:
    split, _, shown = name.partition('+')
    mode = 'prompt' if shown == 'skills' else 'none'
    games, agent = make_agent(config, split, skills={'mode': mode})
    rollout = make_rollout(
      config,
      policy,
      tokenizer,
      agent,
      temperature=section['temperature'],
      top_p=1.0,
      top_k=0,
    )
    tasks = tasks_lib.evaluation_tasks(
      len(games),
      num_tasks=section['tasks'],
      repeats=section['repeats'],
      seed=section['seed'],
    )
    out.append(
      evaluation.Evaluator(name, rollout, tasks, _key(config, _EVALUATION))
    )
  return out


def _rollout_source(config, policy, tokenizer, layout) -> sources.Source:
  games, agent = make_agent(config, config['env']['split'])
  return sources.from_rollouts(
    make_rollout(config, policy, tokenizer, agent),
    _tasks(config, games),
    layout,
    key=_key(config, _ROLLOUT),
    state=agent.skills.state_dict,
    restore=agent.skills.load_state_dict,
    learn=lambda episodes: [agent.skills.record(e.outcome) for e in episodes],
  )


def _demonstration_source(config, policy, tokenizer, layout) -> sources.Source:
  """Every second game shows the skills that its expert then follows.

  A source of games that writes demonstrations itself needs no expert.
  """
  del policy
  section = config['demonstrations']
  games, shown = make_agent(
    config,
    config['env']['split'],
    env=section['env'],
    skills={'mode': 'prompt', **section['skills']},
  )
  _, hidden = make_agent(
    config,
    config['env']['split'],
    env=section['env'],
    skills={'mode': 'none'},
  )

  def program(task: protocol.Task):
    return (shown if task.group % 2 else hidden)(task)

  def replies(task):
    if hasattr(games, 'demonstrate'):
      return games.demonstrate(task.game, task.seed)
    player = expert.expert(seed=task.seed, recipe=section['recipe'])
    played = demonstrations.demonstrate(
      program(task), player, style=config['agent']['style']
    )
    return played.replies

  return sources.from_demonstrations(
    _tasks(config, games), program, replies, layout, tokenizer=tokenizer
  )


def _answer_source(config, policy, tokenizer, layout) -> sources.Source:
  """One-turn rows whose reply is the answer that the environment names."""
  del policy
  games, agent = make_agent(config, config['env']['split'])
  _, make_env = envs.from_config(config['env'])

  def replies(task):
    options = {'game': task.game}
    _, info = make_env().reset(seed=task.seed, options=options)
    return [info['answer']]

  return sources.from_demonstrations(
    _tasks(config, games), agent, replies, layout, tokenizer=tokenizer
  )


def _teacher_source(config, policy, tokenizer, layout) -> sources.Source:
  """Rows that the teacher samples, to be imitated: sequence-level
  distillation (arXiv 1606.07947)."""
  del policy
  teacher, params = load_teacher(config, tokenizer)
  source = _rollout_source(config, teacher, tokenizer, layout)
  return dataclasses.replace(
    source, next=lambda _, step: source.next(params, step)
  )


SOURCES = {
  'rollouts': _rollout_source,
  'demonstrations': _demonstration_source,
  'answers': _answer_source,
  'teacher_samples': _teacher_source,
}


def _tasks(config, games):
  def of_step(step):
    return tasks_lib.training_tasks(
      games,
      seed=config['seed'],
      step=step // config['train']['minibatches'],
      num_tasks=config['batch']['tasks'],
      group_size=config['batch']['group'],
      process=(jax.process_index(), jax.process_count()),
    )

  return of_step


def _key(config, stream):
  return jax.random.fold_in(jax.random.key(config['seed']), stream)


def _mesh(config) -> jax.sharding.Mesh:
  """`config.mesh`; `data=0` takes the devices that the other axes leave."""
  sizes = dict(config)
  if not sizes['data']:
    rest = sizes['fsdp'] * sizes['tensor']
    sizes['data'] = max(jax.device_count() // rest, 1)
  return sharding.make_mesh(**sizes)
