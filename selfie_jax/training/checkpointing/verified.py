"""Finds the newest checkpoint that can be read and holds what was saved, and gets damaged ones out of its way.

Nothing here uses Orbax's manager: it overlooks folders that are not whole, and its restore lets all other processes
wait, for ever, for one that found a damaged file.
"""

import contextlib
import dataclasses
import gc
import inspect
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from selfie_jax.errors import UserError
from selfie_jax.files import check_reachable, check_readable, is_remote, move
from selfie_jax.terminal import console
from selfie_jax.training.checkpointing.checksums import DamagedError, check_items, check_leaves
from selfie_jax.training.processes import cluster

_T = TypeVar('_T')


# What Orbax writes last into a checkpoint's folder. (Locally the folder then gets its name, but markers can be lost.)
_COMMIT_MARKER = ocp.path.atomicity_types.COMMIT_SUCCESS_FILE
_METADATA = '_CHECKPOINT_METADATA'
_TIMES = ('init_timestamp_nsecs', 'commit_timestamp_nsecs')  # Of it.
_STEP_NAME = re.compile(r'0|[1-9]\d*')

# How long TensorStore's threads may go on reading after Orbax has given up, on a disk and in an object store.
_AFTERMATH_SECONDS, _AFTERMATH_SECONDS_REMOTE = 0.1, 1.0


@dataclasses.dataclass(frozen=True)
class Found(Generic[_T]):
  """A checkpoint that verifies."""

  step: int
  content: _T
  damaged: dict[int, str]  # Steps that do not, and why: all that are newer, and older ones that are not whole.


