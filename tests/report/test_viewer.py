"""The page of trajectories in a real browser, driven by its address.

What no address can do (keys, clicks, hovering) is done by a script that the
test adds to the page.
"""

import html.parser
import re
import shutil
import subprocess

import pytest

from jaxagent.report import trajectories

BROWSER = next(
  (
    path
    for name in ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
    if (path := shutil.which(name))
  ),
  None,
)
FLAGS = [
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--window-size=1200,800',
  '--virtual-time-budget=2000',
  '--dump-dom',
]

pytestmark = pytest.mark.skipif(
  BROWSER is None, reason='needs a chromium or chrome binary on the PATH'
)


class _Dom(html.parser.HTMLParser):
  """Elements as dicts of attributes, with the text directly inside."""

  VOID = frozenset({'meta', 'input', 'br', 'img', 'link'})

  def __init__(self, text):
    super().__init__()
    self.all, self._open = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    element = dict(attrs) | {'tag': tag, 'text': ''}
    self.all.append(element)
    if tag not in self.VOID:
      self._open.append(element)

  def handle_endtag(self, tag):
    while self._open and self._open.pop()['tag'] != tag:
      pass

  def handle_data(self, data):
    for element in self._open:
      element['text'] += data

  def with_class(self, name):
    return [e for e in self.all if name in (e.get('class') or '').split()]

  def with_tag(self, tag):
    return [e for e in self.all if e['tag'] == tag]

  def by_id(self, name):
    (element,) = [e for e in self.all if e.get('id') == name]
    return element


@pytest.fixture
def show(tmp_path):
  """Writes a page of rows, opens it at an address, returns what is there."""

  def _show(rows, address='', script=''):
    path = trajectories.write_html(rows, tmp_path / 'page.html', title='Run')
    if script:
      page = path.read_text().replace('</html>', '')
      path.write_text(f'{page}<script>{script}</script></html>')
    done = subprocess.run(
      [
        BROWSER,
        *FLAGS,
        f'--user-data-dir={tmp_path / "profile"}',
        f'{path.as_uri()}#{address}',
      ],
      capture_output=True,
      text=True,
      timeout=120,
    )
    assert '<html' in done.stdout, done.stderr[-2000:]
    return _Dom(done.stdout)

  return _show


def _rgba(element):
  match = re.search(r'rgba?\(([^)]*)\)', element.get('style') or '')
  return tuple(float(x) for x in match.group(1).split(',')) if match else None


def test_search_counts_and_marks_every_hit(show, make_row):
  rows = [make_row(episode=e, turns=e + 1, success=float(e)) for e in range(3)]
  rows[1]['privileged'] = None
  dom = show(rows, 'q=FRIDGE&episode=2')
  # Once in each of two skills, once in each of the 1 + 2 + 3 actions.
  assert dom.by_id('hits')['text'] == '8 hits in 3 rows'
  marks = ''.join(e['text'] for e in dom.with_tag('mark'))
  assert marks == 'fridge' * 4  # across the tokens ' fri' and 'dge 1'
  assert [e['text'] for e in dom.with_class('t')][:3] == [
    'open',
    ' fri',
    'dge 1',
  ]


def test_search_takes_no_pattern_and_finds_nothing(show, make_row):
  dom = show([make_row()], 'q=.*')
  assert dom.by_id('hits')['text'] == '0 hits in 0 rows'
  assert 'No row fits' in dom.by_id('view')['text']


def test_colours_follow_the_sign_of_the_gap(show, make_row):
  dom = show([make_row(turns=1)], 'color=gap')
  high, low, zero = (_rgba(e) for e in dom.with_class('t'))
  assert high[2] > high[0] and low[0] > low[2]  # blue above 0, orange below
  assert high[3] > low[3] > zero[3] == 0
  assert 'teacher gap (nats)' in dom.by_id('view')['text']


def test_gates_are_coloured_around_one_half(show, make_row):
  row = make_row(turns=1)
  row['gate'] = [None, None, 1.0, 0.0, 0.5, None]
  high, low, middle = (
    _rgba(e) for e in show([row], 'color=gate').with_class('t')
  )
  assert high[2] > high[0] and low[0] > low[2]
  assert high[3] == low[3] == 0.72 and middle[3] == 0


def test_a_quantity_that_was_not_recorded_is_said(show, make_row):
  dom = show([make_row(gate=None)], 'color=gate')
  assert 'not recorded for this row' in dom.by_id('view')['text']
  assert all(_rgba(e) is None for e in dom.with_class('t'))


