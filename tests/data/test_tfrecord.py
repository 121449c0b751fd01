import contextlib
import hashlib

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


SHORT_CLIPS = st.lists(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=50), max_size=5)


def write(path, clips, audio_format='int16'):
  examples = [shard.Example(f'{i}.wav', np.array(clip, np.int16), 16_000, [i]) for i, clip in enumerate(clips)]
  return shard.write_shard(path, 'train', examples, audio_format)


def read_index(path, entry, audio_format='int16'):
  return shard.parse_index(path.with_name(f'{path.name}.index').read_bytes(), path, entry, audio_format)


@settings(max_examples=30)
@given(SHORT_CLIPS, st.sampled_from(shard.AUDIO_FORMATS))
def test_the_index_finds_the_audio_of_every_record(tmp_path_factory, clips, audio_format):
  path = tmp_path_factory.mktemp('shard') / 'x.tfrecord'
  entry = write(path, clips, audio_format)
  index = read_index(path, entry, audio_format)
  assert index.dtype == shard.INDEX_DTYPE
  content = path.read_bytes()
  assert entry.bytes == len(content)
  for number, (clip, row) in enumerate(zip(clips, index, strict=True)):
    data = tfrecord.read_record(path, number, int(row['offset']), int(row['length']))
    example = tfrecord.decode_example(bytes(data))
    assert example['id'] == [b'%d.wav' % number]
    assert example['labels'] == [number]
    assert row['samples'] == len(clip)
    # So a crop can be read alone, straight from the file.
    at = int(row['offset']) + tfrecord.HEADER_BYTES + int(row['audio_start'])
    audio = content[at : at + int(row['audio_bytes'])]
    samples = np.frombuffer(audio, '<i2') if audio_format == 'int16' else shard.decode_flac(audio, 0, len(clip))
    np.testing.assert_array_equal(samples, clip)


@settings(max_examples=30)
@given(SHORT_CLIPS, st.sampled_from(shard.AUDIO_FORMATS), st.sets(st.integers(0, 4)))
def test_clips_that_are_dropped_leave_the_others_bytes_as_they_are(tmp_path_factory, clips, audio_format, dropped):
  folder = tmp_path_factory.mktemp('shard')
  write(folder / 'x.tfrecord', clips, audio_format)
  records = [tfrecord.frame(data) for _, data in tfrecord.scan(folder / 'x.tfrecord')]
  for _ in range(2):  # The second time as if the first had been killed at its very end.
    entry = shard.drop_clips(folder / 'x.tfrecord', 'train', {f'{i}.wav' for i in dropped}, audio_format)
    kept = [record for i, record in enumerate(records) if i not in dropped]
    assert (folder / 'x.tfrecord').read_bytes() == b''.join(kept)
    index = read_index(folder / 'x.tfrecord', entry, audio_format)
    assert index['samples'].tolist() == [len(clip) for i, clip in enumerate(clips) if i not in dropped]
    assert index['offset'].tolist() == np.cumsum([0, *map(len, kept)])[:-1].tolist()


@pytest.mark.parametrize('start', [0, 1, 4_095, 4_096, 30_000, 63_999])
def test_any_piece_of_a_flac_file_comes_back_bit_for_bit(start):
  sound = voice_int16(4, 1)
  sound[::1_000] = -32_768
  flac = shard.encode_flac(sound, 16_000)
  assert flac == shard.encode_flac(sound, 16_000)
  np.testing.assert_array_equal(shard.decode_flac(flac, start, 64_000 - start), sound[start:])
  np.testing.assert_array_equal(shard.decode_flac(flac, start, 1), sound[start : start + 1])


@settings(max_examples=50)
@given(st.binary(max_size=60), st.integers(0, 100), st.integers(0, 100))
def test_what_is_no_flac_is_a_value_error(data, start, samples):
  for audio in (data, b'fLaC' + data, shard.encode_flac(voice_int16(0.01, 0), 16_000)[: len(data)]):
    with pytest.raises(ValueError, match='FLAC'):
      shard.decode_flac(audio, start, samples)


def test_a_clip_that_no_record_can_hold_is_refused_and_leaves_no_shard(tmp_path):
  endless = np.broadcast_to(np.int16(0), 2**30)  # 18.6 hours, without their memory.
  with pytest.raises(UserError, match=r'long.wav has 1073741824 samples, a record holds at most 1073217536 \(18.6 h\)'):
    shard.write_shard(tmp_path / 'x.tfrecord', 'train', [('long.wav', endless, 16_000, [])], 'int16')
  assert not list(tmp_path.iterdir())


