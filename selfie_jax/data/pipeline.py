"""Batches of crops, each a function of (seed, step) alone.

All clips are shuffled, anew each epoch, by a permutation that is a function of the seed and the epoch. No clip is
buffered: the whole state of the pipeline is the number of the next step, on any number of hosts. A batch is planned as
a whole: which clips are in it, and where their crops start. Then all of it is read at once, in parallel where it lies
in an object store, and no more of a clip than is needed. Grain's threads do so ahead of the training.
"""

import itertools
from collections.abc import Iterator

import grain
import numpy as np

from selfie_jax.data.damage import DamageLog
from selfie_jax.data.plan import Plan, choose_starts
from selfie_jax.data.ranges import read_ranges
from selfie_jax.data.source import DataSource
from selfie_jax.data.tfrecord import DamagedRecordError
from selfie_jax.errors import UserError
from selfie_jax.files import is_remote


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
  a batch). Its crops are drawn from (seed, k * batch_size + i), independently of each other; the first one is the same
  however many there are. Hosts hold contiguous parts: side by side, they are one host's batch.

  In a mixture each dataset has such a sequence of its own, a function of (seed, its place in the mixture), and a fixed
  pattern says which one is next: Grain scales the weights so that the smallest is 100 and cuts off the rest, (1, 2.5)
  being 100 and 250, and the pattern repeats after as many clips as that makes together, 350. Each dataset goes through
  its own epochs, so a small one with a large weight repeats before others have been seen once.

  With `on_damage='skip'`, a clip whose record is damaged is replaced by another one of its dataset, which is a function
  of (seed, k, i) and of what else is damaged; it is none that batch k has anyway, unless that has them all.

  Args:
    source: from `open_data`. Of its settings, `crops` is the number of crops of a clip; `read_threads` that of the
      threads that read, each a whole batch at a time (so more than `prefetch_batches` have nothing to do), or 0: as
      many as serve the source's kind; and `prefetch_batches` that of the batches which are ready, or being read, ahead
      of the one yielded last.
    batch_size: clips in the batch of all hosts.
    crop_samples: length of a crop; shorter clips are zero-padded at their end.
    seed: of the order and of the crops.
    start_step: the first step; starting there costs as much as starting at 0.
    process_index: this host's number.
    process_count: number of hosts.

  Yields:
    `audio`: (batch_size / process_count, crops * crop_samples) int16, in each row a clip's crops, one after the other;
    `dataset`, (batch_size / process_count,) int64, the dataset's place in the mixture; `index`, the same, the clip's
    number in its dataset; `damaged`, how many of these clips take the place of a damaged one.

  Raises:
    UserError: the hosts do not divide the batch; or, while it yields, a record is damaged, more are than
      `max_damaged`, or an object store does not answer.
  """
  if batch_size % process_count:
    raise UserError(f'batch_size {batch_size} is not a multiple of the number of hosts, {process_count}')
  settings = source.settings
  reader = _BatchReader(source, Plan(source, crop_samples, seed), batch_size, crop_samples, seed)
  size = batch_size // process_count

  def read(step: int) -> dict[str, np.ndarray | int]:
    first = step * batch_size + process_index * size
    return reader.read(range(first, first + size))

  steps = grain.MapDataset.range(start_step, 2**62 // batch_size).map(read)
  threads = settings.read_threads or (1 if _is_one_threads_work(source) else 4)
  threads = min(threads, settings.prefetch_batches)
  return iter(
    steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=settings.prefetch_batches))
  )


def _is_one_threads_work(source: DataSource) -> bool:
  """Whether more threads would only take turns at Python's lock, and cost 2 to 4 times as much CPU: no faster.

  So it is with int16 in local files, of which a range takes 10 to 30 us, if it is in memory (else the kernel of most
  file systems fetches several at once). A store is waited for, and decoding FLAC lets go of the lock.
  """
  return all(
    not is_remote(dataset.path) and dataset.manifest.source.audio_format == 'int16' for dataset in source.datasets
  )


class _BatchReader:
  """Reads what is planned. Everything in it is a function of the plan and of the files, but for the count of damage."""

  def __init__(self, source: DataSource, plan: Plan, batch_size: int, crop_samples: int, seed: int) -> None:
    self._source = source
    self._whole_record = source.settings.read == 'record'
    self._crops = source.settings.crops
    self._plan = plan
    self._batch_size = batch_size
    self._crop_samples = crop_samples
    self._seed = seed
    self._damage = DamageLog(source.settings.on_damage, source.settings.max_damaged)

  def read(self, positions: range) -> dict[str, np.ndarray | int]:
    """Reads what is planned for n positions of the endless sequence, all of one batch."""
    clips = self._plan.clips(positions)
    starts = self._plan.starts(positions, clips)
    audio = np.zeros((*starts.shape, self._crop_samples), np.int16)
    damaged = 0
    for i, pieces in enumerate(self._read_pieces(clips, starts)):
      if isinstance(pieces, DamagedRecordError):
        damaged += 1
        clips[i], pieces = self._replace(positions[i], int(clips[i]), pieces)
      for crop, piece in enumerate(pieces):
        audio[i, crop, : len(piece)] = piece
    places, numbers = self._source.find(clips)
    return {'audio': audio.reshape(len(clips), -1), 'dataset': places, 'index': numbers, 'damaged': damaged}

  def _read_pieces(self, clips: np.ndarray, starts: np.ndarray) -> Iterator[list[np.ndarray] | DamagedRecordError]:
    """Yields the samples of each clip's crops, all asked for at once: the shorter ones not padded."""
    places, numbers = (found.tolist() for found in self._source.find(clips))
    readers = [self._source.datasets[place].clips for place in places]
    records = [reader.find(number) for reader, number in zip(readers, numbers, strict=True)]
    lengths = [min(record.samples, self._crop_samples) for record in records]  # A shorter clip's crops start at 0.
    planned = list(zip(readers, records, starts.tolist(), lengths, strict=True))
    if self._whole_record:
      ranges = [reader.record_range(record) for reader, record, _, _ in planned]
    else:
      ranges = [reader.crop_range(record, start, samples) for reader, record, of, samples in planned for start in of]
      for dataset in self._source.datasets:
        dataset.clips.notice_changes()
    reading = read_ranges(ranges)
    for reader, record, of_clip, samples in planned:
      data = list(itertools.islice(reading, 1 if self._whole_record else len(of_clip)))
      try:
        if self._whole_record:
          yield reader.audio_of_record(record, of_clip, samples, *data)
        else:
          yield [reader.audio_of_crop(record, samples, read) for read in data]
      except DamagedRecordError as error:
        yield error

  def _replace(self, position: int, damaged: int, error: DamagedRecordError) -> tuple[int, list[np.ndarray]]:
    """Returns another clip of the same dataset, and its crops, for `position` in the endless sequence.

    Raises:
      UserError: nothing is to be skipped, too much is damaged, or there is no clip left.
    """
    self._damage.add(damaged, error)
    batch, place = divmod(position, self._batch_size)
    for attempt, clip in enumerate(self._candidates(batch, place, damaged)):
      alone = np.array([clip])
      words = np.random.SeedSequence((self._seed, position, attempt)).generate_state(self._crops, np.uint64)
      starts = choose_starts(words[None], self._source.samples(alone)[:, None], self._crop_samples)
      (pieces,) = self._read_pieces(alone, starts)
      if not isinstance(pieces, DamagedRecordError):
        return clip, pieces
      self._damage.add(clip, pieces)
    raise UserError(f'no clip is left to take the place of a damaged one: {error}')

  def _candidates(self, batch: int, place: int, damaged: int) -> Iterator[int]:
    """Yields all clips of a damaged one's dataset that are not in the batch, in the order of that place of the batch.

    They are shuffled once a batch and dealt to its places like cards, so that two places do not come to the same clip
    (other hosts cannot be asked); a place that has used up its own goes on with its neighbours'.
    """
    which = int(self._source.find(np.array([damaged]))[0][0])
    first = self._source.starts[which]
    every = np.arange(first, first + len(self._source.datasets[which].clips))
    planned = self._plan.clips(range(batch * self._batch_size, (batch + 1) * self._batch_size))  # Of all hosts.
    others = every[~np.isin(every, planned)]
    if not len(others):  # A batch that has all clips has copies anyway.
      others = every[every != damaged]
    cards = np.random.default_rng((self._seed, batch, which)).permutation(others)
    players = min(self._batch_size, len(cards))
    for player in range(players):
      yield from map(int, cards[(place + player) % players :: players])
