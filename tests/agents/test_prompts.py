"""What is read and what is understood."""

import pytest

from jaxagent.agents import prompts

FIRST = (
  '-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room.'
  ' Looking quickly around you, you see a bed 1, a drawer 2, a drawer 1, and a'
  ' armchair 1.\n\nYour task is to: put a pen in bed.'
)


@pytest.mark.parametrize(
  'text, command',
  [
    ('go to bed 1', 'go to bed 1'),
    ('  Go  To bed 1.\n', 'go to bed 1'),
    ('\n\nlook\nand then go to bed 1', 'look'),
    ('<action>Open drawer 2</action>', 'open drawer 2'),
    ('I see <ACTION>\nlook\n</ACTION>.', 'look'),
    ('<action>look</action> no: <action>open bed 1</action>', 'open bed 1'),
    ('Thought: a bed.\nAction: go to bed 1', 'go to bed 1'),
    ('**Action:** `take pen 1 from bed 1`', 'take pen 1 from bed 1'),
    ('"look"', 'look'),
  ],
)
def test_commands_are_found(text, command):
  assert prompts.parse_action(text) == (command, True)


@pytest.mark.parametrize('text', ['', ' \n', '<action></action>', '...'])
@pytest.mark.parametrize('style', prompts.STYLES)
def test_no_command_is_malformed(text, style):
  assert prompts.parse_action(text, style=style) == ('', False)


def test_instruct_wants_the_form_that_was_asked_for():
  assert prompts.parse_action('look', style='instruct') == ('look', False)
  assert not prompts.parse_action('<action>look').well_formed
  assert prompts.parse_action('<action>look</action>', style='instruct')[1]


@pytest.mark.parametrize('style', prompts.STYLES)
def test_replies_are_understood(style):
  text = prompts.reply('go to bed 1', style=style)
  assert prompts.parse_action(text, style=style) == ('go to bed 1', True)


def test_room_is_a_bare_list():
  assert prompts.room(FIRST) == 'bed 1, drawer 2, drawer 1, armchair 1'
  one = 'Looking quickly around you, you see a bed 1 and a shelf 1.'
  assert prompts.room(one) == 'bed 1, shelf 1'
  assert prompts.room('A shop. [Search]') == 'A shop. [Search]'
  start = '-= Welcome =-\n\nYou are facing the bed 1.\n\nYour task is to: nap.'
  assert prompts.room(start) == 'You are facing the bed 1.'


def test_skills_are_the_only_difference():
  for style in prompts.STYLES:
    plain = prompts.opening('nap', 'bed 1', style=style)
    skilled = prompts.opening('nap', 'bed 1', style=style, skills='find bed.')
    assert skilled[:-1] == plain[:-1]
    assert skilled[-1]['content'] == 'find bed.\n' + plain[-1]['content']


def test_history_is_cut_before_skills():
  steps = [prompts.Step('', 'look')]
  steps += [prompts.Step(f'seen {i}', f'go to bed {i}') for i in range(9)]

  def content(max_chars):
    return prompts.opening(
      'nap',
      'bed 1',
      skills='find bed.',
      history=steps,
      observation='now',
      max_chars=max_chars,
    )[-1]['content']

  assert 'seen 0\n> go to bed 0\nseen 1' in content(None)
  assert 'seen 0' not in content(150) and 'seen 8' in content(150)
  assert len(content(150)) <= 150
  assert content(1) == 'find bed.\nGoal: nap\nRoom: bed 1\nnow'


def test_instruct_lists_admissible_commands():
  system, user = prompts.opening(
    'nap', 'bed 1', style='instruct', admissible=['a', 'b'], max_turns=7
  )
  assert '7 turns' in system['content'] and '<action>' in system['content']
  assert user['content'].endswith('Admissible commands: a; b')
  text = prompts.observed('ok\n', style='instruct', admissible=['a'])
  assert text == 'ok\nAdmissible commands: a'
  assert prompts.observed('ok\n', admissible=['a']) == 'ok'


def test_unknown_style():
  with pytest.raises(Exception, match='style'):
    prompts.opening('nap', 'bed 1', style='verbose')
