"""CSV tables with a header."""

import csv
import difflib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from etils import epath

from selfie_jax.errors import UserError

_FIRST_ROW = 2  # As a spreadsheet counts: row 1 is the header.


def read_table(path: Path | epath.Path) -> list[dict[str, str]]:
  """Returns the rows, column -> value, without the spaces around either; a value that is not there is ''.

  Raises:
    UserError: no such file, not a CSV in UTF-8, or no rows.
  """
  try:
    text = io.StringIO(path.read_bytes().decode('utf-8-sig'), newline='')
    rows = [
      {key.strip(): (value or '').strip() for key, value in row.items() if isinstance(key, str)}
      for row in csv.DictReader(text)
    ]
  except FileNotFoundError as error:
    raise UserError(f'{path} does not exist') from error
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise UserError(f'{path} cannot be read as a UTF-8 CSV file: {error}') from error
  if not rows:
    raise UserError(f'{path} has no rows')
  return rows


def require(rows: Sequence[dict[str, str]], columns: Iterable[str], path: Path | epath.Path) -> None:
  """Checks that the columns of the table from `path` are there and filled in.

  Raises:
    UserError: one is not; names the column, and the nearest one there is or the row.
  """
  present = list(rows[0])
  for column in columns:
    if column not in present:
      nearest = difflib.get_close_matches(column, present, n=1)
      hint = f'is "{nearest[0]}" meant?' if nearest else f'it has {", ".join(present)}'
      raise UserError(f'{path} has no column "{column}": {hint}')
    empty = [i for i, row in enumerate(rows) if not row[column]]
    if empty:
      raise UserError(f'{path} has {len(empty)} rows without a "{column}", the first in row {empty[0] + _FIRST_ROW}')
