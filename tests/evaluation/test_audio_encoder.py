from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import selfie_jax
from selfie_jax.audio.log_mel import log_mel
from selfie_jax.audio.waveforms import as_clips, to_int16
from selfie_jax.data.decode import decode
from selfie_jax.embedding.audio_encoder import AudioEncoder
from selfie_jax.errors import UserError
from selfie_jax.training.state import LoadedEncoder
from tests.evaluation.conftest import CONFIG, SAMPLE_RATE, tone
from tests.processes import run_python

SPOKEN = Path(__file__).parents[1] / 'audio/clips'


@pytest.fixture
def audio(any_encoder):
  return AudioEncoder(LoadedEncoder(any_encoder, CONFIG, -6.0, 4.0, step=7))


@pytest.fixture
def loaded(workdir):
  return selfie_jax.load(workdir, 7)


def clips_of(*seconds):
  return [tone(200 * (1 + i), length, seed=i).astype(np.float32) for i, length in enumerate(seconds)]


def close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_importing_the_package_imports_no_jax():
  run_python('-c', 'import sys, selfie_jax; assert not {"jax", "flax", "numpy"} & set(sys.modules)')


def test_it_says_what_it_is(loaded):
  assert (loaded.sample_rate, loaded.features, loaded.step, loaded.config) == (SAMPLE_RATE, 64, 7, CONFIG)
  assert loaded.frame_seconds == pytest.approx(0.08)


def test_a_clip_has_one_embedding_however_it_is_given(loaded):
  [clip] = clips_of(1.3)
  expected = loaded.embed(clip, SAMPLE_RATE)
  assert (expected.shape, expected.dtype) == ((1, 64), np.float32)
  as_integers = np.rint(clip * 32_768).astype(np.int16)
  for given in (clip[None], [clip], (clip,), clip.astype(np.float64), as_integers, [as_integers], clip.tolist()):
    np.testing.assert_array_equal(loaded.embed(given, SAMPLE_RATE), expected)


