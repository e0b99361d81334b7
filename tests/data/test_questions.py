"""Questions from the files that people have."""

import importlib.util
import json
import sys

import pytest

from jaxagent.data import prepared, questions

GSM8K = {
  'question': 'Nia buys 3 pens at 2 dollars. What does she pay?',
  'answer': 'She pays 3*2=<<3*2=6>>6 dollars.\n#### 6',
}
MATH = {
  'problem': 'Compute $\\frac{1}{2}+\\frac{1}{2}$.',
  'level': 'Level 1',
  'type': 'Prealgebra',
  'solution': 'Two halves make $\\boxed{2}$, no $\\boxed{1}$.' + ' So.' * 99,
}


def write(path, records):
  lines = (r if isinstance(r, str) else json.dumps(r) for r in records)
  path.write_text('\n'.join(lines) + '\n')
  return path


def test_gsm8k_and_math_lines_are_read_as_they_are(tmp_path):
  (one,) = questions.read(write(tmp_path / 'train.jsonl', [GSM8K]))
  assert one == questions.Question('train/1', GSM8K['question'], '6')
  (two,) = questions.read(write(tmp_path / 'test.jsonl', [MATH]))
  assert (two.question, two.answer) == (MATH['problem'], '1')
  assert two.subject == 'Prealgebra'


def test_parquet_reads_as_json_lines_do(tmp_path):
  pyarrow = pytest.importorskip('pyarrow', reason='comes with tfds')
  from pyarrow import parquet

  records = [{'prompt': f'q {k}', 'final_answer': k} for k in range(1500)]
  table = pyarrow.Table.from_pylist(records)
  parquet.write_table(table, tmp_path / 'test.parquet')
  lines = questions.read(write(tmp_path / 'test.jsonl', records))
  assert questions.read(tmp_path / 'test.parquet') == lines
  assert lines[1499] == questions.Question('test/1500', 'q 1499', '1499')


def test_ids_are_the_files_own_where_they_name_each(tmp_path):
  base = {'question': 'q', 'answer': 'a'}
  for ids, names in (
    ([7, 9], ['7', '9']),
    ([7, 7], ['x/1', 'x/3']),
    ([7, None], ['x/1', 'x/3']),
  ):
    first, second = ({**base, 'id': name} for name in ids)
    path = write(tmp_path / 'x.jsonl', [first, '', second])
    assert questions.read(path).names == names


def test_fields_can_be_named(tmp_path):
  path = write(tmp_path / 'x.jsonl', [{'q': 'why', 'a': ['6'], 'answer': 'no'}])
  (item,) = questions.read(path, question='q', answer='a')
  assert (item.question, item.answer) == ('why', '6')


@pytest.mark.parametrize(
  'line, told',
  [
    ('{"question": "q"', 'line 2 is no JSON'),
    ('[1]', 'line 2 is a JSON list'),
    (
      '{"quest": "q", "answer": "a"}',
      r"line 2 has the fields.*'quest'.*prompt",
    ),
    ('{"question": "q"}', r'line 2 has the fields.*final_answer'),
    ('{"question": "q", "answer": {"a": 1}}', "line 2: 'answer' is {'a': 1}"),
    ('{"question": "q", "answer": null}', "line 2: 'answer' is None"),
    ('{"question": " ", "answer": "a"}', "line 2: 'question' is empty"),
    (
      json.dumps({'question': 'q', 'solution': 'so ' * 100}),
      'line 2: the answer has 299 characters',
    ),
  ],
)
def test_what_is_wrong_is_named_by_file_and_line(line, told, tmp_path):
  path = write(tmp_path / 'bad.jsonl', [GSM8K, line])
  with pytest.raises(ValueError, match=rf'bad\.jsonl, {told}'):
    questions.read(path)


def test_what_is_no_file_of_questions(tmp_path):
  with pytest.raises(FileNotFoundError, match='one JSON object a line'):
    questions.read(tmp_path / 'none.jsonl')
  with pytest.raises(ValueError, match=r"'\.csv'.*\.jsonl and \.parquet"):
    questions.read(write(tmp_path / 'x.csv', ['a']))
  with pytest.raises(ValueError, match='empty'):
    questions.read(write(tmp_path / 'x.jsonl', ['']))
  with pytest.raises(ValueError, match='no Parquet file'):
    questions.read(write(tmp_path / 'x.parquet', ['a']))
  with pytest.raises(ValueError, match='line 1 is no JSON.*utf-8'):
    (tmp_path / 'x.jsonl').write_bytes(b'{"question": "\xff"}')
    questions.read(tmp_path / 'x.jsonl')
  with pytest.raises(ValueError, match="line 1: .*Did you mean 'question'"):
    path = write(tmp_path / 'y.jsonl', [GSM8K])
    questions.read(path, question='questio')


@pytest.mark.parametrize(
  'text, answer',
  [
    ('#### 42', '42'),
    ('a #### 1\n#### 1,000\n', '1,000'),
    ('so \\boxed{\\frac{1}{2}} it is', '\\frac{1}{2}'),
    (' Paris ', 'Paris'),
  ],
)
def test_final_answers(text, answer):
  assert questions.final_answer(text) == answer


# --- prepared -------------------------------------------------------------


def make(count, split):
  return questions.Questions(
    tuple(
      questions.Question(f'{split}/{k}', f'What is {k}² + é?', str(k * k))
      for k in range(count)
    )
  )


def test_what_was_prepared_reads_back_in_order(tmp_path):
  splits = {'train': make(300, 'train'), 'test': make(7, 'test')}
  folder = prepared.write(splits, tmp_path)
  for split, wanted in splits.items():
    got = prepared.load(folder, split=split)
    assert len(got) == len(wanted) == len(got.names)
    assert list(got) == list(wanted)
    assert got[-1] == wanted[-1]
    with pytest.raises(IndexError):
      got[len(wanted)]
  with pytest.raises(ValueError, match='Known: .*train'):
    prepared.load(folder, split='tran')


def test_it_is_written_once(tmp_path):
  folder = prepared.write({'train': make(3, 'train')}, tmp_path)
  before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
  assert prepared.write({'train': make(4, 'train')}, tmp_path) == folder
  assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before
  assert any('array_record' in path.name for path in before)


def test_a_folder_of_something_else_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match='prepared.write'):
    prepared.load(tmp_path, split='train')


@pytest.mark.skipif(
  importlib.util.find_spec('tensorflow') is not None,
  reason='TensorFlow is installed, so that tfds uses it',
)
def test_tensorflow_is_not_needed(tmp_path):
  folder = prepared.write({'train': make(1, 'train')}, tmp_path)
  assert prepared.load(folder, split='train')[0].answer == '0'
  assert 'tensorflow' not in sys.modules
