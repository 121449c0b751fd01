"""The front-end: waveform to log-mel spectrogram, equal to librosa's, on the device."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding

from selfie_jax.config import LogMel

_Samples = TypeVar('_Samples', int, jax.Array)

_INT16_SCALE = 1 / 32_768
_PIECE = 16  # Frames of a piece, on CPUs.
EPS = float(np.finfo(np.float32).eps)  # Keeps the logarithm finite.


@functools.cache
def mel_filterbank(config: LogMel) -> np.ndarray:
  """Slaney's triangular filters with unit area, (n_fft // 2 + 1, n_mels) float32 (`librosa.filters.mel`)."""
  import librosa  # Slow to import, and needed only here.

  filters = librosa.filters.mel(
    sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.n_mels, fmin=config.f_min, fmax=config.f_max
  )
  return np.ascontiguousarray(filters.T)


def num_frames(samples: _Samples, config: LogMel) -> _Samples:
  """Returns how many frames the spectrogram of so many samples has: a number, or an array of integers."""
  return 1 + samples // config.hop_length


def log_mel(audio: jax.Array, config: LogMel, *, portable: bool = False) -> jax.Array:
  """Log-mel power spectrogram: log(librosa.feature.melspectrogram(center=True, power=2) + float32 eps).

  Args:
    audio: (batch, samples), int16 or float in [-1, 1], at `config.sample_rate`.
    config: the front-end's settings.
    portable: on every platform by plain matrix products, for a program that is to run elsewhere.

  Returns:
    (batch, n_mels, 1 + samples // hop_length) float32.
  """
  if audio.dtype == jnp.int16:
    audio = audio.astype(jnp.float32) * _INT16_SCALE
  by_matmul = functools.partial(_mel_by_matmul, config=config)
  by_fft = functools.partial(mel_by_fft, config=config)
  # A matrix product where XLA's FFT is slow to run and slow to compile. The platform that the program is lowered for
  # decides, not the one of this process: `selfie_jax.compile` compiles for TPUs where there are none.
  platforms = {'tpu': by_matmul, 'cpu': functools.partial(by_fft, in_pieces=True), 'default': by_fft}
  audio = audio.astype(jnp.float32)
  mel = by_matmul(audio) if portable else jax.lax.platform_dependent(audio, **platforms)
  return jnp.log(mel + EPS)


