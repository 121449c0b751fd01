from pathlib import Path

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import soundfile
import soxr

from selfie_jax.audio.log_mel import log_mel, mel_by_fft, mel_filterbank
from selfie_jax.config import LogMel

CLIPS = sorted(Path(__file__).with_name('clips').glob('*.wav'))
BYOL_A = LogMel()


def recording(path, samples=15_200):
  """A recording at full scale, as int16 at 16 kHz, repeated to `samples`."""
  audio, rate = soundfile.read(path)
  audio = soxr.resample(audio, rate, 16_000)
  return np.resize(np.rint(32_767 * audio / np.abs(audio).max()).astype(np.int16), samples)


def librosa_log_mel(audio, settings):
  power = librosa.feature.melspectrogram(
    y=audio,
    sr=settings.sample_rate,
    n_fft=settings.n_fft,
    hop_length=settings.hop_length,
    n_mels=settings.n_mels,
    fmin=settings.f_min,
    fmax=settings.f_max,
    center=True,
    power=2,
  )
  return np.log(power + np.finfo(np.float32).eps)


@pytest.mark.parametrize(
  'settings',
  [BYOL_A, LogMel(n_fft=400, hop_length=160, n_mels=80, f_min=0, f_max=8_000), LogMel(n_fft=512, hop_length=512)],
  ids=['BYOL-A', '25 ms frames', 'no overlap'],
)
def test_it_is_librosas_on_recordings(settings):
  audio = np.stack([recording(path) for path in CLIPS])
  ours = jax.jit(log_mel, static_argnums=1)(audio, settings)
  theirs = np.stack([librosa_log_mel(clip.astype(np.float32) / 32_768, settings) for clip in audio])
  assert ours.dtype == jnp.float32
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_a_quiet_band_under_a_loud_one_is_right_too():
  time = np.arange(15_200) / 16_000
  # The second tone's mel power is near the eps, 110 dB under the first one.
  audio = (0.9 * np.sin(2 * np.pi * 440 * time) + 3e-6 * np.sin(2 * np.pi * 5_000 * time)).astype(np.float32)
  ours = log_mel(audio[None], BYOL_A)[0, :, 4:-4]
  np.testing.assert_allclose(ours, librosa_log_mel(audio, BYOL_A)[:, 4:-4], rtol=0, atol=1e-5)


def test_the_matrix_dft_of_tpus_is_as_exact_as_float32_is():
  audio = np.stack([recording(path) for path in CLIPS])
  ours = log_mel(audio, BYOL_A, portable=True)
  # In energies, because the logarithm of a band far under the frame's loudest shows float32's rounding.
  np.testing.assert_allclose(np.exp(ours), np.exp(log_mel(audio, BYOL_A)), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize('samples', [15_200, 9_000, 100])  # 96 frames, 57, and 1.
def test_frames_in_pieces_and_together_are_the_same(samples):
  audio = np.stack([recording(path)[:samples] for path in CLIPS]).astype(np.float32) / 32_768
  in_pieces, together = (mel_by_fft(audio, BYOL_A, in_pieces=choice) for choice in (True, False))
  np.testing.assert_allclose(in_pieces, together, rtol=1e-6, atol=0)


def test_on_a_cpu_more_clips_take_no_more_temporary_memory():
  def temporary(clips):
    compiled = jax.jit(log_mel, static_argnums=1).lower(np.zeros((clips, 15_200), np.int16), BYOL_A).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # What grows is the audio in float32 and the result, not the overlapping frames in float64 (6 MB a batch of 8).
  assert temporary(16) - temporary(8) <= 8 * 4 * (15_200 + 2 * 64 * 96)


@pytest.mark.parametrize(('platform', 'ffts'), [('tpu', 0), ('cpu', 1), ('cuda', 1)])
def test_the_platform_that_a_program_is_lowered_for_chooses_the_dft(platform, ffts):
  traced = jax.jit(log_mel, static_argnums=1).trace(np.zeros((2, 1_600), np.int16), BYOL_A)
  assert traced.lower(lowering_platforms=(platform,)).as_text().count('stablehlo.fft') == ffts


@pytest.mark.filterwarnings('ignore:n_fft=1024 is too large')
@pytest.mark.parametrize(('samples', 'frames'), [(15_200, 96), (15_199, 95), (15_201, 96), (160_000, 1_001), (1, 1)])
def test_frames_are_centred_on_every_hop(samples, frames):
  audio = recording(CLIPS[0], samples)
  ours = log_mel(audio[None], BYOL_A)
  assert ours.shape == (1, 64, frames)
  np.testing.assert_allclose(ours[0], librosa_log_mel(audio / np.float32(32_768), BYOL_A), rtol=0, atol=1e-5)


def test_int16_and_float_are_the_same_sound():
  audio = recording(CLIPS[0])[None]
  np.testing.assert_array_equal(log_mel(audio, BYOL_A), log_mel(audio.astype(np.float32) / 32_768, BYOL_A))


def test_silence_is_the_logarithm_of_eps():
  np.testing.assert_allclose(log_mel(np.zeros((1, 1_600), np.int16), BYOL_A), np.log(np.finfo(np.float32).eps))


def test_the_filters_are_slaneys():
  filters = mel_filterbank(BYOL_A)
  assert filters.shape == (513, 64)
  frequencies = np.arange(513) * 16_000 / 1_024
  inside = (frequencies > 60) & (frequencies < 7_800)
  assert not filters[~inside].any()
  # Slaney's scale is linear under 1 kHz, and each triangle has an area of 1 (in Hz).
  centres = frequencies @ filters / filters.sum(0)
  np.testing.assert_allclose(np.diff(centres[2:14]), np.diff(centres[2:14]).mean(), rtol=0.1)
  np.testing.assert_allclose(filters[:, 20:].sum(0) * 16_000 / 1_024, 1, rtol=0.05)
