import av
import numpy as np
import pytest
import scipy.signal
import soundfile

from selfie_jax.data.decode import DecodeError, EmptyError, decode
from tests.data.sounds import RATE, flip_byte, voice, voice_int16

SECONDS = 1.5


def write_with_ffmpeg(path, audio, rate, codec, **options):
  with av.open(str(path), 'w', options=options) as file:
    stream = file.add_stream(codec, rate=rate, layout='mono')
    samples = np.rint(32_767 * audio).astype(np.int16)[None]
    frame = av.AudioFrame.from_ndarray(samples, format='s16', layout='mono')
    frame.sample_rate = rate
    for part in av.AudioResampler(stream.format, 'mono', rate, frame_size=stream.codec_context.frame_size).resample(
      frame
    ):
      file.mux(stream.encode(part))
    file.mux(stream.encode(None))


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


def test_samples_that_are_no_numbers_are_refused(tmp_path):
  soundfile.write(tmp_path / 'x.wav', np.array([0.0, np.nan]), RATE, subtype='FLOAT')
  with pytest.raises(DecodeError, match='not finite'):
    decode(tmp_path / 'x.wav')
