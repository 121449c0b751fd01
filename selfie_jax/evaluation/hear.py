"""The HEAR 2021 API (https://hearbenchmark.com/hear-api.html): an encoder, for whatever evaluates PyTorch models.

  pip install torch; pip install --no-deps hearvalidator==2021.0.2
  hear-validator selfie_jax.evaluation.hear --model PATH

The encoder runs in JAX: no gradient comes back to PyTorch, and moving the model to a device moves nothing. PyTorch is
needed here alone, and is not among the project's requirements.
"""

import functools
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from selfie_jax.embedding.audio_encoder import AudioEncoder, load
from selfie_jax.errors import UserError

if TYPE_CHECKING:
  import torch

_MOST_SECONDS_APART = 0.05  # HEAR's for timestamps: transcriptions count as right within 50 ms.
_MODEL = 'SELFIE_JAX_MODEL'  # The environment variable in place of the path.


def load_model(model_file_path: str = '') -> 'torch.nn.Module':
  """Loads an encoder.

  Args:
    model_file_path: as of `selfie_jax.load`; '': that of the environment variable SELFIE_JAX_MODEL.

  Returns:
    A module with the attributes that HEAR wants: `sample_rate`, which audio must have, `scene_embedding_size` and
    `timestamp_embedding_size`; and `encoder`, the `AudioEncoder`.

  Raises:
    UserError: no path is given, there is no encoder, or PyTorch is not installed.
  """
  path = model_file_path or os.environ.get(_MODEL, '')
  if not path:
    raise UserError(f"no encoder is given: load_model('PATH'), or set the environment variable {_MODEL}")
  return _module_class()(load(path))


def get_timestamp_embeddings(audio: 'torch.Tensor', model: 'torch.nn.Module') -> tuple['torch.Tensor', 'torch.Tensor']:
  """Encodes clips frame by frame, the frames no more than 50 ms apart.

  Where the encoder's frames are longer, they overlap: see `AudioEncoder.frames`, which also says where a frame's middle
  is. AudioNTT2020 runs twice for 40 ms, a transformer with patches of 160 ms four times.

  Args:
    audio: (n, samples) in [-1, 1], mono, at `model.sample_rate`.
    model: from `load_model`.

  Returns:
    (n, t, timestamp_embedding_size) float32, and the frames' middles in milliseconds, (n, t) float32, on the audio's
    device.
  """
  overlap = _overlap(model.encoder)
  features, seconds = model.encoder.frames(_as_array(audio), model.sample_rate, overlap)
  # The one frame of a clip that is shorter than a frame would be past its end.
  seconds = np.minimum(seconds, audio.shape[1] / model.sample_rate)
  return _like(audio, features), _like(audio, np.tile(1_000 * seconds, (len(features), 1)))


def get_scene_embeddings(audio: 'torch.Tensor', model: 'torch.nn.Module') -> 'torch.Tensor':
  """Embeds clips as `AudioEncoder.embed` does.

  Args:
    audio: (n, samples) in [-1, 1], mono, at `model.sample_rate`.
    model: from `load_model`.

  Returns:
    (n, scene_embedding_size) float32, on the audio's device.
  """
  return _like(audio, model.encoder.embed(_as_array(audio), model.sample_rate))


@functools.cache
def _module_class() -> type:
  try:
    import torch
  except ImportError as error:
    raise UserError(
      'the HEAR API is made of PyTorch tensors, and PyTorch is not installed: pip install torch'
    ) from error

  class HearModel(torch.nn.Module):
    """Gives an encoder the face that HEAR wants."""

    def __init__(self, encoder: AudioEncoder) -> None:
      super().__init__()
      self.encoder = encoder
      self.sample_rate = encoder.sample_rate
      self.scene_embedding_size = encoder.features
      self.timestamp_embedding_size = encoder.features

  return HearModel


def _overlap(encoder: AudioEncoder) -> int:
  """Returns the smallest overlap that brings frames close enough, or the greatest there is."""
  spectra = encoder.frame_stride
  overlaps = [overlap for overlap in range(1, spectra + 1) if spectra % overlap == 0]
  close = [overlap for overlap in overlaps if encoder.frame_seconds / overlap <= _MOST_SECONDS_APART]
  return close[0] if close else spectra


def _as_array(audio: 'torch.Tensor') -> np.ndarray:
  if audio.ndim != 2:
    raise UserError(f'audio has the shape {tuple(audio.shape)}: HEAR wants (n, samples)')
  return audio.detach().cpu().numpy()


def _like(audio: 'torch.Tensor', values: Any) -> 'torch.Tensor':
  import torch

  return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(audio.device)
