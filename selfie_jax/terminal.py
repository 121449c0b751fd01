"""What a person sees while a command runs: talk and progress on stderr, results on stdout."""

import contextlib
import datetime
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import rich.console
import rich.progress

_T = TypeVar('_T')

# No markup: a path may well have brackets in it.
console = rich.console.Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

# A results table is as wide as it needs to be when nobody's window limits it (a pipe, a log file).
results = rich.console.Console(
  highlight=False, width=None if os.isatty(1) else 140, force_terminal=None if os.isatty(1) else False
)

_LINE_SECONDS = 30.0  # A log file gets a line that often.


def progress(items: Iterable[_T], description: str, total: int | None = None) -> Iterator[_T]:
  """Yields `items` under a `progress_bar`; without a `total`, they have a length."""
  with progress_bar(description, len(items) if total is None else total) as show:
    for done, item in enumerate(items, 1):
      yield item
      show(done)


@contextlib.contextmanager
def progress_bar(description: str, total: int, unit: str = '', before: int = 0) -> Iterator[Callable[[int], None]]:
  """Shows what is done, the rate and the time left: as a bar or, in a log file, as a line from time to time.

  Args:
    description: what is going on.
    total: what there is to do.
    unit: what is counted, in the plural.
    before: what an earlier run has done: it does not count in the rate.

  Yields:
    A function that takes what is done so far, `before` included.
  """
  begin = time.monotonic()

  def pace(done: int) -> str:
    return _pace(done, before, total, time.monotonic() - begin, unit)

  with (
    _bar(description, total, before, pace)
    if console.is_terminal
    else _lines(description, total, unit, before, pace) as show
  ):
    yield show


def _pace(done: int, before: int, total: int, seconds: float, unit: str) -> str:
  """The rate, and the time left or taken."""
  rate = (done - before) / seconds if seconds else 0
  if not rate:
    return ''
  left, taken = (datetime.timedelta(seconds=round(value)) for value in ((total - done) / rate, seconds))
  return f'{rate:,.1f} {unit}/s, '.replace(' /', '/') + (f'{left} left' if done < total else f'took {taken}')


@contextlib.contextmanager
def _bar(description: str, total: int, before: int, pace: Callable[[int], str]) -> Iterator[Callable[[int], None]]:
  columns = (
    rich.progress.TextColumn('{task.description}', markup=False),
    rich.progress.BarColumn(),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeElapsedColumn(),
    rich.progress.TextColumn('{task.fields[pace]}', markup=False),
  )
  with rich.progress.Progress(*columns, console=console) as bar:
    task = bar.add_task(description, total=total, completed=before, pace='')
    yield lambda done: bar.update(task, completed=done, pace=pace(done))


@contextlib.contextmanager
def _lines(
  description: str, total: int, unit: str, before: int, pace: Callable[[int], str]
) -> Iterator[Callable[[int], None]]:
  """Writes a line every `_LINE_SECONDS`, whether or not anything has been done in between, and one at the end."""
  done_so_far = before
  ended = threading.Event()

  def show(done: int) -> None:
    nonlocal done_so_far
    done_so_far = done

  def write_line() -> None:
    text = f'{description}: {done_so_far:,} of {total:,} {unit}'.rstrip()
    console.print(', '.join(filter(None, (text, pace(done_so_far)))))

  def write_lines() -> None:
    while not ended.wait(_LINE_SECONDS):
      write_line()

  thread = threading.Thread(target=write_lines, daemon=True)
  thread.start()
  try:
    yield show
  finally:
    ended.set()
    thread.join()
    write_line()
