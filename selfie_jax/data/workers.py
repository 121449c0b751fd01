"""Work shared out to processes that never outlive the command."""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from selfie_jax.errors import UserError

_Task = TypeVar('_Task')
_Result = TypeVar('_Result')


def cpu_count() -> int:
  """Returns the number of cores that this process may use; where it is confined to some, the machine has more."""
  if hasattr(os, 'sched_getaffinity'):  # Linux.
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def run(function: Callable[[_Task], _Result], tasks: Sequence[_Task], workers: int) -> Iterator[_Result]:
  """Yields `function(task)` of every task, in their order, computed by `workers` processes.

  Ctrl-C, SIGKILL of this process or an error in one task ends all workers at once.

  Raises:
    UserError: a worker died (a full memory, most often). Whatever a task raises is raised here.
  """
  if not tasks:
    return
  context = multiprocessing.get_context('spawn')  # A fork would copy locks that threads of this process hold.
  # This process has the only writing end. However it ends, the workers read the end of the pipe, and leave.
  alive, stop = context.Pipe(duplex=False)
  with concurrent.futures.ProcessPoolExecutor(
    min(workers, len(tasks)), context, initializer=_leave_with_parent, initargs=(alive,)
  ) as pool:
    # Workers inherit the mask: a Ctrl-C is for this process, and would fill the screen with their tracebacks.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
      futures = [pool.submit(function, task) for task in tasks]
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
      for future in futures:
        yield future.result()
    except BaseException as error:
      pool.shutdown(wait=False, cancel_futures=True)
      stop.close()
      if isinstance(error, BrokenProcessPool):
        raise UserError('a worker process died (out of memory?): start again with fewer --workers') from error
      raise


def _leave_with_parent(alive: multiprocessing.connection.Connection) -> None:
  def watch() -> None:
    alive.poll(None)
    os._exit(1)  # Not sys.exit: the main thread may be inside a decoder.

  threading.Thread(target=watch, daemon=True).start()
