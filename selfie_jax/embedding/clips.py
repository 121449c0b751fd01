"""Audio files to clips in memory: decoded by threads a little ahead of their use, in the order given."""

import collections
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from selfie_jax.data.decode import DecodeError, decode
from selfie_jax.data.workers import cpu_count
from selfie_jax.errors import UserError
from selfie_jax.files import PathLike, as_path, is_remote

_AHEAD_PER_THREAD = 8
_NAMED = 3  # Of the files that cannot be read.


def decode_clips(
  files: Sequence[PathLike], sample_rate: int, max_samples: int | None = None, places: Sequence[float] | None = None
) -> Iterator[np.ndarray]:
  """Yields each file's samples, (n,) int16 mono at `sample_rate`, `max_samples` of a longer one.

  Threads suffice, because the decoders let go of the interpreter; memory holds a few clips only.

  Args:
    files: local, gs:// or s3://.
    sample_rate: what is resampled to.
    max_samples: what a longer one is cut to; None: as long as they are.
    places: for each file in [0, 1) where that cut is, 0 at its head; None: all at their heads.

  Raises:
    UserError: a file that cannot be read, by name.
  """
  threads = cpu_count()
  places = [0.0] * len(files) if places is None else places

  def decode_clip(file: PathLike, place: float) -> np.ndarray:
    clip = _decode(file, sample_rate)
    spare = 0 if max_samples is None else max(0, len(clip) - max_samples)
    start = int(place * (spare + 1))
    return clip[start : len(clip) - spare + start].copy()  # A slice would keep the whole recording alive.

  waiting = iter(zip(files, places, strict=True))
  pool = concurrent.futures.ThreadPoolExecutor(threads)
  try:
    running = collections.deque(
      pool.submit(decode_clip, *asked) for asked in itertools.islice(waiting, threads * _AHEAD_PER_THREAD)
    )
    while running:
      clip = running.popleft().result()
      running.extend(pool.submit(decode_clip, *asked) for asked in itertools.islice(waiting, 1))
      yield clip
  finally:
    pool.shutdown(cancel_futures=True)


@dataclasses.dataclass(frozen=True)
class Units:
  """How the files of a task become clips of at most one unit."""

  files: Sequence[PathLike]
  sample_rate: int
  samples: int  # In a unit: longer clips are cut to it.
  places: np.ndarray | None = None  # Where: see `decode_clips`.
  padded: bool = False  # Shorter ones are zero-padded at their end to a unit.

  def decode(self, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the clips of these rows, in their order.

    Raises:
      UserError: some cannot be read. It is told of all of them at once, and so after the last row.
    """
    done, broken = 0, []
    while done < len(rows):
      left = rows[done:]
      places = None if self.places is None else [float(self.places[row]) for row in left]
      try:
        for clip in decode_clips([self.files[row] for row in left], self.sample_rate, self.samples, places):
          done += 1
          if not broken:
            yield np.pad(clip, (0, self.samples - len(clip))) if self.padded else clip
      except DecodeError as error:
        done += 1
        broken.append(str(error))
    if broken:
      listing = '; '.join(broken[:_NAMED]) + ('; ...' if len(broken) > _NAMED else '')
      raise UserError(f'{listing}. Take {len(broken)} of {len(rows)} clips out of the metadata.csv, or mend them')


def _decode(file: PathLike, sample_rate: int) -> np.ndarray:
  if not is_remote(file):
    return decode(file, sample_rate)
  try:
    return decode(as_path(file).read_bytes(), sample_rate)
  except DecodeError as error:  # Named after the object, not after its bytes.
    raise type(error)(file, error.reason) from error
