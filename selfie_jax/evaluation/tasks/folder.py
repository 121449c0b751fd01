"""A labelled folder: `metadata.csv` beside its audio, and `task.json` if `prepare task` wrote it.

Columns `file_name` (relative to the folder), `split` (train, valid, test), `label`, and optionally `fold`; further ones
are ignored. With folds, each fold is the test set in turn and `split` is not looked at. A multi-label task has a column
`labels` instead of `label`: any number of labels with `;` between them, none too.
"""

import collections
import dataclasses
import difflib
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from selfie_jax import config as config_lib
from selfie_jax.data.table import read_table, require
from selfie_jax.errors import UserError
from selfie_jax.files import FileState, as_path, check_reachable, list_files
from selfie_jax.terminal import console

METADATA = 'metadata.csv'
DESCRIPTION = 'task.json'
SEPARATOR = ';'  # Between the labels of a clip.
SPLITS = ('train', 'valid', 'test')
_VALID_FRACTION = 0.1
_UNIT_SECONDS = 10.0
_EVAR_LEARNING_RATE = 1e-3


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
  title: str  # For people.
  files: tuple[epath.Path, ...]
  labels: np.ndarray  # (clips,) numbers into `classes`; of a multi-label task (clips, classes) bool.
  classes: tuple[str, ...]
  splits: tuple[Split, ...]
  unit_seconds: float  # Clips are cut there.
  evar_learning_rate: float  # Of the probe, under protocol `evar`.
  fingerprint: str  # SHA-256 of what the clips, labels and splits are; see `_fingerprint`.

  @property
  def multi_label(self) -> bool:
    """Whether a clip may have any number of labels, not exactly one."""
    return self.labels.ndim == 2


def find_tasks(evaluation: config_lib.Evaluation) -> tuple[config_lib.Task, ...]:
  """Returns the tasks that a job evaluates: those its config names, or else every labelled folder of `tasks_dir`.

  Raises:
    UserError: there are none, or `only` names one that is not among them.
  """
  tasks = evaluation.tasks
  if not tasks:
    found = _folders_in(evaluation.tasks_dir)
    if not found:
      raise UserError(
        f'tasks_dir is "{evaluation.tasks_dir}", and no folder in there has a {METADATA}: make some with '
        f'python -m selfie_jax.prepare task --task NAME --input DIR --output {evaluation.tasks_dir or "DIR"}/NAME'
      )
    tasks = tuple(config_lib.Task(name) for name in found if name in evaluation.only or _is_tested(evaluation, name))
    if not tasks:
      raise UserError(f'none of the {len(found)} labelled folders in {evaluation.tasks_dir} has clips to test on')
  names = [task.name for task in tasks]
  for name in evaluation.only:
    if name not in names:
      nearest = difflib.get_close_matches(name, names, n=1)
      hint = f'did you mean "{nearest[0]}"?' if nearest else f'they are {", ".join(names)}'
      raise UserError(f'config key "only" names the task "{name}", which is not among the {len(names)} tasks: {hint}')
  return tuple(task for task in tasks if not evaluation.only or task.name in evaluation.only)


def _is_tested(evaluation: config_lib.Evaluation, name: str) -> bool:
  """Whether a folder that nobody has named has clips to test on, beside others; if not, says that it is left out."""
  path = as_path(evaluation.tasks_dir) / name / METADATA
  rows = read_table(path)
  if 'fold' not in rows[0]:  # A table of another making is a mistake, and not a folder without a test set.
    require(rows, ('file_name', 'split'), path)
  splits = collections.Counter(row.get('split', '') for row in rows)
  if any(row.get('fold') for row in rows) or (splits['train'] and splits['test']):
    return True
  listing = ', '.join(f'{split or "none"} {count}' for split, count in splits.items())
  console.print(f'{name}: left out, it has no folds, and no clips of both splits train and test (clips: {listing})')
  return False


