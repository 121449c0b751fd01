"""The process of one way of `rounds.compare`: it gets ready, then works for as long as it is told, whenever it is told.

  python -m tests.benchmarks.worker MODULE:FUNCTION ARGUMENTS_IN_JSON

It answers in lines of JSON on what was its stdout: first that it is ready, or which package is missing, then, for each
line of stdin (seconds), what that turn was; or, last of all, which error ended it. What the way prints goes to stderr.
"""

import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import psutil

from selfie_jax.errors import summary

OURS = ('tests', 'selfie_jax')


def cpu_seconds() -> float:
  """CPU time of all threads of this process, of its living descendants and of those it has waited for.

  The descendants' times come in ticks of 10 ms, so turns should be much longer than that.
  """
  waited_for = resource.getrusage(resource.RUSAGE_CHILDREN)
  total = time.process_time() + waited_for.ru_utime + waited_for.ru_stime
  for child in psutil.Process().children(recursive=True):
    try:
      total += sum(child.cpu_times()[:4])  # User, system, and those of the children that it has waited for.
    except psutil.NoSuchProcess:  # It ended just now: its time is lost, or in the next reading, once it is waited for.
      continue
  return total


def turn(work: Callable[[], int], seconds: float) -> dict[str, Any]:
  """Works for so long, at least once, and says what was done and what it took."""
  begin, cpu_begin, units = time.perf_counter(), cpu_seconds(), 0
  while not units or time.perf_counter() - begin < seconds:
    units += work()
  found = {'units': units, 'seconds': time.perf_counter() - begin, 'cpu_seconds': cpu_seconds() - cpu_begin}
  return found | {'notes': getattr(work, 'notes', dict)()}


def prepare(start: str, arguments: dict[str, Any]) -> Callable[[], int]:
  """Calls the function that gets a way ready, and returns its `work`."""
  module, _, function = start.partition(':')
  return getattr(importlib.import_module(module), function)(**arguments)


def answers_of(start: str, arguments: dict[str, Any], requests: TextIO) -> Iterator[dict[str, Any]]:
  """Gets ready, and works whenever it is told; yields the answers."""
  try:
    work = prepare(start, arguments)
    yield {'ready': True}
    for line in requests:
      yield turn(work, float(line))
  except Exception as error:
    package = (error.name or '').partition('.')[0] if isinstance(error, ModuleNotFoundError) else ''
    if package and package not in OURS:
      yield {'missing': package}
    else:
      traceback.print_exc()
      yield {'error': summary(error)}


def main() -> None:
  """Serves until stdin ends, which it does when the harness is gone, too."""
  start, arguments, cores = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
  if cores and hasattr(os, 'sched_setaffinity'):  # Before any library counts them. (Not on macOS.)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # Libraries print what they like; an answer has to be alone in its line.
  for answer in answers_of(start, arguments, sys.stdin):
    print(json.dumps(answer), file=answers, flush=True)
  # Threads and processes that read ahead for ever end with this one. It leads its process group.
  os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == '__main__':
  main()
