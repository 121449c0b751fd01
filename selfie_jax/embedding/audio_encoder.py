"""A trained encoder, to be used from Python: waveforms in, NumPy arrays out. `selfie_jax.load` makes one.

What it gives for a recording is what `python -m selfie_jax.embed` gives for its file, and what an evaluation under the
`corrected` protocol probes: the log-mel spectrogram z-scored with the statistics of the pre-training data, the whole
clip in one pass, a clip shorter than the training crop padded with silence to it, the encoder's own pooling.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from selfie_jax.audio.log_mel import num_frames
from selfie_jax.audio.waveforms import Waveforms, are_listed, as_clips
from selfie_jax.config import Config, LogMel
from selfie_jax.embedding.embeddings import ClipLengths, check_length, embed_clips, represent
from selfie_jax.errors import UserError
from selfie_jax.files import PathLike
from selfie_jax.models.vit import ViT
from selfie_jax.sharing.loading import load_encoder
from selfie_jax.training.state import LoadedEncoder

# A clip goes through the encoder whole. These take 3 GB of memory; a transformer's grows with the square of the tokens.
_MOST_SECONDS = 600
_MOST_TOKENS = 4_500

Features = np.ndarray | list[np.ndarray]


class Layer(NamedTuple):
  """What one layer says: `features` and `times` as of `AudioEncoder.frames`, of a width and a spacing of its own."""

  name: str
  features: Features
  times: Features


class _Stage(NamedTuple):
  name: str
  stride: int  # Log-mel frames in one of its frames.
  width: int


class AudioEncoder:
  """An encoder, frozen.

  All methods take `waveforms`, mono: an array (samples,), a clip; an array (n, samples), n clips; or a list of arrays
  (samples,), clips of any lengths. Of int16, or floats in [-1, 1]; and their `sample_rate` in Hz. The channels of one
  stereo recording (2, samples) would pass for two clips: give their mean.

  As decoding a file does, they resample with soxr (HQ) to the encoder's rate and round to int16: a float waveform and
  the 16-bit file it was read from have the same features, and what a float file has below 1 / 65,536 is lost.

  A clip's features do not depend on the clips beside it, up to the rounding of float32.

  All raise UserError for waveforms that make no sense (see `audio.waveforms.as_clips`) and for clips that are too long
  for one pass: longer than `longest_seconds`, or than the learned positions of a transformer.

  Attributes:
    sample_rate: of what the encoder sees, in Hz; that of the waveforms may be another.
    features: width of an embedding, and of a frame's features.
    frame_stride: spectra in a frame: see `frames`.
    frame_seconds: from one frame to the next.
    longest_seconds: of a clip.
    step: of the checkpoint; None of weights that were imported.
    config: of the training run.
  """

  def __init__(self, run: LoadedEncoder) -> None:
    """Takes what `sharing.loading.load_encoder` returns."""
    self._run = run
    self._graphdef, self._state = nnx.split(run.encoder)
    spectra = jax.ShapeDtypeStruct((1, run.config.log_mel.n_mels, run.encoder.frame_stride), np.float32)
    shapes = nnx.eval_shape(lambda encoder, x: encoder.layers(x), run.encoder, spectra)
    strides = run.encoder.layer_strides
    self._layers = [_Stage(*item, shape.shape[-1]) for item, shape in zip(strides.items(), shapes, strict=True)]
    self.config: Config = run.config
    self.step: int | None = run.step
    self.sample_rate: int = run.config.log_mel.sample_rate
    self.features: int = run.encoder.features
    self.frame_stride: int = run.encoder.frame_stride
    self.frame_seconds: float = self.frame_stride * run.config.log_mel.hop_length / self.sample_rate
    self.longest_seconds: float = longest_seconds(run)

  def embed(self, waveforms: Waveforms, sample_rate: float) -> np.ndarray:
    """Embeds clips: a vector each, (n, features) float32; n is 1 for an array (samples,)."""
    run = self._run
    return embed_clips(
      run.encoder,
      self._clips(waveforms, sample_rate),
      run.config.log_mel,
      run.mean,
      run.std,
      min_samples=run.config.crop_samples,
    )

  def frames(self, waveforms: Waveforms, sample_rate: float, overlap: int = 1) -> tuple[Features, Features]:
    """Encodes clips frame by frame.

    A frame is made of `frame_stride` spectra, each of `n_fft` samples around its centre (a convolution also looks at
    the spectra around them, and a transformer at the whole clip). Its time is the middle between the centres of its
    first and its last spectrum. With a hop of h seconds between spectra and a stride of s of them, frame i is at
    (s i + (s - 1) / 2) h, and there are (1 + clip // h) // s, at least one: the spectra that do not fill a last frame
    are dropped. The encoder's pooling over a clip's frames gives its embedding; but for clips shorter than the training
    crop, where it also pools the frames of the silence that they are padded with, which are left out here.

    Args:
      waveforms: see the class.
      sample_rate: see the class.
      overlap: this many frames begin within the length of one, and are as much closer in time; it divides
        `frame_stride`. The encoder runs that many times, each time on the clip from a later spectrum on.

    Returns:
      Features and times in seconds: of an array of waveforms (n, t, features) and (t,), both float32; of a list of them
      a list of (t, features) and one of (t,), an item a clip.
    """
    stride = self.frame_stride
    if overlap < 1 or stride % overlap:
      raise UserError(f'overlap is {overlap}, and must divide the {stride} spectra of a frame')
    clips = self._clips(waveforms, sample_rate)
    shifts = range(0, stride, stride // overlap)
    shifted = [self._activations(clips, self._layers[-1:], shift) for shift in shifts]
    features = [_interleaved([frames for [frames] in of_clip]) for of_clip in zip(*shifted, strict=True)]
    return self._shaped(waveforms, features, stride, overlap)

  def layers(self, waveforms: Waveforms, sample_rate: float) -> list[Layer]:
    """Encodes clips, and returns what every layer says, the first one first; the last one's are `frames`.

    Of AudioNTT: `conv1`, `conv2`, ..., the convolution blocks, whose frames are 2, 4, ... spectra long (mel-major,
    channel-minor); `dense1` and `dense2`; and `output`, [last block, dense2], if the encoder concatenates them. Of a
    transformer: `embedding`, the patches with their positions; `block1`, `block2`, ...; and `output`, the last block
    normalised (a frame is all patches of its time, mel-major). Times and shapes are as of `frames`, with the layer's
    own stride.
    """
    clips = self._clips(waveforms, sample_rate)
    by_layer = zip(*self._activations(clips, self._layers, 0), strict=True)
    return [
      Layer(layer.name, *self._shaped(waveforms, list(features), layer.stride))
      for layer, features in zip(self._layers, by_layer, strict=True)
    ]

  def _clips(self, waveforms: Waveforms, sample_rate: float) -> list[np.ndarray]:
    clips = as_clips(waveforms, sample_rate, self.sample_rate)
    for i, clip in enumerate(clips):
      check_fits(self._run, len(clip), f'waveform {i}')
    return clips

  def _activations(self, clips: Sequence[np.ndarray], layers: Sequence[_Stage], shift: int) -> list[list[np.ndarray]]:
    """Encodes clips from the spectrum `shift` on; returns, for each clip, its own (frames, width) of each layer."""
    run, config, crop = self._run, self.config.log_mel, self.config.crop_samples
    min_frames = num_frames(crop, config)
    lengths = ClipLengths(min_frames, None)
    groups: dict[int, list[int]] = {}  # Rows of the clips that are padded to one length.
    for row, clip in enumerate(clips):
      groups.setdefault(lengths.padded(num_frames(len(clip), config)), []).append(row)

    def encode(x: jax.Array, frames: jax.Array) -> jax.Array:
      frames = jnp.maximum(frames, min_frames) - shift
      return _encode(self._graphdef, len(layers) > 1, self._state, x, frames, shift, run.mean, run.std)

    found: list[list[np.ndarray]] = [[] for _ in clips]
    for padded, rows in groups.items():
      [encoded] = represent([clips[row] for row in rows], [encode], config, min_samples=crop)
      spectra = min(padded, run.encoder.max_frames or padded)
      sizes = [spectra // layer.stride * layer.width for layer in layers]
      for row, values in zip(rows, encoded, strict=True):
        own = num_frames(len(clips[row]), config) - shift
        for layer, flat in zip(layers, np.split(values, np.cumsum(sizes)[:-1]), strict=True):
          # The very first frame is there even of a clip that is shorter.
          count = max(own // layer.stride, int(shift == 0))
          found[row].append(flat.reshape(-1, layer.width)[:count].copy())  # A slice would keep the padding alive.
    return found

  def _shaped(
    self, waveforms: Waveforms, features: list[np.ndarray], stride: int, overlap: int = 1
  ) -> tuple[Features, Features]:
    """Returns features and their times, an array each if the waveforms were one."""
    times = [_times(len(of_clip), stride, overlap, self.config.log_mel) for of_clip in features]
    return (features, times) if are_listed(waveforms) else (np.stack(features), times[0])


def load(path: PathLike, step: int | None = None) -> AudioEncoder:
  """Loads a trained encoder: see `selfie_jax.load`."""
  return AudioEncoder(load_encoder(path, step))


def check_fits(run: LoadedEncoder, samples: int, what: str) -> None:
  """Checks that a clip of so many samples fits into one pass; `what` names it in the message.

  Raises:
    UserError: it would take too much memory, or more positions than were learned.
  """
  sample_rate, longest = run.config.log_mel.sample_rate, longest_seconds(run)
  if samples > longest * sample_rate:
    raise UserError(
      f'{what} lasts {samples / sample_rate:.0f} s and at most {longest:g} s fit into one embedding: cut it'
    )
  check_length(run.encoder, samples, run.config.log_mel, what)


def longest_seconds(run: LoadedEncoder) -> float:
  """Returns how long a clip may be to go through the encoder whole."""
  if not isinstance(run.encoder, ViT):
    return _MOST_SECONDS
  seconds_of_step = run.encoder.frame_stride * run.config.log_mel.hop_length / run.config.log_mel.sample_rate
  return _MOST_TOKENS // run.encoder.mel_patches * seconds_of_step


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(
  graphdef: nnx.GraphDef,
  all_layers: bool,
  state: nnx.State,
  x: jax.Array,
  frames: jax.Array,
  shift: int,
  mean: float,
  std: float,
) -> jax.Array:
  """Returns each clip's features of all layers, or of the last one alone, one after the other: (clips, values)."""
  encoder = nnx.merge(graphdef, state)
  x = x[..., : encoder.max_frames]  # Only padding can be beyond the positions.
  # So that one program serves all shifts. What comes round is behind a clip's own frames, and hidden.
  x = jnp.roll(x, -shift, axis=-1)
  x = (x - mean) / std
  layers = encoder.layers(x, valid=frames) if all_layers else [encoder(x, train=False, valid=frames)]
  return jnp.concatenate([layer.reshape(len(x), -1) for layer in layers], axis=1)


def _interleaved(parts: Sequence[np.ndarray]) -> np.ndarray:
  """Returns frame 0 of each part, then frame 1 of each, ...; the parts differ in length by one at most."""
  frames = np.empty((sum(map(len, parts)), parts[0].shape[1]), np.float32)
  for i, part in enumerate(parts):
    frames[i :: len(parts)] = part
  return frames


def _times(count: int, stride: int, overlap: int, config: LogMel) -> np.ndarray:
  """Returns the middles of frames, (count,) in seconds: see `AudioEncoder.frames`."""
  spectra = stride // overlap * np.arange(count) + (stride - 1) / 2
  return (spectra * config.hop_length / config.sample_rate).astype(np.float32)
