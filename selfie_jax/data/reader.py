"""The audio of the clips of a dataset, at random: what to read for a piece of a clip, and what to make of the bytes."""

import bisect
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from selfie_jax.data import shard as shards
from selfie_jax.data import tfrecord
from selfie_jax.data.ranges import Range, read_ranges
from selfie_jax.data.shard import Shard
from selfie_jax.data.tfrecord import DamagedRecordError
from selfie_jax.errors import UserError
from selfie_jax.files import FileState, PathLike, as_path, is_remote, list_files

# Objects have no descriptor to ask: of a crop, only the folder's listing tells that its shard was replaced. One that is
# so old, at most, is trusted.
_LISTING_SECONDS = 10.0
_PATIENCE_SECONDS = 150.0  # With a store that does not list, before the job gives up.


class Record(NamedTuple):
  """Where a clip lies: the number of its shard, that of its record in there, and its row of the index."""

  shard: int
  number: int
  offset: int
  length: int
  audio_start: int
  audio_bytes: int
  samples: int
  crc: int


class ClipReader:
  """The clips of some shards of a dataset; safe to use from several threads.

  A piece is read in one of two ways: with its whole `record`, checked against its CRC and the one in the index; or the
  `crop` alone, which has no checksum, so that the file must be in the state that it was opened in.
  """

  def __init__(
    self,
    folder: PathLike,
    entries: Sequence[Shard],
    index: np.ndarray,
    audio_format: str,
    states: Mapping[str, FileState],
    problems: Mapping[str, str],
  ) -> None:
    """Opens nothing.

    Args:
      folder: the dataset.
      entries: the shards.
      index: (clips,) of their rows, one shard after the other.
      audio_format: of the records.
      states: the shards' files, by name.
      problems: shards that must not be read, by name, and why.
    """
    self._folder = folder
    self._entries = entries
    self._names = [entry.name for entry in entries]
    self._paths = [str(as_path(folder) / entry.name) for entry in entries]
    self._starts = [0, *itertools.accumulate(entry.clips for entry in entries[:-1])]
    self._index = index
    self._samples = index['samples']
    self._flac = audio_format == 'flac'
    self._states = states
    self._problems = dict(problems)
    self._listed = time.monotonic()
    self._listing = threading.Lock()

  def __len__(self) -> int:
    return len(self._index)

  def __getitem__(self, clip: int) -> dict[str, np.ndarray]:
    """Returns the whole clip: `audio`, (samples,) int16 and read-only, and `index`, () int64.

    Raises:
      DamagedRecordError: its record is damaged or gone.
      UserError: the object store does not answer.
    """
    record = self.find(clip)
    (read,) = read_ranges([self.record_range(record)])
    return {'audio': self.audio_of_record(record, [0], record.samples, read)[0], 'index': np.int64(clip)}

  def samples(self, clips: np.ndarray) -> np.ndarray:
    """Returns how long (n,) clips are."""
    return self._samples[clips]

  def find(self, clip: int) -> Record:
    """Returns where a clip lies."""
    # The last shard that starts here or before: it is the right one also where empty shards start at the same number.
    shard = bisect.bisect_right(self._starts, clip) - 1
    return Record(shard, clip - self._starts[shard], *self._index[clip].item())

  def _name(self, record: Record) -> str:
    """Returns how messages name a record."""
    return tfrecord.name_record(self._paths[record.shard], record.number)

  def record_range(self, record: Record) -> Range:
    """Returns where a whole record lies."""
    return Range(self._paths[record.shard], record.offset, record.length + tfrecord.FRAME_BYTES)

  def crop_range(self, record: Record, start: int, samples: int) -> Range:
    """Returns where `samples` samples of a record lie, from sample `start` on; its audio must be int16."""
    first = record.offset + tfrecord.HEADER_BYTES + record.audio_start + 2 * start
    return Range(self._paths[record.shard], first, 2 * samples, self._states.get(self._names[record.shard]))

  def audio_of_record(
    self, record: Record, starts: Sequence[int], samples: int, read: bytes | OSError
  ) -> list[np.ndarray]:
    """Returns pieces of a clip, each (samples,) int16 and read-only, given what was read of its `record_range`.

    Raises:
      DamagedRecordError: the record is damaged, or gone, or another one than the index knows.
    """
    path, audio_start = self._paths[record.shard], record.audio_start
    self._check_shard(record)
    read = tfrecord.check_read(read, path, record.number)
    data = tfrecord.unframe(read, path, record.number, record.length, record.crc)
    if not self._flac:
      return [np.frombuffer(data, '<i2', count=samples, offset=audio_start + 2 * start) for start in starts]
    flac = data[audio_start : audio_start + record.audio_bytes]
    try:
      return [shards.decode_flac(flac, start, samples) for start in starts]
    except ValueError as error:  # Its CRC is right: it was written like that.
      raise DamagedRecordError(f'{self._name(record)} is damaged: {error}') from error

  def audio_of_crop(self, record: Record, samples: int, read: bytes | OSError) -> np.ndarray:
    """Returns the piece of a clip, (samples,) int16 and read-only, given what was read of its `crop_range`.

    Raises:
      DamagedRecordError: the shard is gone, too short, or was replaced.
    """
    self._check_shard(record)
    data = tfrecord.check_read(read, self._paths[record.shard], record.number)
    if len(data) != 2 * samples:
      raise DamagedRecordError(f'{self._name(record)} is damaged: the file ends in its data')
    return np.frombuffer(data, '<i2')

  def _check_shard(self, record: Record) -> None:
    if self._problems and (problem := self._problems.get(self._names[record.shard])):
      raise DamagedRecordError(f'cannot read {self._name(record)}: {problem}')

  def find_replaced(self) -> list[str]:
    """Compares the last CRC of every shard with the index's, and returns what is wrong with those that differ.

    It costs a small read a shard, and is all there is to tell a shard from another one of the same size where only
    crops are read. Those found are not read from then on.
    """
    last = [self.find(start + entry.clips - 1) for start, entry in zip(self._starts, self._entries) if entry.clips]
    ranges = [self.record_range(record) for record in last]
    footers = [Range(where.path, where.start + where.length - tfrecord.FOOTER_BYTES, 4) for where in ranges]
    found = []
    for record, where, footer in zip(last, ranges, read_ranges(footers)):
      name = where.path.rpartition('/')[2]
      if name not in self._problems and footer != record.crc.to_bytes(4, 'little'):
        self._problems[name] = 'it is not the shard that its index was made for'
        found.append(f'{self._name(record)}: {self._problems[name]}')
    return found

  def notice_changes(self) -> None:
    """Lists the folder anew, where that is due, before crops are read from an object store."""
    if not is_remote(self._folder) or time.monotonic() - self._listed < _LISTING_SECONDS:
      return
    if not self._listing.acquire(blocking=False):
      return  # Another thread is at it.
    try:
      try:
        found = list_files(self._folder)
      except UserError:
        if time.monotonic() - self._listed > _PATIENCE_SECONDS:
          raise
        return  # The next batch asks again.
      self._problems |= {
        name: 'the shard was replaced or changed since this job began'
        for name in self._names
        if name in self._states and found.get(name) != self._states[name]
      }
      self._listed = time.monotonic()
    finally:
      self._listing.release()
