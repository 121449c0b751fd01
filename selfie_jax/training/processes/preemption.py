"""SIGTERM and Ctrl-C: finish the step, save, leave with exit code 75, so that the launcher starts the run again.

How several processes agree on one step: none of their main threads may wait for another one's, as any of them may be
waiting for the device, which waits for the processes that are behind. So a thread of each watches the notes that the
processes leave each other (see `cluster.Peers`). Once one process was told to stop, each thread announces the next step
that its main thread will ask about, and holds it there until all numbers are known. The greatest of them is the step.

This module is imported before all others: it imports nothing that takes time.
"""

import contextlib
import functools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import NoReturn, Protocol

from selfie_jax.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, ClusterError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AWAITED_SECONDS = 25.0  # To come to the roll call and pass the signal on; a cluster gives 30 s or more.
_NOTHING_LOST = 'told to stop, and there is nothing to save: start me again'


class Others(Protocol):
  """What a stop signal needs of the other processes."""

  process_id: int
  num_processes: int
  patience_seconds: float

  def tell(self, note: str, text: str) -> None:
    """Leaves a note that all processes hear of."""

  def announce(self, number: int) -> None:
    """Leaves this process's number for process 0."""

  def announced(self) -> dict[int, int]:
    """Returns the numbers of the processes that have left one."""

  def missing(self, present: Mapping[int, object]) -> str:
    """Returns, in words, which processes are not among `present`."""

  def leave(self, code: int, line: str) -> NoReturn:
    """Ends this process and, soon, the others."""


class StopSignal:
  """What a process was told, and at which step it stops; `heed` makes it hear SIGTERM and SIGINT."""

  def __init__(self, awaited: bool = False) -> None:
    self._lock = threading.Lock()
    # 'awaited': by other processes, at a roll call to come, where a signal is passed on. Then 'before' the first step,
    # 'stepping', and 'through'.
    self._phase = 'awaited' if awaited else 'before'
    self._passed = 0  # The last step that the main thread was told to go beyond.
    self._next: int | None = None  # Once somebody was told to stop: the step at which the main thread waits.
    self._target: int | None = None  # The step to stop after.
    self._agreed = threading.Event()
    self._told = False
    self._asked_at = 0.0
    self._interrupted_at: float | None = None
    self._others: Others | None = None

  @contextlib.contextmanager
  def stepping(self, first_step: int) -> Iterator[None]:
    """Within it there is work to lose; before it there is none, and a signal ends the process with 75 at once.

    After it the end is near: a signal changes nothing.
    """
    with self._lock:
      self._passed = first_step
      self._phase = 'stepping'
    try:
      yield
    finally:
      with self._lock:
        self._phase = 'through'

  def stop_after(self, step: int) -> bool:
    """True, on all processes at the same step, once one of them was told to stop."""
    with self._lock:
      if self._next is None:
        self._passed = step
        return False
    self._agreed.wait()  # Process 0 ends us all if somebody's number does not come.
    return step >= self._target

  def join(self, others: Others | None) -> None:
    """Makes the process one of several, which from now on stop together; or, with None, the only one.

    Called before the first step. What the environment looked like no longer matters.
    """
    with self._lock:
      self._others = others
      if self._told:
        self.leave_at_once()
      self._phase = 'before'

  def told(self) -> bool:
    """True once this process was told to stop."""
    return self._told

  def hear(self, notes: Mapping[str, str]) -> None:
    """Takes the other processes' notes; called by the thread that watches them, from time to time.

    Raises:
      ClusterError: on process 0: a process has not answered in time.
    """
    others = self._others
    if self._told and 'stop' not in notes:
      others.tell('stop', '')
    if 'stop' in notes and self._next is None:
      with self._lock:
        if self._phase == 'before':
          self.leave_at_once()
        self._next = self._passed + 1
      self._asked_at = time.monotonic()
    if 'stop_after' in notes and self._target is None:
      self._target = int(notes['stop_after'])
      self._agreed.set()
    if self._next is None or self._target is not None:
      return
    others.announce(self._next)  # Again and again: the network may have lost it.
    if others.process_id == 0:
      numbers = others.announced()
      if len(numbers) == others.num_processes:
        others.tell('stop_after', str(max(numbers.values())))
      elif time.monotonic() > self._asked_at + others.patience_seconds:
        raise ClusterError(
          f'told to stop, and {others.missing(numbers)} did not say within {others.patience_seconds / 60:g} min '
          '(cluster.barrier_minutes) at which step: ended without a save, start me again'
        )

  def receive(self, number: int) -> None:
    """Takes a signal; called by the thread that waits for them."""
    now = time.monotonic()
    if number == signal.SIGINT:
      # A second Ctrl-C is meant. (The same one may come twice, from the terminal and through a launcher.)
      if self._interrupted_at is not None and now > self._interrupted_at + 1:
        self._leave(EXIT_INTERRUPTED, 'interrupted twice: ended without a save')
      self._interrupted_at = self._interrupted_at or now
    with self._lock:
      if self._phase == 'before':
        self.leave_at_once()
      if self._phase == 'awaited' and not self._told:
        limit = threading.Timer(_AWAITED_SECONDS, self.leave_at_once)
        limit.daemon = True
        limit.start()
      if self._phase == 'through' or self._next is not None:
        return  # Clusters repeat themselves.
      if self._others is None and self._phase == 'stepping':
        self._next = self._target = self._passed + 1
        self._agreed.set()
      self._told = True  # The thread that watches the notes passes it on.

  def leave_at_once(self) -> NoReturn:
    """Ends the process; under the lock, so that the main thread cannot begin to step meanwhile.

    The others may have asked the device for some steps already, but none of these can be done without this process.
    """
    self._leave(EXIT_PREEMPTED, _NOTHING_LOST)

  def _leave(self, code: int, line: str) -> NoReturn:
    if self._others is not None:
      self._others.leave(code, line)
    print(line, file=sys.stderr)
    end_process(code)


