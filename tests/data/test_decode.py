import struct
import tracemalloc

import av
import hypothesis
import numpy as np
import pytest
import scipy.signal
import soundfile
from hypothesis import strategies as st

from selfie_jax.data.decode import DecodeError, EmptyError, decode
from tests.data.audioset_tree import write_sound, write_with_ffmpeg
from tests.data.sounds import RATE, flip_byte, voice, voice_int16

SECONDS = 1.5


def similarity(decoded, original):
  """The greatest correlation at any small shift: codecs delay."""
  decoded, original = decoded / np.linalg.norm(decoded), original / np.linalg.norm(original)
  return scipy.signal.correlate(original, decoded).max()


@pytest.mark.parametrize('subtype', ['PCM_16', 'PCM_24', 'PCM_32', 'FLOAT', 'DOUBLE'])
def test_a_wav_of_any_width_comes_out_as_its_16_bit_values(tmp_path, subtype):
  samples = voice_int16(SECONDS, seed=0)
  soundfile.write(tmp_path / 'x.wav', samples / 32_768, RATE, subtype=subtype)
  np.testing.assert_array_equal(decode(tmp_path / 'x.wav'), samples)


def test_an_8_bit_wav_comes_out_to_its_precision(tmp_path):
  samples = voice_int16(SECONDS, seed=0)
  soundfile.write(tmp_path / 'x.wav', samples, RATE, subtype='PCM_U8')
  assert np.abs(decode(tmp_path / 'x.wav').astype(int) - samples).max() <= 256


@pytest.mark.parametrize(
  ('name', 'arguments'),
  [
    ('x.flac', {'subtype': 'PCM_24'}),
    ('x.aiff', {}),
    ('x.ogg', {'subtype': 'VORBIS'}),
    ('x.opus', {'format': 'OGG', 'subtype': 'OPUS'}),
    ('x.mp3', {}),
  ],
)
def test_common_formats_at_48_khz_stereo_come_out_at_16_khz_mono(tmp_path, name, arguments):
  left, right = voice(SECONDS, 0, 48_000), voice(SECONDS, 1, 48_000)
  soundfile.write(tmp_path / name, np.stack([left, right], axis=1), 48_000, **arguments)
  decoded = decode(tmp_path / name)
  assert decoded.dtype == np.int16
  assert abs(len(decoded) - SECONDS * RATE) < 1_200
  soundfile.write(tmp_path / 'mean.wav', (left + right) / 2, 48_000, subtype='FLOAT')
  assert similarity(decoded, decode(tmp_path / 'mean.wav')) > 0.9


@pytest.mark.parametrize(
  ('name', 'codec', 'rate'),
  [
    ('x.m4a', 'aac', 44_100),
    ('x.webm', 'libopus', 48_000),
    ('x.g722', 'g722', 16_000),
    ('x.ac3', 'ac3', 48_000),
    ('a song: part 1.m4a', 'aac', 44_100),
  ],
)
def test_ffmpeg_formats_come_out_at_16_khz(tmp_path, name, codec, rate):
  write_with_ffmpeg(tmp_path / name, voice(SECONDS, 0, rate), rate, codec)
  decoded = decode(tmp_path / name)
  assert decoded.dtype == np.int16
  assert abs(len(decoded) - SECONDS * RATE) < 1_600
  soundfile.write(tmp_path / 'original.wav', voice(SECONDS, 0, rate), rate, subtype='FLOAT')
  assert similarity(decoded, decode(tmp_path / 'original.wav')) > 0.9


def test_a_streamed_flac_that_does_not_know_its_length_is_read_whole(tmp_path):
  samples = voice_int16(SECONDS, seed=0)
  soundfile.write(tmp_path / 'x.flac', samples, RATE)
  content = bytearray((tmp_path / 'x.flac').read_bytes())
  content[21] &= 0xF0  # The 36 bits of the number of samples in STREAMINFO.
  content[22:26] = bytes(4)
  (tmp_path / 'x.flac').write_bytes(content)
  np.testing.assert_array_equal(decode(tmp_path / 'x.flac'), samples)


def test_what_is_too_loud_is_clipped_and_never_wraps(tmp_path):
  soundfile.write(tmp_path / 'x.wav', np.array([1.0, 1.5, -1.0, -3.0, 0.5]), RATE, subtype='FLOAT')
  np.testing.assert_array_equal(decode(tmp_path / 'x.wav'), [32_767, 32_767, -32_768, -32_768, 16_384])


def test_an_odd_number_of_channels_is_averaged(tmp_path):
  soundfile.write(tmp_path / 'x.wav', np.array([[300, 600, 900], [-30, 0, 0]], np.int16), RATE)
  np.testing.assert_array_equal(decode(tmp_path / 'x.wav'), [600, -10])


