"""`--profile`: a trace of a few steps, by JAX's profiler."""

from pathlib import Path

import jax
from etils import epath

from selfie_jax.terminal import console

# Counted from the process's start: by then the data pipeline is full, and the first step's allocations are done.
_FIRST, _LAST = 11, 15


class Profile:
  """Traces steps 11 to 15 of this process."""

  def __init__(self, folder: Path, shown_as: epath.Path, first_step: int) -> None:
    """Writes into a local `folder`, which the user finds at `shown_as`."""
    self._folder, self._shown_as, self._first_step = folder, shown_as, first_step
    self._running = False

  def due(self, step: int) -> bool:
    """True where the trace begins or ends right after `step`."""
    return step - self._first_step in (_FIRST - 1, _LAST)

  def switch(self) -> None:
    """Begins or ends the trace. No step may be left to complete."""
    if self._running:
      self._stop()
    else:
      jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
      self._running = True

  def _stop(self) -> None:
    jax.profiler.stop_trace()
    self._running = False
    console.print(
      f'traced {_LAST - _FIRST + 1} steps from {self._first_step + _FIRST} on into {self._shown_as}: open its newest '
      f'perfetto_trace.json.gz at https://ui.perfetto.dev, or `pip install xprof` and `xprof {self._shown_as}`'
    )

  def close(self) -> None:
    """Ends a trace that the run did not outlast."""
    if self._running:
      self._stop()
