"""From waveform to embedding in one program with the weights inside: what is exported.

What it computes is what `selfie_jax.embed` does: log-mel, z-scoring, encoder and pooling of the whole clip, one that is
shorter than the training crop zero-padded to it. Only the spectrum comes from a matrix product in float32, because no
two runtimes have the same FFT.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import export

from selfie_jax.audio.log_mel import log_mel
from selfie_jax.embedding.embeddings import check_length
from selfie_jax.errors import UserError
from selfie_jax.models.vit import ViT
from selfie_jax.training.state import LoadedEncoder

PLATFORMS = ('cpu', 'cuda', 'tpu')


def make_program(run: LoadedEncoder) -> Callable[[jax.Array], jax.Array]:
  """Returns the map from clips (batch, samples) float32 in [-1, 1] to embeddings (batch, features) float32."""

  def embed(audio: jax.Array) -> jax.Array:
    samples = audio.shape[1]
    missing = jax.core.max_dim(samples, run.config.crop_samples) - samples  # Of a symbolic length, too.
    audio = jnp.pad(audio, ((0, 0), (0, missing)))
    x = log_mel(audio, run.config.log_mel, portable=True)
    return run.encoder.pool(run.encoder((x - run.mean) / run.std, train=False))

  return embed


def fixed_samples(run: LoadedEncoder, seconds: float | None) -> int | None:
  """Returns how many samples every clip has: None for any number.

  Raises:
    UserError: the encoder cannot take that.
  """
  if seconds is None:
    if isinstance(run.encoder, ViT):  # Its positions, and so its program, are of one number of frames.
      raise UserError('a program of a vit takes clips of one length: give it as --seconds=S')
    return None
  samples = round(seconds * run.config.log_mel.sample_rate)
  if samples < 1:
    raise UserError(f'--seconds is {seconds:g}: a clip has at least one sample')
  check_length(run.encoder, max(samples, run.config.crop_samples), run.config.log_mel, what='--seconds: a clip')
  return samples


def export_program(run: LoadedEncoder, samples: int | None) -> export.Exported:
  """Returns the program in StableHLO, for CPUs, CUDA GPUs and TPUs, of any batch size.

  Args:
    run: the encoder, whose weights become constants of the program.
    samples: see `fixed_samples`.
  """
  batch, any_samples = export.symbolic_shape('batch, samples')
  shape = jax.ShapeDtypeStruct((batch, samples or any_samples), jnp.float32)
  return export.export(jax.jit(make_program(run)), platforms=PLATFORMS)(shape)
