"""Says whether a run that has ended is worth another start; the launchers ask it before they start one and afterwards.

  python launch/progress.py train|evaluate RECORD CODE ARGUMENTS

RECORD is what was printed the last time (empty at first), CODE is what the run has ended with (empty before a start),
ARGUMENTS are the run's own. What it prints are three whole numbers: how many crashes in a row have brought nothing new,
and the furthest that the run has ever come. It exits with 70 to give up: FRUITLESS_RESTARTS (5) was exceeded.

A job that runs for weeks may well crash a hundred times. One that crashes again before it is further than ever before
will crash for ever. Further than EVER: each start cuts the metrics back to its checkpoint and writes the same steps
again, so that a file that has changed or has grown says nothing.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence

from etils import epath

from selfie_jax.errors import EXIT_CRASHED, EXIT_PREEMPTED
from selfie_jax.files import as_path
from selfie_jax.training.monitoring.lines import read_scores

Reached = tuple[int, int]


def reached(kind: str, workdir: epath.Path) -> Reached:
  """Returns how far a run is now: training's newest checkpoint and last step, or evaluation's last and its steps."""
  if kind == 'evaluate':
    steps = read_scores(workdir)
    return max(steps, default=0), len(steps)
  checkpoints = workdir / 'checkpoints'
  saved = [int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()] if checkpoints.exists() else []
  return max(saved, default=0), max(_steps(workdir / 'metrics.jsonl'), default=0)


def _steps(path: epath.Path) -> list[int]:
  # The last line may not be whole: a pattern takes it as it is.
  return [int(step) for step in re.findall(r'"step": *(\d+)', path.read_text())] if path.exists() else []


def judged(record: str, code: str, now: Reached) -> tuple[int, Reached]:
  """Returns the fruitless crashes in a row and the furthest that the run has come, from the last record and now."""
  fruitless, *furthest = map(int, record.split()) if record else (0, 0, 0)
  further = any(a > b for a, b in zip(now, furthest, strict=True))
  if further or code == str(EXIT_PREEMPTED):
    fruitless = 0
  elif code:
    fruitless += 1
  return fruitless, (max(now[0], furthest[0]), max(now[1], furthest[1]))


def main(arguments: Sequence[str]) -> int:
  """Prints the new record, says on stderr what comes next, and returns the exit code."""
  kind, record, code, *training = arguments
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument('--workdir', default='')
  try:
    now = reached(kind, as_path(parser.parse_known_args(training)[0].workdir))
  except Exception as error:  # A bucket that cannot be reached now says nothing of the run: no progress was seen.
    print(f'no progress is known: {error}', file=sys.stderr)
    now = (0, 0)
  fruitless, furthest = judged(record, code, now)
  print(fruitless, *furthest)
  if not code:
    return 0
  names = ('checkpoint {}, step {}' if kind == 'train' else 'step {}, {} evaluated').format(*furthest)
  counted = ', without progress' * (fruitless > 0) + f' {fruitless} times in a row' * (fruitless > 1)
  give_up = fruitless > int(os.environ.get('FRUITLESS_RESTARTS') or 5)
  verdict = 'giving up' if give_up else 'starting it again'
  print(f'{kind} ended with {code}{counted} ({names}): {verdict}', file=sys.stderr)
  return EXIT_CRASHED if give_up else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
