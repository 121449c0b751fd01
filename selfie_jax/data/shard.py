"""A shard: a TFRecord file and, beside it, an index that makes each of its records a single read.

Each record is a `tf.train.Example` with the features `audio` (one bytes value: int16 little-endian samples, or a FLAC
file), `sample_rate`, `id` (the clip's name) and `labels` (numbers of the dataset's classes, none or many).
"""

import dataclasses
import hashlib
import io
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import soundfile

from selfie_jax.data import tfrecord
from selfie_jax.errors import UserError
from selfie_jax.files import PathLike, write_atomically

# An index is such rows and nothing else, one a record: where the record starts in the file, the bytes of its data,
# where in the data its audio starts and how many bytes that is, its samples, and the masked CRC of its data, by which
# a record of another shard is told apart. All of AudioSet (2.1 million clips) takes 58 MB.
INDEX_DTYPE = np.dtype(
  [
    ('offset', '<u8'),
    ('length', '<u4'),
    ('audio_start', '<u4'),
    ('audio_bytes', '<u4'),
    ('samples', '<u4'),
    ('crc', '<u4'),
  ]
)
AUDIO_FORMATS = ('int16', 'flac')
# Protocol buffers end at 2 GiB, TensorFlow's and ours; the rest of the record (name, labels) is left a mebibyte.
MAX_SAMPLES = (2**31 - 2**20) // 2
# libFLAC's level 5 of 8, its default: on speech a higher one saves 2 % of the bytes for 20 to 70 % more time.
_FLAC_LEVEL = 5 / 8


class Example(NamedTuple):
  """A clip that becomes a record. `samples` is (samples,) int16, `labels` are numbers of the dataset's classes."""

  id: str
  samples: np.ndarray
  sample_rate: int
  labels: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class Shard:
  """What a manifest says of a shard. `clips` is its number of records."""

  name: str
  split: str
  clips: int
  bytes: int
  sha256: str
  index_sha256: str


class _Record(NamedTuple):
  """The data of a record, and the audio in it."""

  data: bytes
  audio: bytes
  samples: int


def index_path(shard: PathLike) -> str:
  """The index of a shard lies beside it."""
  return f'{os.fspath(shard)}.index'


def write_shard(path: PathLike, split: str, examples: Iterable[Example], audio_format: str) -> Shard:
  """Writes a shard and then its index; neither has its name before it is complete.

  The same examples give the same bytes; those of FLAC are a function of libsndfile's version as well.

  Args:
    path: the shard, `*.tfrecord`: local, gs:// or s3://.
    split: what the manifest will say of it.
    examples: what becomes its records, in this order.
    audio_format: of `AUDIO_FORMATS`.

  Raises:
    UserError: a clip is too long for a record.
  """
  return _write(path, split, (_encode(Example(*example), audio_format) for example in examples))


def drop_clips(path: PathLike, split: str, ids: Collection[str], audio_format: str) -> Shard:
  """Writes the shard at `path` anew, without the records of these `ids`; the bytes of the others stay as they are.

  The index is not needed and is written anew, so a call that was killed, at whatever moment, may be repeated.

  Raises:
    DamagedRecordError: a record is damaged; the shard is then left as it was.
  """

  def kept() -> Iterator[_Record]:
    for _, data in tfrecord.scan(path):
      example = tfrecord.decode_example(data)
      if example['id'][0].decode() not in ids:
        audio = example['audio'][0]
        samples = soundfile.info(io.BytesIO(audio)).frames if audio_format == 'flac' else len(audio) // 2
        yield _Record(data, audio, samples)

  return _write(path, split, kept())


def _encode(example: Example, audio_format: str) -> _Record:
  """Makes the data of a record."""
  if len(example.samples) > MAX_SAMPLES:
    raise UserError(
      f'{example.id} has {len(example.samples)} samples, a record holds at most {MAX_SAMPLES} '
      f'({MAX_SAMPLES / example.sample_rate / 3_600:.1f} h): cut the recording into shorter ones'
    )
  audio = encode_flac(*example[1:3]) if audio_format == 'flac' else example.samples.astype('<i2').tobytes()
  data = tfrecord.encode_example(
    {
      'audio': [audio],
      'sample_rate': [example.sample_rate],
      'id': [example.id.encode()],
      'labels': list(example.labels),
    }
  )
  return _Record(data, audio, len(example.samples))


def _write(path: PathLike, split: str, records: Iterable[_Record]) -> Shard:
  rows: list[tuple[int, ...]] = []
  offset = 0
  digest = hashlib.sha256()
  with write_atomically(path) as file:
    for data, audio, samples in records:
      record = tfrecord.frame(data)
      # The first match will do: wherever it lies, its bytes are the audio's.
      start, crc = data.index(audio), int.from_bytes(record[-tfrecord.FOOTER_BYTES :], 'little')
      rows.append((offset, len(data), start, len(audio), samples, crc))
      file.write(record)
      digest.update(record)
      offset += len(record)
  index = np.array(rows, INDEX_DTYPE).tobytes()
  with write_atomically(index_path(path)) as file:
    file.write(index)
  name = os.path.basename(os.fspath(path))
  return Shard(name, split, len(rows), offset, digest.hexdigest(), hashlib.sha256(index).hexdigest())


def parse_index(data: bytes, path: PathLike, shard: Shard, audio_format: str) -> np.ndarray:
  """Checks the bytes of the index of the shard at `path` and returns them as (clips,) INDEX_DTYPE (read-only).

  Raises:
    UserError: it is not the index that the manifest knows, or it points out of its shard.
  """
  if hashlib.sha256(data).hexdigest() != shard.index_sha256:
    raise UserError(f"the index {index_path(path)} is damaged: its SHA-256 is not the manifest's")
  if len(data) != shard.clips * INDEX_DTYPE.itemsize:
    raise UserError(
      f'the index {index_path(path)} has {len(data) / INDEX_DTYPE.itemsize:g} records, the manifest says {shard.clips}'
    )
  index = np.frombuffer(data, INDEX_DTYPE)
  # 64 bits each: no sum overflows but that of an offset no file can have.
  offset, length, start, audio, samples = (index[name].astype(np.uint64) for name in INDEX_DTYPE.names[:5])
  inside = (offset <= shard.bytes) & (offset + length + tfrecord.FRAME_BYTES <= shard.bytes) & (start + audio <= length)
  if audio_format == 'int16':
    inside &= audio == 2 * samples
  if not inside.all():
    raise UserError(
      f'the index {index_path(path)} contradicts its shard at record {int(np.argmin(inside))}: prepare it again'
    )
  return index


def encode_flac(samples: np.ndarray, sample_rate: int) -> bytes:
  """Returns (samples,) int16 as a FLAC file, from which they come back bit for bit."""
  buffer = io.BytesIO()
  soundfile.write(buffer, samples, sample_rate, format='FLAC', subtype='PCM_16', compression_level=_FLAC_LEVEL)
  return buffer.getvalue()


def decode_flac(audio: bytes | memoryview, start: int, samples: int) -> np.ndarray:
  """Returns `samples` samples of a FLAC file from sample `start` on, int16; the frames before are skipped.

  Raises:
    ValueError: these are not the bytes of such a file, or it is shorter.
  """
  try:
    with soundfile.SoundFile(io.BytesIO(audio)) as file:
      file.seek(start)
      piece = file.read(samples, dtype='int16')
  except soundfile.SoundFileError as error:
    raise ValueError(f'not a FLAC file: {error}') from error
  if piece.shape != (samples,):
    raise ValueError(f'a FLAC file with {piece.shape} samples from {start} on, and {samples} were asked for')
  return piece
