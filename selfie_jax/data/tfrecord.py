"""TFRecord framing and `tf.train.Example`, without TensorFlow.

A record is `length: uint64 | masked CRC of the length: uint32 | data | masked CRC of the data: uint32`, little-endian,
CRC32C (Castagnoli) masked as in TensorFlow's tsl/lib/hash/crc32c.h.
"""

import os
import struct
from collections.abc import Iterator, Mapping, Sequence

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory, text_format

from selfie_jax.data.ranges import Range, read_ranges
from selfie_jax.errors import UserError
from selfie_jax.files import PathLike, filesystem

Features = Mapping[str, Sequence[bytes] | Sequence[int] | Sequence[float]]

HEADER_BYTES = 12
FOOTER_BYTES = 4
FRAME_BYTES = HEADER_BYTES + FOOTER_BYTES

# https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/example/feature.proto
_EXAMPLE_PROTO = """
name: 'tensorflow/core/example/example.proto' package: 'tensorflow' syntax: 'proto3'
message_type { name: 'BytesList' field { name: 'value' number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: 'FloatList' field { name: 'value' number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: 'Int64List' field { name: 'value' number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type {
  name: 'Feature' oneof_decl { name: 'kind' }
  field { name: 'bytes_list' number: 1 type: TYPE_MESSAGE type_name: '.tensorflow.BytesList' oneof_index: 0 }
  field { name: 'float_list' number: 2 type: TYPE_MESSAGE type_name: '.tensorflow.FloatList' oneof_index: 0 }
  field { name: 'int64_list' number: 3 type: TYPE_MESSAGE type_name: '.tensorflow.Int64List' oneof_index: 0 }
}
message_type {
  name: 'Features'
  field { name: 'feature' number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE
          type_name: '.tensorflow.Features.FeatureEntry' }
  nested_type {
    name: 'FeatureEntry' options { map_entry: true }
    field { name: 'key' number: 1 type: TYPE_STRING }
    field { name: 'value' number: 2 type: TYPE_MESSAGE type_name: '.tensorflow.Feature' }
  }
}
message_type {
  name: 'Example' field { name: 'features' number: 1 type: TYPE_MESSAGE type_name: '.tensorflow.Features' }
}
"""
_KINDS = {bytes: 'bytes_list', float: 'float_list', int: 'int64_list'}


class DamagedRecordError(UserError):
  """A record that cannot be read, whose checksum does not match its bytes, or that is cut short."""


def _example_class() -> type[message.Message]:
  # A pool of its own: in the default pool these names clash with TensorFlow's, should both be imported.
  pool = descriptor_pool.DescriptorPool()
  pool.Add(text_format.Parse(_EXAMPLE_PROTO, descriptor_pb2.FileDescriptorProto()))
  return message_factory.GetMessageClass(pool.FindMessageTypeByName('tensorflow.Example'))


_Example = _example_class()


def encode_example(features: Features) -> bytes:
  """Serialises lists of bytes, integers or floats as a `tf.train.Example`; the same features give the same bytes."""
  example = _Example()
  for name, values in features.items():
    feature = example.features.feature[name]
    if values:
      getattr(feature, _KINDS[type(values[0])]).value.extend(values)
  return example.SerializeToString(deterministic=True)


def decode_example(data: bytes) -> dict[str, list]:
  """Parses a `tf.train.Example`; a feature without a kind is an empty list.

  Raises:
    ValueError: `data` is no Example.
  """
  try:
    features = _Example.FromString(data).features.feature
  except message.DecodeError as error:
    raise ValueError(f'not a tf.train.Example: {error}') from error
  kinds = {name: feature.WhichOneof('kind') for name, feature in features.items()}
  return {name: list(getattr(features[name], kind).value) if kind else [] for name, kind in kinds.items()}


