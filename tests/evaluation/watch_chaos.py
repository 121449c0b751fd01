"""A training job and a watching one, killed and started again at random: `python -m tests.evaluation.watch_chaos`.

Both are real processes on one workdir. Again and again one of them gets SIGTERM or SIGKILL, at a random moment, and is
started again; then both are left to end. Held against them:

- told to stop, they exit with 75, and nothing else ever ends them;
- every checkpoint that the retention has kept has been evaluated: a line in scores.jsonl, and step_K/results.json with
  the figures of an evaluation that nothing disturbed;
- the folder eval/ itself tells of the last step.
"""

import argparse
import collections
import contextlib
import io
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from selfie_jax import evaluate
from tests.chaos import CONFIG as TRAINING
from tests.chaos import Violation
from tests.evaluation.conftest import write_tones
from tests.processes import ROOT, environment, run_python
from tests.training.conftest import write_sounds

SAVE_EVERY = 10
END_SECONDS = 60.0  # In which a job has to end once it was hit.

# The same command, but that it looks for checkpoints several times a second.
WATCH = (
  'import runpy; from selfie_jax.evaluation import watch; watch.POLL_SECONDS = 0.2; '
  'runpy.run_module("selfie_jax.evaluate", run_name="__main__")'
)
EVALUATION = """
import ml_collections


def get_config():
  tasks = [{{'name': 'tones', 'path': {path!r}, 'unit_seconds': 0.8}}]
  return ml_collections.ConfigDict({{'tasks': tasks, 'seeds': (0,), 'learning_rates': (1e-2,), 'epochs': 5}})
"""


class Job:
  """A command that is started again and again."""

  def __init__(self, name: str, arguments: list[object], logs: Path) -> None:
    self.name = name
    self._arguments = [*map(str, arguments)]
    self._logs = logs
    self.starts = 0
    self.start()

  def start(self) -> None:
    self.log = self._logs / f'{self.name}_{self.starts}.log'
    self.starts += 1
    with self.log.open('wb') as output:
      self._process = subprocess.Popen(
        [sys.executable, *self._arguments], cwd=ROOT, env=environment(), stdout=output, stderr=subprocess.STDOUT
      )

  def ended(self) -> bool:
    """True once it has done all there is to do."""
    code = self._process.poll()
    if code not in (None, 0):
      raise Violation(f'{self.name} ended by itself with {code}\n{self.log.read_text()[-3000:]}')
    return code == 0

  def strike(self, number: signal.Signals) -> None:
    """Sends a signal, waits for the end and starts the job again."""
    self._process.send_signal(number)
    try:
      code = self._process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
      raise Violation(f'{self.name} did not end within {END_SECONDS:g} s of {number.name}') from None
    # Before Python has come to the first line of ours, nothing hears SIGTERM.
    deaf = number == signal.SIGTERM and code == -number and not self.log.read_text()
    if code not in (0, 75 if number == signal.SIGTERM else -number) and not deaf:
      raise Violation(f'{self.name} ended with {code} after {number.name}\n{self.log.read_text()[-3000:]}')
    self.start()

  def kill(self) -> None:
    self._process.kill()
    self._process.wait()


def chaos(folder: Path, blows: int, seed: int, steps: int, longest_pause: float = 12.0) -> collections.Counter:
  """Makes data, a run that is evaluated while it trains, and an undisturbed evaluation; compares the two.

  Raises:
    Violation: a promise was broken.
  """
  split = lambda label, i: 'train' if i < 5 else 'valid' if i < 7 else 'test'  # noqa: E731
  tones = write_tones(folder / 'tones', split, low=200, middle=800, high=3_000)
  write_sounds(folder / 'sounds', 40)
  records, workdir, quiet = folder / 'records', folder / 'run', folder / 'quiet' / 'run'
  run_python('-m', 'selfie_jax.prepare', 'folder', '--input', folder / 'sounds', '--output', records)
  (folder / 'training.py').write_text(TRAINING.format(steps=steps, save_every=SAVE_EVERY))
  (folder / 'evaluation.py').write_text(EVALUATION.format(path=str(tones)))
  watching = ['--config', folder / 'evaluation.py', '--watch', '--workdir']
  training = ['--config', folder / 'training.py', '--workdir', workdir, f'--config.data.path={records}']
  retention = ['--config.checkpoint.keep=2', f'--config.checkpoint.keep_every={2 * SAVE_EVERY}']

  rng, tally = random.Random(seed), collections.Counter()
  jobs = [Job('watch', ['-c', WATCH, *watching, workdir], folder)]
  jobs.append(Job('train', ['-m', 'selfie_jax.train', *training, *retention], folder))
  try:
    for _ in range(blows):
      time.sleep(rng.uniform(0, longest_pause))
      job, number = rng.choice(jobs), rng.choice((signal.SIGTERM, signal.SIGKILL))
      tally[f'{number.name} to {job.name}'] += 1
      job.ended()
      job.strike(number)
    while not all([job.ended() for job in jobs]):
      time.sleep(0.1)
  finally:
    for job in jobs:
      job.kill()

  shutil.copytree(workdir, quiet, ignore=shutil.ignore_patterns('eval'))
  with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    evaluate.main([*map(str, watching), str(quiet)])
  tally['checkpoints'] = compare(workdir, quiet, steps)
  return tally


def compare(workdir: Path, quiet: Path, last: int) -> int:
  """Checks that all checkpoints have the figures of the undisturbed evaluation; returns how many there are."""
  kept = sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir())
  ours, theirs = (
    {line['step']: line for line in map(json.loads, (run / 'eval/scores.jsonl').read_text().splitlines())}
    for run in (workdir, quiet)
  )
  for step in kept:
    if ours.get(step) != theirs[step]:
      raise Violation(f'scores.jsonl has {ours.get(step)} in place of {theirs[step]}')
    if results(workdir, f'step_{step}') != results(quiet, f'step_{step}'):
      raise Violation(f'the results of step {step} are not those of an undisturbed evaluation')
  if kept[-1] != last or results(workdir, '.') != results(quiet, '.'):
    raise Violation(f'eval/results.json does not tell of step {last}; the checkpoints are {kept}')
  if not (workdir / 'eval/report.html').exists():
    raise Violation('there is no report')
  return len(kept)


def results(workdir: Path, folder: str) -> dict:
  return json.loads((workdir / 'eval' / folder / 'results.json').read_text()) | {'workdir': ''}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n\n')[0])
  parser.add_argument('--blows', type=int, default=30)
  parser.add_argument('--steps', type=int, default=600)
  parser.add_argument('--seed', type=int, default=0, help='of the schedule')
  parser.add_argument('--folder', type=Path, help='kept; a temporary one otherwise')
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory(prefix='watch_chaos_') as temporary:
    folder, begin = arguments.folder or Path(temporary), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    try:
      tally = chaos(folder, arguments.blows, arguments.seed, arguments.steps)
    except Violation as error:
      sys.exit(f'VIOLATION: {error}')
  print(f'all checkpoints evaluated as if undisturbed: {dict(tally)}, in {time.monotonic() - begin:.0f} s')


if __name__ == '__main__':
  main()