def end_process(code: int) -> NoReturn:
  """Ends the process from any of its threads, whatever the others do; what was printed is not lost."""
  with contextlib.suppress(OSError, ValueError):  # Closed, or a pipe without a reader.
    sys.stdout.flush()
    sys.stderr.flush()
  os._exit(code)


@functools.cache
def heed() -> StopSignal:
  """Returns the process's stop signal, which hears SIGTERM and SIGINT from the first call on (in the main thread)."""
  # The main thread may be inside of XLA for minutes, where no Python handler runs. The C part of the handler writes the
  # signal's number into this socket at once, and a thread reads it.
  stop = StopSignal(awaited=_seems_one_of_several())
  inbox, outbox = socket.socketpair()
  outbox.setblocking(False)

  def listen() -> None:
    while True:
      for number in inbox.recv(64):
        if number in _SIGNALS:
          stop.receive(number)

  threading.Thread(target=listen, name='stop signal', daemon=True).start()
  for number in _SIGNALS:
    signal.signal(number, lambda *_: None)  # Or the C part would not be called.
  signal.set_wakeup_fd(outbox.detach(), warn_on_full_buffer=False)
  os.register_at_fork(after_in_child=_forget_signals)  # A child that is told to end would write into our socket.
  return stop


def _seems_one_of_several() -> bool:
  """A first guess, before JAX is imported (see detection.py): others may wait for this process."""
  given = os.environ.get
  return (
    given('JAX_COORDINATOR_ADDRESS') is not None
    or ('SLURM_STEP_NODELIST' in os.environ and given('SLURM_STEP_NUM_TASKS') != '1')
    or ',' in given('TPU_WORKER_HOSTNAMES', '')
    or given('MEGASCALE_NUM_SLICES', '1') != '1'
  )


def _forget_signals() -> None:
  signal.set_wakeup_fd(-1)
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  signal.signal(signal.SIGINT, signal.default_int_handler)
