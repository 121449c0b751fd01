"""A run of the study as one small record: what it was, what it cost, what it is worth, how healthy it was."""

import collections
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfie_jax.config import Config
from selfie_jax.files import write_atomically
from tests.study.cells import DEFAULT, PEER, REFERENCES, SAMPLES
from tests.study.tuning import GROUPS, tuning_name

FIVE = tuple(GROUPS)
PITCH = 'pitch'
READOUT = 'logistic_regression'
POINTS = 12  # Of the health over time.
HEALTH = (
  *('loss', 'invariance', 'diversity', 'decorrelation', 'embedding_std', 'effective_rank'),  # Of the embeddings.
  *('rankme', 'mean_correlation', 'dead_dimensions', 'alignment', 'uniformity'),  # Of the representations.
)
# Where things are, and what is reported: no result depends on it.
_NOT_SETTINGS = ('seed', 'watchdog_minutes', 'mesh', 'checkpoint', 'cluster', 'log')
_NOT_DATA_SETTINGS = ('path', 'mixture', 'read', 'read_threads', 'prefetch_batches')


def settings_of(config: Config) -> dict[str, Any]:
  """Returns what a run's results depend on and differs from the defaults, flat: config key -> value, as JSON has it."""
  given, default = (_flat(dataclasses.asdict(each)) for each in (config, Config(encoder=type(config.encoder)())))
  left_out = (*_NOT_SETTINGS, *(f'data.{key}' for key in _NOT_DATA_SETTINGS))
  differing = {
    key: value
    for key, value in given.items()
    if value != default.get(key) and not any(f'{key}.'.startswith(f'{name}.') for name in left_out)
  }
  return json.loads(json.dumps(differing))


