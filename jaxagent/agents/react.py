"""The plain agent: look, act, look, until done or out of turns."""

from collections.abc import Callable
import dataclasses
import functools
import re
from typing import Literal

import gymnasium

from jaxagent import types
from jaxagent.agents import prompts, protocol
from jaxagent.agents import skills as skills_lib

Rows = Literal['episode', 'turn']
_PICKED = re.compile(r'You pick up the ([\w ]+?) from ')
_PUT = re.compile(r'You (?:move|put|place) the ')
_NOTHING = 'nothing happens'


def react(
  env: gymnasium.Env,
  task: protocol.Task,
  *,
  max_turns: int = 12,
  skills: skills_lib.Skills | None = None,
  style: prompts.Style = 'compact',
  rows: Rows = 'episode',
  history: int = 2,
  max_chars: int | None = None,
  penalty: float = 0.01,
) -> protocol.Program:
  """One episode of a text world.

  Rewards: 'success' is 0 or 1; 'invalid' is the number of replies that were no
  command or did nothing. A turn by itself earns what the world gave for it,
  less `penalty` if it was invalid; step-level methods such as GiGPO read that.

  Args:
    env: A world with text in and out. Of its info are used, where present:
      'task', 'task_type', 'homes', 'won', 'admissible_commands'.
    task: The episode; `task.game` and `task.seed` go to the world's `reset`.
    max_turns: Replies at most.
    skills: Retrieved once, at the start.
    style: How prompts look; see `prompts`.
    rows: 'episode' is one growing row; 'turn' a fresh row for every turn, with
      the last turns in its prompt.
    history: How many past turns such a prompt shows.
    max_chars: Bounds such a prompt by dropping history, never skills.
    penalty: For an invalid turn, where success earns 1.

  Returns:
    A program. Out of context it ends with what it has: success 0 and
    `Status.CONTEXT_LIMIT`.
  """
  if rows not in ('episode', 'turn'):
    raise ValueError(f"rows = {rows!r}; 'episode' and 'turn' are known.")
  observation, info = env.reset(seed=task.seed, options={'game': task.game})
  about = dict(info)
  view = skills.view(task, info) if skills else skills_lib.View()
  place = prompts.room(observation)
  opening = functools.partial(
    prompts.opening,
    about.get('task', ''),
    place,
    style=style,
    max_turns=max_turns,
    max_chars=max_chars,
  )
  # `newest` is what was seen last, '' where `place` says it already.
  steps, newest, held, reward, invalid = [], '', '', 0.0, 0
  status, won = types.Status.TURN_LIMIT, False
  for turn in range(max_turns):
    admissible = tuple(info.get('admissible_commands', ()))
    if turn == 0 or rows == 'turn':
      past = steps[-history:] if history else ()
      asked = _open(
        functools.partial(
          opening, history=past, observation=newest, admissible=admissible
        ),
        view,
      )
    else:
      text = prompts.observed(newest, style=style, admissible=admissible)
      asked = protocol.Generate(extend=text)
    try:
      completion = yield dataclasses.replace(
        asked, anchor=f'{newest or place}\n{held}', reward=reward
      )
    except protocol.ContextLimit:
      status, reward = types.Status.CONTEXT_LIMIT, 0.0
      break
    action = prompts.parse_action(completion.text, style=style)
    steps.append(prompts.Step(newest, action.command))
    newest, score, terminated, truncated, info = env.step(action.command)
    held = _held(held, newest)
    valid = action.well_formed and not newest.lower().startswith(_NOTHING)
    invalid += not valid
    reward = float(score) - (0.0 if valid else penalty)
    won = bool(info.get('won', terminated and score > 0))
    if terminated:
      status = types.Status.DONE
    if terminated or truncated:
      break
  return protocol.Outcome(
    rewards={'success': float(won), 'invalid': float(invalid)},
    status=status,
    reward=reward,
    info={
      'goal': about.get('task', ''),
      'task_type': about.get('task_type', ''),
      'game': str(about.get('game', task.game)),
      'success': won,
      'turns': len(steps),
      'invalid': invalid,
      'skills': list(view.ids),
    },
  )


def _open(
  opening: Callable[..., list[protocol.Message]], view: skills_lib.View
) -> protocol.Generate:
  """A new row, as the policy and as its teacher see it."""
  teacher = opening(skills=view.teacher) if view.teacher else None
  return protocol.Generate(open=opening(skills=view.policy), privileged=teacher)


def _held(held: str, observation: str) -> str:
  """The thing in hand after this observation."""
  picked = _PICKED.search(observation)
  if picked:
    return picked[1]
  return '' if _PUT.search(observation) else held
