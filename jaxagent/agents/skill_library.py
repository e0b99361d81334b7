"""Skills: short texts that tell how it is done, and how the right ones are found.

A bank is immutable. What retrieval has learned, which skill was used how often
and to what reward, is a separate record that goes into checkpoints; it changes
between rollouts, never during one, so that a rollout does not depend on the
order in which its episodes end.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib.resources
import json
import math
import pathlib
from typing import Any
import zlib

import numpy as np

KINDS = ('general', 'task', 'object')
_FIELDS = ('id', 'title', 'text', 'kind', 'task_types', 'keywords')
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Skill:
  """One skill.

  `kind`: 'general' holds for all tasks; 'task' for those of `task_types`;
  'object' for goals with one of `keywords` in them. Empty `task_types` or
  `keywords` do not restrict.
  """

  id: str
  title: str
  text: str
  kind: str
  task_types: tuple[str, ...] = ()
  keywords: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class SkillBank:
  """Skills in the order in which they are shown; ids are unique."""

  skills: tuple[Skill, ...]

  def __post_init__(self):
    ids = [skill.id for skill in self.skills]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
      raise ValueError(f'The skill bank has these ids more than once: {twice}.')

  @property
  def task_types(self) -> frozenset[str]:
    """The task types that some skill of kind 'task' is for."""
    return frozenset(
      name
      for skill in self.skills
      if skill.kind == 'task'
      for name in skill.task_types
    )


@dataclasses.dataclass(frozen=True)
class Query:
  """What skills are wanted for. `game` seeds the random strategy."""

  goal: str
  task_type: str
  game: str = ''


@dataclasses.dataclass(frozen=True)
class Usage:
  """What was retrieved so far, per task type, and what came of it.

  `queries[type]` counts episodes; `counts[type][skill]` those with the skill;
  `means[type][skill]` is the mean reward of the latter.
  """

  queries: Mapping[str, int] = dataclasses.field(default_factory=dict)
  counts: Mapping[str, Mapping[str, int]] = dataclasses.field(
    default_factory=dict
  )
  means: Mapping[str, Mapping[str, float]] = dataclasses.field(
    default_factory=dict
  )

  def record(
    self, task_type: str, skills: Sequence[str], reward: float
  ) -> 'Usage':
    """The usage after one more episode with these skills."""
    counts = dict(self.counts.get(task_type, {}))
    means = dict(self.means.get(task_type, {}))
    for name in skills:
      counts[name] = counts.get(name, 0) + 1
      mean = means.get(name, 0.0)
      means[name] = mean + (reward - mean) / counts[name]
    queries = self.queries.get(task_type, 0) + 1
    return Usage(
      queries={**self.queries, task_type: queries},
      counts={**self.counts, task_type: counts},
      means={**self.means, task_type: means},
    )

  def to_json(self) -> dict[str, Any]:
    """A JSON-serialisable form for checkpoints."""
    return {'version': _VERSION, **dataclasses.asdict(self)}

  @classmethod
  def from_json(cls, data: Mapping[str, Any]) -> 'Usage':
    """The inverse of `to_json`."""
    _check_version(data, 'skill usage')
    return cls(data['queries'], data['counts'], data['means'])


Strategy = Callable[[SkillBank, Query, Usage, int], tuple[Skill, ...]]


def applicable(bank: SkillBank, query: Query) -> tuple[Skill, ...]:
  """The skills for this task type and with a keyword in the goal.

  Raises:
    ValueError: if the bank has nothing on the task type at all. A bank of only
      general skills costs most of what skills are worth, and is easily loaded
      by mistake.
  """
  if query.task_type not in bank.task_types:
    raise ValueError(
      f'The skill bank has no skill for the task type {query.task_type!r}; it'
      f' has some for {sorted(bank.task_types)}. Add one, or retrieve with the'
      " strategy 'none'."
    )
  words = set(query.goal.lower().replace('.', ' ').replace(',', ' ').split())
  return tuple(
    skill
    for skill in bank.skills
    if (not skill.task_types or query.task_type in skill.task_types)
    and (not skill.keywords or words & set(skill.keywords))
  )


def keyword(
  bank: SkillBank, query: Query, usage: Usage, limit: int
) -> tuple[Skill, ...]:
  """General skills, and the first `limit` of each other kind that apply."""
  del usage
  found = applicable(bank, query)
  return tuple(
    skill
    for kind in KINDS
    for skill in _of_kind(found, kind)[: None if kind == 'general' else limit]
  )


def ucb(
  bank: SkillBank,
  query: Query,
  usage: Usage,
  limit: int,
  *,
  exploration: float = 1.0,
) -> tuple[Skill, ...]:
  """General skills, and of each other kind the `limit` best by upper bound.

  The candidates are the applicable skills, as for `keyword`; see `ucb_scores`.
  """
  found = applicable(bank, query)
  scores = ucb_scores(usage, query.task_type, found, exploration=exploration)
  rank = {skill.id: -score for skill, score in zip(found, scores, strict=True)}
  chosen = list(_of_kind(found, 'general'))
  for kind in KINDS[1:]:
    # `sorted` is stable: ties go to the order of the bank.
    chosen += sorted(_of_kind(found, kind), key=lambda s: rank[s.id])[:limit]
  return tuple(chosen)


def ucb_scores(
  usage: Usage,
  task_type: str,
  skills: Sequence[Skill],
  *,
  exploration: float = 1.0,
) -> list[float]:
  """Mean reward + exploration * sqrt(ln N / n); infinite where n is 0.

  N counts the queries of the task type, n those that were given the skill
  (arXiv 2605.15155).
  """
  total = usage.queries.get(task_type, 0)
  counts = usage.counts.get(task_type, {})
  means = usage.means.get(task_type, {})
  return [
    means[skill.id]
    + exploration * math.sqrt(math.log(max(total, 1)) / counts[skill.id])
    if counts.get(skill.id)
    else math.inf
    for skill in skills
  ]


def full(
  bank: SkillBank, query: Query, usage: Usage, limit: int
) -> tuple[Skill, ...]:
  """The whole bank."""
  del query, usage, limit
  return bank.skills


def random(
  bank: SkillBank, query: Query, usage: Usage, limit: int
) -> tuple[Skill, ...]:
  """As many of each kind as `keyword` finds, drawn by a seed from the game."""
  wanted = keyword(bank, query, usage, limit)
  rng = np.random.default_rng(zlib.crc32(f'{query.game} {query.goal}'.encode()))
  chosen = []
  for kind in KINDS:
    pool = _of_kind(bank.skills, kind)
    number = len(_of_kind(wanted, kind))
    chosen += [pool[i] for i in sorted(rng.permutation(len(pool))[:number])]
  return tuple(chosen)


def none(
  bank: SkillBank, query: Query, usage: Usage, limit: int
) -> tuple[Skill, ...]:
  """Nothing."""
  del bank, query, usage, limit
  return ()


STRATEGIES: Mapping[str, Strategy] = {
  'keyword': keyword,
  'ucb': ucb,
  'full': full,
  'random': random,
  'none': none,
}


def block(skills: Sequence[Skill]) -> str:
  """The text that is shown: a line a skill; '' if there are none."""
  return '\n'.join(skill.text for skill in skills)


def with_homes(bank: SkillBank, homes: Mapping[str, str]) -> SkillBank:
  """The bank with what it says of objects replaced by what the house says.

  Args:
    bank: Any bank.
    homes: Kind of thing to kind of receptacle, as some games know it. Where it
      is empty the bank stays as it is.
  """
  if not homes:
    return bank
  facts = tuple(
    Skill(
      id=f'object/{thing}',
      title=f'Where to find: {thing}',
      text=f'find {thing} in {place}.',
      kind='object',
      keywords=(thing,),
    )
    for thing, place in homes.items()
  )
  kept = tuple(skill for skill in bank.skills if skill.kind != 'object')
  return SkillBank(kept + facts)


def default() -> SkillBank:
  """The embedded bank for the six household task types."""
  folder = importlib.resources.files('jaxagent') / 'assets'
  return parse((folder / 'household_skills.json').read_text('utf-8'))


def load(path: str | pathlib.Path) -> SkillBank:
  """Reads a bank from a JSON file; see `parse`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is not a skill bank.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(
      f'No skill bank at {str(path)!r}. Give the path of a JSON file with'
      ' {"version": 1, "skills": […]}, or leave the path out for the embedded'
      ' bank.'
    )
  try:
    return parse(path.read_text('utf-8'))
  except ValueError as error:
    raise ValueError(f'Skill bank {str(path)!r}: {error}') from error