def test_a_wav_that_is_a_text_file_is_named(tmp_path):
  (tmp_path / 'x.wav').write_text('not a sound')
  with pytest.raises(DecodeError, match=r'cannot read .*x\.wav: Invalid data'):
    decode(tmp_path / 'x.wav')


def test_a_picture_has_no_audio(tmp_path):
  with av.open(str(tmp_path / 'x.mp4'), 'w') as file:
    stream = file.add_stream('mpeg4', rate=10)
    stream.width, stream.height, stream.pix_fmt = 32, 32, 'yuv420p'
    file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format='rgb24')))
    file.mux(stream.encode(None))
  with pytest.raises(DecodeError, match='no audio'):
    decode(tmp_path / 'x.mp4')


def test_empty_files_and_missing_files_are_told_apart(tmp_path):
  (tmp_path / 'zero_bytes.wav').touch()
  soundfile.write(tmp_path / 'zero_samples.wav', np.zeros(0), RATE)
  for name in ('zero_bytes.wav', 'zero_samples.wav'):
    with pytest.raises(EmptyError):
      decode(tmp_path / name)
  with pytest.raises(DecodeError, match='No such file'):
    decode(tmp_path / 'missing.wav')
  with pytest.raises(DecodeError):
    decode(tmp_path)


def test_a_flac_that_breaks_off_is_not_taken_for_a_shorter_one(tmp_path):
  soundfile.write(tmp_path / 'x.flac', voice(3, 0), RATE)
  content = (tmp_path / 'x.flac').read_bytes()
  (tmp_path / 'x.flac').write_bytes(content[: len(content) * 2 // 3])
  with pytest.raises(DecodeError):
    decode(tmp_path / 'x.flac')


@pytest.mark.parametrize(('name', 'subtype'), [('x.wav', 'PCM_16'), ('x.wav', 'FLOAT'), ('x.aiff', 'PCM_24')])
def test_a_wav_or_aiff_that_breaks_off_is_not_taken_for_a_shorter_one(tmp_path, name, subtype):
  soundfile.write(tmp_path / name, voice(3, 0), RATE, subtype=subtype)
  content = (tmp_path / name).read_bytes()
  for size in (len(content) // 2, 150):
    (tmp_path / name).write_bytes(content[:size])
    for source in (tmp_path / name, content[:size]):
      with pytest.raises(DecodeError, match=r'breaks off after [\d,]+ of the [\d,]+ bytes'):
        decode(source)


def test_a_wav_that_counts_its_header_as_sound_is_read(tmp_path):
  samples = voice_int16(SECONDS, seed=0)
  soundfile.write(tmp_path / 'x.wav', samples, RATE)
  content = bytearray((tmp_path / 'x.wav').read_bytes())
  content[40:44] = struct.pack('<I', len(content))
  (tmp_path / 'x.wav').write_bytes(content)
  np.testing.assert_array_equal(decode(tmp_path / 'x.wav'), samples)


@pytest.mark.parametrize(('name', 'subtype'), [('x.wav', 'GSM610'), ('x.wav', 'G721_32'), ('x.au', 'G723_24')])
def test_sounds_of_telephones_which_cannot_be_sought_in_are_read(tmp_path, name, subtype):
  soundfile.write(tmp_path / name, voice(SECONDS, 0, 8_000), 8_000, subtype=subtype)
  assert abs(len(decode(tmp_path / name)) - SECONDS * RATE) < 1_600
  assert abs(len(decode(tmp_path / name, start=1.0, seconds=1.0)) - RATE) < 2


@pytest.mark.parametrize('unknown', [0xFFFFFFFF, 0x80000000, 0x7FFFF000])
def test_a_wav_out_of_a_pipe_does_not_know_its_length_and_is_read_whole(tmp_path, unknown):
  samples = voice_int16(SECONDS, seed=0)
  soundfile.write(tmp_path / 'x.wav', samples, RATE)
  content = bytearray((tmp_path / 'x.wav').read_bytes())
  content[4:8] = content[40:44] = struct.pack('<I', unknown)
  (tmp_path / 'x.wav').write_bytes(content)
  np.testing.assert_array_equal(decode(tmp_path / 'x.wav'), samples)


def test_an_ogg_with_a_damaged_page_is_not_taken_for_a_shorter_one(tmp_path):
  soundfile.write(tmp_path / 'x.ogg', voice(10, 0), RATE)
  flip_byte(tmp_path / 'x.ogg', (tmp_path / 'x.ogg').stat().st_size // 2)
  with pytest.raises(DecodeError, match='breaks off after'):
    decode(tmp_path / 'x.ogg')


def test_an_mp3_that_does_not_say_its_length_is_read(tmp_path):
  write_with_ffmpeg(tmp_path / 'x.mp3', voice(SECONDS, 0, 44_100), 44_100, 'libmp3lame', write_xing='0')
  assert abs(len(decode(tmp_path / 'x.mp3')) - SECONDS * RATE) < 1_600


def test_a_flac_with_a_flipped_bit_is_not_passed_on_to_a_reader_that_does_not_look(tmp_path):
  soundfile.write(tmp_path / 'x.flac', voice(3, 0), RATE)
  flip_byte(tmp_path / 'x.flac', (tmp_path / 'x.flac').stat().st_size // 2)
  with pytest.raises(DecodeError, match='flac'):
    decode(tmp_path / 'x.flac')


def test_dozens_of_channels_are_averaged_by_whichever_library(tmp_path):
  values = np.random.default_rng(0).integers(-10_000, 10_000, (400, 22))
  soundfile.write(tmp_path / 'x.wav', values.astype(np.int16), RATE)
  # libsndfile knows no WAV of 64 bits, and PyAV no more than 8 channels in planes: it reads on behind them.
  header = struct.pack(
    '<4sI4s4sIHHIIHH4sI',
    b'RIFF',
    36 + values.size * 8,
    b'WAVE',
    b'fmt ',
    16,
    1,
    22,
    RATE,
    RATE * 176,
    176,
    64,
    b'data',
    values.size * 8,
  )
  (tmp_path / 'y.wav').write_bytes(header + (values << 48).tobytes())
  for name in ('x.wav', 'y.wav'):
    np.testing.assert_array_equal(decode(tmp_path / name), np.rint(values.mean(axis=1)))


def test_samples_that_are_no_numbers_are_refused(tmp_path):
  soundfile.write(tmp_path / 'x.wav', np.array([0.0, np.nan]), RATE, subtype='FLOAT')
  with pytest.raises(DecodeError, match='not finite'):
    decode(tmp_path / 'x.wav')


# Segments. `decode` at the file's own rate shows its samples as they are.

FORMATS = [
  ('x.wav', 44_100),
  ('x.flac', 44_100),
  ('x.aiff', 44_100),
  ('x.ogg', 44_100),
  ('x.opus', 48_000),
  ('x.mp3', 44_100),
  ('x.m4a', 44_100),
  ('x.webm', 48_000),
]


@pytest.fixture(scope='module')
def recordings(tmp_path_factory):
  """The same 12 s in all formats."""
  folder = tmp_path_factory.mktemp('recordings')
  for name, rate in FORMATS:
    write_sound(folder / name, voice(12, 0, rate)[:, None], rate)
  return folder


@pytest.mark.parametrize('kind', ['a file', 'bytes'])
@pytest.mark.parametrize(('name', 'rate'), FORMATS)
def test_a_segment_of_a_long_recording_is_exactly_that_part_of_all_of_it(recordings, name, rate, kind):
  source = recordings / name if kind == 'a file' else (recordings / name).read_bytes()
  whole = decode(source, rate)
  for start in (0, 0.001, 2.5, 4.321, 8.999, 11.5):
    begin = round(start * rate)
    np.testing.assert_array_equal(decode(source, rate, start, 2), whole[begin : begin + 2 * rate])


@pytest.mark.parametrize(('name', 'rate'), FORMATS)
def test_a_file_no_longer_than_the_segment_and_a_second_holds_the_segment_alone(recordings, name, rate):
  whole = decode(recordings / name, rate)
  for seconds in (11.3, 12, 15):
    np.testing.assert_array_equal(decode(recordings / name, rate, 30, seconds), whole[: round(seconds * rate)])


@pytest.mark.parametrize(('name', 'rate'), FORMATS)
def test_without_a_start_every_file_holds_the_segment_alone(recordings, name, rate):
  np.testing.assert_array_equal(decode(recordings / name, rate, None, 3), decode(recordings / name, rate)[: 3 * rate])


@pytest.mark.parametrize(('name', 'rate'), FORMATS)
def test_a_recording_that_ends_before_the_segment_starts_is_named_with_both_times(recordings, name, rate):
  with pytest.raises(DecodeError, match=r'ends after 12\.\d+ s, before the segment starts at 30 s'):
    decode(recordings / name, rate, 30, 2)


def test_the_limit_between_a_segment_and_a_whole_recording_is_one_second_over(tmp_path):
  for frames, first in ((3 * RATE, 0), (3 * RATE + 1, RATE)):
    for name in ('x.wav', 'x.opus'):  # One that seeks, and one that reads from the start.
      write_sound(tmp_path / name, voice(6, 0)[:frames, None], RATE)
      whole = decode(tmp_path / name)
      assert len(whole) == frames
      np.testing.assert_array_equal(decode(tmp_path / name, RATE, 1, 2), whole[first : first + 2 * RATE])


@pytest.mark.parametrize('name', ['x.wav', 'x.m4a'])
def test_a_segment_is_never_longer_than_asked_at_any_rate(tmp_path, name):
  write_sound(tmp_path / name, voice(9, 0, 44_100)[:, None], 44_100)
  for rate in (8_000, 16_000, 22_050, 48_000):
    for start in (None, 0.5, 3.3333):
      assert round(2.0001 * rate) - 1 <= len(decode(tmp_path / name, rate, start, 2.0001)) <= round(2.0001 * rate)


def test_a_flac_whose_header_lies_about_its_length_is_not_read_elsewhere(tmp_path):
  """Its header says 64 times as long: as long as no start is far off, its samples are as good as they were."""
  write_sound(tmp_path / 'x.flac', voice(12, 0)[:, None], RATE)
  whole = decode(tmp_path / 'x.flac')
  content = bytearray((tmp_path / 'x.flac').read_bytes())
  content[23] |= 0xC0  # The 36 bits of the number of samples are the last of bytes 21 to 25.
  (tmp_path / 'x.flac').write_bytes(content)
  np.testing.assert_array_equal(decode(tmp_path / 'x.flac', RATE, 5, 2), whole[5 * RATE : 7 * RATE])
  with pytest.raises(DecodeError):
    decode(tmp_path / 'x.flac', RATE, 30, 2)


def test_a_streamed_flac_or_mp3_that_does_not_know_its_length_is_cut(tmp_path):
  write_sound(tmp_path / 'x.flac', voice(12, 0)[:, None], RATE)
  content = bytearray((tmp_path / 'x.flac').read_bytes())
  content[21] &= 0xF0
  content[22:26] = bytes(4)
  (tmp_path / 'x.flac').write_bytes(content)
  write_with_ffmpeg(tmp_path / 'x.mp3', voice(12, 0), RATE, 'libmp3lame', write_xing='0')
  for name in ('x.flac', 'x.mp3'):
    whole = decode(tmp_path / name)
    np.testing.assert_array_equal(decode(tmp_path / name, RATE, 5, 2), whole[5 * RATE : 7 * RATE])
    np.testing.assert_array_equal(decode(tmp_path / name, RATE, 5, 13), whole)


def test_damage_behind_the_segment_does_no_harm_and_before_or_in_it_does(tmp_path):
  write_sound(tmp_path / 'x.ogg', voice(60, 0)[:, None], RATE)
  flip_byte(tmp_path / 'x.ogg', (tmp_path / 'x.ogg').stat().st_size * 9 // 10)
  assert len(decode(tmp_path / 'x.ogg', RATE, 10, 2)) == 2 * RATE
  write_sound(tmp_path / 'x.flac', voice(12, 0)[:, None], RATE)
  flip_byte(tmp_path / 'x.flac', (tmp_path / 'x.flac').stat().st_size // 2)
  with pytest.raises(DecodeError):
    decode(tmp_path / 'x.flac', RATE, 5.5, 2)


@hypothesis.settings(
  max_examples=150, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(
  st.sampled_from([name for name, _ in FORMATS]),
  st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.integers(0, 255)), min_size=1, max_size=8),
  st.floats(0.1, 1),
  st.sampled_from([(None, None), (None, 1.0), (2.0, 1.0), (30.0, 1.0)]),
)
def test_a_damaged_file_is_a_sound_or_a_clear_error_and_no_noise(recordings, capfd, name, damage, kept, segment):
  content = bytearray((recordings / name).read_bytes())[:60_000]
  for place, in_header, value in damage:
    content[int(place * (min(200, len(content)) - 1 if in_header else len(content) - 1))] = value
  content = bytes(content[: round(kept * len(content))])
  start, seconds = segment
  try:
    audio = decode(content, RATE, start, seconds)
    assert audio.dtype == np.int16
    assert 0 < len(audio) <= (seconds or 1e9) * RATE
  except DecodeError:
    pass
  assert capfd.readouterr() == ('', '')


def test_a_recording_is_not_held_to_cut_two_seconds_out_of_it(tmp_path):
  """NumPy's memory is traced. The whole of the recording would be 15 MB."""
  silence = np.zeros((240 * RATE, 1))
  for name in ('x.opus', 'x.m4a', 'x.wav'):
    write_sound(tmp_path / name, silence, RATE)
    tracemalloc.start()
    assert len(decode(tmp_path / name, RATE, 230, 2)) == 2 * RATE
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