class Reader:
  """Reads checkpoints in one folder, on all processes at once. None waits in Orbax for another."""

  def __init__(self, folder: epath.Path) -> None:
    self.folder = folder
    alone = ocp.options.MultiprocessingOptions(
      primary_host=jax.process_index(),
      active_processes={jax.process_index()},
      barrier_sync_key_prefix=f'reader{jax.process_index()}',
    )
    handler = ocp.CompositeCheckpointHandler(
      composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
    )
    self._checkpointer = ocp.Checkpointer(handler, multiprocessing_options=alone)

  def items(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a checkpoint's checksums, and its items `data` and `config`, by name, which agree with them.

    Raises:
      DamagedError: on all processes, whichever of them found the damage.
    """

    def read() -> tuple[dict[str, Any], dict[str, Any]]:
      if fault := fault_of(self.folder / str(step)):
        raise DamagedError(fault)
      if not (self.folder / str(step) / 'checksums').exists():
        raise DamagedError('it has no checksums: whether it is whole cannot be told')
      record, *items = (self._restore(step, name, ocp.args.JsonRestore()) for name in ('checksums', 'data', 'config'))
      items = dict(zip(('data', 'config'), items, strict=True))
      check_items(record, step, items)
      return record, items

    return _together(self.folder / str(step), read)

  def arrays(self, step: int, record: dict[str, Any], restore: ocp.args.CheckpointArgs) -> Any:
    """Returns what `restore` asks of a checkpoint's item `state`, having compared it with the checksums in `record`.

    Raises:
      DamagedError: as above.
    """
    path = self.folder / str(step)
    state = _together(path, lambda: self._restore(step, 'state', restore))
    _together(path, lambda: check_leaves(record, state))
    return state

  def _restore(self, step: int, item: str, restore: ocp.args.CheckpointArgs) -> Any:
    path = self.folder / str(step)
    try:
      with _aftermath_hidden(_AFTERMATH_SECONDS_REMOTE if is_remote(path) else _AFTERMATH_SECONDS):
        return self._checkpointer.restore(path, args=ocp.args.Composite(**{item: restore}))[item]
    except (MemoryError, jax.errors.JaxRuntimeError):
      raise  # Not of the checkpoint.
    except Exception as error:  # Orbax and TensorStore raise what the damage happens to lead to.
      raise DamagedError(f'its item "{item}" cannot be read: {describe(error)}') from error


def _is_not_of_a_failed_read(record: logging.LogRecord) -> bool:
  message = record.getMessage()
  return not (message.startswith('Task exception was never retrieved') and 'async_deserialize' in message)


# Where several arrays cannot be read, Orbax raises the first one's error. asyncio would print a traceback for each of
# the others, whenever it finds that nobody asked for them.
logging.getLogger('asyncio').addFilter(_is_not_of_a_failed_read)


@contextlib.contextmanager
def _aftermath_hidden(seconds: float) -> Iterator[None]:
  """Lets a read that fails say so once.

  Where one array of many cannot be read, Orbax raises that and closes its event loop. TensorStore's threads, that still
  read the others, find it closed, and would print a traceback each; so would Orbax's coroutines, which nobody awaits
  any more, as they are collected. For the threads there is nothing to wait for but the clock. Whatever else nobody
  could catch is printed as ever.
  """
  before = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    of_orbax = inspect.iscoroutine(unraisable.object) and '/orbax/' in unraisable.object.cr_code.co_filename
    if not of_orbax and str(unraisable.exc_value) != 'Event loop is closed':
      before(unraisable)

  sys.unraisablehook = hook
  try:
    yield
  except Exception:
    time.sleep(seconds)
    gc.collect()
    raise
  finally:
    sys.unraisablehook = before


def find_steps(folder: epath.Path) -> list[int]:
  """Returns the numbers of a run's checkpoints, the newest first: also those that are damaged.

  Not what a save that is running or was killed has written so far: locally it has another name, and in an object store
  neither a commit marker nor the time of its commit.
  """
  if not folder.exists():
    return []
  steps = [int(path.name) for path in folder.iterdir() if _STEP_NAME.fullmatch(path.name)]
  return sorted((step for step in steps if not _is_unfinished(folder / str(step))), reverse=True)


def _is_unfinished(path: epath.Path) -> bool:
  if not is_remote(path) or (path / _COMMIT_MARKER).exists():
    return False
  try:
    return not json.loads((path / _METADATA).read_text()).get('commit_timestamp_nsecs')
  except (OSError, ValueError, AttributeError):
    return False


def fault_of(path: epath.Path) -> str | None:
  """Says what a checkpoint's folder lacks, or None. What is in it may still be damaged."""
  if not path.is_dir():
    return 'it is no folder'
  for name in (_COMMIT_MARKER, _METADATA):
    if not (path / name).exists():
      return f'it lacks {name}'
  try:
    facts = json.loads((path / _METADATA).read_bytes())
  except ValueError:
    return None  # Orbax goes without it.
  # But of what is JSON it believes all, and a manager that finds nonsense in any checkpoint opens none.
  if not isinstance(facts, dict) or not all(isinstance(facts.get(time), int | None) for time in _TIMES):
    return f'its {_METADATA} is damaged'
  return None


def newest_verified(folder: epath.Path, read: Callable[[int], _T]) -> Found[_T] | None:
  """Returns the newest checkpoint that `read` does not find damaged; None where there are none at all.

  Args:
    folder: a run's checkpoints.
    read: returns what is wanted of a step or raises `DamagedError`, on all processes.

  Raises:
    UserError: there are checkpoints, and none verifies; or the store does not answer.
  """
  check_reachable(folder)
  steps = cluster.of_first_process(find_steps(folder))
  damaged = {}
  for position, step in enumerate(steps):
    try:
      content = read(step)
    except DamagedError as error:
      if not (folder / str(step)).exists():  # A run that goes on has deleted it since.
        continue
      damaged[step] = str(error)
      console.print(f'DAMAGED: checkpoint {step} in {folder} is not used: {error}')
      continue
    older = {step: fault for step in steps[position + 1 :] if (fault := fault_of(folder / str(step)))}
    return Found(step, content, damaged | older)
  if damaged:
    reasons = '; '.join(f'{step}: {reason}' for step, reason in damaged.items())
    raise UserError(
      f'none of the checkpoints in {folder} can be used ({reasons}): put a copy that is whole in its place, or begin '
      'another run in another --workdir; this one is never started over'
    )
  return None


def move_aside(folder: epath.Path, damaged: dict[int, str]) -> None:
  """Moves damaged checkpoints to the folder `checkpoints_damaged` beside `folder`, so that they can be saved again.

  Raises:
    UserError: on all processes: the first one, which does it, cannot.
  """
  failure = None
  if jax.process_index() == 0:
    try:
      for step in sorted(damaged):
        target = _free_name(folder.parent / 'checkpoints_damaged', step)
        move(folder / str(step), target)
        console.print(f'moved the damaged checkpoint {step} ({damaged[step]}) to {target}')
    except Exception as error:  # Each store has its own.
      failure = error
  if cluster.any_process(failure is not None):
    raise UserError(
      f'cannot move damaged checkpoints from {folder} to checkpoints_damaged/ beside it '
      f'({describe(failure) if failure else "see the first process"}): move them yourself'
    ) from failure


def _free_name(folder: epath.Path, step: int) -> epath.Path:
  number = 0
  while (path := folder / (f'{step}-{number}' if number else f'{step}')).exists():
    number += 1
  return path


def _together(path: epath.Path, act: Callable[[], _T]) -> _T:
  """Returns what `act`, which reads the checkpoint at `path`, returns if it succeeds on all processes.

  Raises:
    DamagedError: on all processes, if it failed on one of them.
    UserError: it failed because the store does not answer, or lets us not read. (The others hear of it as this
      process ends.)
  """
  failure = None
  for _ in range(2 if is_remote(path) else 1):  # A store that was away for a moment is no damage.
    try:
      result, failure = act(), None
      break
    except (MemoryError, jax.errors.JaxRuntimeError):
      raise
    except Exception as error:  # Whatever it is: the others must not wait for this process.
      failure = error
      check_reachable(path)
      check_readable(path)
      if isinstance(error, DamagedError) and not error.__cause__:
        break  # It could be read, and is not what was saved.
  if failure and jax.process_index() > 0:
    print(f'process {jax.process_index()} cannot use {path}: {describe(failure)}', file=sys.stderr)
  if cluster.any_process(failure is not None):
    raise DamagedError(describe(failure) if failure else 'another process cannot use it, and says why') from failure
  return result


def describe(error: BaseException) -> str:
  """Returns the first line of what is at the bottom of an error; of one of ours, the message alone."""
  if isinstance(error, DamagedError):
    return str(error)
  while error.__cause__:
    error = error.__cause__
  reason = str(error).strip().partition('\n')[0].partition(' [tensorstore_spec')[0]
  if len(reason) > 400:  # TensorStore names every layer that it went through; what happened comes last.
    reason = f'{reason[:150]} ... {reason[-250:]}'
  return f'{type(error).__name__}: {reason}'
