"""A config's sections are read whole: no field is ignored in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import sdar_alfworld
from jaxagent.training import build
from jaxagent.training import state as state_lib


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


def test_rates_of_decay_are_not_pulled_to_zero():
  optimizer = state_lib.optimizer(learning_rate=0.1, weight_decay=0.5)
  params = {'layers': [{'decay_rate': jnp.ones(2), 'query': jnp.ones(2)}]}
  nothing = jax.tree.map(jnp.zeros_like, params)
  with jax.numpy_dtype_promotion('standard'):  # as the update does
    changes, _ = optimizer.update(nothing, optimizer.init(params), params)
  np.testing.assert_array_equal(changes['layers'][0]['decay_rate'], 0)
  np.testing.assert_allclose(changes['layers'][0]['query'], -0.05)
