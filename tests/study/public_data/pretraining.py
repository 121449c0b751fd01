"""The list of clips to pre-train on: all that no task holds out."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from selfie_jax.data.table import read_table
from tests.study.public_data.folders import METADATA, Row, write_table

FILE = 'pretrain.csv'
# Folders with the same clips under the same file names: what one of them holds out, none may give.
_SHARED = {
  'instrument': 'notes',
  'pitch': 'notes',
  'mandarin_initial': 'mandarin',
  'mandarin_tone': 'mandarin',
}


def write_list(output: Path, names: Iterable[str]) -> tuple[int, float]:
  """Writes OUTPUT/pretrain.csv from the tables of the folders; returns how many clips it has, and how many hours.

  Raises:
    UserError: a table cannot be read.
  """
  tables = {name: read_table(output / name / METADATA) for name in sorted(names)}
  rows = free_clips(tables)
  write_table(output / FILE, rows)
  return len(rows), sum(float(row['seconds']) for row in rows) / 3_600


def free_clips(tables: dict[str, Sequence[dict[str, str]]]) -> list[Row]:
  """Returns the rows of the list, each clip once: those of train, but none that is in another split of any task.

  Args:
    tables: a folder's name -> the rows of its metadata.csv.
  """
  held_out = {_clip_of(name, row) for name, rows in tables.items() for row in rows if row['split'] != 'train'}
  free: dict[tuple[str, str], Row] = {}
  for name, rows in tables.items():
    for row in rows:
      clip = _clip_of(name, row)
      if clip not in held_out and clip not in free:
        free[clip] = {'file_name': f'{name}/{row["file_name"]}', 'seconds': row['seconds'], 'source': row['source']}
  return list(free.values())


def _clip_of(name: str, row: dict[str, str]) -> tuple[str, str]:
  """Returns what tells clips apart."""
  return _SHARED.get(name, name), row['file_name']
