"""Files that are there whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[BinaryIO]:
  """Opens a file that has its name only when it is complete and on disk; if anything fails, `path` stays as it was.

  Several processes may write the same file: each writes its own, and the last one to finish gives it its contents.
  Only a process that is killed leaves what it had, as `path` with a random ending and `.tmp`.
  """
  temporary = path.with_name(f'{path.name}.{secrets.token_hex(4)}.tmp')  # Hosts may share a folder, and process ids.
  try:
    with open(temporary, 'xb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
