"""Games from disk: official folders, packed files, and what can be wrong."""

import json
import lzma

import pytest
from test_pddl import LOOK, PLACE, PROBLEM

from jaxagent.envs.alfworld import data
from jaxagent.envs.alfworld import world as world_lib

GRAMMAR = '{"task": [{"rhs": "Your task is to: put \\"it\\" away. Now."}]}'
PLAN = ['go to fridge 1', 'open fridge 1']


def write_game(root, trial, *, goal=PLACE, **changes):
  """Writes a game in the official form; returns its file."""
  file = root / 'json_2.1.1' / trial / 'game.tw-pddl'
  file.parent.mkdir(parents=True)
  content = dict(
    pddl_domain='(define (domain alfred))',
    grammar=GRAMMAR,
    pddl_problem=PROBLEM % goal,
    solvable=True,
    walkthrough=PLAN,
  )
  content.update(changes)
  file.write_text(json.dumps(content))
  return file


@pytest.fixture
def root(tmp_path):
  """A download with a game of each of two task types, and three to skip."""
  cool, look = 'pick_cool_then_place_in_recep', 'look_at_obj_in_light'
  write_game(tmp_path, f'train/{look}-Apple-None-DeskLamp-1/trial_1', goal=LOOK)
  write_game(tmp_path, f'train/{cool}-Apple-None-Fridge-1/trial_1')
  for name in (
    f'{cool}-Apple-None-Fridge-2',
    f'{cool}-AppleSliced-None-Fridge-1',
    'pick_and_place_with_movable_recep-Apple-Bowl-Fridge-1',
  ):
    solvable = not name.endswith('2')
    write_game(tmp_path, f'train/{name}/trial_1', solvable=solvable)
  return tmp_path


def test_official_folder_gives_its_solvable_plain_games(root):
  games = data.load(root, split='train', check=False)
  assert games.names == (
    'train/look_at_obj_in_light-Apple-None-DeskLamp-1/trial_1',
    'train/pick_cool_then_place_in_recep-Apple-None-Fridge-1/trial_1',
  )
  assert [game.id for game in games] == list(games.names)
  assert games[1].task == 'put "it" away. Now'
  assert games[1].walkthrough == tuple(PLAN)
  world = world_lib.World(games[-1])
  assert 'put "it" away. Now.' in world.reset()
  assert world.step(PLAN[0]).endswith('The fridge 1 is closed.')


def test_the_folder_json_2_1_1_itself_and_the_environment_variable(
  root, monkeypatch
):
  names = data.load(root, split='train').names
  assert data.load(root / 'json_2.1.1', split='train').names == names
  monkeypatch.setenv('ALFWORLD_DATA', str(root))
  assert data.load(split='train').names == names


def test_task_types_select(root):
  games = data.load(root, task_types=['look_at_obj_in_light'])
  assert len(games) == 1
  with pytest.raises(ValueError, match='Did you mean'):
    data.load(root, task_types=['look_at_object_in_light'])
  with pytest.raises(FileNotFoundError, match='no solvable game'):
    data.load(root, task_types=['pick_two_obj_and_place'])


def test_games_are_read_once_and_the_latest_kept(kitchen):
  read = []

  def opened(index):
    read.append(index)
    return kitchen

  games = data.Games('abcd', opened, keep=2)
  for index in (0, 1, 0, -3, 2, 0):
    games[index]
  assert read == [0, 1, 2, 0]
  with pytest.raises(IndexError):
    games[4]


def test_packed_file_plays_as_the_folder_does(root, tmp_path):
  official = data.load(root, check=False)
  files = data.find(root)
  with lzma.open(tmp_path / 'alfworld_some.jsonl.xz', 'wt') as stream:
    for file, game in zip(files, official, strict=True):
      content = json.loads(file.read_text())
      row = dict(
        id=game.id,
        task=game.task,
        problem=content['pddl_problem'],
        walkthrough=content['walkthrough'],
      )
      stream.write(json.dumps(row) + '\n')
  packed = data.load(tmp_path / 'alfworld_some.jsonl.xz')
  assert packed.names == official.names
  assert list(packed) == list(official)


def test_rules_other_than_the_known_are_refused(root):
  with pytest.raises(ValueError, match='own PDDL domain and text grammar'):
    data.load(root)[0]


def test_released_rules_are_accepted(shared, tmp_path):
  folder = shared / 'data' / 'alfworld'
  logic = json.loads((folder / 'alfworld_logic.json').read_text())
  packed = data.load(folder, split='valid_seen')
  with lzma.open(folder / 'alfworld_valid_seen.jsonl.xz', 'rt') as stream:
    row = json.loads(next(stream))
  file = write_game(
    tmp_path,
    row['id'],
    pddl_domain=logic['domain'],
    grammar=logic['grammar'].replace('UNKNOWN GOAL', row['task']),
    pddl_problem=row['problem'],
    walkthrough=row['walkthrough'],
  )
  assert data.load(tmp_path, split='valid_seen')[0] == packed[0]
  text = json.loads(file.read_text())
  text['grammar'] = text['grammar'].replace('move {o} to {r}', 'put {o} in {r}')
  file.write_text(json.dumps(text))
  with pytest.raises(ValueError, match='own text grammar'):
    data.load(tmp_path, split='valid_seen')[0]


def test_no_data_says_how_to_get_some(tmp_path, monkeypatch):
  monkeypatch.delenv('ALFWORLD_DATA', raising=False)
  with pytest.raises(FileNotFoundError, match='alfworld-download'):
    data.load()
  with pytest.raises(FileNotFoundError, match='does not exist.*alfworld-down'):
    data.load(tmp_path / 'absent')
  with pytest.raises(FileNotFoundError, match='has no games'):
    data.load(tmp_path)


def test_unknown_split_names_the_known(root):
  with pytest.raises(ValueError, match="Did you mean 'train'"):
    data.load(root, split='trian')


@pytest.mark.parametrize(
  'content, message',
  [
    ('{"solvable": true', 'not JSON'),
    ('["solvable", {"solvable": true}]', 'not an object'),
    ('{"solvable": true}', 'lacks the text'),
    (
      json.dumps(
        dict(solvable=True, pddl_domain='', grammar='', pddl_problem='')
      ),
      'no goal sentence',
    ),
    (
      json.dumps(
        dict(solvable=True, pddl_domain='', grammar=GRAMMAR, pddl_problem='')
      ),
      'no \\(:init',
    ),
  ],
)
def test_broken_files_are_named(root, content, message):
  trial = 'train/pick_cool_then_place_in_recep-Apple-None-Fridge-1/trial_1'
  file = root / 'json_2.1.1' / trial / 'game.tw-pddl'
  file.write_text(content)
  with pytest.raises(ValueError, match=message) as caught:
    data.load(root, check=False)[1]
  assert str(file) in str(caught.value)


def test_broken_packed_files_are_named(tmp_path):
  file = tmp_path / 'train.jsonl.xz'
  file.write_bytes(b'not xz')
  with pytest.raises(ValueError, match='not a complete xz'):
    data.load(tmp_path)
  file.write_bytes(lzma.compress(b'{"id": "a"}\n'))
  with pytest.raises(ValueError, match='line 1: it lacks'):
    data.load(tmp_path)
  file.write_bytes(lzma.compress(b'{}\n' * 5000)[:-30])
  with pytest.raises(ValueError, match='train.jsonl.xz'):
    data.load(tmp_path)
