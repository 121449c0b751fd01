"""The exponents of a growing cost, and the picture that shows them."""

import pytest

from tests.benchmarks.growth import Curve, exponents
from tests.benchmarks.growth_plot import write_plot


def test_the_exponent_of_a_power_is_that_power_at_every_size():
  sizes = [16, 64, 512]
  assert exponents(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx((1.5, 1.5, 1.5))


def test_where_a_cost_only_begins_to_grow_the_neighbours_slopes_say_so():
  slope, least, most = exponents([1, 10, 100], [1, 1, 10])
  assert (least, most) == pytest.approx((0, 1))
  assert slope == pytest.approx(0.5)


def test_the_picture_has_every_curve_and_the_same_bytes_each_time(tmp_path):
  curves = [Curve(name, (1, 2, 4), {'bytes': [8.0, 4.0, 2.0]}) for name in ('devices', 'chips', 'batch')]
  write_plot(curves, tmp_path / 'growth.svg')
  write_plot(curves, tmp_path / 'again.svg')
  picture = (tmp_path / 'growth.svg').read_text()
  assert picture.count('bytes: exponent -1.00') == 3
  assert all(f'>{curve.name}<' in picture for curve in curves)
  assert (tmp_path / 'again.svg').read_text() == picture
