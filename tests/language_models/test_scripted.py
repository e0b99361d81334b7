import pytest

from jaxagent.agents import protocol
from jaxagent.language_models import base, scripted

ASK = [protocol.user('where is the mug?')]


def test_replies_in_order():
  model = scripted.scripted(iter(['a', 'b']))
  assert model(ASK, max_new=4) == protocol.Completion('a')
  assert model(ASK, max_new=4) == protocol.Completion('b')


def test_replies_of_a_function():
  model = scripted.scripted(lambda messages: messages[-1]['content'].upper())
  assert model(ASK, max_new=4).text == 'WHERE IS THE MUG?'


def test_a_script_that_ends_too_early():
  model = scripted.scripted(['a'])
  model(ASK, max_new=4)
  with pytest.raises(base.LanguageModelError, match='1 replies.*the mug'):
    model(ASK, max_new=4)