def _hops(audio: jax.Array, n_fft: int, hop: int, count: int) -> jax.Array:
  """Zero-padded audio in rows of a hop, (batch, rows, hop): all that the first `count` centred frames are made of."""
  rows = count + -(-n_fft // hop) - 1
  left = n_fft // 2
  return jnp.pad(audio, ((0, 0), (left, rows * hop)))[:, : rows * hop].reshape(audio.shape[0], rows, hop)


def _frames(hops: jax.Array, n_fft: int) -> jax.Array:
  """Overlapping frames (batch, count, n_fft) of `_hops`.

  Slices of whole hops are joined, because a gather of overlapping frames is slow on TPUs.
  """
  per_frame = -(-n_fft // hops.shape[2])
  count = hops.shape[1] - per_frame + 1
  return jnp.concatenate([hops[:, i : i + count] for i in range(per_frame)], axis=-1)[..., :n_fft]


def _hann(n_fft: int) -> np.ndarray:
  return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)  # Periodic, as librosa's.


def windowed_dft(n_fft: int) -> np.ndarray:
  """Hann window and DFT in one matrix, (n_fft, 2 * (n_fft // 2 + 1)) float32: real parts, then imaginary ones."""
  angles = 2 * np.pi / n_fft * (np.outer(np.arange(n_fft), np.arange(n_fft // 2 + 1)) % n_fft)
  window = _hann(n_fft)[:, None]
  return np.concatenate([window * np.cos(angles), window * np.sin(angles)], axis=1).astype(np.float32)


def _mel_by_matmul(audio: jax.Array, config: LogMel) -> jax.Array:
  """Mel power spectrogram (batch, n_mels, frames) of audio (batch, samples)."""
  count = num_frames(audio.shape[1], config)
  frames = _frames(_hops(audio, config.n_fft, config.hop_length, count), config.n_fft)
  product = jnp.matmul(frames, windowed_dft(config.n_fft), precision=jax.lax.Precision.HIGHEST)
  real, imaginary = jnp.split(product, 2, axis=-1)
  return _mel(real**2 + imaginary**2, mel_filterbank(config)).swapaxes(1, 2)


def mel_by_fft(audio: jax.Array, config: LogMel, in_pieces: bool = False) -> jax.Array:
  """Mel power spectrogram (batch, n_mels, frames) of audio (batch, samples), by FFTs in float64."""
  with jax.enable_x64(True):  # For the window.
    return _partitioned(audio, _hann(config.n_fft), mel_filterbank(config), config.hop_length, in_pieces)


def _mel(power: jax.Array, filters: jax.Array) -> jax.Array:
  return jnp.einsum('btf,fm->btm', power, filters, precision=jax.lax.Precision.HIGHEST)


def _mel_of_shard(audio: jax.Array, window: jax.Array, filters: jax.Array, hop: int, in_pieces: bool) -> jax.Array:
  count = 1 + audio.shape[1] // hop
  if in_pieces:
    mel = _mel_in_pieces(audio, window, filters, hop, count)
  else:
    mel = _mel_of_hops(_hops(audio, len(window), hop, count), window, filters)
  return mel.swapaxes(1, 2)


def _mel_in_pieces(audio: jax.Array, window: jax.Array, filters: jax.Array, hop: int, count: int) -> jax.Array:
  """`_mel_of_hops` of the first `count` frames, some frames of one clip at a time.

  Frames that overlap are 13 times their audio in float64: a few stay in a CPU's innermost caches, those of a batch cost
  more than their FFT does in memory traffic. And XLA cuts no operation this small over its threads, which would wait
  for each other, spinning, for a third of the time.
  """
  pieces = -(-count // _PIECE)
  hops = _hops(audio, len(window), hop, pieces * _PIECE)
  shape = (1, hops.shape[1] - (pieces - 1) * _PIECE, hop)

  def piece(number: jax.Array) -> jax.Array:
    start = (number // pieces, number % pieces * _PIECE, jnp.zeros_like(number))
    return _mel_of_hops(jax.lax.dynamic_slice(hops, start, shape), window, filters)

  mel = jax.lax.map(piece, jnp.arange(len(audio) * pieces))
  return mel.reshape(len(audio), pieces * _PIECE, -1)[:, :count]


def _mel_of_hops(hops: jax.Array, window: jax.Array, filters: jax.Array) -> jax.Array:
  """Mel power spectrogram (batch, frames, n_mels) of `_hops`."""
  # In float32 the FFT's rounding noise can outweigh a quiet band under a loud one (errors up to 7e-4 on recordings).
  with jax.enable_x64(True):  # Also here, because a partition is traced later, outside the caller's context.
    spectrum = jnp.fft.rfft(_frames(hops, len(window)).astype(jnp.float64) * window)
    power = (spectrum.real**2 + spectrum.imag**2).astype(jnp.float32)
  return _mel(power, filters)


# Left to itself, XLA gathers the frames of all devices on each of them before an FFT, and their clips before a loop.
_partitioned = custom_partitioning(_mel_of_shard, static_argnums=(3, 4))


def _partition(
  hop: int,
  in_pieces: bool,
  mesh: jax.sharding.Mesh,
  arguments: tuple[jax.ShapeDtypeStruct, ...],
  result: jax.ShapeDtypeStruct,
) -> tuple[jax.sharding.Mesh, Callable[..., jax.Array], NamedSharding, tuple[NamedSharding, ...]]:
  of_shard = functools.partial(_mel_of_shard, hop=hop, in_pieces=in_pieces)
  return mesh, of_shard, result.sharding, tuple(argument.sharding for argument in arguments)


_partitioned.def_partition(
  _partition, sharding_rule='b s, n, f m -> b m t', need_replication_factors=('s', 'n', 'f', 'm', 't')
)
