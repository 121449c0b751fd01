"""The tuning tasks: what a setting of the study is chosen by, without a look at a clip of a test set.

A public task's validation set has 107 to 274 clips, so few that the mean of five is good to about 1.7 points; and of
the instruments it is other notes of the presets that were trained on. So all clips of train and valid, 4,638, are cut
into five folds instead, each of which is the test set in turn, with the same number of clips of each class as far as
that goes, and with all clips that share a kit, a phrase, a syllable, a preset or a recording in one fold. The strength
of a fold's penalty is chosen, as in any task with folds, on a random tenth of the other folds.
"""

import csv
import io
import os
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from selfie_jax.data.table import read_table, require
from selfie_jax.errors import UserError
from selfie_jax.files import write_atomically

FOLDS = 5
GROUPS = {  # Task -> the column of its metadata.csv.
  'voice': 'phrase',
  'mandarin_initial': 'syllable',
  'instrument': 'preset',
  'drum': 'kit',
  'sound_event': 'group',
}
_PREFIX = 'tuning_'


def tuning_name(task: str) -> str:
  """Returns the name of a task's tuning task."""
  return _PREFIX + task


def write_tuning_tasks(data: Path, output: Path) -> None:
  """Writes a labelled folder, `tuning_name(task)`, for each of the five tasks; its audio stays where it is.

  Args:
    data: where the public tasks' folders are.
    output: the folder of the tuning tasks' folders.

  Raises:
    UserError: a task's table lacks a column, a row lacks a group, or there is no clip of train and valid.
  """
  for task, column in GROUPS.items():
    path = data.resolve() / task / 'metadata.csv'
    rows = read_table(path)
    require(rows, ('file_name', 'label', 'split', column), path)
    rows = [row for row in rows if row['split'] in ('train', 'valid')]
    if not rows:
      raise UserError(f'{path} has no clips of the splits train and valid to tune on')
    labels, groups = (np.array([row[key] for row in rows]) for key in ('label', column))
    cut = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels, groups)
    folder = output.resolve() / tuning_name(task)
    folder.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(('file_name', 'label', 'split', 'fold'))
    for fold, (_, members) in enumerate(cut):
      names = (os.path.relpath(path.parent / rows[i]['file_name'], folder) for i in members)
      writer.writerows((name, labels[i], 'train', fold) for name, i in zip(names, members, strict=True))
    with write_atomically(folder / 'metadata.csv') as file:
      file.write(table.getvalue().encode())
