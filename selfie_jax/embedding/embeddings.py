"""Clips of any length to one vector each, in few compiled programs and bounded memory.

A clip is zero-padded to the next of a few fixed lengths and goes through the encoder whole, in a batch of clips of that
length. How far it is padded, the batch's size and which frames count all follow from the clip's own length, so that its
vector does not depend on the clips beside it, on their order or on their number.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from selfie_jax.audio.log_mel import log_mel, num_frames
from selfie_jax.config import LogMel
from selfie_jax.errors import UserError
from selfie_jax.training.state import Encoder

# log-mel (clips, n_mels, frames) and each clip's own number of frames (clips,) to (clips, features).
Representation = Callable[[jax.Array, jax.Array], jax.Array]

_LENGTHS_PER_OCTAVE = 4
_FRAMES_MULTIPLE = 16  # Of a padded length; kind to strides and vector units.


@dataclasses.dataclass(frozen=True)
class ClipLengths:
  """The numbers of log-mel frames that clips are padded to: a geometric grid from the shortest to the longest clip."""

  shortest: int
  longest: int | None  # None: the grid goes on for ever.

  def padded(self, frames: int) -> int:
    """Returns the smallest length of the grid that holds `frames`."""
    octaves = math.log2(max(frames, self.shortest) / self.shortest)
    # The rounding keeps a length that is on the grid from being taken for one a hair above it.
    step = math.ceil(round(octaves * _LENGTHS_PER_OCTAVE, 9))
    length = self.shortest * 2 ** (step / _LENGTHS_PER_OCTAVE)
    if self.longest is not None:
      length = min(length, max(self.longest, self.shortest))
    return -(-math.ceil(length) // _FRAMES_MULTIPLE) * _FRAMES_MULTIPLE


@dataclasses.dataclass(frozen=True)
class _Batch:
  rows: list[int]  # Positions of the clips in the input.
  audio: np.ndarray  # (batch, samples) int16; zeros below the clips, where there are fewer than the batch has rows.
  frames: np.ndarray  # (batch,) int32, log-mel frames of each clip.


def represent(
  clips: Iterable[np.ndarray],
  representations: Iterable[Representation],
  config: LogMel,
  *,
  min_samples: int,
  max_samples: int | None = None,
) -> list[np.ndarray]:
  """Applies one or more representations to every clip; the log-mel spectrogram is computed once for all of them.

  Args:
    clips: int16 mono at `config.sample_rate`, each of at least one sample; consumed as they are needed.
    representations: such as `encoder_representation(...)` or `log_mel_statistics`.
    config: the front-end.
    min_samples: shorter clips are zero-padded to it.
    max_samples: no clip is longer (only tightens the padding).

  Returns:
    For each representation an (n, features) float32 array, a row a clip, in the order of `clips`.
  """
  representations = list(representations)
  by_row = NamedSharding(_local_mesh(), PartitionSpec('data'))
  longest = None if max_samples is None else num_frames(max_samples, config)
  lengths = ClipLengths(num_frames(min_samples, config), longest)
  vectors: list[dict[int, np.ndarray]] = [{} for _ in representations]
  for batch in _batches(clips, lengths, config):
    spectrograms = _log_mel(jax.device_put(batch.audio, by_row), config)
    frames = jax.device_put(batch.frames, by_row)
    outputs = [representation(spectrograms, frames) for representation in representations]
    for found, output in zip(vectors, outputs, strict=True):
      found.update(zip(batch.rows, np.asarray(output, np.float32), strict=False))  # Rows of zeros are left over.
  return [np.stack([found[row] for row in range(len(found))]) for found in vectors]


def encoder_representation(
  encoder: Encoder, config: LogMel, mean: float, std: float, *, min_samples: int
) -> Representation:
  """Returns the map from log-mel to the encoder's embedding of a clip, its pooled frames.

  Frames past a clip's end (or past `min_samples`, if that is later) are hidden from the encoder and from the pooling.
  """
  graphdef, state = nnx.split(encoder)
  state = jax.device_put(state, NamedSharding(_local_mesh(), PartitionSpec()))
  min_frames = num_frames(min_samples, config)
  return lambda x, frames: _encode(graphdef, state, x, jnp.maximum(frames, min_frames), mean, std)


def embed_clips(
  encoder: Encoder,
  clips: Iterable[np.ndarray],
  config: LogMel,
  mean: float,
  std: float,
  *,
  min_samples: int,
  max_samples: int | None = None,
) -> np.ndarray:
  """Embeds clips, each in one pass: (n, encoder.features) float32 in their order. Arguments as of `represent`.

  Args:
    encoder: used in evaluation mode (running averages, no dropout).
    clips: see `represent`.
    config: the front-end that the encoder was trained with.
    mean: of the log-mel values, for z-scoring.
    std: of the log-mel values.
    min_samples: see `represent`.
    max_samples: see `represent`.
  """
  encode = encoder_representation(encoder, config, mean, std, min_samples=min_samples)
  return represent(clips, [encode], config, min_samples=min_samples, max_samples=max_samples)[0]


@jax.jit
def log_mel_statistics(x: jax.Array, frames: jax.Array) -> jax.Array:
  """A classical baseline: mean and standard deviation over time of each mel band, (clips, 2 * n_mels)."""
  counts = jnp.arange(x.shape[-1]) < frames[:, None, None]
  mean = jnp.where(counts, x, 0).sum(-1) / frames[:, None]
  variance = jnp.where(counts, (x - mean[..., None]) ** 2, 0).sum(-1) / frames[:, None]
  return jnp.concatenate([mean, jnp.sqrt(variance)], axis=-1)


def log_mel_moments(
  clips: Iterable[np.ndarray], config: LogMel, *, min_samples: int, max_samples: int | None = None
) -> np.ndarray:
  """Returns the number, the sum and the sum of squares of each clip's log-mel values, (clips, 3), without padding."""
  return represent(clips, [_log_mel_moments], config, min_samples=min_samples, max_samples=max_samples)[0]


