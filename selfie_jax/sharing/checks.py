"""Runs an exported program where it is meant to run, and compares what it says with the encoder itself."""

import dataclasses
import importlib
import os
from collections.abc import Callable

import numpy as np
from jax import export

from selfie_jax.embedding.embeddings import embed_clips
from selfie_jax.errors import UserError
from selfie_jax.training.state import LoadedEncoder

# Of the embeddings' greatest value. Float32 spectra make a far smaller difference (3e-5 on recordings); other padding,
# pooling or order of the features a far greater one.
TOLERANCE = 1e-3

# Clips (batch, samples) float32 to embeddings (batch, features).
Program = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Check:
  """How far a program's embeddings are from the encoder's."""

  runtime: str  # Name and version of what ran the program.
  difference: float  # The greatest absolute one.
  greatest: float  # The greatest absolute value of the encoder's.


def check(program: Program, runtime: str, run: LoadedEncoder, samples: int | None) -> Check:
  """Compares a program with `embed_clips`, on batches of several sizes and clips of several lengths.

  Args:
    program: to check.
    runtime: the module that runs it.
    run: what it was made of.
    samples: of every clip; None: any number.

  Raises:
    UserError: they differ by more than `TOLERANCE`.
  """
  crop = run.config.crop_samples
  lengths = (samples,) * 2 if samples else (crop // 2, crop, 2 * crop + 77)
  found, expected = [], []
  for size, length in enumerate(lengths, 1):
    clips = _clips(size, length, run.config.log_mel.sample_rate)
    found.append(program(clips.astype(np.float32) / 32_768))
    expected.append(embed_clips(run.encoder, clips, run.config.log_mel, run.mean, run.std, min_samples=crop))
  version = importlib.import_module(runtime).__version__  # TensorFlow comes in packages of several names.
  result = compare(np.concatenate(found), np.concatenate(expected), f'{runtime} {version}')
  if not result.difference <= TOLERANCE * result.greatest:  # Also of NaN.
    raise UserError(
      f'the exported program is wrong in {result.runtime}: its embeddings differ by up to {result.difference:.1e}, and '
      f'reach {result.greatest:.1f}; nothing was written. Use another --format, and tell us'
    )
  return result


def compare(found: np.ndarray, expected: np.ndarray, runtime: str) -> Check:
  """Returns how far embeddings (n, features) are from what was expected."""
  return Check(runtime, float(np.abs(found - expected).max()), float(np.abs(expected).max()))


def _clips(size: int, samples: int, sample_rate: int) -> np.ndarray:
  """Returns (size, samples) int16: gliding tones that swell, in noise."""
  noise = np.random.default_rng(0).normal(0, 300, (size, samples))
  seconds = np.arange(samples) / sample_rate
  glides = [np.sin(2 * np.pi * 220 * (row + 1) * seconds * (1 + seconds)) for row in range(size)]
  return (noise + 8_000 * np.sin(3 * seconds) ** 2 * np.array(glides)).astype(np.int16)


def in_onnxruntime(model: bytes) -> Program:
  """Returns an ONNX model as a function, on the CPU.

  Raises:
    ImportError: onnxruntime is not installed.
  """
  import onnxruntime

  session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
  return lambda audio: session.run(None, {'audio': audio})[0]


def in_tensorflow(program: bytes) -> Program:
  """Returns a serialised `jax.export` program as a function, by TensorFlow's own copy of XLA, on the CPU.

  Raises:
    ImportError: TensorFlow is not installed.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # TensorFlow greets everyone on stderr unless told not to,
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # and once more about the CPU kernels that are not used here.
  import tensorflow as tf
  from tensorflow.compiler.tf2xla.python import xla

  tf.config.set_visible_devices([], 'GPU')  # Or TensorFlow takes the memory that JAX needs.

  exported = export.deserialize(program)
  features = exported.out_avals[0].shape[1]

  # In a function, and not at once: only there are the numbers of clips and samples left open.
  @tf.function(input_signature=[tf.TensorSpec((None, None), tf.float32)], autograph=False)
  def call(audio: tf.Tensor) -> tf.Tensor:
    [embeddings] = xla.call_module(
      [audio],
      version=exported.calling_convention_version,
      module=exported.mlir_module_serialized,
      Tout=[tf.float32],
      Sout=[(None, features)],
      platforms=[platform.upper() for platform in exported.platforms],
    )
    return embeddings

  return lambda audio: call(audio).numpy()
