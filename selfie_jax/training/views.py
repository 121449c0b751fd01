"""The two views of a batch of clips that the networks see."""

import functools

import jax
import jax.numpy as jnp

from selfie_jax.audio.augment import two_views
from selfie_jax.audio.log_mel import log_mel
from selfie_jax.config import Config, LogMel
from selfie_jax.training.checkpointing.checkpoints import DataState
from selfie_jax.training.gradients import join, split


def make_views(
  key: jax.Array, clips: jax.Array, config: Config, data: DataState, parts: int = 1
) -> tuple[jax.Array, jax.Array]:
  """Two independently distorted z-scored log-mel spectrograms of each clip: of one crop, or of a crop each.

  Args:
    key: a JAX random key.
    clips: (n, crops * crop_samples) int16: a clip's crops, one after the other.
    config: the run's configuration.
    data: the log-mel values' mean and standard deviation.
    parts: how many parts of the clips log-mels are computed of, one after the other.

  Returns:
    Two of (n, n_mels, frames); a mixup partner's crop has the same number as the example's own.
  """
  crops = jnp.split(clips, config.data.crops, axis=1)
  spectrograms = [(log_mel_in_parts(crop, config.log_mel, parts) - data.mean) / data.std for crop in crops]
  return two_views(key, spectrograms[0], spectrograms[-1], config.augment)


def log_mel_in_parts(clips: jax.Array, config: LogMel, parts: int) -> jax.Array:
  """`log_mel` of a part of the clips at a time: its overlapping frames take more memory than a small encoder."""
  if parts == 1:
    return log_mel(clips, config)
  return join(jax.lax.map(functools.partial(log_mel, config=config), split(clips, parts)))
