"""Ways to do the same work, measured back to back in rounds.

Each way has a process of its own, and a process group for whatever it starts. They take turns of some seconds, in the
order A B C, C B A, A B C ..., so that whatever else the machine does hits all of them alike; while it is not a way's
turn its processes are stopped, so that what it reads ahead costs it its own time and not another's. A ratio is that of
two ways in the same round, and the report has the median of the rounds' with the smallest and the largest.

Accelerators are hidden from all of them. What counts is units per CPU-second, of all threads and processes that a way
has: it depends less than units per second on what else the machine does.
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TIME_LIMIT = 600.0  # Seconds for a way to get ready, or for a turn beyond its own length.
ONE_CORE = 'one core'  # A setting.
# glibc told to keep the memory it has: what large arrays of PyTorch gain most from. It is read when a process starts.
MALLOC_TUNED = {
  'MALLOC_MMAP_MAX_': '0',
  'MALLOC_TRIM_THRESHOLD_': '100000000000',
  'MALLOC_TOP_PAD_': '268435456',
}


@dataclasses.dataclass(frozen=True)
class Way:
  """One way to do a part's work.

  Attributes:
    start: 'package.module:function', called once, in a fresh process, with `arguments`. It prepares, and returns
      `work: Callable[[], int]`. One call of that does some work to its end (it blocks until the device is done) and
      returns how many units it did; best are 0.05 to 1 seconds a call. It may have an attribute `notes`, a function
      that returns further figures of the turn that has just ended, by what they are. A package that `start` cannot
      import leaves the way out with a line that says so: import peers' packages in functions, or in a module of the
      peer's own.
    arguments: keyword arguments of that function, as JSON has them.
    environment: variables of that process beside the harness' own, from before it starts: glibc's MALLOC_* and the
      like. (MALLOC_* and GLIBC_TUNABLES of the harness' own environment are not passed on.)
    setting: ways are compared with those of the same setting ('0.95 s', '10 s'), beginning with the first of them.
    flops_per_unit: what a unit needs by its definition, whatever a way computes; 0: not known.
    cores: of the machine, the first so many; 0: all that the harness has. On one core no thread waits for another.
  """

  start: str
  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  setting: str = ''
  flops_per_unit: float = 0.0
  cores: int = 0


class Spread(NamedTuple):
  """Some rounds' values in short."""

  median: float
  smallest: float
  largest: float

  def text(self, digits: int) -> str:
    """The median (smallest to largest), with so many decimals."""
    return f'{self.median:,.{digits}f} ({self.smallest:,.{digits}f} to {self.largest:,.{digits}f})'


def spread(values: list[float]) -> Spread:
  """The median and the extremes."""
  return Spread(statistics.median(values), min(values), max(values))


@dataclasses.dataclass(frozen=True)
class Turn:
  """What one way did in one round."""

  units: float
  seconds: float
  cpu_seconds: float
  notes: dict[str, float]

  @property
  def per_second(self) -> float:
    """Units a second on the wall."""
    return self.units / self.seconds

  @property
  def per_cpu_second(self) -> float:
    """Units a CPU-second of all threads and processes."""
    return self.units / self.cpu_seconds


@dataclasses.dataclass(frozen=True)
class Results:
  """Every turn of the ways that took all of theirs; of the others why not."""

  turns: dict[str, list[Turn]]
  missing: dict[str, str]  # Of a way: the package that is not installed.
  failed: dict[str, str]  # Of a way: one line.

  def per_cpu_second(self, name: str) -> list[float]:
    """Units a CPU-second in each round."""
    return [turn.per_cpu_second for turn in self.turns[name]]

  def per_second(self, name: str) -> list[float]:
    """Units a second in each round."""
    return [turn.per_second for turn in self.turns[name]]

  def ratios(self, name: str, other: str) -> list[float]:
    """How many times as many units a CPU-second `name` does as `other`, in each round."""
    return [a / b for a, b in zip(self.per_cpu_second(name), self.per_cpu_second(other), strict=True)]


class WayError(Exception):
  """A way's process died, or gave no answer: one line."""


class MissingError(Exception):
  """A way needs a package, its name, that is not installed."""


class Worker:
  """A way's process, stopped but for its turns."""

  def __init__(self, name: str, way: Way) -> None:
    """Starts it, and waits until it is ready.

    Raises:
      MissingError: if it needs a package that is not installed.
      WayError: if it dies.
    """
    self._name = name
    kept = {key: value for key, value in os.environ.items() if not key.startswith(('MALLOC_', 'GLIBC_TUNABLES'))}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    # What processes leave behind that are killed, such as a DataLoader's, goes with this folder.
    self._temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    # On CPUs alone, since CPU-seconds are what counts.
    kept |= {'PYTHONPATH': path, 'TMPDIR': self._temporary.name, 'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}
    self._errors = tempfile.TemporaryFile('w+', errors='replace')  # noqa: SIM115 (Closed in `end`.)
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'tests.benchmarks.worker', way.start, json.dumps(dict(way.arguments)), str(way.cores)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
      env=kept | dict(way.environment),
      cwd=ROOT,  # Another folder's `tests` package would be found before ours.
      # A group in our session: Ctrl-C does not reach it, and the kernel ends it, stopped or not, if we are killed.
      process_group=0,
    )
    try:
      ready = self._answer(TIME_LIMIT)
      if 'missing' in ready:
        raise MissingError(ready['missing'])
      self._signal(signal.SIGSTOP)
    except BaseException:
      self.end()
      raise

  def turn(self, seconds: float) -> Turn:
    """Lets it work for so long.

    Raises:
      WayError: if it dies.
    """
    self._signal(signal.SIGCONT)
    try:
      self._process.stdin.write(f'{seconds}\n')
      self._process.stdin.flush()
    except BrokenPipeError:
      raise self._death() from None
    answer = self._answer(seconds + TIME_LIMIT)
    self._signal(signal.SIGSTOP)
    return Turn(**answer)

  def end(self) -> None:
    """Ends all its processes, stopped ones, too."""
    self._signal(signal.SIGKILL)
    self._process.wait()
    self._errors.close()
    self._temporary.cleanup()
    self._process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()

  def _signal(self, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, number)

  def _answer(self, time_limit: float) -> dict[str, Any]:
    end = time.monotonic() + time_limit
    # Its end of the pipe may live on in a process that it had started, so the pipe alone does not tell of its death.
    while not select.select([self._process.stdout], [], [], 0.5)[0]:
      if self._process.poll() is not None:
        raise self._death()
      if time.monotonic() > end:
        raise WayError(f'{self._name}: no answer for {time_limit:.0f} s')
    line = self._process.stdout.readline()
    if not line:
      raise self._death()
    answer = json.loads(line)
    if 'error' in answer:
      raise WayError(f'{self._name}: {answer["error"]}')
    return answer

  def _death(self) -> WayError:
    code = self._process.wait()
    self._errors.seek(0)
    lines = [line.strip() for line in self._errors.read().splitlines()]
    last = ' / '.join([line for line in lines if line.strip('^~')][-2:])
    return WayError(f'{self._name}: its process ended with {code}: {last or "it said nothing"}')


def compare(ways: Mapping[str, Way], rounds: int, seconds: float) -> Results:
  """Lets the ways take turns, after one that does not count; no process is left when it returns or raises.

  Args:
    ways: by name.
    rounds: how many turns of each way count.
    seconds: the length of a turn; a way works at least once in it, and to the end of what it has begun.

  Returns:
    All turns. A way that cannot start, or dies, is left out as a whole; the others go on.
  """
  workers: dict[str, Worker] = {}
  results = Results({}, {}, {})
  try:
    for number in range(rounds + 1):
      for name in list(ways) if number % 2 else list(ways)[::-1]:
        if name in results.missing or name in results.failed:
          continue
        try:
          if name not in workers:
            workers[name] = Worker(name, ways[name])
          turn = workers[name].turn(seconds)
        except MissingError as error:
          results.missing[name] = str(error)
        except WayError as error:
          results.failed[name] = str(error)
          results.turns.pop(name, None)
          if name in workers:  # What it had started may still be at work.
            workers.pop(name).end()
        else:
          if number:  # The first turn is for starting threads and processes, compiling and tuning.
            results.turns.setdefault(name, []).append(turn)
  finally:
    for worker in workers.values():
      worker.end()
  return dataclasses.replace(results, turns={name: results.turns[name] for name in ways if name in results.turns})
