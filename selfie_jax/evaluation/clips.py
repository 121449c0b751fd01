"""Audio files to clips in memory: decoded by threads a little ahead of their use, in the order given."""

import collections
import concurrent.futures
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from selfie_jax.data.decode import DecodeError, decode
from selfie_jax.data.workers import cpu_count
from selfie_jax.files import PathLike, as_path, is_remote

_AHEAD_PER_THREAD = 8


def decode_clips(files: Sequence[PathLike], sample_rate: int, max_samples: int | None = None) -> Iterator[np.ndarray]:
  """Yields each file's samples, (n,) int16 mono at `sample_rate`, the first `max_samples` of a longer one.

  Threads suffice, because the decoders let go of the interpreter; memory holds a few clips only.

  Raises:
    UserError: a file that cannot be read, by name.
  """
  threads = cpu_count()

  def decode_clip(file: PathLike) -> np.ndarray:
    return _decode(file, sample_rate)[:max_samples].copy()  # A slice would keep the whole recording alive.

  waiting = iter(files)
  pool = concurrent.futures.ThreadPoolExecutor(threads)
  try:
    running = collections.deque(
      pool.submit(decode_clip, file) for file in itertools.islice(waiting, threads * _AHEAD_PER_THREAD)
    )
    while running:
      clip = running.popleft().result()
      running.extend(pool.submit(decode_clip, file) for file in itertools.islice(waiting, 1))
      yield clip
  finally:
    pool.shutdown(cancel_futures=True)


def _decode(file: PathLike, sample_rate: int) -> np.ndarray:
  if not is_remote(file):
    return decode(file, sample_rate)
  try:
    return decode(as_path(file).read_bytes(), sample_rate)
  except DecodeError as error:  # Named after the object, not after its bytes.
    raise type(error)(file, error.reason) from error
