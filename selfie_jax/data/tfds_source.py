"""Any prepared audio dataset of TensorFlow Datasets as input: `tfrecord`, wherever it lies, or a local `array_record`.

TFDS reads what it wrote: its features parse the records, so that whatever types and encodings a dataset has are read as
TFDS means them. Only audio that it stored undecoded is decoded by `decode.decode`.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import soxr

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # TensorFlow greets everyone on stderr unless told not to.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
import tensorflow_datasets as tfds  # noqa: E402

from selfie_jax.data import clip as clips_lib  # noqa: E402
from selfie_jax.data import tfrecord  # noqa: E402
from selfie_jax.data.clip import Clip, Listing, TfdsRecord  # noqa: E402
from selfie_jax.data.decode import DecodeError, EmptyError, decode  # noqa: E402
from selfie_jax.errors import UserError  # noqa: E402
from selfie_jax.files import PathLike, filesystem, is_remote, list_files  # noqa: E402

_LABELS = ('label', 'labels')  # Which feature is taken where several have classes.
_GREATEST_FLOAT = 2.0  # Full scale is 1. A little more is clipped, as decoders do; far more is another scale.

_Path = tuple[str, ...]  # Of a feature: the keys to it, from the outermost dictionary in.


@dataclasses.dataclass(frozen=True)
class _Layout:
  """Where a dataset has its audio and its labels, and the reader of these features alone."""

  audio: _Path
  labels: _Path | None  # A class or a list of classes.
  reader: tfds.features.FeaturesDict

  @property
  def classes(self) -> tuple[str, ...]:
    """The classes' names."""
    if self.labels is None:
      return ()
    feature = _at(self.reader, self.labels)
    feature = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    return tuple(feature.names) if feature.num_classes else ()

  def parse(self, data: bytes) -> dict[str, Any]:
    """Parses a record. Audio that was stored undecoded stays so: TFDS would want further programs to decode it."""
    skip: Any = tfds.decode.SkipDecoding()
    for key in reversed(self.audio):
      skip = {key: skip}
    return self.reader.deserialize_example_np(data, decoders=skip)


def list_clips(name: str, data_dir: PathLike, sample_rate: int | None = None) -> Listing:
  """Lists a prepared TFDS dataset, all its splits. A clip has the name that is the example's `tfds_id` in TFDS.

  Only the headers of the records are read (of remote files, through a buffer, nearly everything), so the clips have no
  labels yet: see `read_labels`.

  Args:
    name: such as 'nsynth', 'nsynth/full' or 'nsynth/full:2.3.3'.
    data_dir: TFDS's folder of datasets.
    sample_rate: of the dataset's audio, in Hz, for one whose features do not say it.

  Raises:
    UserError: no such dataset, not exactly one audio feature in it, no sample rate or another one, a file format that
      cannot be read at random, or files that do not hold as many records as they should.
  """
  try:
    builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=os.fspath(data_dir))
  except (tfds.core.DatasetNotFoundError, ValueError) as error:
    raise UserError(
      f'no prepared dataset "{name}" in {data_dir}: TFDS looks for {name}/VERSION/dataset_info.json there'
    ) from error
  folder = os.fspath(builder.data_dir)
  layout = _layout(folder)
  said = _at(layout.reader, layout.audio).sample_rate
  if not (said or sample_rate):
    raise UserError(f'the features of {folder} do not say the sample rate of its audio: give --sample_rate')
  if said and sample_rate and said != sample_rate:
    raise UserError(f'the features of {folder} say {said} Hz, --sample_rate says {sample_rate}: leave it out')
  files = list_files(folder)
  found: list[tuple[Clip, str]] = []
  for split, info in builder.info.splits.items():
    for path, count in zip(map(os.fspath, info.filepaths), info.shard_lengths, strict=True):
      file = os.path.basename(path)
      if file not in files:
        raise UserError(
          f'{folder} lacks the file {file}, which its dataset_info.json lists: prepare it again with TFDS'
        )
      for number, (offset, length) in enumerate(_places(path, builder.info.file_format, count)):
        record = TfdsRecord(folder, file, number, offset, length, sample_rate or said)
        found.append((Clip(f'{file}__{number}', record, split), files[file].tag))
  found.sort(key=lambda item: (item[0].split, item[0].name))
  clips, versions = [clip for clip, _ in found], [version for _, version in found]
  notes = () if layout.labels else ('no feature says the class of a clip: the dataset has no labels',)
  fingerprint = clips_lib.fingerprint(clips, versions, layout.classes)
  return Listing('tfds', clips, fingerprint, layout.classes, notes=notes)


def read_record(record: TfdsRecord, sample_rate: int) -> np.ndarray:
  """Reads an example's audio: the mean of its channels, resampled (soxr, HQ) and rounded to int16, as `decode` does.

  Samples in floating point have a full scale of 1. Integers of more than 16 bits (TFDS's default is int64) hold 16-bit
  samples.

  Args:
    record: from `list_clips`.
    sample_rate: samples per second of the result.

  Returns:
    (samples,) int16.

  Raises:
    EmptyError: no samples.
    DecodeError: the record is damaged, or its samples are beyond the full scale.
    UserError: an object store does not answer.
  """
  layout = _layout(record.folder)
  audio = _at(_read(record), layout.audio)
  name = f'record {record.number} of {record.file}'
  if isinstance(audio, bytes):
    try:
      return decode(audio, sample_rate)
    except DecodeError as error:
      raise type(error)(name, error.reason) from error
  if not audio.size:
    raise EmptyError(name, 'no samples')
  channels = audio.reshape(len(audio), -1)
  if channels.dtype == np.int16 and channels.shape[1] == 1 and record.sample_rate == sample_rate:
    return channels[:, 0]
  samples = _to_float(channels, name).mean(axis=1)
  if record.sample_rate != sample_rate:
    samples = soxr.resample(samples, record.sample_rate, sample_rate, quality='HQ')
  return np.clip(np.rint(samples * 32_768.0), -32_768, 32_767).astype(np.int16)


