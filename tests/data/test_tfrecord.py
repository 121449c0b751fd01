import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfie_jax.data import shard, tfrecord
from selfie_jax.errors import UserError
from tests.data.sounds import flip_byte, voice_int16
from tests.processes import run_python

FEATURES = st.dictionaries(
  st.text(max_size=8),
  st.one_of(
    st.lists(st.binary(max_size=20), max_size=4),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    st.lists(st.floats(width=32, allow_nan=False), max_size=4),
  ),
  max_size=4,
)


def test_a_crc_has_tensorflows_mask():
  # CRC32C of '123456789' is 0xE3069283 (RFC 3720's check value); rotated right by 15 bits, plus 0xA282EAD8.
  assert tfrecord.masked_crc(b'123456789') == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % 2**32


@given(FEATURES)
def test_an_example_comes_back_as_it_went(features):
  data = tfrecord.encode_example(features)
  assert tfrecord.decode_example(data) == features
  assert tfrecord.encode_example(dict(reversed(features.items()))) == data


@given(st.binary(max_size=40))
def test_what_is_no_example_is_a_value_error_or_an_example(data):
  with contextlib.suppress(ValueError):
    assert isinstance(tfrecord.decode_example(data), dict)


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=100), max_size=6))
def test_records_come_back_in_order_and_at_random(tmp_path_factory, records):
  path = tmp_path_factory.mktemp('records') / 'x.tfrecord'
  path.write_bytes(b''.join(map(tfrecord.frame, records)))
  scanned = list(tfrecord.scan(path))
  assert [data for _, data in scanned] == records
  for number, (offset, data) in reversed(list(enumerate(scanned))):
    assert tfrecord.read_record(path, number, offset, len(data)) == data


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4), st.data())
def test_any_flipped_bit_is_found_in_its_record(tmp_path_factory, records, data):
  path = tmp_path_factory.mktemp('records') / 'x.tfrecord'
  content = bytearray(b''.join(map(tfrecord.frame, records)))
  position = data.draw(st.integers(0, len(content) - 1))
  content[position] ^= 1 << data.draw(st.integers(0, 7))
  path.write_bytes(content)
  ends = np.cumsum([len(tfrecord.frame(record)) for record in records])
  number = int(np.searchsorted(ends, position, side='right'))
  with pytest.raises(tfrecord.DamagedRecordError, match=f'^record {number} of .*x.tfrecord is damaged'):
    list(tfrecord.scan(path))
  with pytest.raises(tfrecord.DamagedRecordError, match=f'^record {number} of .*x.tfrecord is damaged'):
    tfrecord.read_record(path, number, int(([0, *ends])[number]), len(records[number]))


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=3), st.data())
def test_any_cut_is_found_unless_it_is_between_records(tmp_path_factory, records, data):
  path = tmp_path_factory.mktemp('records') / 'x.tfrecord'
  framed = [tfrecord.frame(record) for record in records]
  content = b''.join(framed)
  length = data.draw(st.integers(0, len(content) - 1))
  path.write_bytes(content[:length])
  ends = [0, *np.cumsum([len(record) for record in framed]).tolist()]
  if length in ends:
    assert len(list(tfrecord.scan(path))) == ends.index(length)
  else:
    with pytest.raises(tfrecord.DamagedRecordError):
      list(tfrecord.scan(path))


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=50), max_size=5))
def test_the_index_finds_the_audio_of_every_record(tmp_path_factory, clips):
  path = tmp_path_factory.mktemp('shard') / 'x.tfrecord'
  clips = [np.array(clip, '<i2') for clip in clips]
  entry = shard.write_shard(path, ({'audio': [clip.tobytes()], 'id': [b'\0\1']} for clip in clips))
  index = shard.read_index(path, entry)
  assert index.dtype == shard.INDEX_DTYPE
  content = path.read_bytes()
  for number, (clip, row) in enumerate(zip(clips, index, strict=True)):
    np.testing.assert_array_equal(shard.read_audio(path, number, row), clip)
    at = row['audio_offset']  # So a crop can be read alone, straight from the file.
    np.testing.assert_array_equal(np.frombuffer(content[at : at + 2 * row['samples']], '<i2'), clip)


