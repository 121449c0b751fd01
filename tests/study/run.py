"""Runs the study's cells: trains each with every seed, evaluates it, and keeps a small record of it.

  python -m tests.study.run --data DIR --records DIR --output DIR [--results DIR] [--only CELL ...] [--seeds 0 1 2]
                            [--processes 2]

A run is one process on one core, by the project's own commands: CPU-seconds are those of `selfie_jax.train` from its
start to its end, imports and compiling included. What has a record in RESULTS is done: another --results and --output
measure anew, with other data, too. A study that was stopped, or killed, goes on where it was, its runs from their last
checkpoints. A run that fails gets a record with its last line, and the others go on.

DATA has the public tasks' folders, RECORDS what `selfie_jax.prepare` made of the clips to pre-train on. OUTPUT gets the
runs with their logs. cells.py says what the cells are, `facts_of` and `outcome_of` what a record holds.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import queue
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfie_jax import config as config_lib
from selfie_jax.errors import EXIT_PREEMPTED, ArgumentParser, UserError, run_command
from selfie_jax.evaluation.protocol import TRAINED
from selfie_jax.terminal import console
from selfie_jax.training.monitoring.lines import parse_lines
from tests.benchmarks.machine import machine, versions
from tests.processes import ROOT
from tests.study import records
from tests.study.cells import CELLS, SEEDS, Cell
from tests.study.commands import CommandFailedError, Commands, StoppedError
from tests.study.tuning import GROUPS, tuning_name, write_tuning_tasks

CONFIG = ROOT / 'configs/public_small.py'
EVALUATION = ROOT / 'configs/eval/public.py'
RESULTS = Path(__file__).parent / 'results'
TASKS = (*records.FIVE, records.PITCH)


@dataclasses.dataclass(frozen=True)
class Job:
  """A cell with one of the seeds."""

  cell: Cell
  seed: int

  @property
  def name(self) -> str:
    """Of its record."""
    return f'{self.cell.name}.{self.seed}'

  def arguments(self) -> list[str]:
    """The overrides as the training command takes them."""
    return [f'--config.{key}={value!r}' for key, value in self.cell.overrides.items()] + [f'--config.seed={self.seed}']

  def config(self) -> config_lib.Config:
    """The run's config, but for where its data is."""
    return config_lib.load(CONFIG, self.arguments(), config_lib.Config)

  def settings(self) -> dict[str, Any]:
    """All that the result depends on and differs from the defaults in selfie_jax/config.py, and the devices if many."""
    devices = {'devices': self.cell.devices} if self.cell.devices > 1 else {}
    return records.settings_of(self.config()) | devices

  def run(self) -> str:
    """The name of its folder: a run of other settings has another one."""
    settings = json.dumps(self.settings(), sort_keys=True)
    return f'{self.name}.{hashlib.sha256(settings.encode()).hexdigest()[:8]}'


@dataclasses.dataclass(frozen=True)
class Places:
  """Where things are."""

  data: Path
  records: Path
  output: Path
  results: Path

  @property
  def tuning(self) -> Path:
    """Of the tuning tasks."""
    return self.output / 'tuning'

  def tasks(self) -> tuple[dict[str, str], ...]:
    """What is evaluated, as a config has it."""
    public = [{'name': name, 'path': str(self.data / name)} for name in TASKS]
    tuning = [{'name': tuning_name(name), 'path': str(self.tuning / tuning_name(name))} for name in GROUPS]
    return (*public, *tuning)

  def record(self, job: Job) -> Path:
    """The file of a run's record."""
    return self.results / f'{job.name}.json'


def main(arguments: Sequence[str]) -> int:
  """Runs the command."""
  parser = ArgumentParser(prog='python -m tests.study.run', description='Trains and evaluates the cells of the study.')
  parser.add_argument('--data', type=Path, required=True, help="where the public tasks' folders are")
  parser.add_argument('--records', type=Path, required=True, help='the TFRecords to pre-train on')
  parser.add_argument('--output', type=Path, required=True, help='where the runs go')
  parser.add_argument('--results', type=Path, default=RESULTS, help='where the records go')
  parser.add_argument('--only', nargs='+', metavar='CELL', help='these cells alone')
  parser.add_argument('--seeds', nargs='+', type=int, choices=SEEDS, default=SEEDS, help='these seeds alone')
  parser.add_argument('--processes', type=int, default=2, help='runs at a time, each on a core of its own')
  asked = parser.parse_args(arguments)
  places = Places(*(path.absolute() for path in (asked.data, asked.records, asked.output, asked.results)))
  if asked.processes < 1:
    raise UserError(f'--processes is {asked.processes}; it must be at least 1')
  for task in TASKS:
    if not (places.data / task / 'metadata.csv').is_file():
      raise UserError(f'{places.data / task} has no metadata.csv: --data is where the folders of the public tasks are')
  places.output.mkdir(parents=True, exist_ok=True)
  write_tuning_tasks(places.data, places.tuning)
  cells = choose(CELLS, asked.only)
  jobs = to_do(cells, asked.seeds, places)
  done = len(cells) * len(asked.seeds) - len(jobs)
  console.print(f'{len(jobs)} runs to do, {done} have a record in {places.results}')
  commands = Commands()
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, commands.stop)
  failed = run_jobs(jobs, places, commands, asked.processes)
  return EXIT_PREEMPTED if commands.stopped else int(failed > 0)


