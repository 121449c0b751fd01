"""Ways whose speeds are known, for the harness' own tests."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path


def _burn() -> None:
  for _ in range(200_000):
    pass


class count:  # noqa: N801 (A way's function; a class can have notes.)
  def __init__(self, units: int) -> None:
    self._units = units

  def __call__(self) -> int:
    _burn()
    return self._units

  def notes(self) -> dict[str, float]:
    return {'arenas': float(os.environ.get('MALLOC_ARENA_MAX', 0))}


def child(units: int) -> Callable[[], int]:
  """All is done by a process that this one starts."""
  ours, theirs = multiprocessing.get_context('fork').Pipe()

  def serve() -> None:
    while True:
      theirs.recv()
      _burn()
      theirs.send(units)

  multiprocessing.get_context('fork').Process(target=serve, daemon=True).start()

  def work() -> int:
    ours.send('')
    return ours.recv()

  return work


def tired() -> Callable[[], int]:
  def work() -> int:
    raise ValueError('tired of it')

  return work


def killed() -> Callable[[], int]:
  def work() -> int:
    print('about to go', file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

  return work


def absent() -> Callable[[], int]:
  import no_such_package

  return no_such_package.work


def note(folder: str, name: str) -> Callable[[], int]:
  """Leaves its number, to be looked for."""
  (Path(folder) / str(os.getpid())).touch()
  return count(len(name))
