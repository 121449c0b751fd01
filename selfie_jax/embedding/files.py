"""Embeddings on disk: .npz or Parquet, written block by block, and there when they are complete or not at all."""

import dataclasses
import itertools
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selfie_jax.errors import UserError
from selfie_jax.files import PathLike, as_path, is_remote, naming, write_atomically

_COPY_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class Block:
  """Some files' embeddings."""

  embeddings: np.ndarray  # (n, d) float32.
  files: list[str]  # Their names.
  columns: dict[str, list[str]]  # What else is known of them, by column.


def check_ending(path: PathLike) -> None:
  """Checks that the file's ending tells a format.

  Raises:
    UserError: it does not; names those that do.
  """
  if as_path(path).suffix not in _WRITERS:
    raise UserError(f'{path} ends neither in .npz nor in .parquet: give the output one of these endings')


def write(path: PathLike, blocks: Iterable[Block]) -> int:
  """Writes embeddings in the format of the file's ending. One block at a time is in memory, besides all files' names.

  .npz: the arrays `embeddings` (n, d) float32 and `files` (n,); nothing of the columns. Parquet: a row a file, in the
  columns `file`, `embedding` (a fixed-size list of d floats) and those given, all of them strings; a row group a block.

  Blocks go to a file without a name beside the output, which therefore takes twice its size while it is written, and
  of which nothing is left if the process is killed.

  Args:
    path: local, gs:// or s3://.
    blocks: at least one. What they raise ends it, and nothing is written.

  Returns:
    How many embeddings they have.
  """
  folder = tempfile.gettempdir() if is_remote(path) else os.path.dirname(path) or '.'
  with naming(folder if is_remote(path) else path), tempfile.TemporaryFile(dir=folder) as scratch:
    return _WRITERS[as_path(path).suffix](path, blocks, scratch)


def _write_npz(path: PathLike, blocks: Iterable[Block], scratch: BinaryIO) -> int:
  files: list[str] = []
  for block in blocks:
    scratch.write(np.ascontiguousarray(block.embeddings, '<f4').data)
    files += block.files
    width = block.embeddings.shape[1]
  scratch.seek(0)
  # An array's size stands at its start, and is not known before the end: files may be left out.
  header = {'descr': '<f4', 'fortran_order': False, 'shape': (len(files), width)}
  with write_atomically(path) as file, zipfile.ZipFile(file, 'w') as archive:
    with archive.open('embeddings.npy', 'w', force_zip64=True) as member:
      np.lib.format.write_array_header_1_0(member, header)
      shutil.copyfileobj(scratch, member, _COPY_BYTES)
    with archive.open('files.npy', 'w', force_zip64=True) as member:
      np.lib.format.write_array(member, np.array(files, np.str_), allow_pickle=False)
  return len(files)


def _write_parquet(path: PathLike, blocks: Iterable[Block], scratch: BinaryIO) -> int:
  tables = map(_table, blocks)
  first = next(tables)
  count = 0
  named = [name for name in first.column_names if name != 'embedding']  # Floats that repeat would be by accident.
  with pq.ParquetWriter(scratch, first.schema, use_dictionary=named) as writer:
    for table in itertools.chain([first], tables):
      writer.write_table(table, row_group_size=len(table))
      count += len(table)
  scratch.seek(0)
  with write_atomically(path) as file:
    shutil.copyfileobj(scratch, file, _COPY_BYTES)
  return count


def _table(block: Block) -> pa.Table:
  values = pa.array(np.ascontiguousarray(block.embeddings, np.float32).ravel())
  return pa.table(
    {
      'file': pa.array(block.files, pa.string()),
      'embedding': pa.FixedSizeListArray.from_arrays(values, block.embeddings.shape[1]),
    }
    | {name: pa.array(column, pa.string()) for name, column in block.columns.items()}
  )


_WRITERS: dict[str, Callable[[PathLike, Iterable[Block], BinaryIO], int]] = {
  '.npz': _write_npz,
  '.parquet': _write_parquet,
}
