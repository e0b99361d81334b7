"""What the household world prints, to the letter what the TextWorld engine does.

The wording is fixed by the ALFWorld grammar (arXiv:2010.03768, MIT licence),
because agents trained in one engine are judged in the other.
"""

from collections.abc import Collection, Iterable

from jaxagent.envs.alfworld import game as game_lib

NOTHING_HAPPENS = 'Nothing happens.'

_WELCOME = '-= Welcome to TextWorld, ALFRED! =-'

HELP = """\
Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""


def opening(surroundings: str, task: str) -> str:
  """The first observation: a greeting, what is around, and the goal."""
  return f'{_WELCOME}\n\n{surroundings}\n\nYour task is to: {task}.'


def listing(names: Iterable[str]) -> str:
  """'a mug 2, a mug 1, and a pen 1'; 'nothing' for no names."""
  *rest, last = [f'a {name}' for name in names] or ['nothing']
  return ', '.join(rest) + ', and ' + last if rest else last


def facing(places: Iterable[str], floor: Iterable[str]) -> str:
  """Looking around beside furniture."""
  *rest, last = places
  joined = ', '.join(rest) + ', and ' + last if rest else last
  return f'You are facing the {joined}. Next to it, you see {listing(floor)}.'


def in_the_middle(places: Iterable[str]) -> str:
  """Looking around where no furniture is within reach."""
  return (
    'You are in the middle of a room. Looking quickly around you, you see'
    f' {listing(places)}.'
  )


def place(
  receptacle: game_lib.Receptacle, *, is_open: bool, contents: Iterable[str]
) -> str:
  """A piece of furniture and, unless it is closed, what is in or on it."""
  name = receptacle.name
  if not receptacle.openable:
    return f'On the {name}, you see {listing(contents)}.'
  if is_open:
    return f'The {name} is open. In it, you see {listing(contents)}.'
  return f'The {name} is closed.'


def thing(item: game_lib.Thing, states: Collection[str]) -> str:
  """A thing looked at closely; `states` as in the flags of `Thing`."""
  name = item.name
  if item.container:
    return f'This is a normal {name}. In it, you see {listing(item.holds)}.'
  words = [word for word in ('hot', 'cool') if word in states][:1]
  words += ['clean'] * ('clean' in states)
  sliced = ' sliced' * ('sliced' in states)
  if words == ['cool'] and not sliced:
    return f'This is a cold {name}.'
  if words:
    return f'This is a {" and ".join(words)}{sliced} {name}.'
  if 'on' in states:
    return f'This {name} is on.'
  if sliced:
    return f'This is a{sliced} {name}.'
  return f"There's nothing special about {name}."
