"""The checkpoints of a run that is being trained, one after the other as they appear."""

import json
import time
from collections.abc import Callable, Iterator, Mapping

import jax
from etils import epath

from selfie_jax.errors import ClusterError, UserError, summary
from selfie_jax.files import FileState, is_remote, list_files
from selfie_jax.sharing.loading import load_encoder
from selfie_jax.terminal import console
from selfie_jax.training.checkpointing.checkpoints import NoSuchStepError
from selfie_jax.training.checkpointing.checksums import DamagedError
from selfie_jax.training.checkpointing.verified import find_steps
from selfie_jax.training.processes import cluster
from selfie_jax.training.state import LoadedEncoder

POLL_SECONDS = 30.0

# Damaged checkpoints, and what their folders looked like: a run that is resumed moves them away and saves them again.
_Skipped = dict[int, Mapping[str, FileState]]


def watch(workdir: epath.Path, is_done: Callable[[int], bool]) -> Iterator[LoadedEncoder]:
  """Yields the encoder of each checkpoint that is not done, the oldest first, until the run's last step is done.

  Waits for a run that has not begun, and for a store that is away. A checkpoint that is damaged, or that the run has
  deleted meanwhile, is left out. Of several processes, all of which must watch, the first one looks and decides.

  Args:
    workdir: the training run's folder.
    is_done: whether a step has been evaluated; asked again after each.

  Raises:
    UserError: the checkpoint of the last step is damaged; or what `is_done` raises.
  """
  console.print(f'watching {workdir} for checkpoints')
  skipped: _Skipped = {}
  while True:
    step = cluster.of_first_process(_next_step(workdir, is_done, skipped) if jax.process_index() == 0 else None)
    if step is None:
      return
    run = _load(workdir, step, skipped)
    if run:
      yield run


def _next_step(workdir: epath.Path, is_done: Callable[[int], bool], skipped: _Skipped) -> int | None:
  """Waits for the next checkpoint to evaluate; returns None after the last one."""
  while True:
    try:
      steps, last = find_steps(workdir / 'checkpoints'), _last_step(workdir)
      for step in skipped.keys() - set(steps):
        del skipped[step]
      waiting = sorted(step for step in steps if not _is_skipped(workdir, step, skipped) and not is_done(step))
      ended = last is not None and not waiting and (last in skipped or is_done(last))
    except Exception as error:  # Each store has its own; a watch outlasts one that is down.
      if isinstance(error, UserError) and not isinstance(error, ClusterError):
        raise
      console.print(f'cannot look into {workdir} ({type(error).__name__}: {error}): trying again')
      time.sleep(POLL_SECONDS)
      continue
    if waiting:
      return waiting[0]
    if ended and last in skipped:
      raise UserError(f'checkpoint {last}, the last of {workdir}, could not be evaluated: see above')
    if ended:
      return None
    time.sleep(POLL_SECONDS)


def _is_skipped(workdir: epath.Path, step: int, skipped: _Skipped) -> bool:
  if step in skipped and skipped[step] != list_files(workdir / 'checkpoints' / str(step)):
    del skipped[step]
  return step in skipped


def _load(workdir: epath.Path, step: int, skipped: _Skipped) -> LoadedEncoder | None:
  """Returns the encoder of a checkpoint; None where there is none to be had, and if it never will: skips it."""
  folder = workdir / 'checkpoints' / str(step)
  files = _files(folder)
  line, damaged = '', False
  try:
    run = load_encoder(workdir, step)
  except Exception as error:
    if not _may_pass(error, workdir):
      raise
    line = summary(error)
    damaged = isinstance(error.__cause__, DamagedError) and bool(files) and files == _files(folder)
  lines = cluster.gather(line)  # What one of them cannot read, the others leave out, too.
  if not lines:
    return run
  line = lines[min(lines)]
  if cluster.any_process(damaged):
    console.print(f'skipping checkpoint {step}: {line}')
    skipped[step] = files
  else:  # The run has deleted it since, or has moved it away; or the store does not answer.
    console.print(f'{line}: looking again')
    time.sleep(POLL_SECONDS)
  return None


def _may_pass(error: Exception, workdir: epath.Path) -> bool:
  """Whether a watch goes on after an error of `load_encoder`."""
  if jax.process_count() > 1:
    # No others: the processes ask each other while they load, and after any other error they would be out of step.
    return isinstance(error, NoSuchStepError) or isinstance(error.__cause__, DamagedError)
  return isinstance(error, (UserError, OSError)) or is_remote(workdir)


def _files(folder: epath.Path) -> Mapping[str, FileState]:
  try:
    return list_files(folder)
  except UserError:  # It does not answer: as if it were gone, to be looked at again.
    return {}


def _last_step(workdir: epath.Path) -> int | None:
  """Returns the last step of the run, None before it has begun."""
  path = workdir / 'config.json'
  return json.loads(path.read_text())['steps'] if path.exists() else None
