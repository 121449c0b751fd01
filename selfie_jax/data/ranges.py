"""Many byte ranges at once, of local files or of objects in a store."""

import asyncio
import collections
import contextlib
import errno
import logging
import os
import random
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import fsspec.asyn
from fsspec.asyn import AsyncFileSystem

from selfie_jax.errors import ClusterError, UserError
from selfie_jax.files import FileState, filesystem, is_refusal, is_remote, state_of

# Of this process, whatever asks: requests to object stores under way at the same time. A store answers the first byte
# after 20 to 100 ms, so that this many records of 320 KB keep a link of 1 to 4 Gbit/s busy.
CONCURRENCY = 32
# In seconds: how long one attempt at a range may take (and more for long ranges: as long as a link of
# `SLOWEST_BYTES_PER_SECOND` needs), how long after the first one another is still begun, and the pause after the first,
# which doubles each time. So a job gives up after 150 to 180 s, whether nobody listens, nobody answers or every answer
# is an error. (Below this s3fs and gcsfs repeat failures by themselves, and would for minutes if they were let.)
TIMEOUT_SECONDS = 30.0
PATIENCE_SECONDS = 150.0
FIRST_PAUSE_SECONDS = 0.5
SLOWEST_BYTES_PER_SECOND = 1e6

# It logs the traceback of every failure, also of those that are mended by asking again.
logging.getLogger('gcsfs').setLevel(logging.CRITICAL)

# Local ranges that the kernel is told of before they are read, so that a disk works on all of them; it costs as many
# descriptors.
_AHEAD = 16

_slots = asyncio.Semaphore(CONCURRENCY)  # Of fsspec's one event loop.


class Range(NamedTuple):
  """`length` bytes of a file, from byte `start` on."""

  path: str
  start: int
  length: int
  state: FileState | None = None  # If given, a local file in any other state is not read.


def read_ranges(ranges: Sequence[Range]) -> Iterator[bytes | OSError]:
  """Reads byte ranges, those of object stores in parallel; may be called from several threads.

  Local ones are read one by one, as they are asked for: what is held longer than needed costs more than reading does,
  in fresh pages of memory. The kernel is told of the next ones.

  Yields:
    For each range its bytes (fewer where the file ends before), or the error that says why there are none and will be
    none: no such file, or one in another state than asked for (`ESTALE`).

  Raises:
    ClusterError: an object store did not answer, or not with the bytes, for `PATIENCE_SECONDS`.
    UserError: it refuses.
  """
  remote = [wanted for wanted in ranges if is_remote(wanted.path)]
  # Made here: inside fsspec's event loop a store cannot connect.
  stores = {scheme: filesystem(f'{scheme}bucket') for scheme in {_scheme(wanted.path) for wanted in remote}}
  fetched = collections.deque(
    asyncio.run_coroutine_threadsafe(_fetch(wanted, stores[_scheme(wanted.path)]), fsspec.asyn.get_loop())
    for wanted in remote
  )
  local = _read_local([wanted for wanted in ranges if not is_remote(wanted.path)])
  try:
    for wanted in ranges:
      yield fetched.popleft().result() if is_remote(wanted.path) else next(local)
  finally:
    local.close()
    for future in fetched:  # Of those that nobody wants any more, after an error.
      future.cancel()


def _read_local(ranges: Sequence[Range]) -> Iterator[bytes | OSError]:
  """Opens each file `_AHEAD` ranges before it reads, and closes it then: 5 us, and thousands of shards need no more."""
  files: collections.deque[tuple[Range, int | OSError]] = collections.deque()
  try:
    for wanted in ranges:
      files.append((wanted, _open(wanted)))
      if len(files) > _AHEAD:
        yield _read_and_close(*files.popleft())
    while files:
      yield _read_and_close(*files.popleft())
  finally:
    for _, file in files:  # Nobody wants them any more, after an error.
      if not isinstance(file, OSError):
        os.close(file)


def _open(wanted: Range) -> int | OSError:
  try:
    file = os.open(wanted.path, os.O_RDONLY | os.O_CLOEXEC)
  except OSError as error:
    return error
  # Not on macOS; a length of 0 would mean all of the file. Where a file system cannot be told, it is read all the same.
  if wanted.length and hasattr(os, 'posix_fadvise'):
    with contextlib.suppress(OSError):
      os.posix_fadvise(file, wanted.start, wanted.length, os.POSIX_FADV_WILLNEED)
  return file


def _read_and_close(wanted: Range, file: int | OSError) -> bytes | OSError:
  if isinstance(file, OSError):
    return file
  try:
    if wanted.state and state_of(os.fstat(file)) != wanted.state:
      return OSError(errno.ESTALE, 'the file was replaced or changed since this job began')
    return os.pread(file, wanted.length, wanted.start)
  except OSError as error:
    return error
  finally:
    os.close(file)


def _scheme(path: str) -> str:
  """Returns `gs://` or `s3://`."""
  return path[:5]


async def _fetch(wanted: Range, store: AsyncFileSystem) -> bytes | OSError:
  """Asks for a range until it comes. It keeps its slot while it pauses: a store that is overloaded is asked less."""
  if not wanted.length:
    return b''
  timeout = TIMEOUT_SECONDS + wanted.length / SLOWEST_BYTES_PER_SECOND
  async with _slots:
    begin, attempt = time.monotonic(), 0
    while True:
      attempt += 1
      try:
        async with asyncio.timeout(timeout):
          return await store._cat_file(wanted.path, start=wanted.start, end=wanted.start + wanted.length)
      except FileNotFoundError as error:
        return error
      except TimeoutError:
        reason = f'no answer within {timeout:.3g} s'
      except Exception as error:  # Each store has its own, and its libraries' below it.
        if _is_beyond_the_end(error):
          return b''
        reason = f'{type(error).__name__}: {error}'
        if is_refusal(error):
          raise UserError(f'cannot read {wanted.path}: {reason}') from error
      elapsed = time.monotonic() - begin
      if elapsed >= PATIENCE_SECONDS:
        raise ClusterError(
          f'cannot read {wanted.path}: {attempt} attempts in {elapsed:.3g} s failed, the last with {reason}; is the '
          'store down?'
        )
      # Between half and all of it, so that hosts that failed together do not come back together.
      pause = FIRST_PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1)
      await asyncio.sleep(min(pause, PATIENCE_SECONDS - elapsed))


def _is_beyond_the_end(error: Exception) -> bool:
  """Whether the object ends before the range begins (HTTP 416): as of a local file, there are no bytes then."""
  cause = getattr(error.__cause__, 'response', {})  # s3fs: botocore's answer.
  return getattr(error, 'code', None) == 416 or cause.get('Error', {}).get('Code') in ('InvalidRange', '416')
