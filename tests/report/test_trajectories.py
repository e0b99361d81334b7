"""Rows survive the disk, and the page holds them without being broken."""

import json
import math
import re

import numpy as np
import pytest

from jaxagent.report import trajectories


def test_rows_survive_the_disk(tmp_path, make_row):
  rows = [make_row(episode=e, set='training') for e in range(3)]
  path = trajectories.save(tmp_path / 'trajectories' / 'step_0.jsonl', rows)
  assert trajectories.load(path) == rows
  assert trajectories.load(tmp_path) == rows
  assert trajectories.load(tmp_path / 'trajectories') == rows
  assert [p.name for p in path.parent.iterdir()] == ['step_0.jsonl']


def test_numpy_is_welcome_and_nan_is_null(tmp_path, make_row):
  row = make_row(turns=1)
  row['gap'] = np.array([np.nan, np.inf, 0.5, -0.25, 0.0, -np.inf], np.float32)
  row['action'] = np.array(row['action'], bool)
  row['advantage'] = np.float32(math.nan)
  (loaded,) = trajectories.load(trajectories.save(tmp_path / 'a.jsonl', [row]))
  assert loaded['gap'] == [None, None, 0.5, -0.25, 0.0, None]
  assert loaded['action'] == [False, False, True, True, True, False]
  assert loaded['advantage'] is None


def test_line_separators_inside_tokens_do_not_split_rows(tmp_path, make_row):
  row = make_row(game='\ud800', goal='a\u2028b\x85c\nd')
  (loaded,) = trajectories.load(trajectories.save(tmp_path / 'a.jsonl', [row]))
  assert loaded['goal'] == row['goal']


def test_limit_takes_the_latest(tmp_path, make_row):
  for step in (9, 10, 100):
    rows = [make_row(step=step, episode=e) for e in range(2)]
    name = f'trajectories/step_{step:06}.jsonl'
    trajectories.save(tmp_path / name, rows)
  loaded = trajectories.load(tmp_path, limit=3)
  assert [(r['step'], r['episode']) for r in loaded] == [
    (10, 1),
    (100, 0),
    (100, 1),
  ]


def test_files_are_ordered_by_step_and_named_by_set(tmp_path, make_row):
  for name in ('step_000100', 'step_000020', 'eval_seen_000100', 'b'):
    trajectories.save(tmp_path / f'{name}.jsonl', [make_row()])
  assert [row['set'] for row in trajectories.load(tmp_path)] == [
    'b',
    'training',
    'eval_seen',
    'training',
  ]


def test_no_files_are_no_rows(tmp_path):
  assert trajectories.load(tmp_path) == []


def test_a_missing_field_is_named(tmp_path, make_row):
  row = make_row()
  del row['turn']
  with pytest.raises(ValueError, match=r"lacks \['turn'\]"):
    trajectories.save(tmp_path / 'a.jsonl', [row])
  assert not (tmp_path / 'a.jsonl').exists()


def test_a_list_of_another_length_is_named(tmp_path, make_row):
  row = make_row(gate=[0.5])
  with pytest.raises(ValueError, match="'gate': 1"):
    trajectories.save(tmp_path / 'a.jsonl', [row])


def test_a_broken_line_is_named(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"step": 1')
  with pytest.raises(ValueError, match='a.jsonl, line 1'):
    trajectories.load(tmp_path / 'a.jsonl')


def _data(html):
  """The rows a page holds, as a parser of HTML would cut them out."""
  match = re.search(r'id="data">(.*?)</script', html, re.DOTALL)
  return json.loads(match.group(1))


def test_the_page_holds_every_token_and_number(tmp_path, make_row):
  row = make_row(turns=3)
  html = trajectories.write_html([row], tmp_path / 'a.html').read_text()
  (packed,) = _data(html)
  assert packed['length'] == len(row['tokens'])
  said = [b for b in packed['blocks'] if 'tokens' in b]
  assert [b['turn'] for b in said] == [0, 1, 2]
  sampled = np.array(row['action'], bool)
  for name in ('tokens', *trajectories.TOKEN_FIELDS):
    joined = [x for block in said for x in block[name]]
    assert joined == list(np.array(row[name], object)[sampled])
  heard = [b['text'] for b in packed['blocks'] if 'text' in b]
  assert heard == [
    'user: find the apple',
    *(f'you see an egg {t}' for t in range(3)),
  ]


def test_a_quantity_that_was_not_recorded_is_left_out(tmp_path, make_row):
  row = make_row()
  del row['gate']
  row['gap'] = [None] * len(row['tokens'])
  html = trajectories.write_html([row], tmp_path / 'a.html').read_text()
  said = [b for b in _data(html)[0]['blocks'] if 'tokens' in b]
  assert said and all(b.keys().isdisjoint({'gate', 'gap'}) for b in said)


HOSTILE = '</script><b id="evil">&amp;<!--\u2028{{ 7 * 7 }}{% raw %}\ud800'


def test_hostile_text_stays_data(tmp_path, make_row):
  row = make_row(goal=HOSTILE, privileged=HOSTILE, game=HOSTILE)
  row['tokens'][3] = HOSTILE
  row['tokens'][0] = HOSTILE
  path = tmp_path / 'a.html'
  html = trajectories.write_html([row], path, title=HOSTILE).read_text()
  plain = trajectories.write_html([make_row()], path).read_text()
  assert html.count('</script') == plain.count('</script') == 2
  assert '<b id' not in html
  (packed,) = _data(html)
  assert packed['goal'].startswith(HOSTILE[:-1])
  assert packed['blocks'][1]['tokens'][1].startswith(HOSTILE[:-1])


def test_the_page_asks_for_nothing_outside(tmp_path, make_row):
  html = trajectories.write_html([make_row()], tmp_path / 'a.html').read_text()
  assert "default-src 'none'" in html
  assert not re.search(
    r'https?:|\bsrc=|\bhref=|url\(|@import|fetch\(|XMLHttp|innerHTML', html
  )


def test_the_page_stays_small(tmp_path, make_row):
  rows = [make_row(episode=e, turns=10) for e in range(300)]
  path = trajectories.write_html(rows, tmp_path / 'a.html')
  assert path.stat().st_size < 4000 * len(rows)


def test_text_marks_what_the_policy_wrote(make_row):
  assert trajectories.as_text(make_row(turns=1)).split('\n') == [
    '  user: find the apple',
    '> open fridge 1',
    '  you see an egg 0',
  ]


def test_text_cuts_long_blocks(make_row):
  row = make_row(turns=1)
  row['tokens'][1] = 'x' * 5000
  text = trajectories.as_text(row, width=100)
  assert '… (4906 more characters)' in text and len(text) < 250


def test_success_falls_back_to_the_first_reward(make_row):
  assert trajectories.success(make_row(rewards={'a': 2, 'success': 1})) == 1
  assert trajectories.success(make_row(rewards={'score': 0.5})) == 0.5
  assert trajectories.success(make_row(rewards={})) is None
