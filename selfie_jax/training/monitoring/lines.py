"""Files of JSON lines, each of a step: those that a run adds to, and the scores that its evaluation finds."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from selfie_jax.errors import UserError
from selfie_jax.files import write_atomically

# Of a workdir: one object a checkpoint that has been evaluated, with its `step`, its `mean_score` over the tasks and
# their `scores`, by name. The evaluation job writes it; the training job and the launchers read it, too.
SCORES = 'eval/scores.jsonl'


class JsonLines:
  """One JSON object a line, each with a `step` above that of the line before.

  Nothing is held back: what `append` was given is in the file when it returns, and there is nothing to close.

  Attributes:
    last: the last line that an earlier process left, None where there is none.
  """

  def __init__(self, path: Path, last_step: int) -> None:
    """Opens the file, without the lines of steps after `last_step`: they were not saved, and are taken again."""
    self._path = path
    kept = list(_lines_until(path.read_bytes(), last_step)) if path.exists() else []
    self.last: dict[str, Any] | None = kept[-1][1] if kept else None
    with write_atomically(path) as file:
      file.write(b''.join(text + b'\n' for text, _ in kept))

  def append(self, line: Mapping[str, Any]) -> None:
    """Adds a line.

    Raises:
      UserError: the file does not take it.
    """
    try:
      with self._path.open('ab') as file:
        file.write(json.dumps(line).encode() + b'\n')
    except OSError as error:
      raise UserError(
        f'cannot write {self._path}: {error.strerror}: mend that and start the run again, it goes on from its last '
        'checkpoint'
      ) from error

  def sync(self) -> None:
    """Waits until all lines are on disk, where they outlast the machine's power."""
    with self._path.open('ab') as file:
      os.fsync(file.fileno())


def read_scores(workdir: epath.Path) -> dict[int, dict[str, Any]]:
  """Returns the lines of a workdir's scores by step, {} if there are none. Broken lines do not count."""
  path = workdir / SCORES
  try:
    return {line['step']: line for _, line in parse_lines(path.read_bytes())}
  except FileNotFoundError:
    return {}


def _lines_until(data: bytes, last_step: int) -> Iterator[tuple[bytes, dict[str, Any]]]:
  """Yields the lines, each with what it says, up to that step, but not what a killed process left of one."""
  before = -1
  for text, line in parse_lines(data):
    if before < line['step'] <= last_step:
      before = line['step']
      yield text, line


def parse_lines(data: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
  """Yields each line that is whole and of a step, and what it says."""
  for text in data.split(b'\n'):
    try:
      line = json.loads(text)
    except ValueError:
      continue
    if isinstance(line, dict) and type(line.get('step')) is int:
      yield text, line
