"""Files, here or in an object store (gs://, s3://): naming, listing, and writing them whole or not at all.

Object stores are reached through fsspec (gcsfs, s3fs), whose own settings and environment variables hold: see
https://filesystem-spec.readthedocs.io/en/latest/features.html#configuration.
"""

import contextlib
import dataclasses
import errno
import functools
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import fsspec
import fsspec.asyn

from selfie_jax.errors import ClusterError, UserError

# Before etils is asked for its first path: where TensorFlow is installed, it would take TensorFlow's file systems,
# which know no s3:// and cost seconds to import.
os.environ.setdefault('EPATH_USE_TF', 'false')
from etils import epath  # noqa: E402

# A listing that another process has changed since must not come from a cache.
for _protocol in ('gs', 's3'):
  fsspec.config.conf.setdefault(_protocol, {}).setdefault('use_listings_cache', False)

# It prints the traceback of every error that it also raises.
logging.getLogger('gcsfs').setLevel(logging.CRITICAL)

# For an answer to the first question that a bucket is asked. Left alone, gcsfs would ask for half a minute.
CONNECT_SECONDS = 20.0

# What is smaller, gcsfs would send as one part of a multipart request, and then end the line with a mere line feed: a
# last byte of 0x0D may be taken for the line's carriage return, and is lost.
_GCSFS_SINGLE_REQUEST_BYTES = 5 * 2**20

# With pauses of 1, 2, 4, ... 32 seconds, and up to one more each: a bucket may be away for two minutes. (gcsfs itself
# would give up after half a minute, in the middle of a save; TensorStore, which writes the arrays, tries for a quarter
# of an hour.)
_GCSFS_ATTEMPTS = 9

PathLike = str | os.PathLike[str]


def as_path(path: PathLike) -> epath.Path:
  """Returns the path with `pathlib`'s interface, wherever it points."""
  return epath.Path(path)


def is_remote(path: PathLike) -> bool:
  """True of a path in an object store."""
  return os.fspath(path).startswith(('gs://', 's3://'))


def filesystem(path: PathLike) -> fsspec.AbstractFileSystem:
  """Returns the file system that `path` lies in."""
  if os.fspath(path).startswith('gs://'):
    _lengthen_gcsfs_patience()
  return fsspec.core.url_to_fs(os.fspath(path))[0]


@functools.cache
def _lengthen_gcsfs_patience() -> None:
  """Lets gcsfs, in all of this process, ask `_GCSFS_ATTEMPTS` times: how often is fixed where it is defined."""
  import gcsfs  # Takes a second, and not every run needs it.
  from gcsfs.retry import retry_request

  request = gcsfs.GCSFileSystem._request.__wrapped__
  gcsfs.GCSFileSystem._request = retry_request(request, retries=_GCSFS_ATTEMPTS)


def failure_of_store(error: BaseException) -> type[UserError]:
  """Returns what to raise for what a store's client raised: a store that is away may be back when we start again."""
  return UserError if is_refusal(error) else ClusterError


def is_refusal(error: BaseException) -> bool:
  """Whether a store's client says no. What is unknown here may be an outage, and is worth another attempt."""
  code = getattr(error, 'code', None)  # gcsfs: the HTTP status.
  if isinstance(code, int):
    return 400 <= code < 500 and code not in (408, 429)  # A time-out, too many requests.
  if isinstance(error, OSError):  # s3fs turns what S3 objects to into EINVAL; gcsfs has no number for 403.
    refusals = (PermissionError, FileNotFoundError, FileExistsError)
    return isinstance(error, refusals) or error.errno == errno.EINVAL or str(error).startswith('Forbidden')
  return isinstance(error, (ValueError, TypeError)) or 'Credentials' in type(error).__name__


def check_reachable(path: PathLike) -> None:
  """Checks that the bucket of a remote path is there and answers; says nothing about the path, nor about a local one.

  Raises:
    ClusterError: it does not answer within `CONNECT_SECONDS`.
    UserError: it does not exist, or refuses us.
  """
  if not is_remote(path):
    return
  scheme, _, rest = os.fspath(path).partition('://')
  bucket = f'{scheme}://{rest.partition("/")[0]}'
  try:
    store = filesystem(path)
    try:
      fsspec.asyn.sync(store.loop, store._ls, os.fspath(path), timeout=CONNECT_SECONDS)
    except FileNotFoundError:  # Of the path, or of the whole bucket?
      with contextlib.suppress(PermissionError):  # Some may list their own folder only.
        fsspec.asyn.sync(store.loop, store._ls, bucket, timeout=CONNECT_SECONDS)
  except FileNotFoundError as error:
    raise UserError(f'there is no bucket {bucket}: make it, or give another path than {path}') from error
  except fsspec.FSTimeoutError as error:
    raise ClusterError(
      f'the bucket {bucket} does not answer within {CONNECT_SECONDS:g} s: is the network up, and the store?'
    ) from error
  except Exception as error:  # Each store has its own, and its libraries' below it.
    remedy = 'gcloud auth application-default login' if scheme == 'gs' else 'aws configure'
    raise failure_of_store(error)(
      f'cannot reach the bucket {bucket} ({type(error).__name__}: {error}): check its name, the network and your '
      f'credentials ({remedy})'
    ) from error


# What says nothing about the file itself: no permission, or a network's disk that is away.
_NOT_OF_THE_FILE = {
  *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOTCONN),
  *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ETIMEDOUT, errno.ECONNREFUSED),
}


