"""SIGTERM and Ctrl-C: finish the step, save, leave with exit code 75, so that the launcher starts the run again."""

import signal
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


class StopSignal:
  """A context in which SIGTERM and SIGINT are remembered instead of ending the process.

  With several processes JAX's preemption service takes SIGTERM on any of them and makes all agree on a step.
  """

  def __init__(self) -> None:
    self._received = False
    self._previous = {}

  def __enter__(self) -> 'StopSignal':
    signals = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
    self._previous = {number: signal.signal(number, self._remember) for number in signals}
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _remember(self, number: int, frame: FrameType | None) -> None:
    self._received = True

  def stop_after(self, step: int) -> bool:
    """True, on all processes at the same step, once one of them was told to stop."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._received
