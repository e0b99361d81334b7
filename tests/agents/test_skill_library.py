"""Banks: what they refuse, and what is found in them."""

import json

import pytest

from jaxagent.agents import skill_library
from jaxagent.envs.alfworld import game as game_lib
from jaxagent.envs.alfworld import generate

HEAT = 'pick_heat_then_place_in_recep'


@pytest.fixture
def bank():
  return skill_library.default()


def _query(goal='put a hot egg in cabinet', task_type=HEAT, game='g'):
  return skill_library.Query(goal, task_type, game)


def _ids(skills):
  return [skill.id for skill in skills]


def _retrieve(strategy, bank, query, usage=None, limit=2):
  usage = usage or skill_library.Usage()
  return skill_library.STRATEGIES[strategy](bank, query, usage, limit)


def test_the_embedded_bank_covers_all_task_types(bank):
  assert bank.task_types == set(game_lib.TASK_TYPES)
  assert skill_library.parse(skill_library.to_json(bank)) == bank
  assert max(len(skill.text.split()) for skill in bank.skills) < 16


@pytest.mark.parametrize('strategy', ['keyword', 'ucb', 'full'])
@pytest.mark.parametrize('task_type', game_lib.TASK_TYPES)
def test_the_task_specific_text_is_in_what_is_shown(bank, strategy, task_type):
  found = _retrieve(strategy, bank, _query(task_type=task_type))
  shown = skill_library.block(found)
  (recipe,) = [s for s in bank.skills if task_type in s.task_types]
  assert recipe.text in shown.splitlines()
  assert 'find egg in fridge.' in shown


def test_keyword_shows_what_applies_and_no_more(bank):
  found = _ids(_retrieve('keyword', bank, _query()))
  general = _ids([s for s in bank.skills if s.kind == 'general'])
  assert found == [*general, 'task/heat', 'object/egg']


def test_a_bank_without_the_task_type_is_an_error(bank):
  general = skill_library.SkillBank(
    tuple(s for s in bank.skills if s.kind != 'task')
  )
  for strategy in ('keyword', 'ucb', 'random'):
    with pytest.raises(ValueError, match=f"no skill for the task type '{HEAT}"):
      _retrieve(strategy, general, _query())
  assert _retrieve('none', general, _query()) == ()


def test_random_is_of_the_size_of_keyword_and_seeded_by_the_game(bank):
  one, same, other = (
    _ids(_retrieve('random', bank, _query(game=game))) for game in 'aab'
  )
  assert one == same != other
  assert len(one) == len(_retrieve('keyword', bank, _query()))


def test_ucb_scores_by_hand():
  skills = [
    skill_library.Skill(id=name, title=name, text=name, kind='general')
    for name in 'abc'
  ]
  usage = skill_library.Usage(
    queries={HEAT: 12},
    counts={HEAT: {'a': 2, 'b': 10}},
    means={HEAT: {'a': 0.5, 'b': 0.8}},
  )
  scores = skill_library.ucb_scores(usage, HEAT, skills)
  assert scores[:2] == pytest.approx([1.614654, 1.298488], abs=1e-6)
  assert scores[2] == float('inf')  # never tried: first
  assert skill_library.ucb_scores(usage, 'other', skills) == [float('inf')] * 3


def test_ucb_prefers_what_helped():
  tips = [
    skill_library.Skill(name, name, name, 'task', (HEAT,)) for name in 'abc'
  ]
  bank = skill_library.SkillBank(tuple(tips))
  usage = skill_library.Usage()
  shown = []
  for _ in range(60):
    found = _ids(_retrieve('ucb', bank, _query(), usage, limit=1))
    shown += found
    usage = usage.record(HEAT, found, reward=float(found == ['b']))
  assert shown[:3] == ['a', 'b', 'c']
  assert shown.count('b') > 40
  assert usage.queries == {HEAT: 60}
  assert usage.means[HEAT]['b'] == 1.0


def test_usage_is_a_running_mean_and_survives_json():
  usage = skill_library.Usage()
  for reward in (1.0, 0.0, 0.5):
    before = usage
    usage = usage.record(HEAT, ['a'], reward)
    assert before.queries.get(HEAT, 0) == usage.queries[HEAT] - 1
  assert usage.means[HEAT]['a'] == pytest.approx(0.5)
  again = skill_library.Usage.from_json(json.loads(json.dumps(usage.to_json())))
  assert again == usage
  with pytest.raises(ValueError, match='version 7'):
    skill_library.Usage.from_json({**usage.to_json(), 'version': 7})


def test_homes_replace_what_the_bank_says_of_objects(bank):
  game = generate.Games(homes='random', seed=3)[0]
  house = skill_library.with_homes(bank, game.homes)
  facts = {s.keywords: s.text for s in house.skills if s.kind == 'object'}
  assert facts == {
    (thing,): f'find {thing} in {place}.' for thing, place in game.homes.items()
  }
  others = lambda b: [s for s in b.skills if s.kind != 'object']  # noqa: E731
  assert others(house) == others(bank)
  assert skill_library.with_homes(bank, {}) is bank


def test_every_generated_goal_finds_its_homes(bank):
  for game in generate.Games(size=200, homes='random'):
    house = skill_library.with_homes(bank, game.homes)
    query = skill_library.Query(game.task, game.task_type, game.id)
    shown = skill_library.block(_retrieve('keyword', house, query))
    for thing in filter(None, (game.goal.thing, game.goal.lamp)):
      assert f'find {thing} in {game.homes[thing]}.' in shown


GOOD = {'id': 'a', 'title': 'A', 'text': 'do a.', 'kind': 'general'}


@pytest.mark.parametrize(
  'text, message',
  [
    ('{"version": 1', 'not JSON'),
    ('[]', 'version None'),
    ('{"version": 2, "skills": []}', 'version 2'),
    ('{"version": 1}', 'at least one skill'),
    ('{"version": 1, "skills": []}', 'at least one skill'),
    (['a'], 'skill 0 .*object'),
    ([GOOD, {**GOOD, 'id': 'b', 'text': ''}], r"skill 1 \('b'\).*'text'"),
    ([{**GOOD, 'body': 'x'}], "unknown fields .'body'"),
    ([{**GOOD, 'text': 3}], "'text' has to be a string"),
    ([{**GOOD, 'keywords': 'egg'}], "'keywords' has to be a list"),
    ([{**GOOD, 'kind': 'tip'}], "kind 'tip'"),
    ([{**GOOD, 'kind': 'task'}], 'needs task_types'),
    ([GOOD, GOOD], r"more than once: \['a'\]"),
  ],
)
def test_malformed_banks_are_refused(tmp_path, text, message):
  if isinstance(text, list):
    text = json.dumps({'version': 1, 'skills': text})
  path = tmp_path / 'bank.json'
  path.write_text(text)
  with pytest.raises(ValueError, match=message):
    skill_library.load(path)


def test_a_missing_bank_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match='embedded'):
    skill_library.load(tmp_path / 'nothing.json')
