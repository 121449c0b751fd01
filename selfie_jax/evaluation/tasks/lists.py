"""The split lists that users give: of the makers of a dataset, or of those who published results on it."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from selfie_jax.data.table import read_table, require
from selfie_jax.errors import UserError
from selfie_jax.files import as_path

SPLIT_NAMES = {
  **{'train': 'train', 'training': 'train'},
  **{'valid': 'valid', 'validation': 'valid', 'val': 'valid', 'dev': 'valid'},
  **{'test': 'test', 'testing': 'test', 'eval': 'test', 'evaluation': 'test'},
}
_NUMBERED = {'1': 'train', '2': 'valid', '3': 'test'}


def parse_numbered(text: str, name: str) -> dict[str, str]:
  """Returns file -> split of VoxCeleb1's iden_split.txt: lines `1 id10003/VIDEO/00003.wav`.

  Raises:
    UserError: a line is something else; names it.
  """
  splits = {}
  for number, line in enumerate(text.splitlines(), 1):
    if not line.strip():
      continue
    parts = line.split()
    if len(parts) != 2 or parts[0] not in _NUMBERED:
      raise UserError(f'{name}, line {number} is "{line[:80]}"; it must be 1, 2 or 3, a space, and a file')
    splits[parts[1]] = _NUMBERED[parts[0]]
  return splits


def read_named(paths: Sequence[str]) -> dict[str, str]:
  """Returns file -> split of text files that list a file a line, the split being in their own names.

  Raises:
    UserError: a file is not there, its name tells no split (or several), or two lists have the same file.
  """
  splits: dict[str, str] = {}
  for path in paths:
    split = split_in_name(path)
    for line in read_text(path).splitlines():
      file = line.strip()
      if not file:
        continue
      if splits.get(file, split) != split:
        raise UserError(f'the lists have {file} in {splits[file]} and in {split}')
      splits[file] = split
  return splits


def split_in_name(path: str) -> str:
  """Returns the split that the name of a list tells: train_filtered.txt is of train.

  Raises:
    UserError: it tells none, or several.
  """
  words = re.findall('[a-z]+', PurePosixPath(path).stem.lower())
  found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
  if len(found) != 1:
    raise UserError(f'--lists has {path}: its name must say of which split it is: train, valid or test')
  return found.pop()


def read_columns(path: str, key: Sequence[str]) -> dict[str, dict[str, str]]:
  """Returns key -> row of a CSV with a column `split` and one of the columns `key`, the first that it has.

  Raises:
    UserError: the file or a column is not there, or a split is none.
  """
  rows = read_table(as_path(path))
  column = next((name for name in key if name in rows[0]), key[0])
  require(rows, (column, 'split'), as_path(path))
  for row in rows:
    if row['split'] not in SPLIT_NAMES:
      raise UserError(f'{path} has the split "{row["split"]}"; it can be train, valid or test')
    row['split'] = SPLIT_NAMES[row['split']]
  return {row[column]: row for row in rows}


def one_list(paths: Sequence[str], what: str) -> str | None:
  """Returns the only list, None without any.

  Raises:
    UserError: there are several.
  """
  if len(paths) > 1:
    raise UserError(f'--lists has {len(paths)} files; this task takes one, {what}')
  return paths[0] if paths else None


def read_text(path: str) -> str:
  """Returns what is in a text file.

  Raises:
    UserError: it is not there, or no text.
  """
  try:
    return as_path(path).read_bytes().decode('utf-8-sig')
  except FileNotFoundError as error:
    raise UserError(f'--lists has {path}, which does not exist') from error
  except UnicodeDecodeError as error:
    raise UserError(f'--lists has {path}, which is no UTF-8 text: {error}') from error
