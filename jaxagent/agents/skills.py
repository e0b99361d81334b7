"""Who sees which skill texts: the policy, its teacher, or nobody."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from jaxagent import types
from jaxagent.agents import protocol, skill_library

Mode = Literal['privileged', 'prompt', 'train_prompt', 'none']
MODES: Mapping[Mode, str] = {
  'privileged': 'only the teacher sees them (SDAR)',
  'prompt': 'the policy sees them, always',
  'train_prompt': 'the policy sees them in training only (Skill-GRPO)',
  'none': 'nobody sees them',
}


class View(NamedTuple):
  """What is shown in one episode; '' is nothing."""

  policy: str = ''
  teacher: str = ''
  ids: tuple[str, ...] = ()


class Skills:
  """A skill bank in use: the bank, who sees it, and what came of it.

  `usage` is the only thing that changes, and only by `record`.
  """

  def __init__(
    self,
    bank: skill_library.SkillBank,
    *,
    mode: Mode = 'privileged',
    strategy: str = 'keyword',
    limit: int = 2,
    homes: bool = True,
  ):
    """A bank in use.

    Args:
      bank: What there is to retrieve.
      mode: Who sees the skills; see `MODES`.
      strategy: How they are found; see `skill_library.STRATEGIES`.
      limit: How many of each kind other than 'general' are shown.
      homes: Whether what a game tells of where things are kept replaces what
        the bank says of objects.

    Raises:
      ValueError: if the mode or the strategy is unknown.
    """
    for what, got, known in (
      ('mode', mode, MODES),
      ('strategy', strategy, skill_library.STRATEGIES),
    ):
      if got not in known:
        raise ValueError(f'Skill {what} {got!r}; known are {list(known)}.')
    self.bank = bank
    self.usage = skill_library.Usage()
    self._mode = mode
    self._retrieve = skill_library.STRATEGIES[strategy]
    self._limit = limit
    self._homes = homes

  def view(self, task: protocol.Task, info: Mapping[str, Any]) -> View:
    """Retrieves for one episode.

    Args:
      task: The episode.
      info: Of the environment's reset: 'task' (the goal), 'task_type', and
        'homes' where the game knows them.
    """
    if self._mode == 'none':
      return View()
    homes = info.get('homes', {}) if self._homes else {}
    found = self._retrieve(
      skill_library.with_homes(self.bank, homes),
      skill_library.Query(info['task'], info['task_type'], str(task.game)),
      self.usage,
      self._limit,
    )
    text = skill_library.block(found)
    ids = tuple(skill.id for skill in found)
    if self._mode == 'privileged':
      return View(teacher=text, ids=ids)
    if self._mode == 'prompt' or task.training:
      return View(policy=text, ids=ids)
    return View()

  def record(self, outcome: protocol.Outcome):
    """Counts a finished training episode, for `ucb`."""
    if outcome.status != types.Status.ENV_ERROR and 'skills' in outcome.info:
      self.usage = self.usage.record(
        outcome.info['task_type'],
        outcome.info['skills'],
        outcome.rewards.get('success', 0.0),
      )

  def state_dict(self) -> dict[str, Any]:
    """What a checkpoint keeps, JSON-serialisable."""
    return self.usage.to_json()

  def load_state_dict(self, state: Mapping[str, Any]):
    """Takes up where `state_dict` was made."""
    self.usage = skill_library.Usage.from_json(state)
