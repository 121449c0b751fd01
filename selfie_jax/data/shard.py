"""A shard: a TFRecord file and, beside it, an index that makes each of its records a single read.

Each record is a `tf.train.Example` with the features `audio` (int16 little-endian samples, one bytes value),
`sample_rate`, `id` (the clip's file name) and, where they are known, `labels`.
"""

import dataclasses
import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from selfie_jax.data import tfrecord
from selfie_jax.errors import UserError
from selfie_jax.files import write_atomically

# One row a record, all in bytes from the start of the file but `samples`.
INDEX_DTYPE = np.dtype([('offset', '<i8'), ('length', '<i8'), ('audio_offset', '<i8'), ('samples', '<i8')])


@dataclasses.dataclass(frozen=True)
class Shard:
  """What a manifest says of a shard. `clips` is its number of records."""

  name: str
  clips: int
  bytes: int
  sha256: str
  index_sha256: str


def index_path(shard: Path) -> Path:
  """The index of a shard lies beside it."""
  return shard.with_name(shard.name + '.index')


def write_shard(path: Path, examples: Iterable[tfrecord.Features]) -> Shard:
  """Writes a shard and its index; neither has its name before it is complete.

  Args:
    path: the shard, `*.tfrecord`.
    examples: the features of each record; `audio` is one bytes value of int16 samples.
  """
  rows: list[tuple[int, int, int, int]] = []
  offset = 0
  digest = hashlib.sha256()
  with write_atomically(path) as file:
    for features in examples:
      data = tfrecord.encode_example(features)
      record = tfrecord.frame(data)
      audio = features['audio'][0]
      # The first match will do: wherever it lies, its bytes are the audio's.
      rows.append((offset, len(data), offset + tfrecord.HEADER_BYTES + data.index(audio), len(audio) // 2))
      file.write(record)
      digest.update(record)
      offset += len(record)
  index = _encode_index(rows)
  with write_atomically(index_path(path)) as file:
    file.write(index)
  return Shard(path.name, len(rows), offset, digest.hexdigest(), hashlib.sha256(index).hexdigest())


def _encode_index(rows: list[tuple[int, int, int, int]]) -> bytes:
  """The rows as an index file (NumPy's .npy format)."""
  buffer = io.BytesIO()
  np.save(buffer, np.array(rows, INDEX_DTYPE))
  return buffer.getvalue()


def read_index(path: Path, shard: Shard) -> np.ndarray:
  """Reads and checks the index of the shard at `path`: (clips,) INDEX_DTYPE.

  Raises:
    UserError: it is missing, or not the one that the manifest knows.
  """
  try:
    data = index_path(path).read_bytes()
  except OSError as error:
    raise UserError(f'cannot read the index {index_path(path)}: {error.strerror}') from error
  if hashlib.sha256(data).hexdigest() != shard.index_sha256:
    raise UserError(f"the index {index_path(path)} is damaged: its SHA-256 is not the manifest's")
  index = np.load(io.BytesIO(data), allow_pickle=False)
  if len(index) != shard.clips:
    raise UserError(f'the index {index_path(path)} has {len(index)} records, the manifest says {shard.clips}')
  return index


def read_audio(path: Path, number: int, row: np.void) -> np.ndarray:
  """Reads record `number` of a shard, checks its CRC and returns its audio, (samples,) int16 (read-only).

  Raises:
    UserError: the record is damaged or the shard cannot be read; the message names both.
  """
  return audio_of(tfrecord.read_record(path, number, int(row['offset']), int(row['length'])), row)


def audio_of(data: bytes, row: np.void) -> np.ndarray:
  """The audio in a record's data, (samples,) int16, found by its row of the index: nothing is parsed or copied."""
  start = int(row['audio_offset'] - row['offset']) - tfrecord.HEADER_BYTES
  return np.frombuffer(data, '<i2', count=int(row['samples']), offset=start)