def test_the_address_selects_a_row_and_filters(show, make_row):
  rows = [
    make_row(
      episode=e, step=s, success=float(e % 2), goal=f'goal {s} {e}', group=s
    )
    for s in (0, 40)
    for e in range(4)
  ]
  dom = show(rows, 'step=40&episode=2&outcome=failure&theme=dark')
  assert dom.by_id('goal')['text'] == 'goal 40 2'
  items = dom.with_class('item')
  assert len(items) == 4 and all('✗' in e['text'] for e in items)
  (chosen,) = [e for e in items if e['aria-selected'] == 'true']
  assert 'goal 40 2' in chosen['text']
  assert dom.with_tag('html')[0]['data-theme'] == 'dark'
  same_task = [e['text'] for e in dom.with_class('badge') if 'title' in e]
  assert same_task == ['✗ 0', '✓ 1', '✗ 0', '✓ 1']


def test_sets_are_kept_apart(show, make_row):
  rows = [make_row(set=s, goal=f'goal {s}') for s in ('step', 'eval_seen')]
  dom = show(rows, 'set=eval_seen&step=0&episode=0')
  assert dom.by_id('goal')['text'] == 'goal eval_seen'
  assert not [e for e in dom.with_class('badge') if 'title' in e]
  dom = show(rows, 'from=step')
  assert dom.by_id('hits')['text'] == '1 of 2 rows'
  assert dom.by_id('goal')['text'] == 'goal step'


def test_everything_of_a_row_is_there(show, make_row):
  view = show([make_row()]).by_id('view')['text']
  for text in (
    'user: find the apple',
    'open fridge 1',
    'you see an egg 1',
    'An apple is often in the fridge.',
    'success 1',
    'advantage 1',
    'DONE',
    'heat',
    'game-0',
  ):
    assert text in view
  assert 'null' not in view and 'undefined' not in view


def test_hostile_text_is_shown_and_not_run(show, make_row):
  evil = '</script><b id="evil">x</b><img src=x onerror="document.title=1">'
  row = make_row(goal=evil, privileged=evil, game=evil, task_type=evil)
  row['tokens'][0] = row['tokens'][3] = evil
  dom = show([row], 'q=onerror')
  assert not [e for e in dom.all if e.get('id') == 'evil']
  assert not dom.with_tag('img')
  assert dom.with_tag('title')[0]['text'] == 'Run'
  assert dom.by_id('goal')['text'] == evil
  assert dom.with_class('t')[1]['text'] == evil
  assert dom.by_id('hits')['text'] == '6 hits in 1 rows'


def test_thousands_of_rows_are_listed_lazily(show, make_row):
  rows = [make_row(episode=e, turns=6) for e in range(1500)]
  dom = show(rows, 'q=egg 5&episode=1490')
  assert dom.by_id('hits')['text'] == '1500 hits in 1500 rows'
  items = dom.with_class('item')
  assert 10 < len(items) < 60
  assert any('episode 1490' in e['text'] for e in dom.with_class('badge'))
  assert any(e['aria-selected'] == 'true' for e in items)


PRESS = "document.dispatchEvent(new KeyboardEvent('keydown', {key: '%s'}));"


def test_keys_walk_rows_and_the_group(show, make_row):
  rows = [make_row(episode=e, group=e % 2, goal=f'goal {e}') for e in range(6)]
  script = PRESS % 'ArrowDown' + PRESS % 'ArrowDown' + PRESS % 'ArrowRight'
  dom = show(rows, 'episode=1', script + PRESS % 'ArrowUp')
  assert dom.by_id('goal')['text'] == 'goal 4'  # 1, 2, 3, 5, 4


def test_best_worst_and_the_number_under_the_pointer(show, make_row):
  rows = [
    make_row(episode=0, success=0.0, goal='worst', turns=9),
    make_row(episode=1, goal='long', turns=5),
    make_row(episode=2, goal='best', turns=1),
    make_row(episode=3, success=0.0, goal='poor'),
  ]
  script = """
    const at = [];
    for (const id of ['best', 'worst']) {
      document.getElementById(id).click();
      at.push(document.getElementById('goal').textContent);
    }
    document.title = at.join();
    document.querySelectorAll('.t')[1].dispatchEvent(
      new MouseEvent('mouseover', {bubbles: true}));
  """
  dom = show(rows, '', script)
  assert dom.with_tag('title')[0]['text'] == 'best,worst'
  tip = dom.by_id('tip')['text'].split('\n')
  assert tip == [
    '" fri"',
    'token 2 of turn 1',
    'advantage  1',
    'gate  0.25',
    'teacher gap (nats)  -0.25',
    'log-probability (nats)  -0.5',
    'probability  0.6065',
  ]


def test_no_rows_are_a_page_too(show):
  dom = show([])
  assert 'There are no trajectories' in dom.by_id('view')['text']