def test_an_index_that_is_damaged_or_of_another_shard_is_named(tmp_path):
  a, b = tmp_path / 'a.tfrecord', tmp_path / 'b.tfrecord'
  entry, other = write(a, [[1]]), write(b, [[1, 2]])
  with pytest.raises(UserError, match=r'a\.tfrecord\.index is damaged'):
    read_index(a, other)
  flip_byte(tmp_path / 'a.tfrecord.index', -1)
  with pytest.raises(UserError, match=r'a\.tfrecord\.index is damaged'):
    read_index(a, entry)


NUMBERS = st.one_of(st.integers(0, 60), st.integers(0, 2**32 - 1))
ROWS = st.lists(st.tuples(st.one_of(NUMBERS, st.integers(0, 2**64 - 1)), *[NUMBERS] * 5), max_size=3)


@settings(max_examples=200)
@given(
  st.one_of(st.binary(max_size=100), ROWS.map(lambda rows: np.array(rows, shard.INDEX_DTYPE).tobytes())),
  st.one_of(st.integers(0, 3), st.none()),
  st.integers(0, 300),
  st.sampled_from(shard.AUDIO_FORMATS),
)
def test_any_bytes_are_an_index_that_stays_in_its_shard_or_an_error(data, clips, size, audio_format):
  clips = len(data) // shard.INDEX_DTYPE.itemsize if clips is None else clips
  entry = shard.Shard('x.tfrecord', 'train', clips, size, '', hashlib.sha256(data).hexdigest())
  with contextlib.suppress(UserError):
    index = shard.parse_index(data, 'x.tfrecord', entry, audio_format)
    assert index.tobytes() == data
    for offset, length, start, audio, samples, _ in index.tolist():
      assert offset + length + 16 <= size
      assert start + audio <= length
      assert audio_format == 'flac' or audio == 2 * samples


@settings(max_examples=100)
@given(st.binary(max_size=80), st.integers(0, 2**40), st.integers(0, 2**31))
def test_any_bytes_are_a_record_or_an_error(tmp_path_factory, data, offset, length):
  path = tmp_path_factory.mktemp('records') / 'x.tfrecord'
  path.write_bytes(data)
  with pytest.raises(tfrecord.DamagedRecordError, match=r'record 7 of .*x\.tfrecord'):
    tfrecord.read_record(path, 7, offset, length)
  with contextlib.suppress(tfrecord.DamagedRecordError):
    assert not data or list(tfrecord.scan(path))


def test_a_record_that_claims_exabytes_is_damaged(tmp_path):
  length = (2**60).to_bytes(8, 'little')
  (tmp_path / 'x.tfrecord').write_bytes(length + tfrecord.masked_crc(length).to_bytes(4, 'little') + bytes(20))
  with pytest.raises(
    tfrecord.DamagedRecordError, match=r'record 0 of .*x\.tfrecord is damaged: the file ends in its data'
  ):
    list(tfrecord.scan(tmp_path / 'x.tfrecord'))


def test_a_shard_that_failed_half_way_has_no_name(tmp_path):
  def examples():
    yield 'a.wav', voice_int16(0.1, 0), 16_000, []
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    shard.write_shard(tmp_path / 'a.tfrecord', 'train', examples(), 'int16')
  assert not list(tmp_path.iterdir())


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
    'labels': tf.io.VarLenFeature(tf.int64),
  })
  assert (tf.io.decode_raw(parsed['audio'], tf.int16).numpy() == clip).all()
  assert parsed['id'].numpy() == b'%d.wav' % i and list(parsed['labels'].values.numpy()) == [7] * i

# And the other way round, with both libraries' Example classes in one process.
with tf.io.TFRecordWriter(sys.argv[1] + '/theirs.tfrecord') as writer:
  for record in records:
    writer.write(tf.train.Example.FromString(record).SerializeToString(deterministic=True))
assert [data for _, data in tfrecord.scan(sys.argv[1] + '/theirs.tfrecord')] == records
assert open(sys.argv[1] + '/theirs.tfrecord', 'rb').read() == open(sys.argv[1] + '/ours.tfrecord', 'rb').read()
"""


def test_tensorflow_reads_our_shards_and_we_read_tensorflows(tmp_path):
  examples = [(f'{i}.wav', voice_int16(0.3 + i / 10, i), 16_000, [7] * i) for i in range(3)]
  shard.write_shard(tmp_path / 'ours.tfrecord', 'train', examples, 'int16')
  run_python('-c', READ_WITH_TENSORFLOW, tmp_path)
