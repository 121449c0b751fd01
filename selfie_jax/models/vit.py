"""The vision transformer (Dosovitskiy et al., arXiv 2010.11929) on patches of the log-mel spectrogram.

Pre-norm blocks and no class token. A frame's features are those of all its patches side by side, as in MSM-MAE and M2D
(Niizumi et al., arXiv 2204.12260 and 2210.14648).
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from selfie_jax import config as config_lib
from selfie_jax.models import pooling
from selfie_jax.models.normalization import layer_norm

SIZES = {'tiny': (192, 12, 3), 'small': (384, 12, 6), 'base': (768, 12, 12)}  # Width, blocks, heads.
_MLP_RATIO = 4
# Xavier uniform as in MAE (with queries, keys and values each on their own, as in MoCo v3); biases are 0. One object,
# because it is part of a model's structure: two models with each its own would not share a compiled program.
_KERNEL_INIT = nnx.initializers.xavier_uniform()
_POSITIONS_INIT = nnx.initializers.normal(0.02)


class ViT(nnx.Module):
  """Frame-level audio encoder. It has no dropout and no batch statistics: its state is `nnx.Param` only.

  Attributes:
    features: width of a frame's features, patches along the mel axis times the width of the transformer.
    frame_stride: log-mel frames in an output frame, which is one patch long.
    max_frames: log-mel frames of the longest clip that there are positions for; None: of any.
  """

  def __init__(
    self,
    config: config_lib.ViT,
    n_mels: int,
    max_frames: int,
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
  ) -> None:
    """Initialises the encoder.

    Args:
      config: its settings.
      n_mels: mel bands, a multiple of the patch's.
      max_frames: log-mel frames of a training crop, which learned positions are made for.
      rngs: the source of the initial weights.
      dtype: what is computed in. Parameters, normalisations and the attention's softmax are in float32.
      remat: keep a block's input alone for the backward pass, and compute the rest of the block again.
    """
    width, num_blocks, heads = SIZES[config.size]
    patch_mels, self.frame_stride = config.patch
    self.mel_patches = n_mels // patch_mels
    self.features = self.mel_patches * width
    self.dtype = dtype
    self.remat = remat
    self.embed = _linear(patch_mels * self.frame_stride, width, rngs=rngs, dtype=dtype)
    self.positions: nnx.Param[jax.Array] | None = nnx.data(None)
    self.max_frames = None
    if config.positions == 'learned':
      steps = max_frames // self.frame_stride
      self.positions = nnx.Param(_POSITIONS_INIT(rngs.params(), (steps, self.mel_patches, width)))
      self.max_frames = (steps + 1) * self.frame_stride - 1  # What does not fill one more patch is dropped.
    self.blocks = nnx.List([Block(width, heads, rngs=rngs, dtype=dtype) for _ in range(num_blocks)])
    self.norm = layer_norm(width, rngs=rngs, dtype=dtype)

  @property
  def layer_strides(self) -> dict[str, int]:
    """Log-mel frames in a frame of each layer, by name, in the order of `layers`."""
    names = ['embedding', *(f'block{number}' for number in range(1, len(self.blocks) + 1)), 'output']
    return dict.fromkeys(names, self.frame_stride)

  def __call__(
    self, x: jax.Array, *, train: bool, keys: jax.Array | None = None, valid: jax.Array | None = None
  ) -> jax.Array:
    """Encodes log-mel spectrograms.

    Args:
      x: z-scored log-mel, (n, n_mels, frames). Frames that do not fill a last patch are dropped.
      train: not used: the network is the same in training.
      keys: not used: nothing is random.
      valid: (n,) how many leading frames each example has, at least one patch; None: all. No token attends to a patch
        beyond them, so that a padded example has the features that it has alone.

    Returns:
      (n, frames // frame_stride, features). A frame is mel-major.

    Raises:
      ValueError: the clip is longer than the learned positions.
    """
    del train, keys
    *_, features = self._activations(x, valid)
    return features

  def layers(self, x: jax.Array, *, valid: jax.Array | None = None) -> list[jax.Array]:
    """Encodes log-mel spectrograms as `__call__` does, and returns every layer's features.

    Args:
      x: as of `__call__`.
      valid: as of `__call__`; of a layer's frames the first `valid // frame_stride` are an example's own.

    Returns:
      (n, frames // frame_stride, features) for each of `layer_strides`: the patches' embeddings with their positions,
      the blocks, and `output`, the last block normalised, which is what `__call__` returns. A frame is mel-major.

    Raises:
      ValueError: the clip is longer than the learned positions.
    """
    return list(self._activations(x, valid))

  def _activations(self, x: jax.Array, valid: jax.Array | None) -> Iterator[jax.Array]:
    """Yields what each layer says, (n, steps, features)."""
    if self.max_frames is not None and x.shape[2] > self.max_frames:
      raise ValueError(f'a clip of {x.shape[2]} frames, and learned positions for {self.max_frames}')
    x = self.embed(_patches(x, self.mel_patches, self.frame_stride))
    n, steps, mel_patches, width = x.shape
    learned = self.positions is not None
    positions = self.positions[:steps] if learned else sincos_positions(steps, mel_patches, width)
    # Time-major, so that an example's own tokens come first.
    x = (x + positions.astype(self.dtype)).reshape(n, steps * mel_patches, width)
    yield x.reshape(n, steps, self.features)
    tokens = None if valid is None else jnp.maximum(valid // self.frame_stride, 1) * mel_patches
    run = nnx.remat(Block.__call__) if self.remat else Block.__call__
    for block in self.blocks:
      x = run(block, x, tokens)
      yield x.reshape(n, steps, self.features)
    yield self.norm(x).astype(self.dtype).reshape(n, steps, self.features)

  def pool(self, frames: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Summarises a clip's frames, of which the first `valid` (n,) count: see `pooling.mean`."""
    return pooling.mean(frames, valid)


class Block(nnx.Module):
  """Self-attention and MLP, each on normalised tokens and added to them."""

  def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
    self.attention_norm = layer_norm(width, rngs=rngs, dtype=dtype)
    self.attention = Attention(width, heads, rngs=rngs, dtype=dtype)
    self.mlp_norm = layer_norm(width, rngs=rngs, dtype=dtype)
    self.mlp = MLP(width, rngs=rngs, dtype=dtype)

  def __call__(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Takes tokens (n, tokens, width) to the same shape; `valid` (n,) leading ones are attended to (None: all)."""
    x = x + self.attention(self.attention_norm(x), valid)
    return x + self.mlp(self.mlp_norm(x))


class Attention(nnx.Module):
  """Multi-head self-attention (Vaswani et al., arXiv 1706.03762, section 3.2.2)."""

  def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
    self.heads = heads
    self.query, self.key, self.value, self.output = (_linear(width, width, rngs=rngs, dtype=dtype) for _ in range(4))

  def __call__(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Takes tokens (n, tokens, width) to the same shape; `valid` (n,) leading ones are attended to (None: all)."""
    n, tokens, width = x.shape
    query, key, value = (
      layer(x).reshape(n, tokens, self.heads, width // self.heads) for layer in (self.query, self.key, self.value)
    )
    # Scales by 1 / sqrt(width of a head); the softmax is in float32 whatever the inputs are.
    x = jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=valid)
    return self.output(x.reshape(n, tokens, width))


class MLP(nnx.Module):
  """Linear to four times the width, GELU (its tanh approximation, as in the authors' code), Linear back."""

  def __init__(self, width: int, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
    self.up = _linear(width, _MLP_RATIO * width, rngs=rngs, dtype=dtype)
    self.down = _linear(_MLP_RATIO * width, width, rngs=rngs, dtype=dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Takes tokens (n, tokens, width) to the same shape."""
    return self.down(nnx.gelu(self.up(x)))


def sincos_positions(steps: int, mel_patches: int, width: int) -> jax.Array:
  """Fixed positions: half of the width tells the mel patch, the other half the time step.

  Each half is [sin(p w), cos(p w)] of the position p, with width / 4 frequencies w = 10,000^(-4 i / width) (Vaswani et
  al., section 3.5; in two dimensions as in MoCo v3, arXiv 2104.02057, and MAE, arXiv 2111.06377).

  Args:
    steps: patches along time.
    mel_patches: patches along the mel axis.
    width: of the transformer, a multiple of 4.

  Returns:
    (steps, mel_patches, width) float32.
  """
  frequencies = 10_000.0 ** -(np.arange(width // 4) / (width // 4))

  def encode(count: int) -> np.ndarray:  # (count, width / 2), in float64 before it is rounded.
    angles = np.outer(np.arange(count), frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

  shape = (steps, mel_patches, width // 2)
  return jnp.concatenate(
    [jnp.broadcast_to(encode(mel_patches), shape), jnp.broadcast_to(encode(steps)[:, None], shape)], axis=-1
  )


def _patches(x: jax.Array, mel_patches: int, frames: int) -> jax.Array:
  """Cuts (n, mels, frames) into patches `frames` long: (n, steps, mel_patches, values of a patch, mel-major)."""
  n, mels, _ = x.shape
  steps = x.shape[2] // frames
  x = x[..., : steps * frames].reshape(n, mel_patches, mels // mel_patches, steps, frames)
  return x.transpose(0, 3, 1, 2, 4).reshape(n, steps, mel_patches, -1)


def _linear(inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: DTypeLike) -> nnx.Linear:
  return nnx.Linear(inputs, outputs, kernel_init=_KERNEL_INIT, dtype=dtype, rngs=rngs)
