"""The checkpoints of a run that is being trained, one after the other as they appear."""

import json
import time
from collections.abc import Callable, Iterator

from etils import epath

from selfie_jax.errors import UserError
from selfie_jax.terminal import console
from selfie_jax.training.checkpointing.checkpoints import LoadedEncoder, load_encoder
from selfie_jax.training.checkpointing.checksums import DamagedError
from selfie_jax.training.checkpointing.verified import find_steps

POLL_SECONDS = 30.0


def watch(workdir: epath.Path, is_done: Callable[[int], bool]) -> Iterator[LoadedEncoder]:
  """Yields the encoder of each checkpoint that is not done, the oldest first, until the run's last step is done.

  Waits for a run that has not begun. A checkpoint that is damaged, or that the run has deleted meanwhile, is left out.

  Args:
    workdir: the training run's folder.
    is_done: whether a step has been evaluated; asked again after each.

  Raises:
    UserError: the checkpoint of the last step is damaged.
  """
  console.print(f'watching {workdir} for checkpoints')
  skipped: set[int] = set()
  while True:
    try:
      steps, last = find_steps(workdir / 'checkpoints'), _last_step(workdir)
    except Exception as error:  # Each store has its own; a watch outlasts one that is down.
      console.print(f'cannot look into {workdir} ({type(error).__name__}: {error}): trying again')
      time.sleep(POLL_SECONDS)
      continue
    skipped &= set(steps)  # One that was damaged and moved away may come again, sound.
    waiting = sorted(step for step in steps if step not in skipped and not is_done(step))
    if waiting:
      run = _load(workdir, waiting[0], skipped)
      if run:
        yield run
    elif last in skipped:
      raise UserError(f'checkpoint {last}, the last of {workdir}, could not be evaluated: see above')
    elif last is not None and is_done(last):
      return
    else:
      time.sleep(POLL_SECONDS)


def _load(workdir: epath.Path, step: int, skipped: set[int]) -> LoadedEncoder | None:
  """Returns the encoder of a checkpoint; None where there is none to be had, and if it never will: skips it."""
  try:
    return load_encoder(workdir, step)
  except UserError as error:
    if isinstance(error.__cause__, DamagedError):
      console.print(f'skipping checkpoint {step}: {error}')
      skipped.add(step)
    else:  # The run has deleted it since, or the store does not answer.
      console.print(f'{error}: looking again')
      time.sleep(POLL_SECONDS)
    return None


def _last_step(workdir: epath.Path) -> int | None:
  """Returns the last step of the run, None before it has begun."""
  path = workdir / 'config.json'
  return json.loads(path.read_text())['steps'] if path.exists() else None
