import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfie_jax.audio.log_mel import log_mel
from selfie_jax.config import LogMel
from selfie_jax.embedding import embeddings
from selfie_jax.embedding.embeddings import ClipLengths, embed_clips
from selfie_jax.errors import UserError
from tests.processes import run_python

LOG_MEL = LogMel()
MIN_SAMPLES = 15_200


def clip(samples, seed=0):
  rng = np.random.default_rng(seed)
  decay = np.exp(-np.arange(samples) / 8_000)
  return (3_000 * rng.normal(size=samples) * decay).astype(np.int16)


def embed(encoder, clips, max_samples=None):
  return embed_clips(encoder, clips, LOG_MEL, -6.0, 4.0, min_samples=MIN_SAMPLES, max_samples=max_samples)


def test_an_embedding_is_a_function_of_its_clip_alone(any_encoder):
  mine = clip(20_000)
  alone = embed(any_encoder, [mine])[0]
  among_its_like = embed(any_encoder, [clip(20_000, seed) for seed in range(1, 30)] + [mine])[-1]
  among_longer_and_shorter = embed(any_encoder, [clip(90_000, 1), clip(300, 2), mine, clip(40_000, 3)])[2]
  np.testing.assert_allclose(among_its_like, alone, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(among_longer_and_shorter, alone, rtol=1e-5, atol=1e-6)


def test_the_order_given_is_the_order_returned(encoder):
  clips = [clip(int(n), seed) for seed, n in enumerate(np.random.default_rng(0).integers(200, 60_000, 40))]
  order = np.random.default_rng(1).permutation(len(clips))
  shuffled = embed(encoder, [clips[i] for i in order])
  np.testing.assert_allclose(shuffled, embed(encoder, clips)[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('samples', [MIN_SAMPLES, 30_000, 2 * MIN_SAMPLES + 100])
def test_an_embedding_is_the_encoder_pooled_over_the_whole_clip(any_encoder, samples):
  mine = clip(samples)
  x = (log_mel(mine[None], LOG_MEL) + 6) / 4
  expected = any_encoder.pool(any_encoder(x, train=False))[0]
  assert np.abs(embed(any_encoder, [mine])[0] - expected).max() < 1e-5 * np.abs(expected).max()


def test_learned_positions_serve_clips_as_long_as_the_training_crop_and_no_longer(learned_vit):
  # 103 frames: the grid pads such a clip to more than there are positions for, and that does no harm.
  longest = 103 * LOG_MEL.hop_length - 1
  mine = clip(longest)
  embeddings.check_length(learned_vit, longest, LOG_MEL, 'it')
  features = learned_vit((log_mel(mine[None], LOG_MEL) + 6) / 4, train=False)
  np.testing.assert_allclose(embed(learned_vit, [mine])[0], learned_vit.pool(features)[0], rtol=1e-5, atol=1e-5)
  with pytest.raises(UserError, match=r'it is 1.03 s long, and .* positions for 1.03 s: .*positions="sincos"'):
    embeddings.check_length(learned_vit, longest + 1, LOG_MEL, 'it')


def test_a_short_clip_is_padded_with_silence(encoder):
  short = clip(4_000)
  padded = np.pad(short, (0, MIN_SAMPLES - len(short)))
  np.testing.assert_allclose(embed(encoder, [short]), embed(encoder, [padded]), rtol=1e-5, atol=1e-6)


def test_one_program_serves_every_clip_of_about_one_length_every_encoder_and_every_task(any_encoder):
  embeddings._encode.clear_cache()
  for mean in (-6.0, -5.0):
    embed_clips(any_encoder, [clip(20_000 + i) for i in range(9)], LOG_MEL, mean, 4.0, min_samples=MIN_SAMPLES)
  assert embeddings._encode._cache_size() == 1


@given(st.integers(1, 200), st.integers(1, 5_000), st.none() | st.integers(1, 5_000))
@settings(deadline=None)
def test_a_padded_length_holds_the_clip_and_is_not_much_longer(shortest, frames, longest):
  frames = min(frames, longest) if longest else frames
  padded = ClipLengths(shortest, longest).padded(frames)
  assert padded % 16 == 0
  assert frames <= padded <= max(frames, shortest) * 2**0.25 + 17
  if longest:
    assert padded <= max(shortest, longest) + 16


def test_log_mel_statistics_are_those_of_the_clip_without_its_padding():
  clips = [clip(n, seed=n) for n in (400, 16_000, 33_333)]
  [found] = embeddings.represent(clips, [embeddings.log_mel_statistics], LOG_MEL, min_samples=MIN_SAMPLES)
  for row, mine in zip(found, clips, strict=True):
    x = np.asarray(log_mel(mine[None], LOG_MEL)[0])
    np.testing.assert_allclose(row, np.concatenate([x.mean(1), x.std(1)]), atol=2e-4)


def test_the_moments_of_log_mel_values_are_librosas():
  clips = [clip(n, seed=n) for n in (2_000, 16_000, 33_333)]
  values = np.concatenate(
    [
      np.log(
        librosa.feature.melspectrogram(
          y=mine / 32_768, sr=16_000, n_fft=1_024, hop_length=160, n_mels=64, fmin=60, fmax=7_800
        )
        + np.finfo(np.float32).eps
      ).ravel()
      for mine in clips
    ]
  )
  count, total, squares = embeddings.log_mel_moments(clips, LOG_MEL, min_samples=MIN_SAMPLES).sum(0, np.float64)
  assert count == len(values)
  assert total / count == pytest.approx(values.mean(), abs=1e-4)
  assert squares / count == pytest.approx((values**2).mean(), rel=1e-4)


FOUR_DEVICES = """
import sys
import jax, numpy as np
from flax import nnx
from selfie_jax.config import LogMel
from selfie_jax.errors import UserError
from selfie_jax.models.audiontt import AudioNTT
from selfie_jax.embedding.embeddings import embed_clips
from tests.evaluation.conftest import CONFIG
from tests.evaluation.test_embeddings import clip

encoder = AudioNTT(CONFIG.encoder, 64, rngs=nnx.Rngs(0))
clips = [clip(n, n) for n in range(15_000, 16_500, 150)]
embeddings = embed_clips(encoder, clips, LogMel(), -6.0, 4.0, min_samples=15_200)
np.save(sys.argv[1], embeddings)
assert jax.device_count() == 4
"""


def test_four_devices_give_what_one_gives(encoder, tmp_path):
  run_python('-c', FOUR_DEVICES, tmp_path / 'four.npy', devices=4)
  one = embed(encoder, [clip(n, n) for n in range(15_000, 16_500, 150)])
  np.testing.assert_allclose(np.load(tmp_path / 'four.npy'), one, rtol=1e-5, atol=1e-5)
