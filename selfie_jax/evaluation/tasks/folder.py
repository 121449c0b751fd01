"""A labelled folder: `metadata.csv` beside its audio.

Columns `file_name` (relative to the folder), `split` (train, valid, test), `label`, and optionally `fold`; further ones
are ignored. With folds, each fold is the test set in turn and `split` is not looked at.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath

from selfie_jax import config as config_lib
from selfie_jax.data.table import read_table, require
from selfie_jax.errors import UserError
from selfie_jax.files import as_path, check_reachable, missing_files
from selfie_jax.terminal import console

_SPLITS = ('train', 'valid', 'test')
_VALID_FRACTION = 0.1


@dataclasses.dataclass(frozen=True)
class Split:
  """Which clips a probe is trained on, chosen by and tested on: row numbers into the task's clips."""

  train: np.ndarray
  valid: np.ndarray
  test: np.ndarray


@dataclasses.dataclass(frozen=True)
class LabelledFolder:
  """A task's clips (not yet decoded), their classes, and one split, or one a fold."""

  name: str
  files: tuple[epath.Path, ...]
  labels: np.ndarray  # (clips,) numbers into `classes`.
  classes: tuple[str, ...]
  splits: tuple[Split, ...]


def load_folder(task: config_lib.Task) -> LabelledFolder:
  """Reads a task's metadata and checks all that can be checked without decoding.

  Rows of other splits than train, valid and test are left out, with a notice.

  Raises:
    UserError: no metadata, a column, value or file is missing, a file is listed twice, or the splits cannot be used
      (one has no clips, or has a class that train lacks).
  """
  check_reachable(task.path)
  path = as_path(task.path) / 'metadata.csv'
  rows = read_table(path)
  folds = [row.get('fold', '') for row in rows]
  if any(folds):
    require(rows, ('file_name', 'label', 'fold'), path)
  else:
    require(rows, ('file_name', 'label', 'split'), path)
    rows = _of_known_splits(rows, task.name, path)
  files = tuple(path.parent / row['file_name'] for row in rows)
  _check_files(files, path)
  classes, labels = np.unique([row['label'] for row in rows], return_inverse=True)
  if len(classes) < 2:
    raise UserError(f'{path} has one label only, "{classes[0]}": a task needs at least 2')
  if any(folds):
    splits = _fold_splits(np.array(folds), labels, classes, path)
  else:
    names = np.array([row['split'] for row in rows])
    splits = (_checked(Split(*(np.flatnonzero(names == name) for name in _SPLITS)), labels, classes, path),)
  return LabelledFolder(task.name, files, labels, tuple(map(str, classes)), splits)


def _of_known_splits(rows: list[dict[str, str]], name: str, path: epath.Path) -> list[dict[str, str]]:
  """Returns the rows of train, valid and test, if there are some of each."""
  counts = collections.Counter(row['split'] for row in rows)
  listing = ', '.join(f'{split} {count}' for split, count in counts.items())
  for split in _SPLITS:
    if not counts[split]:
      raise UserError(f'{path} has no clips of split "{split}"; it has {listing}')
  if len(counts) > len(_SPLITS):
    console.print(f'{name}: splits other than train, valid and test are left out (clips: {listing})')
  return [row for row in rows if row['split'] in _SPLITS]


def _check_files(files: Sequence[epath.Path], path: epath.Path) -> None:
  repeated = [file for file, count in collections.Counter(files).items() if count > 1]
  if repeated:
    raise UserError(f'{path} lists {len(repeated)} files more than once, the first is {repeated[0]}')
  missing = missing_files(files)
  if missing:
    raise UserError(
      f'{path} lists {len(files)} files and {len(missing)} of them do not exist, the first is {missing[0]}'
    )


def _fold_splits(folds: np.ndarray, labels: np.ndarray, classes: np.ndarray, path: epath.Path) -> tuple[Split, ...]:
  """One split a fold: the fold is the test set, a random tenth of each class of the rest is the validation set."""
  names = sorted(set(folds.tolist()), key=lambda name: (len(name), name))  # '10' after '9'.
  if len(names) < 2:
    raise UserError(f'{path} has one fold only, "{names[0]}": a task with folds needs at least 2')
  splits = []
  for number, name in enumerate(names):
    test = np.flatnonzero(folds == name)
    rest = np.flatnonzero(folds != name)
    random = np.random.default_rng(number)
    valid = []
    for label in np.unique(labels[rest]):
      rows = rest[labels[rest] == label]
      if len(rows) < 2:
        raise UserError(
          f'{path}: label "{classes[label]}" has {len(rows)} clip outside fold "{name}"; '
          'it needs 2, one to train on and one to validate with'
        )
      valid.append(random.choice(rows, max(1, round(_VALID_FRACTION * len(rows))), replace=False))
    valid = np.sort(np.concatenate(valid))
    splits.append(_checked(Split(np.setdiff1d(rest, valid), valid, test), labels, classes, path))
  return tuple(splits)


def _checked(split: Split, labels: np.ndarray, classes: np.ndarray, path: epath.Path) -> Split:
  """Returns `split` if train has every class that valid and test have."""
  for name in ('valid', 'test'):
    unknown = np.setdiff1d(labels[getattr(split, name)], labels[split.train])
    if len(unknown):
      raise UserError(
        f'{path}: {len(unknown)} labels are in {name} and not in train, the first is "{classes[unknown[0]]}"'
      )
  return split
