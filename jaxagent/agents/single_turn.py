"""The shortest agent: one question, one reply."""

import gymnasium

from jaxagent import types
from jaxagent.agents import protocol
from jaxagent.agents import skills as skills_lib


def single_turn(
  env: gymnasium.Env,
  task: protocol.Task,
  *,
  skills: skills_lib.Skills | None = None,
  system: str = '',
  require_stop: bool = True,
) -> protocol.Program:
  """Asks what the environment asks and hands it the whole reply.

  Args:
    env: A world that answers a single step.
    task: The episode.
    skills: Unused; questions have none.
    system: A system message; '' leaves it to the chat template.
    require_stop: Whether a reply that was cut counts as wrong.

  Returns:
    A program whose reward is 'success', what the environment gave; beside it
    are those in the step's `info['rewards']`, if any.
  """
  del skills
  question, info = env.reset(seed=task.seed, options={'game': task.game})
  told = [protocol.system(system)] if system else []
  reply = yield protocol.Generate(open=[*told, protocol.user(question)])
  _, reward, _, _, told = env.step(reply.text)
  rewards = {'success': reward, **told.get('rewards', {})}
  if require_stop and reply.truncated:
    reward, rewards = 0.0, dict.fromkeys(rewards, 0.0)
  return protocol.Outcome(
    rewards={name: float(value) for name, value in rewards.items()},
    status=types.Status.DONE,
    reward=float(reward),
    info={
      'goal': question,
      'task_type': info.get('task_type', ''),
      'game': info.get('game', task.game),
      'success': reward > 0.5,
    },
  )
