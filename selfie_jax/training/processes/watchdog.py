"""Ends a run that hangs, with the stacks of all its threads, so that its cluster starts it again."""

import faulthandler
import signal
import sys
import threading
import types

from selfie_jax.errors import EXIT_CRASHED
from selfie_jax.training.processes.preemption import end_process

_TICKS = 60  # In the time without a step that is allowed.


class Watchdog:
  """A context in which `beat` has to be called at least every `minutes`; 0 minutes: no watchdog.

  A thread counts its own ticks, not the clock's: a process that was stopped, or moved to another machine, for an hour
  has not hung for an hour, and is not ended at waking.
  """

  def __init__(self, minutes: float) -> None:
    self._minutes = minutes
    self._ticks = 0
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)

  def __enter__(self) -> 'Watchdog':
    if self._minutes:
      # A C call that hangs and holds the interpreter's lock stops our thread as well. For that case the kernel sends
      # SIGALRM, whose handler, in C, prints the stacks and ends the process by the signal (128 + 14 to a shell).
      # dump_traceback_later(exit=True) would end it with 1, which is the code of a user's mistake.
      signal.signal(signal.SIGALRM, signal.SIG_DFL)
      faulthandler.register(signal.SIGALRM, all_threads=True, chain=True)
      self._thread.start()
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
  ) -> None:
    if self._minutes:
      self._closed.set()
      self._thread.join()
      signal.setitimer(signal.ITIMER_REAL, 0)
      faulthandler.unregister(signal.SIGALRM)

  def beat(self) -> None:
    """Says that a step was taken."""
    self._ticks = 0

  def _watch(self) -> None:
    while self._ticks < _TICKS:
      # Twice the time: this one is the kernel's clock, which goes on while the process is stopped.
      signal.setitimer(signal.ITIMER_REAL, 2 * 60 * self._minutes)
      if self._closed.wait(60 * self._minutes / _TICKS):
        return
      self._ticks += 1
    print(
      f'error: no step for {self._minutes:g} min (watchdog_minutes): this process hangs. The stacks of its threads:',
      file=sys.stderr,
      flush=True,
    )
    faulthandler.dump_traceback(all_threads=True)
    end_process(EXIT_CRASHED)