def read_labels(record: TfdsRecord) -> tuple[int, ...]:
  """Reads an example's labels: numbers of the listing's classes, sorted. Right after `read_record` it costs nothing."""
  path = _layout(record.folder).labels
  if path is None:
    return ()
  # TFDS gives the examples of a test set whose classes are secret the number -1.
  return tuple(sorted({int(label) for label in np.ravel(_at(_read(record), path)) if label >= 0}))


@functools.lru_cache(maxsize=1)
def _layout(folder: str) -> _Layout:
  """Reads features.json of a dataset and finds the audio and the labels in it."""
  features = tfds.features.FeaturesDict.from_config(folder)
  leaves = dict(_leaves(features))
  audio = [path for path, feature in leaves.items() if isinstance(feature, tfds.features.Audio)]
  if len(audio) != 1:
    names = ', '.join('/'.join(path) for path in audio)
    raise UserError(f'{folder} has {len(audio)} audio features{names and f" ({names})"}; it takes exactly one')
  with_classes = [path for path, feature in leaves.items() if _has_classes(feature)]
  named = [path for path in with_classes if path[-1] in _LABELS]
  labels = next((paths[0] for paths in (with_classes, named) if len(paths) == 1), None)
  wanted: dict[str, Any] = {}
  for path in (audio[0], labels):
    group = wanted
    for key in path[:-1] if path else ():
      group = group.setdefault(key, {})
    if path:
      group[path[-1]] = True
  return _Layout(audio[0], labels, tfds.decode.PartialDecoding(wanted).extract_features(features))


def _leaves(features: tfds.features.FeaturesDict, prefix: _Path = ()) -> Iterator[tuple[_Path, Any]]:
  for key, feature in features.items():
    if isinstance(feature, tfds.features.FeaturesDict):
      yield from _leaves(feature, (*prefix, key))
    else:
      yield (*prefix, key), feature


def _has_classes(feature: Any) -> bool:
  inner = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
  return isinstance(inner, tfds.features.ClassLabel)


def _at(features: Any, path: _Path) -> Any:
  """Returns what lies at the path, of features or of an example."""
  for key in path:
    features = features[key]
  return features


def _places(path: str, file_format: tfds.core.FileFormat, count: int) -> Iterator[tuple[int, int]]:
  """Yields (offset, length of its data) of each record; array_record finds its records itself, and has (0, 0)."""
  if file_format == tfds.core.FileFormat.ARRAY_RECORD and not is_remote(path):
    found = _array_record(path).num_records()
    yield from [(0, 0)] * found
  elif file_format == tfds.core.FileFormat.TFRECORD:
    found = 0
    with filesystem(path).open(path, 'rb') as file:
      offset = 0
      while header := file.read(tfrecord.HEADER_BYTES):
        length = int.from_bytes(header[:8], 'little')
        if int.from_bytes(header[8:], 'little') != tfrecord.masked_crc(header[:8]):
          raise UserError(f'record {found} of {path} is damaged: the CRC of its length does not match')
        yield offset, length
        found += 1
        offset += tfrecord.HEADER_BYTES + length + tfrecord.FOOTER_BYTES
        file.seek(offset)
  else:
    raise UserError(f'{path} is {file_format.value}: it can be tfrecord, or array_record on a local disk')
  if found != count:
    raise UserError(f'{path} has {found} records, dataset_info.json says {count}: prepare it again with TFDS')


@functools.lru_cache(maxsize=4)
def _array_record(path: str) -> Any:
  from array_record.python.array_record_module import ArrayRecordReader

  return ArrayRecordReader(path)


@functools.lru_cache(maxsize=1)  # Its audio and its labels are asked for one after the other.
def _read(record: TfdsRecord) -> dict[str, Any]:
  """Reads and parses a record."""
  path = f'{record.folder}/{record.file}'
  try:
    if record.length:
      data = bytes(tfrecord.read_record(path, record.number, record.offset, record.length))
    else:
      (data,) = _array_record(path).read([record.number])
    return _layout(record.folder).parse(data)
  except (tfrecord.DamagedRecordError, ValueError, RuntimeError, IndexError, KeyError) as error:
    raise DecodeError(f'record {record.number} of {record.file}', str(error)) from error


def _to_float(audio: np.ndarray, name: str) -> np.ndarray:
  """Scales samples of any type to a full scale of 1."""
  if np.issubdtype(audio.dtype, np.floating):
    greatest, limit = np.abs(audio).max(), _GREATEST_FLOAT
    scaled = audio.astype(np.float32)
  elif audio.dtype == np.uint8:
    return (audio.astype(np.float32) - 128) / 128
  else:
    greatest, limit = np.abs(audio.astype(np.int64)).max(), 32_768
    scaled = audio.astype(np.float32) / 32_768
  if not greatest <= limit:  # So that NaN is refused as well.
    raise DecodeError(name, f'{audio.dtype} samples up to {greatest:g}; of this type they can be up to {limit:g}')
  return scaled
