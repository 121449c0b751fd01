"""What can go wrong with a save, said in one line: a full disk, a folder that is gone, a bucket, another process."""

import contextlib
import errno
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from selfie_jax.errors import ClusterError, UserError
from selfie_jax.files import failure_of_store, is_remote
from selfie_jax.training.checkpointing.verified import describe, fault_of, find_steps
from selfie_jax.training.processes import cluster

# Whose errors say that the storage has failed, besides OSError.
_STORES_LIBRARIES = ('aiohttp', 'fsspec', 'gcsfs', 'google', 'requests')

# TensorStore raises a ValueError for all that fails. These are of the storage: what it then tells of a mistake in the
# program begins with other words, or with none.
_AWAY = re.compile(r'(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED): ')
_TENSORSTORE = re.compile(
  rf'{_AWAY.pattern}|(NOT_FOUND|PERMISSION_DENIED|UNAUTHENTICATED|RESOURCE_EXHAUSTED|DATA_LOSS): '
  r'|.*Error (reading|writing|deleting|listing) (local |gs://|".* at (local |gs://))'
)

# What Orbax's threads raise in here, it also prints, each time with the traceback.
_RAISED_AND_PRINTED = ('checkpoint_manager.py', 'async_checkpointer.py', 'future.py', 'checkpoint.py')


@contextlib.contextmanager
def tracebacks_hidden() -> Iterator[None]:
  """Lets saves that fail in the background say so only where they are waited for."""

  def shown(record: logging.LogRecord) -> bool:
    if 'Skipping merge of OCDBT checkpoints' in str(record.msg):  # Of each save in a bucket, where we want none.
      return False
    return not (record.exc_info and '/orbax/' in record.pathname and record.filename in _RAISED_AND_PRINTED)

  logger = logging.getLogger('absl')
  logger.addFilter(shown)
  try:
    yield
  finally:
    logger.removeFilter(shown)


def check_space(folder: epath.Path, state: Any) -> None:
  """Checks that a local disk has room for a train state, before a save that would fail is begun.

  Raises:
    UserError: it has not.
  """
  if is_remote(folder):
    return
  needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  if shutil.disk_usage(folder).free < needed:
    raise UserError(_disk_is_full(folder, needed))


@contextlib.contextmanager
def failures_named(folder: epath.Path) -> Iterator[None]:
  """Turns what Orbax and TensorStore raise where the storage fails into one line.

  Args:
    folder: the run's checkpoints.

  Raises:
    UserError: says what failed, which checkpoint is the last good one, and the remedy; a `ClusterError` of a store that
      is away.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    if _is_full(error):
      raise UserError(_disk_is_full(folder, _size_of_newest(folder))) from error
    if not _is_of_storage(error):
      raise
    kind = _kind(error) if is_remote(folder) else UserError
    remedy = 'is the bucket up, and are the credentials good?' if is_remote(folder) else 'is the folder as it was?'
    raise kind(f'cannot save in {folder} ({describe(error)}): {remedy} {_last_good(folder)}') from error


def wait_for_others(*, key: str, timeout_ms: int) -> None:
  """What Orbax's threads wait for the other processes with: a time-out names those that are missing."""
  # A process whose save has failed still comes here, on its way out, and would wait until the time is over for others
  # that wait for it elsewhere. Its main thread must hear of the failure, and end the process.
  if (failure := sys.exception()) is not None:
    raise failure
  cluster.barrier(f'checkpoints/{key}', timeout_ms / 1000)


def _is_full(error: BaseException | None) -> bool:
  while error is not None:
    if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or 'No space left' in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


def _is_of_storage(error: Exception) -> bool:
  if isinstance(error, ValueError):
    return bool(_TENSORSTORE.match(str(error)))
  return isinstance(error, OSError) or type(error).__module__.partition('.')[0] in _STORES_LIBRARIES


def _kind(error: Exception) -> type[UserError]:
  return ClusterError if _AWAY.match(str(error)) else failure_of_store(error)


def _disk_is_full(folder: epath.Path, needed: int) -> str:
  free = shutil.disk_usage(folder).free
  return (
    f'no room for a checkpoint in {folder}: it needs about {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free: '
    f'delete something, or keep fewer (checkpoint.keep, checkpoint.keep_every), and start again. {_last_good(folder)}'
  )


def _last_good(folder: epath.Path) -> str:
  """Names the checkpoint that the run goes on from, as far as the storage lets us look."""
  with contextlib.suppress(Exception):  # Each store has its own.
    whole = [step for step in find_steps(folder) if not fault_of(folder / str(step))]
    return f'The last good checkpoint is {whole[0]}' if whole else 'There is no good checkpoint yet'
  return 'The last good checkpoint stays as it is'


def _size_of_newest(folder: epath.Path) -> int:
  """Bytes of the newest checkpoint: of the one that is being written, if there is no other."""
  names = [str(step) for step in find_steps(folder)] or os.listdir(folder)
  files = (os.path.join(place, name) for place, _, files in os.walk(folder / names[0]) for name in files)
  return sum(os.path.getsize(file) for file in files)
