import json

import pytest

from jaxagent.agents import protocol
from jaxagent.language_models import base, replay, scripted

MUG = [protocol.user('where is the mug?')]
CUP = [protocol.user('where is the cup?')]


def test_what_was_recorded_is_replayed(tmp_path):
  path = tmp_path / 'new' / 'talk.jsonl'
  model = replay.record(scripted.scripted(['shelf ½', 'desk', 'bed']), path)
  recorded = [model(m, max_new=4).text for m in (MUG, CUP, MUG)]
  again = replay.replay(path)
  # Another order between requests; samples of one request keep theirs.
  assert [again(m, max_new=4).text for m in (CUP, MUG, MUG)] == [
    recorded[1], recorded[0], recorded[2]
  ]  # fmt: skip


def test_truncation_is_replayed(tmp_path):
  cut = protocol.Completion('sh', tokens=(7,), truncated=True)
  replay.record(lambda m, *, max_new: cut, tmp_path / 'f')(MUG, max_new=1)
  reply = replay.replay(tmp_path / 'f')(MUG, max_new=1)
  assert (reply.text, reply.truncated) == ('sh', True)


def test_recording_again_appends(tmp_path):
  for text in ['desk', 'bed']:
    replay.record(scripted.scripted([text]), tmp_path / 'f')(MUG, max_new=4)
  again = replay.replay(tmp_path / 'f')
  assert [again(MUG, max_new=4).text for _ in range(2)] == ['desk', 'bed']


@pytest.mark.parametrize('messages, max_new', [(CUP, 4), (MUG, 5), (MUG, 4)])
def test_misses_raise(tmp_path, messages, max_new):
  replay.record(scripted.scripted(['desk']), tmp_path / 'f')(MUG, max_new=4)
  again = replay.replay(tmp_path / 'f')
  again(MUG, max_new=4)
  with pytest.raises(base.LanguageModelError, match='no further reply'):
    again(messages, max_new=max_new)


def test_no_file(tmp_path):
  with pytest.raises(FileNotFoundError, match='No recording at'):
    replay.replay(tmp_path / 'f')


@pytest.mark.parametrize('line', ['{"key": "a', '{"key": "a"}', '3'])
def test_broken_lines_are_named(tmp_path, line):
  replay.record(scripted.scripted(['desk']), tmp_path / 'f')(MUG, max_new=4)
  with (tmp_path / 'f').open('a') as file:
    file.write(line)
  with pytest.raises(ValueError, match='line 2: not a recorded reply'):
    replay.replay(tmp_path / 'f')


def test_keys_do_not_depend_on_the_order_of_fields():
  swapped = [dict(reversed(MUG[0].items()))]
  assert base.key(swapped, max_new=4) == base.key(MUG, max_new=4)
  assert base.key(MUG, max_new=4) != base.key(MUG, max_new=5)
  assert base.key(MUG, max_new=4) != base.key(CUP, max_new=4)


def test_the_file_is_for_people_too(tmp_path):
  replay.record(scripted.scripted(['desk']), tmp_path / 'f')(MUG, max_new=4)
  entry = json.loads((tmp_path / 'f').read_text())
  assert entry['messages'] == MUG
  assert entry['text'] == 'desk'