def check_readable(path: PathLike) -> None:
  """Checks that what lies under a local path can be opened, as far as that is not the files' own fault.

  Raises:
    UserError: names the first one that we may not read, or cannot reach.
  """
  if is_remote(path):
    return

  def fail(error: OSError) -> None:
    if error.errno in _NOT_OF_THE_FILE:
      raise UserError(f'cannot read {error.filename}: {error.strerror}: give it back, and start again') from error

  files = [os.fspath(path)] if os.path.isfile(path) else []
  for folder, _, names in os.walk(path, onerror=fail):
    files += [os.path.join(folder, name) for name in names]
  for name in files:
    try:
      os.close(os.open(name, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
      fail(error)


@dataclasses.dataclass(frozen=True)
class FileState:
  """What tells one version of a file from another. `tag` is whatever the file system changes with every write."""

  size: int
  tag: str


def list_files(folder: PathLike) -> dict[str, FileState]:
  """Returns the files right in a folder, by name; {} where there is no such folder.

  Raises:
    ClusterError: an object store does not answer.
    UserError: it refuses.
  """
  if not is_remote(folder):
    try:
      with os.scandir(folder) as entries:
        files = {}
        for entry in entries:
          with contextlib.suppress(FileNotFoundError):  # Renamed or deleted since.
            if entry.is_file():
              files[entry.name] = state_of(entry.stat())
        return files
    except FileNotFoundError:
      return {}
  try:
    listing = filesystem(folder).ls(os.fspath(folder), detail=True)
  except FileNotFoundError:
    return {}
  except Exception as error:  # Each store has its own, and its libraries' below it.
    raise failure_of_store(error)(f'cannot list {folder}: {type(error).__name__}: {error}') from error
  return {
    entry['name'].rpartition('/')[2]: FileState(
      entry['size'], str(entry.get('generation') or entry.get('ETag') or entry.get('mtime'))
    )
    for entry in listing
    if entry['type'] == 'file'
  }


def state_of(facts: os.stat_result) -> FileState:
  """Returns the state of a local file."""
  return FileState(facts.st_size, f'{facts.st_ino}-{facts.st_mtime_ns}')


def missing_files(paths: Sequence[epath.Path]) -> list[epath.Path]:
  """Returns those of the paths that are no files. Of an object store each folder is listed, once: files are many."""
  listed = {folder: list_files(folder) for folder in {path.parent for path in paths if is_remote(path)}}
  return [path for path in paths if not (path.name in listed[path.parent] if is_remote(path) else path.is_file())]


def make_folder(path: PathLike) -> None:
  """Makes a folder and those above it. An object store has none: there a name is enough."""
  if not is_remote(path):
    os.makedirs(path, exist_ok=True)


def move(source: PathLike, target: PathLike) -> None:
  """Moves a file, or a folder with all that is in it, to a name that is free, in the same file system or bucket."""
  if is_remote(source):  # The store copies; nothing comes here. (gcsfs's `mv` asks some servers what they do not know.)
    store = filesystem(source)
    files = store.find(os.fspath(source))
    head = len(store._strip_protocol(os.fspath(source)))
    store.copy(files, [f'{target}{file[head:]}' for file in files])
    store.rm(files)
    return
  os.makedirs(os.path.dirname(target), exist_ok=True)
  os.rename(source, target)


@contextlib.contextmanager
def naming(path: PathLike) -> Iterator[None]:
  """Lets errors of the system name a file: one that a write raises, such as of a full disk, names none."""
  try:
    yield
  except OSError as error:
    if error.errno is not None and error.filename is None:
      error.filename = os.fspath(path)
    raise


@contextlib.contextmanager
def write_atomically(path: PathLike) -> Iterator[BinaryIO]:
  """Opens a file that has its name only when it is complete and on disk; if anything fails, `path` stays as it was.

  Several processes may write the same file: each writes its own, and the last one to finish gives it its contents.
  Only a process that is killed while it writes a local file leaves what it had: beside `path`, which it resembles, with
  a random ending and `.tmp`.

  Raises:
    ClusterError: an object store does not answer.
    UserError: it does not take it, or not all of it.
    OSError: the disk is full, for one; names the file.
  """
  if is_remote(path):  # Objects appear whole. The file in between keeps a shard out of memory, and needs no name.
    with naming(tempfile.gettempdir()), tempfile.TemporaryFile() as file:
      yield file
      file.flush()
      _upload(file, os.fspath(path))
    return
  path = Path(path)
  temporary = path.with_name(f'{path.name}.{secrets.token_hex(4)}.tmp')  # Hosts may share a folder, and process ids.
  try:
    with naming(path), open(temporary, 'xb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _upload(file: BinaryIO, path: str) -> None:
  size = file.seek(0, os.SEEK_END)
  file.seek(0)
  try:
    store = filesystem(path)
    if path.startswith('gs://') and 0 < size < _GCSFS_SINGLE_REQUEST_BYTES:
      store.pipe_file(path, file.read(), chunksize=size)  # One chunk of an upload in chunks: see there.
    else:
      store.put_file(f'/dev/fd/{file.fileno()}', path)
    arrived = store.info(path)['size']
  except Exception as error:  # Each store has its own, and its libraries' below it.
    raise failure_of_store(error)(f'cannot write {path}: {type(error).__name__}: {error}') from error
  if arrived != size:
    raise UserError(f'{path} has {arrived} bytes, of {size} that were written: does another job write it?')
