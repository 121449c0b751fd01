"""What a model card tells besides the model itself: its training data and its evaluation, as far as they are known."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from selfie_jax.config import Config, Part
from selfie_jax.data.source import open_data
from selfie_jax.errors import UserError
from selfie_jax.files import PathLike, as_path
from selfie_jax.terminal import console


@dataclasses.dataclass(frozen=True)
class TrainingData:
  """A dataset that a run was trained on."""

  name: str  # Of its folder.
  clips: int
  hours: float
  weight: float  # In a mixture.


def training_data(config: Config, fingerprint: str) -> tuple[TrainingData, ...]:
  """Returns a run's datasets if they are within reach, and still what it was trained on; else ()."""
  if not config.data.path and not config.data.mixture:
    return ()
  try:
    source = open_data(config.data, config.log_mel)
  except (UserError, OSError):  # The card can do without: it has the fingerprint.
    return ()
  if source.fingerprint != fingerprint:
    return ()
  parts = config.data.mixture or (Part(config.data.path),)
  found = []
  for part, dataset in zip(parts, source.datasets, strict=True):
    splits = [split for split in dataset.manifest.splits if split.name in dataset.splits]
    clips, hours = sum(split.clips for split in splits), sum(split.hours for split in splits)
    found.append(TrainingData(as_path(part.path).name, clips, hours, part.weight))
  return tuple(found)


@dataclasses.dataclass(frozen=True)
class Row:
  """A task's scores under one readout, as text: percentages, with 95 % intervals over the choice of test clips."""

  task: str
  metric: str
  test_clips: int
  trained: str
  untrained: str
  difference: str


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """What an evaluation job found."""

  protocol: str
  seeds: int
  tables: Mapping[str, tuple[Row, ...]]  # By readout, the headline first.


def evaluation(path: PathLike, step: int | None) -> Evaluated | None:
  """Returns the results of a checkpoint that an evaluation job left in the folder `path`, or None."""
  folder = as_path(path) / 'eval'
  for file in (folder / f'step_{step}' / 'results.json', folder / 'results.json'):
    if not file.exists():
      continue
    try:
      results = json.loads(file.read_bytes())
      if results['step'] == step:
        return _read(results)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
      console.print(f'{file} is left out of the model card: {type(error).__name__}: {error}')
  return None


def _read(results: Mapping[str, Any]) -> Evaluated:
  tasks = results['tasks'].values()
  readouts = list(next(iter(tasks))['readouts'])
  tables = {readout.replace('_', ' '): tuple(_row(task, readout) for task in tasks) for readout in readouts}
  return Evaluated(results['protocol'], len(results['evaluation']['seeds']), tables)


def _row(task: Mapping[str, Any], readout: str) -> Row:
  found = task['readouts'][readout]
  representations = found['representations']
  return Row(
    task=task['title'],
    metric=task['metric'].replace('_', ' '),
    test_clips=sum(split['test'] for split in task['clips']),
    trained=_score(representations['trained']),
    untrained=_score(representations.get('untrained')),
    difference=_score(found.get('difference'), sign='+'),
  )


def _score(found: Mapping[str, Any] | None, sign: str = '') -> str:
  if found is None:
    return 'not measured'
  low, high = found['interval']
  return f'{100 * found["score"]:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]'
