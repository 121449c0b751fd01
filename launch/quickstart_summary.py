"""Prints the mean and the spread over seeds of the quick start's results: `quickstart_summary.py RUN [RUN ...]`.

A run is the workdir of one seed, evaluated. The spread is the standard deviation over seeds (n - 1).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.table

from selfie_jax.errors import ArgumentParser, UserError, run_command
from selfie_jax.evaluation.reporting.results import HEADINGS, headline
from selfie_jax.terminal import results as stdout


def main(arguments: Sequence[str]) -> None:
  """Runs the command."""
  parser = ArgumentParser(description=__doc__)
  parser.add_argument('runs', nargs='+', type=Path)
  results = [read_results(run) for run in parser.parse_args(arguments).runs]
  runs = [scores(found) for found in results]
  table = rich.table.Table(title=f'Test accuracy in %, mean and spread over {len(runs)} seeds', title_justify='left')
  table.add_column('task')
  for heading in (*HEADINGS.values(), 'trained -\nuntrained'):
    table.add_column(heading, justify='right')
  for task in [*runs[0], 'mean']:
    table.add_row(task, *map(_mean_and_spread, columns(runs, task)))
  stdout.print(table)
  for task in runs[0]:
    *_, differences = columns(runs, task)
    if np.mean(differences) < 0:
      line = f'{task}: the trained encoder is below the untrained one. {results[0]["tasks"][task]["caveat"]}'
      stdout.print(line.rstrip(), markup=False)


def read_results(run: Path) -> dict[str, Any]:
  """Returns what a run's results.json holds."""
  path = run / 'eval' / 'results.json'
  if not path.is_file():
    raise UserError(f'{path} is not there: evaluate the run first')
  return json.loads(path.read_text())


def scores(results: dict[str, Any]) -> dict[str, dict[str, float]]:
  """Returns task -> representation -> the headline readout's score in percent."""
  readout = headline(results)
  return {
    name: {key: 100 * value['score'] for key, value in task['readouts'][readout]['representations'].items()}
    for name, task in results['tasks'].items()
  }


def columns(runs: Sequence[dict[str, dict[str, float]]], task: str) -> list[list[float]]:
  """Returns the table's cells of `task` (or of the mean over tasks), each a list with one score a seed."""

  def of_run(run: dict[str, dict[str, float]], representation: str) -> float:
    tasks = list(run) if task == 'mean' else [task]
    return float(np.mean([run[name][representation] for name in tasks]))

  cells = [[of_run(run, representation) for run in runs] for representation in HEADINGS]
  return [*cells, [trained - untrained for trained, untrained in zip(cells[-1], cells[-2], strict=True)]]


def _mean_and_spread(values: Sequence[float]) -> str:
  spread = f' ± {np.std(values, ddof=1):.1f}' if len(values) > 1 else ''
  return f'{np.mean(values):.1f}{spread}'


if __name__ == '__main__':
  run_command(main)
