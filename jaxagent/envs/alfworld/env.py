"""ALFWorld as a gymnasium environment: text in, text out."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import gymnasium
from gymnasium import error

from jaxagent import registry
from jaxagent.envs import base
from jaxagent.envs.alfworld import data, engine, generate, text, world


class ALFWorldEnv(gymnasium.Env[str, str]):
  """Household tasks in text (arXiv:2010.03768).

  Observations and actions are text; a command that is not admissible gives
  'Nothing happens.'. Reward is 1 for the step that wins and 0 otherwise.
  `info` after reset and step:

  * `admissible_commands`: tuple of str, sorted.
  * `won`: bool.
  * `task`, `task_type`, `game`: the goal sentence, one of the six task types,
    the id of the game.
  * `homes`: where things are kept, kind to kind, if the game knows.
  * `expert_plan`: what is left of the game's walkthrough, as long as it was
    followed, commands that change nothing aside; then None.

  Args:
    games: What to play: games, or whatever `open_world` opens. With `names`,
      they can be asked for without being read.
    max_steps: Truncates an episode after this many steps; None never does.
    open_world: Starts playing a game; other than `world.World` for the original
      engine (`engine.Engine.open`).

  Raises:
    ValueError: if there are no games.
  """

  metadata = {'render_modes': []}

  def __init__(
    self,
    games: Sequence | base.Source,
    *,
    max_steps: int | None = 50,
    open_world: Callable[[Any], Any] = world.World,
  ):
    if not len(games):
      raise ValueError('ALFWorldEnv needs at least one game; got none.')
    self.games = games
    self.observation_space = base.text_space(2**16)
    self.action_space = base.text_space(2**10)
    self._max_steps = max_steps
    self._open_world = open_world
    self._game: Any = None
    self._world: Any = None
    self._over = True

  def reset(
    self,
    *,
    seed: int | None = None,
    options: Mapping[str, Any] | None = None,
  ) -> tuple[str, dict[str, Any]]:
    """Starts a game: a random one, or `options={'game': id or index}`."""
    super().reset(seed=seed)
    wanted = (options or {}).get('game')
    if wanted is None:
      wanted = int(self.np_random.integers(len(self.games)))
    game = self.games[self._index(wanted)]
    if self._game is not game:
      self._world, self._game = self._open_world(game), game
    observation = self._world.reset()
    self._steps = 0
    self._plan = self._world.game.walkthrough
    self._over = False
    return observation, self._info()

  def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
    """Does what a command says.

    Raises:
      gymnasium.error.ResetNeeded: before the first reset, and after the end.
    """
    if self._over:
      raise error.ResetNeeded(base.OVER)
    observation = self._world.step(action)
    self._steps += 1
    self._plan = _rest(self._plan, action.strip(), observation)
    won = self._world.won
    truncated = (
      not won and self._max_steps is not None and self._steps >= self._max_steps
    )
    self._over = won or truncated
    return observation, float(won), won, truncated, self._info()

  def close(self):
    """Ends the original engine, if that is what plays."""
    close = getattr(self._world, 'close', None)
    if close is not None:
      close()

  def _index(self, wanted: str | int) -> int:
    if not isinstance(wanted, str):
      return int(wanted)
    names = getattr(self.games, 'names', None)
    if names is None:
      names = [game.id for game in self.games]
    return names.index(registry.one_of('game', wanted, names))

  def _info(self) -> dict[str, Any]:
    game = self._world.game
    info = {
      'admissible_commands': self._world.admissible,
      'won': self._world.won,
      'task': game.task,
      'task_type': game.task_type,
      'game': game.id,
      'expert_plan': self._plan,
    }
    if game.homes:
      info['homes'] = dict(game.homes)
    return info


def _rest(
  plan: tuple[str, ...] | None, command: str, observation: str
) -> tuple[str, ...] | None:
  """What is left of a plan after a command; None if it was departed from."""
  if plan and command == plan[0]:
    return plan[1:]
  idle = command.split(' ')[0] in ('examine', 'help', 'inventory', 'look')
  return plan if idle or observation == text.NOTHING_HAPPENS else None


def open_games(
  source: str = 'generated',
  *,
  split: str = 'train',
  path: str | None = None,
  **options: Any,
) -> base.Source:
  """Opens games by the name of their source.

  Args:
    source: 'generated'; 'folder' for the official download; 'packed' for packed
      files; 'engine' for the official download, to be played in the original
      engine.
    split: 'train', 'seen' or 'unseen' of generated games; 'train', 'valid_seen'
      or 'valid_unseen' of those on disk.
    path: Where the games on disk are; empty or None asks ALFWORLD_DATA.
    **options: Arguments of `generate.Games`, `data.load` or `data.find`.

  Returns:
    The games; of source 'engine', their files.

  Raises:
    ValueError: if the source, the split or an option is unknown.
    FileNotFoundError: if there are no games on disk.
  """
  registry.one_of('source of games', source, tuple(_OPTIONS))
  for name in options:
    registry.one_of(f'option of {source} games', name, _OPTIONS[source])
  if source == 'engine':
    return data.find(path or None, split=split, **options)
  if source != 'generated':
    return data.load(path or None, split=split, **options)
  if path:
    raise ValueError(
      f'Generated games are not read from a path; got path={path!r}. Pass'
      " source='folder' or source='packed' to play games from disk."
    )
  return generate.Games(split=split, **options)


def make(
  *,
  source: str = 'generated',
  max_steps: int | None = 50,
  **options: Any,
) -> ALFWorldEnv:
  """What `gymnasium.make('jaxagent/ALFWorld-v0', …)` calls.

  Args:
    source: As in `open_games`.
    max_steps: As in `ALFWorldEnv`.
    **options: Further arguments of `open_games`; of source 'engine', those of
      `engine.Engine` too.
  """
  names = _ENGINE_OPTIONS if source == 'engine' else ()
  limits = {name: options.pop(name) for name in names if name in options}
  return _environment(source, open_games(source, **options), max_steps, limits)


def from_config(
  config: Mapping[str, Any],
) -> tuple[base.Source, Callable[[], ALFWorldEnv]]:
  """Opens games and says how to make an environment that plays them.

  Args:
    config: `source`, `split`, `path`, `max_steps` (absent or None is without
      end) and the options of any source; those of another source are ignored,
      so that switching it takes one change.

  Returns:
    The games, and a function without arguments that makes an environment; the
    environments share the games.

  Raises:
    ValueError, FileNotFoundError: as `open_games` does.
  """
  options = dict(config)
  source = options.get('source', 'generated')
  registry.one_of('source of games', source, tuple(_OPTIONS))
  common = ('name', 'source', 'split', 'path', 'max_steps')
  known = sorted({*common, *_ENGINE_OPTIONS}.union(*_OPTIONS.values()))
  for name in options:
    registry.one_of('option of ALFWorld', name, known)
  kept = ('split', *_OPTIONS[source])
  if source != 'generated':
    kept += ('path',)
  games = open_games(source, **{k: options[k] for k in kept if k in options})
  limits = {k: options[k] for k in _ENGINE_OPTIONS if k in options}
  return games, functools.partial(
    _environment, source, games, options.get('max_steps'), limits
  )


def _environment(
  source: str,
  games: base.Source,
  max_steps: int | None,
  limits: Mapping[str, Any],
) -> ALFWorldEnv:
  open_world = world.World
  if source == 'engine':
    open_world = engine.Engine(**limits).open
  return ALFWorldEnv(games, max_steps=max_steps, open_world=open_world)


_ENGINE_OPTIONS = ('python', 'time_limit')
# Sources of games, and the options that each has beside split and path.
_OPTIONS: dict[str, tuple[str, ...]] = {
  'generated': (
    'size',
    'seed',
    'homes',
    'home_probability',
    'things',
    'receptacles',
    'task_types',
    'rooms',
  ),
  'folder': ('task_types', 'check'),
  'packed': ('task_types',),
  'engine': ('task_types',),
}
