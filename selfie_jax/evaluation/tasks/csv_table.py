"""Anybody's labelled audio as a task: a CSV, or folders that are named after the classes."""

import collections
import os
from collections.abc import Sequence

from etils import epath

from selfie_jax.data.audio_files import SUFFIXES
from selfie_jax.data.clip import AudioFile
from selfie_jax.data.table import read_table, require
from selfie_jax.errors import UserError
from selfie_jax.evaluation.tasks.folder import METADATA, split_labels
from selfie_jax.evaluation.tasks.lists import SPLIT_NAMES
from selfie_jax.evaluation.tasks.splitting import make_folds
from selfie_jax.evaluation.tasks.tree import Listing, Row, Tree, list_tree
from selfie_jax.files import as_path, check_reachable, is_remote, list_files


def listing(root: str, folds: int | None = None) -> tuple[Tree, Listing]:
  """Lists a task of the user's own.

  Args:
    root: a CSV, or a folder with a metadata.csv: columns `file_name` (relative to the CSV), `label` or `labels` (with
      `;` between them), `split` or `fold`, and optionally `group`. Or a folder of CLASS/*.wav or SPLIT/CLASS/*.wav.
    folds: make so many folds, where there is neither split nor fold: stratified, the clips of a group together.

  Raises:
    UserError: the input is none of these, has no splits and no `folds` are asked for, or has some and they are.
  """
  check_reachable(root)
  root = root if is_remote(root) else os.path.abspath(os.path.expanduser(root))
  path = as_path(root)
  if path.is_dir():
    table = path / METADATA
    return _of_csv(table, folds) if table.exists() else _of_folders(root, folds)
  if not path.exists():
    raise UserError(f'--input is {root}, and there is no such folder or CSV')
  return _of_csv(path, folds)


def _of_csv(path: epath.Path, folds: int | None) -> tuple[Tree, Listing]:
  table = read_table(path)
  multi_label = 'labels' in table[0] and 'label' not in table[0]
  require(table, ('file_name',) if multi_label else ('file_name', 'label'), path)
  names = [row['file_name'] for row in table]
  repeated = [name for name, count in collections.Counter(names).items() if count > 1]
  if repeated:
    raise UserError(f'{path} lists {len(repeated)} files more than once, the first is {repeated[0]}')
  part = next((column for column in ('fold', 'split') if any(row.get(column) for row in table)), None)
  if part:
    require(table, (part,), path)
  labels = [tuple(split_labels(row['labels'])) if multi_label else (row['label'],) for row in table]
  groups = [row.get('group', '') for row in table]
  parts = [_split(row[part]) if part == 'split' else row[part] for row in table] if part else None
  rows = _rows(names, labels, parts, groups, folds, multi_label, path)
  return _tree_of(path, names), Listing(rows, folds=part != 'split', multi_label=multi_label)


def _tree_of(path: epath.Path, names: Sequence[str]) -> Tree:
  """Returns the files that a CSV names, as far as they are there: they may be anywhere."""
  places = {name: path.parent / name for name in names}
  listed = {folder: list_files(folder) for folder in {place.parent for place in places.values()}}
  states = {name: state for name, place in places.items() if (state := listed[place.parent].get(place.name))}
  return Tree(
    os.fspath(path.parent),
    files={name: AudioFile(os.fspath(places[name]), state.size) for name, state in states.items()},
    versions={name: state.tag for name, state in states.items()},
  )


def _of_folders(root: str, folds: int | None) -> tuple[Tree, Listing]:
  tree = list_tree(root)
  files = [file for file in tree.below('', SUFFIXES) if '/' in file]
  if not files:
    raise UserError(f'{root} has neither a {METADATA} nor CLASS/*.wav or SPLIT/CLASS/*.wav: no audio in its folders')
  tops = sorted({file.split('/')[0] for file in files})
  by_split = all(top.lower() in SPLIT_NAMES for top in tops) and all(file.count('/') > 1 for file in files)
  labels = [(file.split('/')[1 if by_split else 0],) for file in files]
  parts = [_split(file.split('/')[0]) for file in files] if by_split else None
  rows = _rows(files, labels, parts, [''] * len(files), folds, False, root)
  others = len(tree.files) - len(files)
  notices = (f'{others} files are no audio, or in no folder of a class, and are left out',) if others else ()
  return tree, Listing(rows, folds=parts is None, notices=notices)


def _rows(
  names: Sequence[str],
  labels: Sequence[tuple[str, ...]],
  parts: Sequence[str] | None,
  groups: Sequence[str],
  folds: int | None,
  multi_label: bool,
  root: os.PathLike[str] | str,
) -> tuple[Row, ...]:
  if parts is not None and folds is not None:
    raise UserError(f'{root} has its own splits or folds, and --folds is {folds}: leave it out')
  if parts is None:
    if folds is None:
      raise UserError(f'{root} says no split and no fold of its clips: give --folds N to make N folds')
    parts = make_folds(names, None if multi_label else [label for (label,) in labels], groups, folds)
  return tuple(map(Row, names, labels, parts, groups))


def _split(name: str) -> str:
  return SPLIT_NAMES.get(name.lower(), name)
