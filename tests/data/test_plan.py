import numpy as np
import pytest

from selfie_jax.data import plan


@pytest.mark.parametrize('length', [1, 5, 2_000, 100_000])
def test_an_epoch_has_every_clip_once_and_the_next_in_another_order(length):
  first, second = (plan.order_of_epoch(epoch, length, seed=3) for epoch in (0, 1))
  for order in (first, second):
    np.testing.assert_array_equal(np.sort(order), np.arange(length))
  assert length == 1 or (first != second).any()


def test_every_bit_of_a_seed_counts():
  orders = [plan.order_of_epoch(0, 2_000, seed).tolist() for seed in (0, 1, 2**63, 2**63 + 1, 2**64 - 1)]
  assert len({tuple(order) for order in orders}) == 5


def test_neighbours_in_the_order_are_no_neighbours_in_the_dataset():
  order = plan.order_of_epoch(0, 100_000, seed=3)
  assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
  assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02


@pytest.mark.parametrize('first', [0, 1, 3, 4, 1_000_003, 2**61 + 2])
def test_the_stream_may_be_entered_anywhere(first):
  words = plan.stream(seed=7, first=first, count=50)
  for skipped in (0, 1, 2, 5, 49):
    np.testing.assert_array_equal(plan.stream(seed=7, first=first + skipped, count=50 - skipped), words[skipped:])
  assert len(set(words.tolist())) == 50
  assert not np.isin(words, plan.stream(seed=8, first=first, count=50)).any()


def test_a_crop_never_ends_beyond_its_clip_and_may_end_with_it():
  words = np.array([0, 2**64 - 1], np.uint64)
  for samples, last in ((100, 0), (15_200, 0), (15_201, 1), (160_000, 144_800), (2**32 - 1, 2**32 - 15_201)):
    assert plan.choose_starts(words, np.array([samples, samples]), 15_200).tolist() == [0, last]