def _flat(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for key, value in values.items():
    flat |= _flat(value, f'{prefix}{key}.') if isinstance(value, Mapping) else {prefix + key: value}
  return flat


def scores_of(results: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
  """Returns representation -> 'valid', 'test' and 'tuning' -> task -> the score in percent.

  Args:
    results: what an evaluation's results.json holds. The valid score is that of the probe whose strength
      valid has chosen; the tuning score is the test score of the task's tuning task, see tuning.py.
  """
  found: dict[str, dict[str, dict[str, float]]] = {}
  for task, result in results['tasks'].items():
    readout = result['readouts'][READOUT]
    for name, scores in readout['representations'].items():
      of_splits = found.setdefault(name, {'valid': {}, 'test': {}, 'tuning': {}})
      if task.startswith(tuning_name('')):
        of_splits['tuning'][task.removeprefix(tuning_name(''))] = percent(scores['score'])
        continue
      of_splits['test'][task] = percent(scores['score'])
      if name in readout['details']:  # The majority class has chosen nothing.
        of_splits['valid'][task] = percent(np.mean([split['valid_score'] for split in readout['details'][name]]))
  return found


def percent(fraction: float) -> float:
  """Returns a score as it is kept."""
  return round(100 * float(fraction), 2)


def mean_of_five(scores: Mapping[str, float]) -> float | None:
  """Returns the mean over the five tasks, None where one of them is missing."""
  there = all(task in scores for task in FIVE)
  return round(float(np.mean([scores[task] for task in FIVE])), 2) if there else None


def health_of(lines: Sequence[Mapping[str, Any]], most: int = POINTS) -> list[dict[str, float]]:
  """Returns at most `most` evenly spaced lines of a run's metrics, the last among them, with their figures of health.

  Lines with the representations' figures are preferred: where there are any, the others do not count.
  """
  lines = [line for line in lines if 'rankme' in line] or list(lines)
  chosen = np.unique(np.linspace(0, len(lines) - 1, min(most, len(lines))).round().astype(int))
  return [
    {'step': lines[i]['step']} | {key: float(f'{lines[i][key]:.4g}') for key in HEALTH if key in lines[i]}
    for i in chosen
  ]


def of_common_seeds(groups: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[Mapping[str, Any]]]:
  """Returns of each group of runs those with a seed that all groups have, without the runs that failed.

  A seed is worth some two points, most of them by its initial weights, which runs of one seed and one encoder share.
  A group all of whose runs failed takes no seed from the others.
  """
  done = [[run for run in group if 'failed' not in run] for group in groups]
  seeds = [{run['seed'] for run in group} for group in done if group]
  common = set.intersection(*seeds) if seeds else set()
  return [[run for run in group if run['seed'] in common] for group in done]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The runs of a factor's values.

  Attributes:
    runs: value -> its runs that did not fail, of the seeds that the reference has too; without a reference, of those
      that all values have. In the order of the numbers that the values begin with.
    failed: value -> how many runs failed.
    reference: the value of the one cell of `REFERENCES` that has a run among them, None where none or several have.
  """

  runs: Mapping[str, Sequence[Mapping[str, Any]]]
  failed: Mapping[str, int]
  reference: str | None

  def differences(self, value: str, split: str) -> list[float]:
    """Returns by how much a value's mean of five is better than the reference's, seed by seed."""
    of_reference = {run['seed']: run['mean_of_five'][split] for run in self.runs[self.reference]}
    return [run['mean_of_five'][split] - of_reference[run['seed']] for run in self.runs[value]]


def comparisons_of(found: Sequence[Mapping[str, Any]]) -> dict[str, Comparison]:
  """Returns factor -> its comparison, by name, for each factor of which two values or more have been run."""
  by_factor: dict[str, dict[str, list[Mapping[str, Any]]]] = collections.defaultdict(dict)
  for run in found:
    for factor, value in run['values'].items():
      by_factor[factor].setdefault(value, []).append(run)
  comparisons = {}
  for factor, by_value in sorted(by_factor.items()):
    values = sorted(by_value, key=_order)
    if len(values) > 1:
      done = {value: [run for run in by_value[value] if 'failed' not in run] for value in values}
      references = [value for value in values if any(run['cell'] in REFERENCES for run in done[value])]
      reference = references[0] if len(references) == 1 else None
      if reference:
        runs = {value: of_common_seeds([by_value[value], by_value[reference]])[0] for value in values}
      else:
        runs = dict(zip(values, of_common_seeds([by_value[value] for value in values]), strict=True))
      failed = {value: len(by_value[value]) - len(done[value]) for value in values}
      comparisons[factor] = Comparison(runs, failed, reference)
  return comparisons


def _order(value: str) -> tuple[float, str]:
  """Sorts values by the number that they begin with, and those without one behind them."""
  number = re.match(r'\d[\d,]*(\.\d+)?(e-?\d+)?', value)
  return (float(number[0].replace(',', '')) if number else np.inf), value


def curves_of(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, list[Mapping[str, Any]]]]:
  """Returns curve -> clips seen, the fewest first -> the runs; `SAMPLES` names a curve after its last comma."""
  curves: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
  for run in sorted((run for run in found if 'failed' not in run), key=lambda run: run['samples']):
    if SAMPLES in run['values']:
      name = run['values'][SAMPLES].rpartition(', ')[2]
      curves.setdefault(name, {}).setdefault(run['samples'], []).append(run)
  return dict(sorted(curves.items()))


def pairs_with_peer(found: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
  """Returns (ours, the peer's) for all runs of one seed that differ as the recipe and its peer do, and in nothing else.

  The fewest clips come first, then cell by cell, seed by seed.
  """
  done = sorted(
    (run for run in found if 'failed' not in run), key=lambda run: (run['samples'], run['cell'], run['seed'])
  )
  of_cell = {run['cell']: run['settings'] for run in done}
  if not {DEFAULT, PEER} <= of_cell.keys():
    return []
  ours, peers = of_cell[DEFAULT], of_cell[PEER]
  objective = {key for key in ours.keys() | peers.keys() if ours.get(key) != peers.get(key)}

  def parted(settings: Mapping[str, Any], of_objective: bool) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if (key in objective) == of_objective}

  return [
    (run, peer)
    for run in done
    if parted(run['settings'], True) == parted(ours, True)
    for peer in done
    if parted(peer['settings'], True) == parted(peers, True)
    and parted(peer['settings'], False) == parted(run['settings'], False)
    and (peer['seed'], peer['samples']) == (run['seed'], run['samples'])
  ]


def write(record: Mapping[str, Any], path: Path) -> None:
  """Writes a record in one stroke."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with write_atomically(path) as file:
    file.write(json.dumps(record, indent=1, ensure_ascii=False).encode() + b'\n')


def read_all(folder: Path) -> list[dict[str, Any]]:
  """Returns the records of a folder, by name."""
  return [json.loads(path.read_text()) for path in sorted(folder.glob('*.json'))]


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """Returns a table, the second row of which is the line under its headings."""
  return '\n'.join(f'| {" | ".join(row)} |' for row in rows)