@jax.jit
def _log_mel_moments(x: jax.Array, frames: jax.Array) -> jax.Array:
  """Number, sum and sum of squares of each clip's log-mel values, (clips, 3)."""
  x = jnp.where(jnp.arange(x.shape[-1]) < frames[:, None, None], x, 0)
  return jnp.stack([frames * x.shape[1], x.sum((1, 2)), (x**2).sum((1, 2))], axis=-1)


_log_mel = jax.jit(log_mel, static_argnums=1)


@functools.partial(jax.jit, static_argnums=0)
def _encode(
  graphdef: nnx.GraphDef, state: nnx.State, x: jax.Array, frames: jax.Array, mean: float, std: float
) -> jax.Array:
  # Weights and statistics are arguments, so that one program serves every checkpoint and task.
  encoder = nnx.merge(graphdef, state)
  x = x[..., : encoder.max_frames]  # Only padding can be beyond: `check_length` is for clips.
  features = encoder((x - mean) / std, train=False, valid=frames)
  return encoder.pool(features, frames // encoder.frame_stride)


def digest(encoder: Encoder) -> str:
  """Returns the SHA-256 of an encoder's weights and batch statistics, in hexadecimal."""
  found = hashlib.sha256()
  for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(encoder))):
    values = np.asarray(leaf)
    found.update(f'{jax.tree_util.keystr(path)} {values.dtype} {values.shape}\n'.encode() + values.tobytes())
  return found.hexdigest()


def check_length(encoder: Encoder, samples: int, config: LogMel, what: str) -> None:
  """Checks that the encoder has positions for a clip of so many samples; `what` names it in the message.

  Raises:
    UserError: it was trained with learned positions, on crops that are shorter.
  """
  if encoder.max_frames is not None and num_frames(samples, config) > encoder.max_frames:
    seconds, longest = samples / config.sample_rate, (encoder.max_frames * config.hop_length - 1) / config.sample_rate
    raise UserError(
      f'{what} is {seconds:.2f} s long, and the encoder has learned positions for {longest:.2f} s: '
      'shorten it, or train with encoder.positions="sincos" or a longer data.crop_seconds'
    )


def _local_mesh() -> Mesh:
  return Mesh(np.array(jax.local_devices()), ('data',), axis_types=(AxisType.Auto,))


def _batches(clips: Iterable[np.ndarray], lengths: ClipLengths, config: LogMel) -> Iterator[_Batch]:
  """Yields clips of one padded length together, as soon as there are enough to fill a batch."""
  waiting: dict[int, list[tuple[int, np.ndarray]]] = {}
  for row, clip in enumerate(clips):
    length = lengths.padded(num_frames(len(clip), config))
    group = waiting.setdefault(length, [])
    group.append((row, clip))
    if len(group) == _batch_size(length):
      yield _batch(waiting.pop(length), length, config)
  for length in sorted(waiting):
    yield _batch(waiting[length], length, config)


def _batch_size(length: int) -> int:
  """Clips of `length` frames in a batch: about the same number of frames in each, a multiple of the devices."""
  # On a CPU (measured) small batches are up to twice as fast: their activations stay in the cache.
  frames_per_device = 1_536 if jax.default_backend() == 'cpu' else 98_304
  return jax.local_device_count() * max(1, frames_per_device // length)


def _batch(group: list[tuple[int, np.ndarray]], length: int, config: LogMel) -> _Batch:
  size = _batch_size(length)
  # One sample more would make one more frame.
  audio = np.zeros((size, length * config.hop_length - 1), np.int16)
  frames = np.ones(size, np.int32)
  for i, (_, clip) in enumerate(group):
    audio[i, : len(clip)] = clip
    frames[i] = num_frames(len(clip), config)
  return _Batch([row for row, _ in group], audio, frames)
