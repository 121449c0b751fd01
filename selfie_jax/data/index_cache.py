"""The indexes of a dataset's shards, read from its folder; those of object stores are kept on the local disk.

There they are one file a choice of shards, named by a hash of its contents: 28 bytes a clip, so 58 MB for AudioSet. It
may be deleted at any time.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from selfie_jax.data.ranges import Range, read_ranges
from selfie_jax.data.shard import INDEX_DTYPE, Shard, index_path, parse_index
from selfie_jax.errors import UserError
from selfie_jax.files import PathLike, as_path, is_remote, write_atomically

_AT_ONCE = 64  # Indexes that are in memory besides the array they go into.


def read_indexes(folder: PathLike, entries: Sequence[Shard], audio_format: str) -> np.ndarray:
  """Returns the rows of all these shards, one shard after the other: (clips,) INDEX_DTYPE.

  Raises:
    UserError: naming an index that is missing, not the one that the manifest knows, or that does not fit its shard.
  """
  if not is_remote(folder):
    return _fill(folder, entries, audio_format, fetch(folder, entries))
  cached = cache_folder() / hashlib.sha256(''.join(entry.index_sha256 for entry in entries).encode()).hexdigest()
  with contextlib.suppress(OSError, UserError), open(cached, 'rb') as file:  # There is none, or it is damaged.
    sizes = (entry.clips * INDEX_DTYPE.itemsize for entry in entries)
    return _fill(folder, entries, audio_format, (file.read(size) for size in sizes))
  index = _fill(folder, entries, audio_format, fetch(folder, entries))
  with contextlib.suppress(OSError):  # A disk that is full or not to be written to: it is only a cache.
    cached.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(cached) as file:
      file.write(index.data)
  return index


def cache_folder() -> Path:
  """Where indexes are kept: https://specifications.freedesktop.org/basedir-spec/latest/."""
  return Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')) / 'selfie_jax' / 'indexes'


def fetch(folder: PathLike, entries: Sequence[Shard]) -> Iterator[bytes]:
  """Yields the bytes of each shard's index, as they lie in the dataset's folder.

  Raises:
    UserError: naming an index that is missing.
  """
  for first in range(0, len(entries), _AT_ONCE):
    ranges = [
      Range(index_path(as_path(folder) / entry.name), 0, entry.clips * INDEX_DTYPE.itemsize + 1)  # It may be too long.
      for entry in entries[first : first + _AT_ONCE]
    ]
    for wanted, data in zip(ranges, read_ranges(ranges)):
      if isinstance(data, OSError):
        raise UserError(f'cannot read the index {wanted.path}: {data.strerror or "no such object"}')
      yield data


def _fill(folder: PathLike, entries: Sequence[Shard], audio_format: str, contents: Iterator[bytes]) -> np.ndarray:
  """Checks the indexes one by one and puts them into one array, which never exists twice."""
  index = np.empty(sum(entry.clips for entry in entries), INDEX_DTYPE)
  start = 0
  for entry, data in zip(entries, contents, strict=True):
    index[start : start + entry.clips] = parse_index(data, as_path(folder) / entry.name, entry, audio_format)
    start += entry.clips
  return index
