"""AudioNTT, the convolutional encoder of BYOL-A (Niizumi et al., arXiv 2103.06695 and 2204.07402)."""

import jax
import jax.numpy as jnp
from flax import nnx

from selfie_jax import config as config_lib


class ConvBlock(nnx.Module):
  """3x3 convolution, batch normalisation, ReLU and 2x2 max-pool."""

  def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs) -> None:
    self.conv = nnx.Conv(in_channels, out_channels, (3, 3), rngs=rngs)
    self.norm = nnx.BatchNorm(out_channels, momentum=0.9, epsilon=1e-5, rngs=rngs)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Takes (n, mels, frames, in_channels) to (n, mels // 2, frames // 2, out_channels)."""
    x = self.norm(self.conv(x), use_running_average=not train)
    return max_pool_2x2(nnx.relu(x))


class AudioNTT(nnx.Module):
  """Frame-level audio encoder: `conv_blocks` halvings of the log-mel spectrogram, then an MLP on each frame.

  The state is `nnx.Param` and `nnx.BatchStat` only: dropout takes its key when it is called.

  Attributes:
    features: width of a frame's features.
    frame_stride: log-mel frames in an output frame.
  """

  def __init__(self, config: config_lib.Encoder, n_mels: int, *, rngs: nnx.Rngs) -> None:
    self.frame_stride = 2**config.conv_blocks
    self.concat_conv = config.concat_conv
    channels = [1] + [config.conv_channels] * config.conv_blocks
    self.blocks = nnx.List([ConvBlock(i, o, rngs=rngs) for i, o in zip(channels[:-1], channels[1:], strict=True)])
    conv_features = n_mels // self.frame_stride * config.conv_channels
    self.dense1 = nnx.Linear(conv_features, config.width, rngs=rngs)
    self.dropout = nnx.Dropout(config.dropout)
    self.dense2 = nnx.Linear(config.width, config.width, rngs=rngs)
    self.features = config.width + (conv_features if config.concat_conv else 0)

  def __call__(
    self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None, valid: jax.Array | None = None
  ) -> jax.Array:
    """Encodes log-mel spectrograms.

    Args:
      x: z-scored log-mel, (n, n_mels, frames).
      train: batch statistics and dropout (True) or running averages and none (False).
      rngs: where dropout takes its key from; needed when training with a dropout rate above 0.
      valid: (n,) how many leading frames each example has; None: all. What follows them is hidden from every
        convolution, so that a padded example has the features that it has alone.

    Returns:
      (n, frames // frame_stride, features).
    """
    x = x[..., None]
    for block in self.blocks:
      if valid is not None:
        x = jnp.where(jnp.arange(x.shape[2])[:, None] < valid[:, None, None, None], x, 0)
        valid = valid // 2
      x = block(x, train=train)
    n, mels, frames, channels = x.shape
    conv = x.transpose(0, 2, 1, 3).reshape(n, frames, mels * channels)  # A frame is mel-major, channel-minor.
    x = nnx.relu(self.dense1(conv))
    x = self.dropout(x, deterministic=not train, rngs=rngs)
    x = nnx.relu(self.dense2(x))
    return jnp.concatenate([conv, x], axis=-1) if self.concat_conv else x


def max_pool_2x2(x: jax.Array) -> jax.Array:
  """2x2 max-pool with stride 2 of (n, h, w, c); an odd last row or column is dropped, as in PyTorch.

  Where several of the four are the greatest, the first in reading order gets the gradient, as in PyTorch.
  """
  _, h, w, _ = x.shape
  return _max_pool_even(x[:, : h // 2 * 2, : w // 2 * 2])


# The gradient is written out for two reasons. XLA's own for max-pools compare the input with the maximum once more, and
# where fusions compute the two apart they may differ by a rounding, which loses that window's gradient (seen on CPU in
# float64). And they are slow there: with `reduce_window`, slower than all convolutions together.
@jax.custom_vjp
def _max_pool_even(x: jax.Array) -> jax.Array:
  return _windows(x).max((2, 4))


def _windows(x: jax.Array) -> jax.Array:
  n, h, w, c = x.shape
  return x.reshape(n, h // 2, 2, w // 2, 2, c)


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  return _max_pool_even(x), x


def _max_pool_backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
  windows = _windows(x)
  (a, b), (c, d) = [[windows[:, :, row, :, column] for column in range(2)] for row in range(2)]
  d_top, d_bottom = _split_gradient(jnp.maximum(a, b), jnp.maximum(c, d), dy)
  top, bottom = (jnp.stack(pair, axis=3) for pair in (_split_gradient(a, b, d_top), _split_gradient(c, d, d_bottom)))
  return (jnp.stack([top, bottom], axis=2).reshape(x.shape),)


def _split_gradient(first: jax.Array, second: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Gives the gradient of maximum(first, second) to the greater of them, the first at a tie."""
  second_wins = second > first
  return jnp.where(second_wins, 0, gradient), jnp.where(second_wins, gradient, 0)


_max_pool_even.defvjp(_max_pool_forward, _max_pool_backward)


def pool_frames(frames: jax.Array, valid: jax.Array | None = None) -> jax.Array:
  """Summarises a clip: the maximum over time plus the mean over time (a sum, not a concatenation).

  Args:
    frames: (n, frames, features).
    valid: (n,) how many leading frames of each example count, at least 1; None: all.

  Returns:
    (n, features).
  """
  if valid is None:
    return frames.max(1) + frames.mean(1)
  counts = (jnp.arange(frames.shape[1]) < valid[:, None])[..., None]
  maximum = jnp.where(counts, frames, -jnp.inf).max(1)
  mean = jnp.where(counts, frames, 0).sum(1) / valid[:, None]
  return maximum + mean
