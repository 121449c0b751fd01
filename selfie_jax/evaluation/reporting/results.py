"""Results as a JSON file.

results.json:
  workdir, step      the run, and the checkpoint that was evaluated (None of weights that came without one)
  protocol           `corrected` or `evar`
  evaluation         the evaluation's config
  tasks.<name>
    title            for people
    path             the labelled folder
    caveat           what is known of the reason, should the trained encoder be below the untrained one
    fingerprint      SHA-256 of what its files, labels and splits are
    metric           `accuracy`, or of a multi-label task `mean_average_precision`
    multi_label      whether a clip may have any number of labels
    classes          labels; predictions are numbers into this list
    unit_seconds     where clips are cut
    log_mel_mean, log_mel_std   the z-scoring of the encoders' input
    clips            clips in train, valid and test: one object, or one a fold
    readouts.<linear | logistic_regression | knn | fine_tuning | linear_K_shots>
      representations.<majority | log_mel_statistics | untrained | trained>
        score        the metric: mean over folds, then over seeds
        interval     95 %, over the choice of test clips
        macro_f1     mean over folds and seeds; null of a multi-label task
        scores       one a seed
      difference     trained minus untrained, clip by clip: score, interval (95 %, over the choice of test clips)
      details.<representation>  what the readout chose and how it went: one object, or one a fold
    confusion        of the headline readout on the trained encoder: rows are labels, columns predictions; clips, mean
                     over seeds and summed over folds. null of a multi-label task and of more than 200 classes
  mean.<readout>     over tasks: representations.<name> (score, macro_f1), difference (score)
  health             see `evaluation/health.py`; null if it was not measured

The headline is the config's first readout. Scores are fractions. Without baselines, `trained` is the only
representation, and there is no `difference`.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selfie_jax.config import Evaluation, Task
from selfie_jax.evaluation.protocol import LOG_MEL_STATISTICS, TRAINED, UNTRAINED, TaskResult
from selfie_jax.evaluation.readouts.metrics import majority_class, paired_difference, resample, score
from selfie_jax.evaluation.readouts.prediction import Prediction
from selfie_jax.evaluation.tasks.folder import LabelledFolder
from selfie_jax.files import PathLike, write_atomically

MAJORITY = 'majority'
HEADINGS = {
  MAJORITY: 'majority\nclass',
  LOG_MEL_STATISTICS: 'log-mel\nstatistics',
  UNTRAINED: 'untrained\nencoder',
  TRAINED: 'trained\nencoder',
}
_MOST_CONFUSION_CLASSES = 200


def readout_title(readout: str) -> str:
  """Returns a readout's name for people: 'linear, 5 shots'."""
  if shots := re.fullmatch(r'linear_(\d+)_shots', readout):
    return f'linear, {shots[1]} shot{"" if shots[1] == "1" else "s"}'
  return {'knn': 'nearest neighbours', 'fine_tuning': 'fine-tuning'}.get(readout, readout.replace('_', ' '))


def headline(results: Mapping[str, Any]) -> str:
  """Returns the readout that one figure a task is taken from."""
  return results['evaluation']['readouts'][0]


def summarize_task(result: TaskResult, task: Task) -> dict[str, Any]:
  """Returns the `tasks.<name>` object of results.json."""
  folder = result.folder
  first = next(iter(result.predictions.values()))
  return {
    'title': folder.title,
    'path': task.path,
    'caveat': task.caveat,
    'fingerprint': folder.fingerprint,
    'metric': 'mean_average_precision' if folder.multi_label else 'accuracy',
    'multi_label': folder.multi_label,
    'classes': list(folder.classes),
    'unit_seconds': folder.unit_seconds,
    'log_mel_mean': result.mean,
    'log_mel_std': result.std,
    'clips': [{'train': len(rows.train), 'valid': len(rows.valid), 'test': len(rows.test)} for rows in folder.splits],
    'readouts': {readout: _summarize_readout(found, folder) for readout, found in result.predictions.items()},
    'confusion': confusion(first[TRAINED], folder),
  }


def _summarize_readout(found: Mapping[str, Sequence[Prediction]], folder: LabelledFolder) -> dict[str, Any]:
  """Returns the `readouts.<readout>` object of a task."""
  predictions = {name: [split.predictions for split in splits] for name, splits in found.items()}
  if UNTRAINED in predictions:
    predictions = {MAJORITY: majority_class(folder.labels, folder.splits)} | predictions
  labels, splits = folder.labels, folder.splits
  resampled = {name: resample(rows, labels, splits) for name, rows in predictions.items()}
  summary: dict[str, Any] = {
    'representations': {
      name: dataclasses.asdict(score(rows, labels, splits, resampled[name])) for name, rows in predictions.items()
    }
  }
  if UNTRAINED in predictions:
    both = predictions[TRAINED], predictions[UNTRAINED]
    difference = paired_difference(*both, labels, splits, (resampled[TRAINED], resampled[UNTRAINED]))
    summary['difference'] = dataclasses.asdict(difference)
  return summary | {'details': {name: [split.details for split in splits] for name, splits in found.items()}}


def confusion(found: Sequence[Prediction], folder: LabelledFolder) -> list[list[float]] | None:
  """Returns how many test clips of each class (rows) were taken for each class (columns), mean over seeds."""
  count = len(folder.classes)
  if folder.multi_label or count > _MOST_CONFUSION_CLASSES:
    return None
  matrix = np.zeros((count, count))
  for prediction, split in zip(found, folder.splits, strict=True):
    for row in prediction.predictions:
      np.add.at(matrix, (folder.labels[split.test], row), 1 / len(prediction.predictions))
  return matrix.round(3).tolist()


def summarize(
  workdir: PathLike,
  step: int | None,
  evaluation: Evaluation,
  tasks: Mapping[str, dict[str, Any]],
  health: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Returns the contents of results.json."""
  readouts = next(iter(tasks.values()))['readouts']
  return {
    'workdir': str(workdir),
    'step': step,
    'protocol': evaluation.protocol,
    'evaluation': dataclasses.asdict(evaluation),
    'tasks': dict(tasks),
    'mean': {name: _mean([task['readouts'][name] for task in tasks.values()]) for name in readouts},
    'health': health,
  }


def _mean(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the mean over tasks of one readout's figures."""
  mean: dict[str, Any] = {
    'representations': {
      name: {
        figure: _mean_or_none([task['representations'][name][figure] for task in tasks])
        for figure in ('score', 'macro_f1')
      }
      for name in tasks[0]['representations']
    }
  }
  if 'difference' in tasks[0]:
    # Without an interval: tasks may share clips, so that their errors need not be independent.
    mean['difference'] = {'score': float(np.mean([task['difference']['score'] for task in tasks]))}
  return mean


def _mean_or_none(values: Sequence[float | None]) -> float | None:
  return None if None in values else float(np.mean(values))


def write_results(results: Mapping[str, Any], path: PathLike) -> None:
  """Writes results.json in one stroke: a crash leaves the old file, or none, but never a part of the new one."""
  text = json.dumps(results, indent=2)
  # Lists of numbers, such as a row of a matrix, on one line. Line breaks are never within a JSON string.
  text = re.sub(r'\[\n\s+([-+.\w,\s]*?)\n\s*\]', lambda match: f'[{" ".join(match[1].split())}]', text)
  with write_atomically(path) as file:
    file.write(f'{text}\n'.encode())
