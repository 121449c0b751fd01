"""selfie_jax: self-supervised pre-training of audio encoders by feature diversity and decorrelation."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from selfie_jax.embedding.audio_encoder import AudioEncoder


def load(path: str | os.PathLike[str], step: int | None = None) -> AudioEncoder:
  """Loads a trained encoder: `selfie_jax.load(path).embed(waveforms, sample_rate)`.

  Args:
    path: local or gs://: a training run's folder (also while it trains), or a folder with a `model.safetensors`, or
      such a file.
    step: which checkpoint of a run; None for the newest that verifies.

  Raises:
    UserError: there is no encoder, or not of that step, or it is damaged.
  """
  from selfie_jax.embedding import audio_encoder  # With JAX, which takes seconds; `import selfie_jax` shall not.

  return audio_encoder.load(path, step)
