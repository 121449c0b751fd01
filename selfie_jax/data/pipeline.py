"""Batches of crops, each a function of (seed, step) alone.

Grain shuffles all clips, anew each epoch, by a permutation that it evaluates index by index. Nothing is buffered, so
the whole state of the pipeline is the number of the next step, on any number of hosts. What it makes is only a plan:
which clips are in a batch, and where their crops start. Then all of a batch is read at once, in parallel where it lies
in an object store, and no more of a clip than is needed.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from selfie_jax.data.damage import DamageLog
from selfie_jax.data.ranges import read_ranges
from selfie_jax.data.source import DataSource
from selfie_jax.data.tfrecord import DamagedRecordError
from selfie_jax.errors import UserError


class _Crop(NamedTuple):
  """What a plan is made of: a clip, by its number in the source, and the sample that its crop starts at."""

  clip: int
  start: int


def batches(
  source: DataSource,
  *,
  batch_size: int,
  crop_samples: int,
  seed: int,
  start_step: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray | int]]:
  """Yields this host's part of every batch from `start_step` on, without end.

  Clip i of batch k is clip k * batch_size + i of an endless sequence: of one dataset, every clip once, in random order,
  then every clip again in another order, and so on (a batch may straddle two epochs, and a dataset may be smaller than
  a batch). Its crop is drawn from (seed, k * batch_size + i). Hosts hold contiguous parts: side by side, they are one
  host's batch.

  In a mixture each dataset has such a sequence of its own, a function of (seed, its place in the mixture), and a fixed
  pattern says which one is next: Grain scales the weights so that the smallest is 100 and cuts off the rest, (1, 2.5)
  being 100 and 250, and the pattern repeats after as many clips as that makes together, 350. Each dataset goes through
  its own epochs, so a small one with a large weight repeats before others have been seen once.

  With `on_damage='skip'`, a clip whose record is damaged is replaced by another one of its dataset, which is a function
  of (seed, k, i) and of what else is damaged; it is none that batch k has anyway, unless that has them all.

  Args:
    source: from `open_data`. Of its settings, `read_threads` is the number of threads that read, each a whole batch at
      a time (so more than `prefetch_batches` have nothing to do), and `prefetch_batches` that of the batches which are
      ready, or being read, ahead of the one yielded last.
    batch_size: clips in the batch of all hosts.
    crop_samples: length of a crop; shorter clips are zero-padded at their end.
    seed: of the order and of the crops.
    start_step: the first step; starting there costs as much as starting at 0.
    process_index: this host's number.
    process_count: number of hosts.

  Yields:
    `audio`: (batch_size / process_count, crop_samples) int16; `dataset`, (batch_size / process_count,) int64, the
    dataset's place in the mixture; `index`, the same, the clip's number in its dataset; `damaged`, how many of these
    clips take the place of a damaged one.

  Raises:
    UserError: the hosts do not divide the batch; or, while it yields, a record is damaged, more are than
      `max_damaged`, or an object store does not answer.
  """
  if batch_size % process_count:
    raise UserError(f'batch_size {batch_size} is not a multiple of the number of hosts, {process_count}')
  settings = source.settings
  plan = _plan(source, crop_samples, seed)
  reader = _BatchReader(source, plan, batch_size, crop_samples, seed)
  parts = _in_batches(plan, batch_size // process_count).map_with_index(reader.read)
  mine = parts[process_index::process_count][start_step:]
  threads = min(settings.read_threads, settings.prefetch_batches)
  return iter(
    mine.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=settings.prefetch_batches))
  )


def _plan(source: DataSource, crop_samples: int, seed: int) -> grain.MapDataset:
  """Returns the endless sequence of `_Crop`s."""
  # Explicit seeds: those that Grain derives by itself depend on a transformation's place in the chain.
  order_seed, crop_seed = map(int, np.random.SeedSequence(seed).generate_state(2))
  orders = []
  for place, (start, dataset) in enumerate(zip(source.starts, source.datasets, strict=True)):
    if place:  # The first one's order is that of the dataset by itself.
      order_seed = int(np.random.SeedSequence(seed, spawn_key=(place,)).generate_state(1)[0])
    orders.append(grain.MapDataset.range(start, start + len(dataset.clips)).shuffle(seed=order_seed).repeat())

  def choose(clip: int, rng: np.random.Generator) -> _Crop:
    return _Crop(clip, choose_start(source.samples(clip), crop_samples, rng))

  # `repeat` comes before `random_map` and `batch`: crops differ between epochs, and no batch is cut at an epoch's end.
  # (A mixture of one is its order, at a price.)
  mixture = orders[0] if len(orders) == 1 else grain.MapDataset.mix(orders, source.weights)
  return mixture.random_map(choose, seed=crop_seed)


def _in_batches(plan: grain.MapDataset, size: int) -> grain.MapDataset:
  # There is no remainder to drop, but without this Grain rounds the endless length in floating point, and overflows.
  return plan.batch(size, drop_remainder=True, batch_fn=list)


def choose_start(samples: int, crop_samples: int, rng: np.random.Generator) -> int:
  """Returns where a crop starts in a clip: anywhere, if the clip is longer, with the same probability."""
  return int(rng.integers(max(samples - crop_samples, 0), endpoint=True))


class _BatchReader:
  """Reads what is planned. Everything in it is a function of the plan and of the files, but for the count of damage."""

  def __init__(self, source: DataSource, plan: grain.MapDataset, batch_size: int, crop_samples: int, seed: int) -> None:
    self._source = source
    self._whole_record = source.settings.read == 'record'
    self._plans = _in_batches(plan, batch_size)
    self._batch_size = batch_size
    self._crop_samples = crop_samples
    self._seed = seed
    self._damage = DamageLog(source.settings.on_damage, source.settings.max_damaged)

  def read(self, part: int, crops: Sequence[_Crop]) -> dict[str, np.ndarray | int]:
    """Reads the part of that number of the sequence of all hosts' parts."""
    audio = np.zeros((len(crops), self._crop_samples), np.int16)
    clips = np.array([crop.clip for crop in crops])
    damaged = 0
    for i, (crop, piece) in enumerate(zip(crops, self._read_pieces(crops), strict=True)):
      if isinstance(piece, DamagedRecordError):
        damaged += 1
        clips[i], piece = self._replace(part * len(crops) + i, crop, piece)
      audio[i, : len(piece)] = piece
    places = np.searchsorted(self._source.starts, clips, side='right') - 1
    numbers = clips - np.array(self._source.starts)[places]
    return {'audio': audio, 'dataset': places, 'index': numbers, 'damaged': damaged}

  def _read_pieces(self, crops: Sequence[_Crop]) -> Iterator[np.ndarray | DamagedRecordError]:
    """Yields the samples of crops, all asked for at once: the shorter ones not padded."""
    found = []  # (reader, clip, start, samples) of each.
    for number, start in crops:
      place, clip = self._source.find(number)
      clips = self._source.datasets[place].clips
      found.append((clips, clip, start, min(clips.samples(clip) - start, self._crop_samples)))
    if self._whole_record:
      ranges = [clips.record_range(clip) for clips, clip, *_ in found]
    else:
      ranges = [clips.crop_range(*where) for clips, *where in found]
      for dataset in self._source.datasets:
        dataset.clips.notice_changes()
    for (clips, clip, start, samples), data in zip(found, read_ranges(ranges), strict=True):
      try:
        if self._whole_record:
          yield clips.audio_of_record(clip, start, samples, data)
        else:
          yield clips.audio_of_crop(clip, samples, data)
      except DamagedRecordError as error:
        yield error

  def _replace(self, position: int, crop: _Crop, error: DamagedRecordError) -> tuple[int, np.ndarray]:
    """Returns another clip of the same dataset, and a crop of it, for `position` in the endless sequence.

    Raises:
      UserError: nothing is to be skipped, too much is damaged, or there is no clip left.
    """
    self._damage.add(crop.clip, error)
    batch, place = divmod(position, self._batch_size)
    for attempt, clip in enumerate(self._candidates(batch, place, crop.clip)):
      rng = np.random.default_rng((self._seed, position, attempt))
      start = choose_start(self._source.samples(clip), self._crop_samples, rng)
      (piece,) = self._read_pieces([_Crop(clip, start)])
      if not isinstance(piece, DamagedRecordError):
        return clip, piece
      self._damage.add(clip, piece)
    raise UserError(f'no clip is left to take the place of a damaged one: {error}')

  def _candidates(self, batch: int, place: int, damaged: int) -> Iterator[int]:
    """Yields all clips of a damaged one's dataset that are not in the batch, in the order of that place of the batch.

    They are shuffled once a batch and dealt to its places like cards, so that two places do not come to the same clip
    (other hosts cannot be asked); a place that has used up its own goes on with its neighbours'.
    """
    which, _ = self._source.find(damaged)
    first = self._source.starts[which]
    every = np.arange(first, first + len(self._source.datasets[which].clips))
    planned = [crop.clip for crop in self._plans[batch]]  # Of all hosts.
    others = every[~np.isin(every, planned)]
    if not len(others):  # A batch that has all clips has copies anyway.
      others = every[every != damaged]
    cards = np.random.default_rng((self._seed, batch, which)).permutation(others)
    players = min(self._batch_size, len(cards))
    for player in range(players):
      yield from map(int, cards[(place + player) % players :: players])