def parse(text: str) -> SkillBank:
  """Reads a bank: {"version": 1, "skills": [{"id": …, "text": …, …}, …]}.

  Raises:
    ValueError: naming the entry and the field that is wrong.
  """
  try:
    data = json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(f'not JSON: {error}. Mend the file there.') from error
  _check_version(data, 'skill bank')
  entries = data.get('skills')
  if not isinstance(entries, list) or not entries:
    raise ValueError('"skills" has to be a list with at least one skill.')
  return SkillBank(tuple(_skill(i, entry) for i, entry in enumerate(entries)))


def to_json(bank: SkillBank) -> str:
  """The inverse of `parse`."""
  skills = [dataclasses.asdict(skill) for skill in bank.skills]
  return json.dumps({'version': _VERSION, 'skills': skills}, indent=2) + '\n'


def _skill(index: int, entry: Any) -> Skill:
  where = f'skill {index}'
  if not isinstance(entry, dict):
    raise ValueError(f'{where} is {entry!r}; it has to be an object.')
  where += f' ({entry.get("id")!r})'
  unknown = sorted(set(entry) - set(_FIELDS))
  missing = [name for name in _FIELDS[:4] if not entry.get(name)]
  if unknown or missing:
    raise ValueError(
      f'{where}: unknown fields {unknown}, missing or empty fields {missing}.'
      f' The fields are {", ".join(_FIELDS)}.'
    )
  for name in _FIELDS[:4]:
    if not isinstance(entry[name], str):
      raise ValueError(f'{where}: {name!r} has to be a string.')
  for name in _FIELDS[4:]:
    value = entry.get(name, [])
    if not isinstance(value, list) or not all(
      isinstance(item, str) for item in value
    ):
      raise ValueError(f'{where}: {name!r} has to be a list of strings.')
  needed = {'task': 'task_types', 'object': 'keywords'}.get(entry['kind'])
  if entry['kind'] not in KINDS or (needed and not entry.get(needed)):
    raise ValueError(
      f'{where}: the kind {entry["kind"]!r} is not one of {KINDS}, or lacks'
      " what it is for: 'task' needs task_types, 'object' needs keywords."
    )
  lists = {name: tuple(entry.get(name, [])) for name in _FIELDS[4:]}
  return Skill(**{name: entry[name] for name in _FIELDS[:4]}, **lists)


def _check_version(data: Any, what: str):
  version = data.get('version') if isinstance(data, Mapping) else None
  if version != _VERSION:
    raise ValueError(
      f'This {what} has version {version!r}; version {_VERSION} is read here.'
    )


def _of_kind(skills: Sequence[Skill], kind: str) -> list[Skill]:
  return [skill for skill in skills if skill.kind == kind]
