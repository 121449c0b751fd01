"""The short form of tests/chaos.py: `python -m tests.chaos` is the long one."""

import pytest

from tests import chaos


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Of both runs, which read the same records."""
  return tmp_path_factory.mktemp('chaos')


# Schedules in which both kinds of damage come late enough to find two checkpoints.
@pytest.mark.parametrize(('num_processes', 'kills', 'seed'), [(1, 4, 56), (2, 4, 8)])
def test_a_run_that_is_struck_down_again_and_again_ends_bitwise_equal(folder, num_processes, kills, seed):
  tally = chaos.chaos(folder, num_processes, kills, seed)
  assert tally.blows.total() == kills
  assert set(tally.damages) == {'flip', 'cut'}
