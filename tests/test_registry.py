"""Names that are known, and what is said of the others."""

import pytest

from jaxagent import registry


def area(*, width, height=1):
  return width * height


def cube(*, depth, **rest):
  return depth * area(**rest)


SHAPES = {'area': area, 'cube': cube}


def test_one_of_gives_back_what_is_known():
  assert registry.one_of('shape', 'area', SHAPES) == 'area'


def test_one_of_tells_what_was_meant_and_what_is_known():
  with pytest.raises(ValueError) as error:
    registry.one_of('shape', 'aria', SHAPES)
  assert str(error.value) == (
    "Unknown shape 'aria'. Did you mean 'area'? Known: area, cube."
  )


def test_a_long_list_is_cut():
  with pytest.raises(ValueError, match=r'Known: 0, 1, 2, …\.$'):
    registry.one_of('number', 'x', [str(n) for n in range(100)])


def test_build_calls_the_recipe():
  config = {'name': 'area', 'width': 2, 'height': 3}
  assert registry.build('shape', SHAPES, config) == 6
  assert config['name'] == 'area'  # the config is left as it was


def test_build_checks_arguments():
  with pytest.raises(ValueError, match="argument of shape 'area' 'heigth'"):
    registry.build('shape', SHAPES, {'name': 'area', 'width': 2, 'heigth': 3})
  with pytest.raises(ValueError, match='Unknown shape None'):
    registry.build('shape', SHAPES, {'width': 2})


def test_build_passes_the_rest_on():
  config = {'name': 'cube', 'depth': 2, 'width': 3, 'height': 4}
  assert registry.build('shape', SHAPES, config, rest=area) == 24
  with pytest.raises(ValueError, match="'colour'"):
    registry.build('shape', SHAPES, {**config, 'colour': 1}, rest=area)
