"""Results as a JSON file and as a table.

results.json:
  workdir, step      the run, and the checkpoint that was evaluated
  evaluation         the evaluation's config
  tasks.<name>
    path             the labelled folder
    caveat           what is known of the reason, should the trained encoder be below the untrained one
    classes          labels; predictions are numbers into this list
    representations.<majority | log_mel_statistics | untrained | trained>
      accuracy       mean over folds, then over probe seeds
      interval       Wilson's 95 % interval of the accuracy, over the choice of test clips
      macro_f1       mean over folds and seeds
      accuracies     one a seed
    difference       trained minus untrained, clip by clip: accuracy, interval (95 %, over the choice of test clips)
    splits           one, or one a fold: clips in train, valid and test; log_mel_mean and log_mel_std of train; and
                     probes.<representation>: the chosen learning_rate, and for each seed valid_accuracy and best_epoch
  mean               over tasks: representations.<name> (accuracy, macro_f1), difference (accuracy)

Accuracies are fractions. Without baselines, `trained` is the only representation, and there is no `difference`.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.markup
import rich.table

from selfie_jax.config import Evaluation, Task
from selfie_jax.evaluation.metrics import majority_class, paired_difference, score
from selfie_jax.evaluation.protocol import LOG_MEL_STATISTICS, TRAINED, UNTRAINED, SplitResult
from selfie_jax.evaluation.tasks.folder import LabelledFolder
from selfie_jax.files import PathLike, write_atomically

MAJORITY = 'majority'
HEADINGS = {
  MAJORITY: 'majority\nclass',
  LOG_MEL_STATISTICS: 'log-mel\nstatistics',
  UNTRAINED: 'untrained\nencoder',
  TRAINED: 'trained\nencoder',
}


def summarize_task(folder: LabelledFolder, splits: Sequence[SplitResult], task: Task) -> dict[str, Any]:
  """Returns the `tasks.<name>` object of results.json."""
  predictions = {name: [split.probes[name].predictions for split in splits] for name in splits[0].probes}
  baselines = UNTRAINED in predictions
  if baselines:
    predictions = {MAJORITY: majority_class(folder.labels, folder.splits)} | predictions
  result = {
    'path': task.path,
    'caveat': task.caveat,
    'classes': list(folder.classes),
    'representations': {
      name: dataclasses.asdict(score(found, folder.labels, folder.splits)) for name, found in predictions.items()
    },
    'splits': [
      {
        'train': len(rows.train),
        'valid': len(rows.valid),
        'test': len(rows.test),
        'log_mel_mean': split.mean,
        'log_mel_std': split.std,
        'probes': {
          name: {
            'learning_rate': probe.learning_rate,
            'valid_accuracy': probe.valid_accuracy.tolist(),
            'best_epoch': probe.best_epoch.tolist(),
          }
          for name, probe in split.probes.items()
        },
      }
      for rows, split in zip(folder.splits, splits, strict=True)
    ],
  }
  if baselines:
    difference = paired_difference(predictions[TRAINED], predictions[UNTRAINED], folder.labels, folder.splits)
    result['difference'] = dataclasses.asdict(difference)
  return result


def summarize(
  workdir: PathLike, step: int, evaluation: Evaluation, tasks: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
  """Returns the contents of results.json."""
  names = list(next(iter(tasks.values()))['representations'])
  mean: dict[str, Any] = {
    'representations': {
      name: {
        figure: float(np.mean([task['representations'][name][figure] for task in tasks.values()]))
        for figure in ('accuracy', 'macro_f1')
      }
      for name in names
    }
  }
  if UNTRAINED in names:
    # Without an interval: tasks may share clips, so that their errors need not be independent.
    mean['difference'] = {'accuracy': float(np.mean([task['difference']['accuracy'] for task in tasks.values()]))}
  return {
    'workdir': str(workdir),
    'step': step,
    'evaluation': dataclasses.asdict(evaluation),
    'tasks': dict(tasks),
    'mean': mean,
  }


def write_results(results: Mapping[str, Any], path: PathLike) -> None:
  """Writes results.json in one stroke: a crash leaves the old file, or none, but never a part of the new one."""
  text = json.dumps(results, indent=2) + '\n'
  with write_atomically(path) as file:
    file.write(text.encode())


def print_table(results: Mapping[str, Any], console: rich.console.Console) -> None:
  """Prints a row a task and a row with the mean over tasks; fits 80 columns. Accuracies in percent."""
  mean, workdir = results['mean'], rich.markup.escape(results['workdir'])
  table = rich.table.Table(
    title=f'Test accuracy in %: linear probes on step {results["step"]:,} of {workdir}',
    caption='Under each accuracy: its 95 % interval over the choice of test clips, and the macro-averaged F1.',
    title_justify='left',
    caption_justify='left',
  )
  # Folded, never cut short with an ellipsis: a figure that is cut is a wrong figure.
  table.add_column('task', overflow='fold')
  for name in mean['representations']:
    heading, style = HEADINGS[name], 'bold' if name == TRAINED else ''
    table.add_column(heading, justify='right', overflow='fold', style=style)
  if 'difference' in mean:
    table.add_column('trained -\nuntrained', justify='right', overflow='fold')
  for name, task in results['tasks'].items():
    clips = sum(split['test'] for split in task['splits'])
    label = _cell(name, f'{len(task["classes"])} classes', f'{clips:,} clips')
    table.add_row(label, *_figures(task), end_section=True)
  table.add_row('mean', *_figures(mean))
  console.print(table)
  for name, task in results['tasks'].items():
    if task.get('difference', {}).get('accuracy', 0) < 0:
      low, high = task['difference']['interval']
      reading = 'the test clips are too few to tell them apart' if high >= 0 else 'more than chance explains'
      line = f'{name}: the trained encoder is below the untrained one; {reading}. {task["caveat"]}'
      console.print(line.rstrip(), markup=False)


def _figures(figures: Mapping[str, Any]) -> list[str]:
  """Returns the cells of one task's representations and of its difference, or of the mean over tasks."""
  cells = []
  for figure in figures['representations'].values():
    interval = _interval(figure, '{:.1f}-{:.1f}')
    cells.append(_cell(f'{100 * figure["accuracy"]:.1f}', *interval, f'F1 {100 * figure["macro_f1"]:.1f}'))
  if 'difference' in figures:
    difference = figures['difference']
    interval = _interval(difference, '{:+.1f} to {:+.1f}')
    cells.append(_cell(f'{100 * difference["accuracy"]:+.1f}', *interval))
  return cells


def _interval(figure: Mapping[str, Any], form: str) -> list[str]:
  """Returns the interval's ends in percent, written in the given form, if there is an interval."""
  return [form.format(*(100 * end for end in figure['interval']))] if 'interval' in figure else []


def _cell(main: str, *details: str) -> str:
  return '\n'.join([rich.markup.escape(main), *(f'[not bold dim]{detail}[/]' for detail in details)])
