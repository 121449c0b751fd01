"""Commands of the project in processes of their own, with what they cost in CPU-seconds."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfie_jax.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED
from tests.processes import ROOT

# One thread for XLA, BLAS and OpenMP; and XLA's large buffers in huge pages, which saves a third of a step's CPU time.
ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu',
  'NPROC': '1',
  'OMP_NUM_THREADS': '1',
  'OPENBLAS_NUM_THREADS': '1',
  'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
  'TF_CPP_MIN_LOG_LEVEL': '3',
}


class CommandFailedError(Exception):
  """A command ended with the exit code of a failure; the message is the last line that it wrote."""


class StoppedError(Exception):
  """Commands were told to stop."""


class Commands:
  """Runs commands on threads beside the main one, until they are told to stop all together.

  Attributes:
    stopped: whether they were.
  """

  def __init__(self) -> None:
    self._lock = threading.RLock()  # `stop` is a signal's handler, and may come while the main thread is in here.
    self._running: set[int] = set()
    self.stopped = False

  def run(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> float:
    """Runs `python -m *arguments`, unless it has been run to its end before.

    Args:
      arguments: a module and its arguments.
      log: what its output is added to. Beside it, `.jsonl`, a line for each attempt says what became of it.
      environment: beside `ENVIRONMENT`.

    Returns:
      The CPU-seconds of all attempts, of the process and its children. An attempt that outlived the study, because that
      was killed without a chance to stop it, does not count.

    Raises:
      CommandFailedError: it failed.
      StoppedError: it was stopped, or it had been before it could begin.
    """
    attempts = log.with_suffix('.jsonl')
    before = [json.loads(line) for line in attempts.read_text().splitlines()] if attempts.exists() else []
    if not any(attempt['code'] == 0 for attempt in before):
      before.append(self._attempt(arguments, log, environment))
      with attempts.open('a') as file:
        file.write(json.dumps(before[-1]) + '\n')
      if self.stopped or before[-1]['code'] in (EXIT_PREEMPTED, EXIT_INTERRUPTED):
        raise StoppedError
      if code := before[-1]['code']:
        lines = log.read_text(errors='replace').split('\n')
        last = next((line.strip() for line in reversed(lines) if line.strip()), 'it wrote nothing')
        raise CommandFailedError(f'{arguments[0]} ended with {code}: {last}')
    return sum(attempt['cpu_seconds'] for attempt in before)

  def stop(self, *_: Any) -> None:
    """Tells all commands to end, as a signal's handler, too. Training saves its state first."""
    with self._lock:
      self.stopped = True
      for number in self._running:
        os.kill(number, signal.SIGTERM)

  def _attempt(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> dict[str, float]:
    with log.open('ab') as output:
      with self._lock:
        if self.stopped:
          raise StoppedError
        process = subprocess.Popen(
          [sys.executable, '-m', *arguments],
          cwd=ROOT,
          env=os.environ | ENVIRONMENT | environment,
          stdout=output,
          stderr=subprocess.STDOUT,
          start_new_session=True,  # Ctrl-C reaches the study alone, which tells its commands once.
        )
        self._running.add(process.pid)
      # Its number stays its own until it is waited for, below.
      os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
      with self._lock:
        self._running.remove(process.pid)
      _, status, usage = os.wait4(process.pid, 0)  # What it took, whatever else runs beside it.
      process.returncode = os.waitstatus_to_exitcode(status)  # So that Popen does not wait for it again.
    return {'code': process.returncode, 'cpu_seconds': usage.ru_utime + usage.ru_stime}