def choose(cells: Sequence[Cell], only: Sequence[str] | None) -> list[Cell]:
  """Returns the cells of these names, in the table's order; all of them for None."""
  known = [cell.name for cell in cells]
  for name in only or ():
    if name not in known:
      raise UserError(f'there is no cell "{name}"; the cells are {", ".join(known)}')
  return [cell for cell in cells if only is None or cell.name in only]


def to_do(cells: Sequence[Cell], seeds: Sequence[int], places: Places) -> list[Job]:
  """Returns the runs without a record: the first seed of every cell, then the second ....

  Where a run's place in the tables has changed, its record is told; where its settings have, the user is.
  """
  jobs = [Job(cell, seed) for seed in SEEDS if seed in seeds for cell in cells]
  for job in jobs:
    if not places.record(job).exists():
      continue
    record = json.loads(places.record(job).read_text())
    if advice := stale(job, record):
      console.print(f'{job.name}: its record is of other settings, and is kept. {advice}')
    elif record['values'] != dict(job.cell.values):
      records.write(record | {'values': dict(job.cell.values)}, places.record(job))
  return [job for job in jobs if not places.record(job).exists()]


def stale(job: Job, record: Mapping[str, Any]) -> str:
  """Returns what to do where a record's settings are no longer those of its cell, '' where they are."""
  now, then = job.settings(), record['settings']
  differing = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
  if not differing:
    return ''
  changes = ', '.join(f'{key}: {then.get(key, "as by default")}' for key in differing)
  return f'Give its cell the overrides {changes}; or delete the record to run it again'


def run_jobs(jobs: Sequence[Job], places: Places, commands: Commands, processes: int) -> int:
  """Runs all jobs, `processes` at a time; returns how many have failed."""
  cores: queue.SimpleQueue[int] = queue.SimpleQueue()
  available = sorted(os.sched_getaffinity(0))
  for number in range(processes):
    cores.put(available[number % len(available)])

  def pin() -> None:
    os.sched_setaffinity(0, {cores.get()})  # Of this thread, and so of the processes that it starts.

  machine_line = machine()  # Before any thread is pinned.
  failed = 0
  with concurrent.futures.ThreadPoolExecutor(processes, initializer=pin) as pool:
    futures = [pool.submit(run_job, job, places, commands, machine_line) for job in jobs]
    for future in concurrent.futures.as_completed(futures):
      try:
        failed += future.result()
      except StoppedError:
        continue
      except BaseException:
        commands.stop()
        raise
  return failed


def run_job(job: Job, places: Places, commands: Commands, machine_line: str) -> bool:
  """Trains, evaluates and writes the record; returns whether the run failed.

  Raises:
    StoppedError: the study was told to stop; there is no record.
  """
  if commands.stopped:
    raise StoppedError
  console.print(f'{job.name}: begins')
  workdir = places.output / job.run()
  train = ['selfie_jax.train', '--config', str(CONFIG), '--workdir', str(workdir), *job.arguments()]
  train += [f'--config.data.path={places.records}', '--config.log.tensorboard=False', '--config.checkpoint.keep=1']
  evaluate = ['selfie_jax.evaluate', '--config', str(EVALUATION), '--workdir', str(workdir)]
  evaluate += [f'--config.tasks={places.tasks()!r}', f'--config.baselines={job.cell.baselines}']
  record = facts_of(job) | {'machine': machine_line, 'versions': versions()}
  try:
    devices = {'XLA_FLAGS': f'--xla_force_host_platform_device_count={job.cell.devices}'}
    record['cpu_seconds'] = round(commands.run(train, workdir.with_name(f'{workdir.name}.train.log'), devices), 1)
    seconds = commands.run(evaluate, workdir.with_name(f'{workdir.name}.evaluate.log'), {})
    record |= {'evaluation_cpu_seconds': round(seconds, 1)} | outcome_of(workdir)
  except CommandFailedError as error:
    record['failed'] = str(error)
  records.write(record, places.record(job))
  console.print(f'{job.name}: {record.get("failed") or record["mean_of_five"]}')
  return 'failed' in record


def facts_of(job: Job) -> dict[str, Any]:
  """Returns what a record says of a run before it has begun."""
  config = job.config()
  return {
    'cell': job.cell.name,
    'values': dict(job.cell.values),
    'seed': job.seed,
    'overrides': dict(job.cell.overrides),  # Of configs/public_small.py as it was then.
    'settings': job.settings(),
    'samples': config.steps * config.batch_size,
  }


def outcome_of(workdir: Path) -> dict[str, Any]:
  """Returns what a record says of a run that has been evaluated: scores in percent, and health."""
  results = json.loads((workdir / 'eval/results.json').read_text())
  scores = records.scores_of(results)
  trained = scores.pop(TRAINED)
  lines = [line for _, line in parse_lines((workdir / 'metrics.jsonl').read_bytes())]
  outcome = {
    'mean_of_five': {split: records.mean_of_five(of_split) for split, of_split in trained.items()},
    'scores': trained,
    'health': records.health_of(lines),
  }
  return outcome | ({'baselines': scores} if scores else {})


if __name__ == '__main__':
  run_command(main)
