"""Which part of a reply is its answer."""

import pytest

from jaxagent.answers import extract as extract_lib
from jaxagent.answers import verify

PROMPT = (
  'What is 17 + 25? Options: (A) 41 (B) 42. Give the final answer in \\boxed{}.'
)


@pytest.mark.parametrize(
  'reply, answer',
  [
    ('\\boxed{1} no, \\boxed{2}', '2'),
    ('\\boxed{2} and then 3', '2'),
    ('\\boxed{\\frac{1}{2}}', '\\frac{1}{2}'),
    ('\\boxed{\\boxed{5}}', '5'),
    ('\\boxed{ \\{1, 2\\} }', '\\{1, 2\\}'),
    ('\\boxed {7}', '7'),
    ('\\boxed{4} so \\boxed{', '4'),  # cut
    ('\\boxed{}. The answer is 7.', '7'),
    ('<answer>3</answer> and <answer> 4 </answer>', '4'),
    ('<answer>3</answer> \\boxed{4}', '4'),
    ('The answer is 5. The answer is 6. Bye.', '6'),
    ('The answer is: **42**', '**42**'),
    ('The final answer is\n\n\\[ 42 \\]', '\\[ 42 \\]'),
    ('Answer: 3.5', '3.5'),
    ('17 + 25 = 42\n#### 42', '42'),
    ('#### 42\nIs the answer', '42'),
    ('first\nsecond\n\n', 'second'),
    ('<think>\\boxed{1}</think> It is 2', 'It is 2'),
    ('so \\boxed{1} <think> \\boxed{2}', None),
    ('<think>\\boxed{1}', None),
    ('', None),
    (' \n\n ', None),
    ('\\boxed{}', None),
  ],
)
def test_the_rule(reply, answer):
  got = extract_lib.extract(reply)
  assert (
    got == answer
    if answer is None or got is None
    else (got.rstrip('.') == answer)
  )


@pytest.mark.parametrize(
  'reply, kind, answer',
  [
    ('we get 3 and then 4 of them, which', 'number', '4'),
    ('The answer is 42 because 6 times 7 is 43', 'number', '42'),
    ('it must be -5 in the end', 'number', '-5'),
    ('it is 8 - 5 in the end', 'number', '- 5'),
    ('costs 1,234.50 euros more than', 'number', '1,234.50'),
    ('between a half and 3/4 of the cake is', 'number', '3/4'),
    ('It has to be (C), not B.', 'choice', 'C'),
    ('A dog is B', 'choice', 'B'),
    ('I think that it is A.', 'choice', 'A'),
    ('no letter here', 'choice', 'no letter here'),
  ],
)
def test_sentences_are_narrowed(reply, kind, answer):
  assert extract_lib.extract(reply, kind=kind) == answer


@pytest.mark.parametrize(
  'reply, right',
  [
    ('{0}', False),
    ('{1}\n', False),
    ('{0} I do not know', False),
    ('{0}\n\nIt is 41.', False),
    ('{0} 42', True),
    ('{0}{0}', False),
    ('So: {1}\n{2}\n\n42', True),
  ],
)
def test_an_echo_of_the_prompt_is_no_answer(reply, right):
  echo = 'Add 17 and 25. The answer is one of 41, 42.\nSay it at the end.'
  reply = reply.format(echo, *echo.splitlines())
  verdict = verify.verify(reply, '42', prompt=echo)
  assert verdict.correct == right


@pytest.mark.parametrize(
  'reply, right',
  [
    (PROMPT, False),
    (f'{PROMPT}\n\nI do not know.', False),
    (f'{PROMPT}\n\n41', False),
    (f'{PROMPT}\n\nThe answer is 41.', False),
    (f'{PROMPT}\n\nThe answer is 42.', True),
    (f'{PROMPT}\n\n\\boxed{{42}}', True),
    ('40 41 42 43 44', False),
    ('\\boxed{41} or \\boxed{42} or \\boxed{43}', False),
    ('\\boxed{41, 42, 43}', False),
    ('\\boxed{42 or 43}', False),
    ('\\boxed{42}\\boxed{43}', False),
    ('42\n' * 50 + '43', False),
    ('\\boxed{42} <think> hm', False),
  ],
)
def test_an_answer_among_others_does_not_count(reply, right):
  assert verify.verify(reply, '42').correct == right


def test_all_that_is_read_is_the_end():
  far = '\\boxed{42}' + ' ' * (extract_lib.TAIL + 1) + 'no'
  assert extract_lib.extract(far) == 'no'
