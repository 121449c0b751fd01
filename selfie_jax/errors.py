"""One clear line for a user's mistake, a traceback only for our own; and what each exit code tells a launcher."""

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

EXIT_USER_ERROR = 1  # A mistake, or a failed check: starting again would end in the same way.
EXIT_CRASHED = 70  # EX_SOFTWARE: a bug, a hang, a host that is gone: start me again, within reason.
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: told to stop, and nothing is lost: start me again.
EXIT_INTERRUPTED = 130  # Ctrl-C, as a shell counts it.


class UserError(Exception):
  """A mistake the user can mend. The message is one line: what is wrong, the numbers, the remedy."""

  exit_code = EXIT_USER_ERROR


class ClusterError(UserError):
  """A machine's or the network's failure: one line, too, but the launcher may well start the run again."""

  exit_code = EXIT_CRASHED


class ArgumentParser(argparse.ArgumentParser):
  """An `argparse` parser whose complaint is one line and whose exit code is that of a user's mistake."""

  def error(self, message: str) -> NoReturn:
    """Raises `UserError` instead of printing the usage and exiting with 2."""
    raise UserError(f'{message} (see: {self.prog} --help)')


def summary(error: BaseException) -> str:
  """Returns one line that says what `error` is."""
  if isinstance(error, UserError):
    text = str(error)
  elif isinstance(error, OSError):  # A full disk, a folder without permission, a name that is too long.
    text = f'{error.filename or "input/output"}: {error.strerror or error}'
  else:
    text = traceback.format_exception_only(error)[-1]
  return ' '.join(text.split())


def report(error: BaseException) -> int:
  """Prints to stderr what ended a command, in one line unless it is a bug of ours; returns the exit code."""
  if isinstance(error, KeyboardInterrupt):
    print('interrupted', file=sys.stderr)
    return EXIT_INTERRUPTED
  if isinstance(error, (UserError, OSError)):
    print(f'error: {summary(error)}', file=sys.stderr)
    # A server that does not answer may do so in a minute: not a mistake that somebody has to mend first.
    lost = isinstance(error, (ConnectionError, TimeoutError))
    return EXIT_CRASHED if lost else getattr(error, 'exit_code', EXIT_USER_ERROR)
  traceback.print_exception(error)
  return EXIT_CRASHED


def run_command(main: Callable[[Sequence[str]], int | None]) -> None:
  """Runs `main(arguments)` and exits with its code, or with that of the exception it ended with (see `report`)."""
  try:
    code = main(sys.argv[1:])
  except (Exception, KeyboardInterrupt) as error:
    code = report(error)
  sys.exit(code or 0)
