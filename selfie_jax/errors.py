"""One clear line for a user's mistake, a traceback only for our own."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

EXIT_USER_ERROR = 1
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: state is saved, start me again.


class UserError(Exception):
  """A mistake the user can mend. The message is one line: what is wrong, the numbers, the remedy."""


class ArgumentParser(argparse.ArgumentParser):
  """An `argparse` parser whose complaint is one line and whose exit code is that of a user's mistake."""

  def error(self, message: str) -> NoReturn:
    """Raises `UserError` instead of printing the usage and exiting with 2."""
    raise UserError(f'{message} (see: {self.prog} --help)')


def run_command(main: Callable[[Sequence[str]], int | None]) -> None:
  """Runs `main(arguments)` and exits with its code; a `UserError` or `OSError` becomes one line and exit code 1."""
  try:
    code = main(sys.argv[1:])
  except UserError as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    code = EXIT_USER_ERROR
  except OSError as error:  # A full disk, a folder without permission, a name that is too long.
    print(f'error: {error.filename or "input/output"}: {error.strerror or error}', file=sys.stderr)
    code = EXIT_USER_ERROR
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    code = 130
  sys.exit(code or 0)