def test_a_clips_features_do_not_depend_on_the_clips_beside_it(audio):
  clips = clips_of(1.3, 0.2, 1.25)
  embeddings = audio.embed(clips, SAMPLE_RATE)
  frames, times = audio.frames(clips, SAMPLE_RATE)
  layers = audio.layers(clips, SAMPLE_RATE)
  assert [len(features) for features in frames] == [max(1, int(100 * s + 1) // 8) for s in (1.3, 0.2, 1.25)]
  for i, clip in enumerate(clips):
    close(embeddings[i], audio.embed(clip, SAMPLE_RATE)[0])
    alone, times_alone = audio.frames(clip, SAMPLE_RATE)
    close(frames[i], alone[0])
    np.testing.assert_array_equal(times[i], times_alone)
  for layer, alone in zip(layers, audio.layers(clips[2], SAMPLE_RATE), strict=True):
    close(layer.features[2], alone.features[0])


def test_frames_are_the_encoders_and_pooled_they_are_the_embedding(audio, any_encoder):
  clips = np.stack(clips_of(1.3, 1.3))
  frames, times = audio.frames(clips, SAMPLE_RATE)
  x = (log_mel(np.stack(as_clips(clips, SAMPLE_RATE, SAMPLE_RATE)), CONFIG.log_mel) + 6) / 4
  close(frames, any_encoder(x, train=False))
  close(any_encoder.pool(jnp.asarray(frames)), audio.embed(clips, SAMPLE_RATE))
  assert frames.dtype == times.dtype == np.float32
  assert times.shape == frames.shape[1:2] == (16,)


def test_a_frames_time_is_where_its_sound_is(loaded):
  """A click is heard in the frames whose time is within half a frame, and the reach of a convolution, of its own."""
  silence, click = np.zeros(2 * SAMPLE_RATE, np.float32), np.zeros(2 * SAMPLE_RATE, np.float32)
  at = 1.1
  click[round(at * SAMPLE_RATE)] = 0.9
  frames, times = loaded.frames(np.stack([silence, click]), SAMPLE_RATE, overlap=4)
  np.testing.assert_allclose(times[:3], [0.035, 0.055, 0.075], atol=1e-6)
  assert times[-1] <= 2
  changed = np.linalg.norm(frames[1] - frames[0], axis=1)
  heard = times[changed > 0.3 * changed.max()]
  assert heard.mean() == pytest.approx(at, abs=0.02)


def test_frames_that_overlap_are_those_of_the_clip_from_a_later_spectrum_on(loaded):
  for seconds in (1.3, 1.27, 0.05):
    [clip] = clips_of(seconds)
    frames, times = loaded.frames(clip, SAMPLE_RATE)
    dense, dense_times = loaded.frames(clip, SAMPLE_RATE, overlap=8)
    close(dense[:, ::8], frames)
    np.testing.assert_allclose(dense_times[::8], times, rtol=1e-6)
    assert dense.shape[1] == len(dense_times) == max(0, int(100 * seconds + 1) - 8) + 1
    np.testing.assert_allclose(np.diff(dense_times), 0.01, atol=1e-6)
  with pytest.raises(UserError, match='overlap is 3, and must divide the 8 spectra'):
    loaded.frames(clip, SAMPLE_RATE, overlap=3)


def test_the_last_layer_is_the_frames_and_all_have_their_own_times(audio, any_encoder):
  clips = clips_of(1.3, 0.95)
  layers = audio.layers(clips, SAMPLE_RATE)
  frames, times = audio.frames(clips, SAMPLE_RATE)
  assert [layer.name for layer in layers] == list(any_encoder.layer_strides)
  for i in range(2):
    np.testing.assert_array_equal(layers[-1].features[i], frames[i])
    np.testing.assert_array_equal(layers[-1].times[i], times[i])
  for layer, stride in zip(layers, any_encoder.layer_strides.values(), strict=True):
    for features, at, spectra in zip(layer.features, layer.times, (131, 96), strict=True):
      assert len(features) == len(at) == spectra // stride
      np.testing.assert_allclose(at, (stride * np.arange(len(at)) + (stride - 1) / 2) / 100, rtol=1e-6)


def test_a_float_waveform_becomes_what_its_file_is_decoded_to(tmp_path):
  for file in SPOKEN.glob('*.wav'):
    samples, sample_rate = soundfile.read(file)
    for wanted in (16_000, 22_050, sample_rate):
      [clip] = as_clips(samples, sample_rate, wanted)
      np.testing.assert_array_equal(clip, decode(file, wanted))
  np.testing.assert_array_equal(to_int16(np.array([1.2, -1.2]), 8_000, 8_000), [32_767, -32_768])


@pytest.mark.parametrize(
  ('waveforms', 'sample_rate', 'message'),
  [
    ([], 16_000, 'there are no waveforms'),
    (np.zeros((0, 100)), 16_000, 'there are no waveforms'),
    (np.zeros(0), 16_000, 'waveform 0 has no samples'),
    ([np.zeros(9), np.zeros(0)], 16_000, 'waveform 1 has no samples'),
    (np.zeros((2, 3, 4)), 16_000, r'shape \(2, 3, 4\): give a clip'),
    ([np.zeros((100, 2))], 16_000, r'waveform 0 has the shape \(100, 2\): give \(samples,\)'),
    (np.zeros((16_000, 2)), 16_000, r'16000 clips of 2 samples each: .* waveforms.mean\(1\)'),
    (0.5, 16_000, r'shape \(\)'),
    ('a.wav', 16_000, r'shape \(\)'),
    (np.zeros(9, np.int32), 16_000, 'waveform 0 is of type int32: give int16, or floats'),
    ([np.array([0.0, np.nan])], 16_000, 'waveform 0 has samples that are not finite'),
    (np.array([0.0, np.inf]), 16_000, 'waveform 0 has samples that are not finite'),
    (np.array([0.0, -20_000.0]), 16_000, 'up to 20,000, and full scale is 1'),
    (np.zeros(9), 16, 'sample_rate is 16: give it in Hz'),
    (np.zeros(9), -1, 'sample_rate is -1'),
    (np.zeros(9), float('nan'), 'sample_rate is nan'),
    (np.zeros(9), '16000', "sample_rate is '16000'"),
    (np.zeros(1), 192_000, 'waveform 0 is less than a sample at 16000 Hz'),
  ],
)
def test_waveforms_that_make_no_sense_are_one_clear_line(waveforms, sample_rate, message):
  with pytest.raises(UserError, match=message):
    as_clips(waveforms, sample_rate, 16_000)


def test_a_clip_that_is_too_long_for_learned_positions_is_named(learned_vit):
  encoder = AudioEncoder(LoadedEncoder(learned_vit, CONFIG, -6.0, 4.0, step=7))
  assert encoder.frames(clips_of(1.0)[0], SAMPLE_RATE, overlap=2)[0].shape == (1, 24, 64)
  with pytest.raises(UserError, match=r'waveform 1 is 2.00 s long, and .* for 1.03 s'):
    encoder.embed(clips_of(1.0, 2.0), SAMPLE_RATE)
