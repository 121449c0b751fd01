"""AudioNTT, the convolutional encoder of BYOL-A (Niizumi et al., arXiv 2103.06695 and 2204.07402)."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from selfie_jax import config as config_lib
from selfie_jax.models import first_block, pooling
from selfie_jax.models.convolution import convolve_3x3
from selfie_jax.models.max_pool import max_pool_2x2
from selfie_jax.models.normalization import average_in, batch_norm


class AudioNTT(nnx.Module):
  """Frame-level audio encoder: `conv_blocks` halvings of the log-mel spectrogram, then an MLP on each frame.

  The state is `nnx.Param` and `nnx.BatchStat` only: dropout takes its keys when it is called.

  Attributes:
    features: width of a frame's features.
    frame_stride: log-mel frames in an output frame.
    max_frames: None: a clip may have any number of log-mel frames.
  """

  max_frames: int | None = None

  def __init__(
    self,
    config: config_lib.AudioNTT,
    n_mels: int,
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
  ) -> None:
    """Initialises the encoder.

    Args:
      config: its settings.
      n_mels: mel bands.
      rngs: the source of the initial weights.
      dtype: what is computed in. Parameters are float32, and so is batch normalisation with its statistics.
      remat: keep a convolution block's input alone for the backward pass, and compute the rest of the block again.
    """
    self.frame_stride = 2**config.conv_blocks
    self.concatenated = config.concat_blocks if config.concat_conv else 0
    self.dropout = config.dropout
    self.dtype = dtype
    self.remat = remat
    channels = [1] + [config.conv_channels] * config.conv_blocks
    self.blocks = nnx.List(
      [ConvBlock(i, o, rngs=rngs, dtype=dtype) for i, o in zip(channels[:-1], channels[1:], strict=True)]
    )
    conv_features = n_mels // self.frame_stride * config.conv_channels
    self.dense1 = nnx.Linear(conv_features, config.width, dtype=dtype, rngs=rngs)
    self.dense2 = nnx.Linear(config.width, config.width, dtype=dtype, rngs=rngs)
    last = range(config.conv_blocks - self.concatenated + 1, config.conv_blocks + 1)
    self.features = config.width + sum(n_mels // 2**block * config.conv_channels for block in last)

  @property
  def layer_strides(self) -> dict[str, int]:
    """Log-mel frames in a frame of each layer, by name, in the order of `layers`."""
    blocks = {f'conv{number}': 2**number for number in range(1, len(self.blocks) + 1)}
    dense = ('dense1', 'dense2', 'output') if self.concatenated else ('dense1', 'dense2')
    return blocks | dict.fromkeys(dense, self.frame_stride)

  def __call__(
    self, x: jax.Array, *, train: bool, keys: jax.Array | None = None, valid: jax.Array | None = None
  ) -> jax.Array:
    """Encodes log-mel spectrograms.

    Args:
      x: z-scored log-mel, (n, n_mels, frames).
      train: batch statistics and dropout (True) or running averages and none (False).
      keys: (n,) random keys, an example's own, which its dropout is drawn from; needed when training with dropout.
      valid: (n,) how many leading frames each example has; None: all. What follows them is hidden from every
        convolution, so that a padded example has the features that it has alone.

    Returns:
      (n, frames // frame_stride, features).

    Raises:
      ValueError: training with dropout and without keys.
    """
    *_, features = self._activations(x, train, keys, valid)
    return features

  def layers(self, x: jax.Array, *, valid: jax.Array | None = None) -> list[jax.Array]:
    """Encodes log-mel spectrograms as `__call__` does outside of training, and returns every layer's features.

    Args:
      x: z-scored log-mel, (n, n_mels, frames).
      valid: as of `__call__`; of a layer's frames the first `valid // stride` are an example's own.

    Returns:
      (n, frames // stride, features) for each of `layer_strides`: the convolution blocks, then the dense layers, then
      `output`, the last blocks and the last dense layer side by side, if the encoder concatenates them. The last one is
      what `__call__` returns.
    """
    return [_by_frame(x) if x.ndim == 4 else x for x in self._activations(x, False, None, valid)]

  def _activations(
    self, x: jax.Array, train: bool, keys: jax.Array | None, valid: jax.Array | None
  ) -> Iterator[jax.Array]:
    """Yields what each layer says: a block (n, mels, frames, channels), a dense layer (n, frames, features)."""

    def run(block: ConvBlock, x: jax.Array) -> jax.Array:
      return block(x, train=train)

    # The block's statistics are those of the forward pass: computing it again in the backward pass changes nothing.
    run = nnx.remat(run) if self.remat else run
    x = x[..., None].astype(self.dtype)
    outputs = []
    for block in self.blocks:
      if valid is not None:
        x = jnp.where(jnp.arange(x.shape[2])[:, None] < valid[:, None, None, None], x, 0)
        valid = valid // 2
      x = run(block, x)
      outputs.append(x)
      yield x
    x = nnx.relu(self.dense1(_by_frame(x)))
    yield x
    if train and self.dropout:
      if keys is None:
        raise ValueError(f'training with a dropout rate of {self.dropout} needs keys, one an example')
      x = drop_out(x, self.dropout, keys)
    x = nnx.relu(self.dense2(x))
    yield x
    if self.concatenated:
      strides = [2**later for later in reversed(range(self.concatenated))]
      conv = map(_pool_frames, outputs[-self.concatenated :], strides)
      yield jnp.concatenate([*map(_by_frame, conv), x], axis=-1)

  def pool(self, frames: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Summarises a clip's frames, of which the first `valid` (n,) count: see `pooling.max_plus_mean`."""
    return pooling.max_plus_mean(frames, valid)


class ConvBlock(nnx.Module):
  """3x3 convolution, batch normalisation, ReLU and 2x2 max-pool."""

  def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
    self.dtype = dtype
    self.conv = nnx.Conv(in_channels, out_channels, (3, 3), dtype=dtype, rngs=rngs)
    self.norm = batch_norm(out_channels, rngs=rngs, dtype=dtype)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Takes (n, mels, frames, in_channels) to (n, mels // 2, frames // 2, out_channels)."""
    x, kernel, bias = self.conv.promote_dtype((x, self.conv.kernel[...], self.conv.bias[...]), dtype=self.dtype)
    # In bfloat16 the normalisation's statistics are those of the convolution's rounded output, so it has to be there.
    if train and x.shape[-1] == 1 and jnp.finfo(self.dtype).bits >= 32:
      return self._train_on_one_channel(x[..., 0], kernel[:, :, 0], bias)
    x = self.norm(convolve_3x3(x, kernel) + bias, use_running_average=not train)
    return max_pool_2x2(nnx.relu(x).astype(self.dtype))

  def _train_on_one_channel(self, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """The same from (n, mels, frames), with the normalisation by batch statistics folded into the convolution."""
    mean, variance = first_block.output_statistics(x, kernel, bias, self.norm.axis_name)
    average_in(self.norm, mean, variance)
    scale = self.norm.scale[...] * jax.lax.rsqrt(variance + self.norm.epsilon)
    folded = kernel * scale, (bias - mean) * scale + self.norm.bias[...]
    return first_block.convolve_rectify_pool(x, *(weight.astype(self.dtype) for weight in folded))


def _by_frame(x: jax.Array) -> jax.Array:
  """Takes (n, mels, frames, channels) to (n, frames, mels * channels): a frame is mel-major, channel-minor."""
  n, mels, frames, channels = x.shape
  return x.transpose(0, 2, 1, 3).reshape(n, frames, mels * channels)


def _pool_frames(x: jax.Array, stride: int) -> jax.Array:
  """Max-pools (n, mels, frames, channels) over so many frames; what is left over at the end is dropped."""
  n, mels, frames, channels = x.shape
  count = frames // stride
  return x[:, :, : count * stride].reshape(n, mels, count, stride, channels).max(axis=3)


def drop_out(x: jax.Array, rate: float, keys: jax.Array) -> jax.Array:
  """Sets a share `rate` of the values to zero and divides the others by the share kept (Srivastava et al., 2014).

  An example's mask is drawn from its own key, so it does not depend on the examples beside it: however the batch is cut
  into chunks or laid out over devices, the masks are the same. A value takes 16 random bits, because they cost more
  than all else here; so the share is `rate` to within 2^-17.

  Args:
    x: (n, ...).
    rate: share of the values, at least 0 and below 1.
    keys: (n,) random keys.
  """
  kept_of_65536 = max(round((1 - rate) * 65_536), 1)
  values = math.prod(x.shape[1:])
  words = jax.vmap(lambda key: jax.random.bits(key, (values // 2 + values % 2,), jnp.uint32))(keys)
  halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(len(x), -1)
  kept = (halves[:, :values] <= kept_of_65536 - 1).reshape(x.shape)
  return jnp.where(kept, x * (65_536 / kept_of_65536), 0)