def test_an_index_that_is_damaged_missing_or_of_another_shard_is_named(tmp_path):
  entry = shard.write_shard(tmp_path / 'a.tfrecord', [{'audio': [b'ab']}])
  other = shard.write_shard(tmp_path / 'b.tfrecord', [{'audio': [b'abcd']}])
  with pytest.raises(UserError, match=r'a\.tfrecord\.index is damaged'):
    shard.read_index(tmp_path / 'a.tfrecord', other)
  flip_byte(tmp_path / 'a.tfrecord.index', -1)
  with pytest.raises(UserError, match=r'a\.tfrecord\.index is damaged'):
    shard.read_index(tmp_path / 'a.tfrecord', entry)
  (tmp_path / 'a.tfrecord.index').unlink()
  with pytest.raises(UserError, match=r'a\.tfrecord\.index: No such file'):
    shard.read_index(tmp_path / 'a.tfrecord', entry)


def test_a_shard_that_failed_half_way_has_no_name(tmp_path):
  def examples():
    yield {'audio': [b'ab']}
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    shard.write_shard(tmp_path / 'a.tfrecord', examples())
  assert not (tmp_path / 'a.tfrecord').exists()
  assert not (tmp_path / 'a.tfrecord.index').exists()


READ_WITH_TENSORFLOW = """
import sys
import numpy as np
import tensorflow as tf
from selfie_jax.data import tfrecord
from tests.data.sounds import voice_int16

clips = [voice_int16(0.3 + i / 10, i) for i in range(3)]
records = list(tf.data.TFRecordDataset(sys.argv[1] + '/ours.tfrecord').as_numpy_iterator())
assert len(records) == 3
for i, (record, clip) in enumerate(zip(records, clips)):
  feature = tf.train.Example.FromString(record).features.feature
  assert (np.frombuffer(feature['audio'].bytes_list.value[0], '<i2') == clip).all()
  assert feature['sample_rate'].int64_list.value == [16_000]
  parsed = tf.io.parse_single_example(record, {
    'audio': tf.io.FixedLenFeature([], tf.string),
    'id': tf.io.FixedLenFeature([], tf.string),
    'labels': tf.io.VarLenFeature(tf.string),
    'level': tf.io.FixedLenFeature([2], tf.float32),
  })
  assert (tf.io.decode_raw(parsed['audio'], tf.int16).numpy() == clip).all()
  assert parsed['id'].numpy() == b'%d.wav' % i and list(parsed['labels'].values.numpy()) == [b'a', b'b']
  assert list(parsed['level'].numpy()) == [0.5, -2.0]

# And the other way round, with both libraries' Example classes in one process.
with tf.io.TFRecordWriter(sys.argv[1] + '/theirs.tfrecord') as writer:
  for record in records:
    writer.write(tf.train.Example.FromString(record).SerializeToString(deterministic=True))
assert [data for _, data in tfrecord.scan(sys.argv[1] + '/theirs.tfrecord')] == records
assert open(sys.argv[1] + '/theirs.tfrecord', 'rb').read() == open(sys.argv[1] + '/ours.tfrecord', 'rb').read()
"""


def test_tensorflow_reads_our_shards_and_we_read_tensorflows(tmp_path):
  shard.write_shard(
    tmp_path / 'ours.tfrecord',
    (
      {
        'audio': [voice_int16(0.3 + i / 10, i).tobytes()],
        'sample_rate': [16_000],
        'id': [b'%d.wav' % i],
        'labels': [b'a', b'b'],
        'level': [0.5, -2.0],
      }
      for i in range(3)
    ),
  )
  run_python('-c', READ_WITH_TENSORFLOW, tmp_path)
