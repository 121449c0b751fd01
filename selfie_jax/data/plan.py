"""What a run reads and when: which clips are in a batch, and where their crops start.

Both are functions of the seed and of a clip's position in the endless sequence of all batches, so any host can begin
anywhere. They are made of the words of counter-based generators, a stream that NumPy does not change between releases.
"""

import functools
from collections.abc import Callable

import grain
import numpy as np

from selfie_jax.data.source import DataSource


class Plan:
  """The endless sequence of crops; safe to use from several threads."""

  def __init__(self, source: DataSource, crop_samples: int, seed: int) -> None:
    self._source = source
    self._crop_samples = crop_samples
    # One for each crop of a clip; how many there are does not change the first.
    self._crop_seeds = np.random.SeedSequence(seed).generate_state(source.settings.crops, np.uint64).tolist()
    # A dataset's order does not depend on those that come after it. (Of one's own, the first epochs of a small dataset
    # do not push a large one's out.)
    self._orders: list[Callable[[int], np.ndarray]] = []
    for place, dataset in enumerate(source.datasets):
      order_seed = int(np.random.SeedSequence(seed, spawn_key=(place,)).generate_state(1, np.uint64)[0])
      order = functools.partial(order_of_epoch, length=len(dataset.clips), seed=order_seed)
      self._orders.append(functools.lru_cache(maxsize=2)(order))  # A batch may straddle two epochs.
    # Of each position, the dataset and the position in that one's sequence. (A mixture of one is its sequence.)
    endless = grain.MapDataset.range(2**62)
    turns = [endless.map(lambda position, place=place: (place, position)) for place in range(len(source.datasets))]
    self._turns = grain.MapDataset.mix(turns, source.weights) if len(turns) > 1 else None

  def clips(self, positions: range) -> np.ndarray:
    """Returns the numbers of the clips at n positions: (n,) int64."""
    if self._turns is None:
      return self._in_order(0, np.array(positions))
    places, turns = np.array([self._turns[position] for position in positions]).T
    clips = np.empty_like(turns)
    for place, start in enumerate(self._source.starts):
      mine = places == place
      clips[mine] = start + self._in_order(place, turns[mine])
    return clips

  def _in_order(self, place: int, turns: np.ndarray) -> np.ndarray:
    """Returns which clips of a dataset have their turn: every one of them once an epoch."""
    epochs, numbers = np.divmod(turns, len(self._source.datasets[place].clips))
    clips = np.empty_like(turns)
    for epoch in sorted(set(epochs.tolist())):
      clips[epochs == epoch] = self._orders[place](epoch)[numbers[epochs == epoch]]
    return clips

  def starts(self, positions: range, clips: np.ndarray) -> np.ndarray:
    """Returns the samples that the crops of these n clips start at, at these positions: (n, crops of a clip) int64."""
    words = [stream(seed, positions.start, len(positions)) for seed in self._crop_seeds]
    return choose_starts(np.stack(words, axis=1), self._source.samples(clips)[:, None], self._crop_samples)


def order_of_epoch(epoch: int, length: int, seed: int) -> np.ndarray:
  """Returns a permutation of the clips 0 to `length` - 1, (length,) uint32: of AudioSet's 2 million in 0.3 seconds."""
  key = np.array([seed, epoch], np.uint64)  # A list would go through float64, which has not all seeds.
  words = np.random.Philox(key=key).random_raw(length)
  # Stable: what to do with equal words is not left to a release of NumPy.
  return np.argsort(words, kind='stable').astype(np.uint32)


def stream(seed: int, first: int, count: int) -> np.ndarray:
  """Returns the words `first` to `first + count` of an endless sequence of random 64-bit words, (count,) uint64."""
  block, skipped = divmod(first, 4)  # What a Philox generator makes at each value of its counter.
  return np.random.Philox(key=seed, counter=block).random_raw(skipped + count)[skipped:]


def choose_starts(words: np.ndarray, samples: np.ndarray, crop_samples: int) -> np.ndarray:
  """Returns where crops start: anywhere in clips that are longer, with the same probability; int64.

  Args:
    words: random 64-bit words, uint64.
    samples: lengths of the clips, below 2^32; of the words' shape, or broadcast to it.
    crop_samples: length of a crop.
  """
  places = np.maximum(samples - crop_samples, 0).astype(np.uint64) + np.uint64(1)
  # The first half of the word, as a fraction, of the places (Lemire 2019, arXiv 1805.10941): their probabilities differ
  # by at most places / 2^32 of themselves.
  return ((words >> np.uint64(32)) * places >> np.uint64(32)).astype(np.int64)
