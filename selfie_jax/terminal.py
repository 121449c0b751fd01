"""What a person sees while a command runs: talk and progress on stderr, results on stdout."""

import os
from collections.abc import Iterable, Iterator
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


def progress(items: Iterable[_T], description: str, total: int | None = None) -> Iterator[_T]:
  """Yields `items` under a progress bar with the count and the time left (in a log file: one line at the end)."""
  columns = (
    rich.progress.TextColumn('{task.description}', markup=False),
    rich.progress.BarColumn(),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeElapsedColumn(),
    rich.progress.TimeRemainingColumn(),
  )
  with rich.progress.Progress(*columns, console=console) as bar:
    yield from bar.track(items, total=total, description=description)
