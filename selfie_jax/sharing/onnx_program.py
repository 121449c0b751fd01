"""The program of `sharing/program.py` in ONNX.

The graph is written by hand, with the package `onnx` alone: it takes two dozen operators, and the converters of whole
JAX programs (jax2onnx 0.17) want older versions of what a run needs.
"""

import numpy as np

from selfie_jax.audio.log_mel import EPS, mel_filterbank, windowed_dft
from selfie_jax.config import LogMel
from selfie_jax.models.vit import ViT
from selfie_jax.sharing.onnx_encoders import add_audiontt, add_vit
from selfie_jax.sharing.onnx_graph import Graph, ints
from selfie_jax.training.state import LoadedEncoder


def onnx_program(run: LoadedEncoder, samples: int | None) -> bytes:
  """Returns the ONNX model: `audio` (batch, samples) float32 to `embedding` (batch, features) float32.

  Args:
    run: the encoder, whose weights become constants of the model.
    samples: see `program.fixed_samples`.
  """
  graph = Graph()
  crop, config, encoder = run.config.crop_samples, run.config.log_mel, run.encoder
  x = _log_mel(graph, _pad(graph, 'audio', crop), config)
  x = graph.add('Div', graph.add('Sub', x, np.float32(run.mean)), np.float32(run.std))
  if isinstance(encoder, ViT):
    x = add_vit(graph, x, encoder, 1 + max(samples, crop) // config.hop_length)
  else:
    x = add_audiontt(graph, x, encoder)
  return graph.model(
    x,
    inputs=('audio', ['batch', samples or 'samples']),
    outputs=('embedding', ['batch', encoder.features]),
    name='waveform_to_embedding',
  )


def _pad(graph: Graph, audio: str, at_least: int) -> str:
  """Zero-pads clips at their end that are shorter than `at_least` samples."""
  samples = graph.add('Shape', audio, start=1, end=2)
  missing = graph.add('Max', graph.add('Sub', ints(at_least), samples), ints(0))
  return graph.add('Pad', audio, graph.add('Concat', ints(0, 0, 0), missing, axis=0))


def _log_mel(graph: Graph, audio: str, config: LogMel) -> str:
  """Takes (batch, samples) to (batch, n_mels, frames): see `audio/log_mel.py`. Framing and DFT are one convolution."""
  left = config.n_fft // 2  # Frames are centred.
  spectrum = graph.add(
    'Conv',
    graph.add('Unsqueeze', audio, ints(1)),
    windowed_dft(config.n_fft).T[:, None],  # (out, in, width)
    strides=[config.hop_length],
    pads=[left, config.n_fft - left],
  )
  squares = graph.add('Mul', spectrum, spectrum)
  bins = config.n_fft // 2 + 1
  real, imaginary = (graph.add('Slice', squares, ints(start), ints(start + bins), ints(1)) for start in (0, bins))
  mel = graph.add('MatMul', mel_filterbank(config).T, graph.add('Add', real, imaginary))
  return graph.add('Log', graph.add('Add', mel, np.float32(EPS)))