def load_folder(task: config_lib.Task, tasks_dir: str = '') -> LabelledFolder:
  """Reads a task's metadata and checks all that can be checked without decoding.

  Rows of other splits than train, valid and test are left out, with a notice. Without a split valid, a random tenth of
  train is held out. `task.unit_seconds` wins over that of task.json.

  Args:
    task: where `path` is '', it is the folder of the task's name in `tasks_dir`.
    tasks_dir: local, gs:// or s3://.

  Raises:
    UserError: no metadata, a column, value or file is missing, a file is listed twice, or the splits cannot be used
      (one has no clips, or has a class that train lacks).
  """
  folder = _folder_of(task, tasks_dir)
  path = folder / METADATA
  rows = read_table(path)
  column = 'labels' if 'labels' in rows[0] and 'label' not in rows[0] else 'label'
  required = ('file_name', 'label') if column == 'label' else ('file_name',)
  folds = [row.get('fold', '') for row in rows]
  if any(folds):
    require(rows, (*required, 'fold'), path)
  else:
    require(rows, (*required, 'split'), path)
    rows = _of_known_splits(rows, task.name, path)
  files = tuple(folder / row['file_name'] for row in rows)
  states = _check_files(files, path)
  texts = [row[column] for row in rows]
  classes, labels = _one_hot(texts) if column == 'labels' else np.unique(texts, return_inverse=True)
  if len(classes) < (1 if column == 'labels' else 2):
    only = f'one label only, "{classes[0]}"' if len(classes) else 'no label in any row'
    raise UserError(f'{path} has {only}: a task needs at least {1 if column == "labels" else 2}')
  if any(folds):
    splits = _fold_splits(np.array(folds), labels, classes, path)
  else:
    names = np.array([row['split'] for row in rows])
    train, valid, test = (np.flatnonzero(names == name) for name in SPLITS)
    split = Split(train, valid, test) if len(valid) else _held_out(train, test, 0, labels, classes, path)
    splits = (_checked(split, labels, classes, path),)
  description = read_description(folder)
  return LabelledFolder(
    name=task.name,
    title=description.get('title', task.name),
    files=files,
    labels=labels,
    classes=tuple(map(str, classes)),
    splits=splits,
    unit_seconds=task.unit_seconds or description.get('unit_seconds', _UNIT_SECONDS),
    evar_learning_rate=description.get('evar_learning_rate', _EVAR_LEARNING_RATE),
    fingerprint=_fingerprint(rows, column, states),
  )


