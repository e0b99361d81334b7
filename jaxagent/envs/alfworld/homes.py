"""The houses of the generated games: rooms, furniture, and what is kept where.

Nothing here comes from recorded data. The table of homes is the regularity that
an agent can learn: in a kitchen the mug is kept on a shelf, and so on. A room
has layouts of two kinds: `seen` ones for training, and `unseen` ones with other
sets of furniture, in which the same homes hold.
"""

from collections.abc import Mapping
import dataclasses

LAMP = 'desklamp'
OPENABLE = frozenset(
  {'fridge', 'microwave', 'cabinet', 'drawer', 'dresser', 'chest'}
)
# What a thing of each kind lets one do with it, beyond carrying it.
HEATABLE = frozenset({'apple', 'potato', 'egg', 'bread', 'mug', 'plate'})
COOLABLE = frozenset({'apple', 'potato', 'egg', 'bread', 'mug', 'pan'})
CLEANABLE = frozenset(
  {'apple', 'potato', 'mug', 'plate', 'pan', 'soap', 'cloth', 'comb'}
)
CONTAINERS = frozenset({'mug', 'plate', 'pan'})
# Only these may be put into an appliance; other furniture takes anything.
APPLIANCES: Mapping[str, frozenset[str]] = {
  'microwave': HEATABLE,
  'fridge': COOLABLE | HEATABLE,
  'sinkbasin': CLEANABLE,
}


@dataclasses.dataclass(frozen=True)
class Room:
  """A kind of room.

  `homes` maps a kind of thing to the kind of furniture where it is kept; every
  layout has that furniture. A layout maps furniture to how many there are.
  """

  homes: Mapping[str, str]
  seen: tuple[Mapping[str, int], ...]
  unseen: tuple[Mapping[str, int], ...]


ROOMS: Mapping[str, Room] = {
  'kitchen': Room(
    homes={
      'apple': 'countertop',
      'potato': 'drawer',
      'egg': 'fridge',
      'bread': 'cabinet',
      'mug': 'shelf',
      'plate': 'cabinet',
      'pan': 'stove',
    },
    seen=(
      dict(countertop=1, diningtable=1, shelf=1, stove=1, cabinet=2, drawer=1)
      | dict(fridge=1, microwave=1, sinkbasin=1),
      dict(shelf=1, countertop=1, stove=1, drawer=2, bin=1, cabinet=1)
      | dict(sinkbasin=1, fridge=1, microwave=1),
    ),
    unseen=(
      dict(stove=1, bin=1, cabinet=1, diningtable=1, drawer=1, shelf=1)
      | dict(microwave=1, sinkbasin=1, countertop=1, fridge=1),
      dict(cabinet=1, drawer=1, stool=1, fridge=1, shelf=2, sinkbasin=1)
      | dict(countertop=1, stove=1, microwave=1),
    ),
  ),
  'bathroom': Room(
    homes={
      'soap': 'tub',
      'towel': 'rack',
      'cloth': 'cabinet',
      'comb': 'drawer',
      'candle': 'toilet',
    },
    seen=(
      dict(cabinet=2, countertop=1, drawer=1, rack=1, shelf=1, toilet=1)
      | dict(tub=1, sinkbasin=1, basket=1),
      dict(drawer=2, shelf=1, toilet=1, bin=1, rack=1, cabinet=1, tub=1)
      | dict(sinkbasin=1, countertop=1),
    ),
    unseen=(
      dict(rack=1, tub=1, bin=1, cabinet=1, toilet=1, basket=1, drawer=1)
      | dict(countertop=1, stool=1, sinkbasin=1),
      dict(tub=1, cabinet=1, shelf=2, drawer=1, rack=1, sinkbasin=1)
      | dict(basket=1, toilet=1),
    ),
  ),
  'bedroom': Room(
    homes={
      'pillow': 'bed',
      'watch': 'dresser',
      'book': 'chair',
      'phone': 'drawer',
      LAMP: 'sidetable',
    },
    seen=(
      dict(bed=1, desk=1, drawer=2, dresser=1, shelf=1, sidetable=1, chair=1)
      | dict(basket=1, bench=1),
      dict(sidetable=1, chair=1, bed=1, chest=1, shelf=2, dresser=1, bin=1)
      | dict(desk=1, drawer=1),
    ),
    unseen=(
      dict(chair=1, chest=1, bed=1, drawer=1, sidetable=1, basket=1, rack=1)
      | dict(dresser=1, desk=1, bench=1),
      dict(dresser=1, drawer=1, desk=1, stool=1, bed=1, chair=1, shelf=1)
      | dict(chest=1, sidetable=1, bin=1),
    ),
  ),
  'study': Room(
    homes={
      'pen': 'chest',
      'laptop': 'sofa',
      'cd': 'cabinet',
      'vase': 'shelf',
      'letter': 'armchair',
      LAMP: 'desk',
    },
    seen=(
      dict(desk=1, armchair=1, cabinet=2, shelf=1, sofa=1, chest=1, bin=1)
      | dict(drawer=1, sidetable=1),
      dict(shelf=1, sofa=1, drawer=1, desk=1, cabinet=1, bench=1, chest=1)
      | dict(coffeetable=1, armchair=2),
    ),
    unseen=(
      dict(cabinet=1, coffeetable=1, sofa=1, basket=1, armchair=1, chest=1)
      | dict(shelf=1, drawer=1, desk=1, stool=1),
      dict(chest=1, bin=1, armchair=1, shelf=1, sidetable=1, cabinet=1)
      | dict(desk=1, bench=1, drawer=1, sofa=1),
    ),
  ),
}


def holds(receptacle: str, thing: str) -> bool:
  """Whether a thing of this kind may be put in or on this kind of furniture.

  Anything goes anywhere but for the appliances, and for lamps, which stand on
  open furniture only.
  """
  if thing == LAMP:
    return receptacle not in OPENABLE and receptacle not in APPLIANCES
  return thing in APPLIANCES.get(receptacle, {thing})
