"""A config's sections are read whole: no field is ignored in silence."""

import pytest

from experiments.configs import sdar_alfworld
from jaxagent.training import build


@pytest.mark.parametrize(
  'section, typo, meant',
  [
    ('rollout', 'max_news', 'max_new'),
    ('batch', 'groups', 'group'),
    ('eval', 'task', 'tasks'),
    ('model', 'override', 'overrides'),
    ('rewards', 'name', 'names'),
  ],
)
def test_a_typo_names_the_field_that_was_meant(section, typo, meant):
  config = sdar_alfworld.get_config('debug').to_dict()
  config[section][typo] = 1
  with pytest.raises(ValueError, match=f"{section} '{typo}'.*'{meant}'"):
    build.from_config(config)


def test_a_missing_field_is_named():
  config = sdar_alfworld.get_config('debug').to_dict()
  del config['batch']['teacher_extra']
  with pytest.raises(ValueError, match="config.batch lacks .'teacher_extra'"):
    build.from_config(config)