def read_description(folder: epath.Path) -> dict[str, Any]:
  """Returns what task.json says, {} where there is none.

  Raises:
    UserError: it is no JSON object, or a value that we need is of another kind.
  """
  path = folder / DESCRIPTION
  try:
    description = json.loads(path.read_bytes())
  except FileNotFoundError:
    return {}
  except ValueError as error:
    raise UserError(f'{path} cannot be read as JSON: {error}') from error
  if not isinstance(description, dict):
    raise UserError(f'{path} has no JSON object in it')
  if not isinstance(description.get('title', ''), str):
    raise UserError(f'{path}: "title" is {description["title"]!r}; it must be text')
  for key in ('unit_seconds', 'evar_learning_rate'):
    value = description.get(key, 1.0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float('inf'):
      raise UserError(f'{path}: "{key}" is {value!r}; it must be a number above 0')
  return description


def _folder_of(task: config_lib.Task, tasks_dir: str) -> epath.Path:
  """Returns the task's folder, having checked what its name alone tells."""
  if not task.path and not tasks_dir:
    raise UserError(f'task "{task.name}" has no path: give it one, or --config.tasks_dir=DIR')
  check_reachable(task.path or tasks_dir)
  if task.path:
    return as_path(task.path)
  folder = as_path(tasks_dir) / task.name
  if not (folder / METADATA).exists():
    found = _folders_in(tasks_dir)
    raise UserError(
      f'{folder} has no {METADATA}; labelled folders in {tasks_dir}: {", ".join(found) or "none"}; make this one with '
      f'python -m selfie_jax.prepare task --task {task.name} --input DIR --output {folder}'
    )
  return folder


def _folders_in(tasks_dir: str) -> list[str]:
  """Returns the names of the labelled folders of a folder, sorted."""
  if not tasks_dir:
    return []
  check_reachable(tasks_dir)
  folder = as_path(tasks_dir)
  if not folder.is_dir():
    return []
  return sorted(child.name for child in folder.iterdir() if (child / METADATA).exists())


def _of_known_splits(rows: list[dict[str, str]], name: str, path: epath.Path) -> list[dict[str, str]]:
  """Returns the rows of train, valid and test, if there are some of train and of test."""
  counts = collections.Counter(row['split'] for row in rows)
  listing = ', '.join(f'{split} {count}' for split, count in counts.items())
  misnamed = any(split.lower().startswith(('val', 'dev')) for split in counts)
  for split in SPLITS if misnamed else ('train', 'test'):
    if not counts[split]:
      raise UserError(f'{path} has no clips of split "{split}"; it has {listing}')
  if not counts['valid']:
    console.print(f'{name}: no clips of split valid, a tenth of train is held out to validate with (clips: {listing})')
  if set(counts) - set(SPLITS):
    console.print(f'{name}: splits other than train, valid and test are left out (clips: {listing})')
  return [row for row in rows if row['split'] in SPLITS]


def _check_files(files: Sequence[epath.Path], path: epath.Path) -> list[FileState]:
  """Returns the state of each file. Folders are listed, once each: files are many."""
  repeated = [file for file, count in collections.Counter(files).items() if count > 1]
  if repeated:
    raise UserError(f'{path} lists {len(repeated)} files more than once, the first is {repeated[0]}')
  listed = {folder: list_files(folder) for folder in {file.parent for file in files}}
  states = [listed[file.parent].get(file.name) for file in files]
  missing = [file for file, state in zip(files, states, strict=True) if state is None]
  if missing:
    raise UserError(
      f'{path} lists {len(files)} files and {len(missing)} of them do not exist, the first is {missing[0]}'
    )
  return states


def _fingerprint(rows: Sequence[dict[str, str]], column: str, states: Sequence[FileState]) -> str:
  """Returns what changes when a row that is used, or a file, does. Reads no audio."""
  digest = hashlib.sha256()
  for row, state in zip(rows, states, strict=True):
    facts = (row['file_name'], row[column], row.get('split', ''), row.get('fold', ''), state.size, state.tag)
    digest.update(json.dumps(facts).encode() + b'\n')
  return digest.hexdigest()


def split_labels(text: str) -> list[str]:
  """Returns the labels of a value of column `labels`."""
  return [label.strip() for label in text.split(SEPARATOR) if label.strip()]


def _one_hot(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """Returns the classes, sorted, and (clips, classes) bool: which of them a clip has."""
  of_clips = [split_labels(text) for text in texts]
  classes = sorted({label for labels in of_clips for label in labels})
  numbers = {label: number for number, label in enumerate(classes)}
  one_hot = np.zeros((len(texts), len(classes)), bool)
  for row, labels in zip(one_hot, of_clips, strict=True):
    row[[numbers[label] for label in labels]] = True
  return np.array(classes), one_hot


def _fold_splits(folds: np.ndarray, labels: np.ndarray, classes: np.ndarray, path: epath.Path) -> tuple[Split, ...]:
  """One split a fold, which is its test set."""
  names = sorted(set(folds.tolist()), key=lambda name: (len(name), name))  # '10' after '9'.
  if len(names) < 2:
    raise UserError(f'{path} has one fold only, "{names[0]}": a task with folds needs at least 2')
  splits = []
  for number, name in enumerate(names):
    test, rest = np.flatnonzero(folds == name), np.flatnonzero(folds != name)
    splits.append(_checked(_held_out(rest, test, number, labels, classes, path), labels, classes, path))
  return tuple(splits)


def _held_out(
  rest: np.ndarray, test: np.ndarray, seed: int, labels: np.ndarray, classes: np.ndarray, path: epath.Path
) -> Split:
  """Returns a split whose validation set is a random tenth of `rest`: of each class, and at least one of its clips.

  A class of a single clip is trained on, and not validated with.
  """
  # A clip of a multi-label task is of several classes, or of none: there is no tenth of each.
  groups = [rest] if labels.ndim == 2 else _by_label(rest, labels)
  singles = [rows for rows in groups if len(rows) < 2]
  if len(singles) == len(groups):
    raise UserError(f'{path}: no label has 2 clips, one to train on and one to validate with: add some')
  if singles:
    first = classes[labels[singles[0][0]]]
    console.print(f'{path}: {len(singles)} labels have 1 clip to train on and none to validate with, as has "{first}"')
  random = np.random.default_rng(seed)
  tenths = [
    random.choice(rows, max(1, round(_VALID_FRACTION * len(rows))), replace=False) for rows in groups if len(rows) > 1
  ]
  valid = np.sort(np.concatenate(tenths))
  return Split(np.setdiff1d(rest, valid), valid, test)


def _by_label(rows: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
  return [rows[labels[rows] == label] for label in np.unique(labels[rows])]


def _checked(split: Split, labels: np.ndarray, classes: np.ndarray, path: epath.Path) -> Split:
  """Returns `split` if train has every class that valid and test have; of multi-label ones it only says so."""
  for name in ('valid', 'test'):
    unknown = np.setdiff1d(_present(labels[getattr(split, name)]), _present(labels[split.train]))
    if not len(unknown):
      continue
    message = f'{path}: {len(unknown)} labels are in {name} and not in train, the first is "{classes[unknown[0]]}"'
    if labels.ndim == 1:
      raise UserError(f'{message}: take its clips out of the table, or move some to train')
    console.print(message)
  return split


def _present(labels: np.ndarray) -> np.ndarray:
  """Returns the numbers of the classes that some clip has."""
  return np.flatnonzero(labels.any(axis=0)) if labels.ndim == 2 else np.unique(labels)