def masked_crc(data: bytes | np.ndarray) -> int:
  """CRC32C of `data`, rotated and offset so that a CRC stored among data does not spoil a CRC over them."""
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
  """The record that holds `data`."""
  length = struct.pack('<Q', len(data))
  return b''.join((length, struct.pack('<I', masked_crc(length)), data, struct.pack('<I', masked_crc(data))))


def unframe(record: bytes, path: PathLike, number: int, length: int, crc: int | None = None) -> memoryview:
  """Checks a record and returns its data, without a copy.

  Args:
    record: its bytes.
    path: the shard, for the error.
    number: which record of the shard this is, for the error.
    length: of its data, in bytes.
    crc: of its data, masked, as the index knows it; if it is given.

  Raises:
    DamagedRecordError: the bytes are not a whole record of this length with matching checksums, or not this record.
  """
  found = _read_length(record[:HEADER_BYTES], path, number)
  if found != length:
    raise DamagedRecordError(f'{name_record(path, number)} is damaged: {found} bytes long, the index says {length}')
  if len(record) != length + FRAME_BYTES:
    raise DamagedRecordError(f'{name_record(path, number)} is damaged: the file ends in its data')
  # A view, and NumPy's, the only one that the CRC takes: slices of bytes would copy the record.
  data = np.frombuffer(record, np.uint8, count=length, offset=HEADER_BYTES)
  stored = int.from_bytes(record[-FOOTER_BYTES:], 'little')
  if stored != masked_crc(data):
    raise DamagedRecordError(f'{name_record(path, number)} is damaged: the CRC of its data does not match')
  if crc is not None and crc != stored:
    raise DamagedRecordError(f'{name_record(path, number)} is not the one in the index: the shard was replaced')
  return data.data


def read_record(path: PathLike, number: int, offset: int, length: int) -> memoryview:
  """Reads the data of one record, `length` bytes, of the record that starts at byte `offset` of a local or remote file.

  Args:
    path: the file.
    number: which record of the file this is, for the error.
    offset: where the record (its header) starts, in bytes.
    length: of its data, in bytes.

  Raises:
    DamagedRecordError: there is no whole record of this length with matching checksums.
    UserError: the object store does not answer.
  """
  (record,) = read_ranges([Range(os.fspath(path), offset, length + FRAME_BYTES)])
  return unframe(check_read(record, path, number), path, number, length)


def check_read(read: bytes | OSError, path: PathLike, number: int) -> bytes:
  """Returns the bytes that were read of a record.

  Raises:
    DamagedRecordError: there were none.
  """
  if isinstance(read, OSError):
    reason = read.strerror or f'no such object ({read})'
    raise DamagedRecordError(f'cannot read {name_record(path, number)}: {reason}') from read
  return read


def name_record(path: PathLike, number: int) -> str:
  """How messages name a record."""
  return f'record {number} of {os.fspath(path)}'


def scan(path: PathLike) -> Iterator[tuple[int, bytes]]:
  """Yields (offset of the record, its data) from the first record to the last of a local or remote file.

  Raises:
    DamagedRecordError: at the first record that is damaged.
  """
  with filesystem(path).open(os.fspath(path), 'rb') as file:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    number = offset = 0
    while header := file.read(HEADER_BYTES):
      length = _read_length(header, path, number)
      if offset + length + FRAME_BYTES > size:  # Or a length of exabytes would ask for such a buffer.
        raise DamagedRecordError(f'{name_record(path, number)} is damaged: the file ends in its data')
      data = bytes(unframe(header + file.read(length + FOOTER_BYTES), path, number, length))
      yield offset, data
      number += 1
      offset += length + FRAME_BYTES


def _read_length(header: bytes, path: PathLike, number: int) -> int:
  if len(header) < HEADER_BYTES:
    raise DamagedRecordError(f'{name_record(path, number)} is damaged: the file ends in its header')
  length, crc = struct.unpack('<QI', header)
  if crc != masked_crc(header[:8]):
    raise DamagedRecordError(f'{name_record(path, number)} is damaged: the CRC of its length does not match')
  return length
