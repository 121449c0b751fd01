"""Distortions of a z-scored log-mel spectrogram (BYOL-A: arXiv 2103.06695 and, for the fader, 2204.07402).

Everything is batched and random for each example. Random numbers are drawn for the whole batch at once, so they do not
depend on how many devices share it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from selfie_jax.config import Augment

_EPS = float(np.finfo(np.float32).eps)
_EQUALIZER_KNOTS = 4  # A band of a quarter of the spectrum is about what a microphone or a room colours.


def two_views(key: jax.Array, x: jax.Array, other: jax.Array, config: Augment) -> tuple[jax.Array, jax.Array]:
  """Two independently distorted batches: of the same crops, or of others of the same clips.

  Args:
    key: a JAX random key.
    x: z-scored log-mel, (batch, n_mels, frames).
    other: the crops of the second view, of the same shape; or `x` again.
    config: as of `augment`, and whether the views are normalised.
  """
  first, second = jax.random.split(key)
  views = augment(first, x, config), augment(second, other, config)
  return normalize_together(*views) if config.normalize_views else views


def normalize_together(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns both views minus the mean of all their values, over the standard deviation of all their values.

  BYOL-A's normalisation after the augmentations. The views are those of the global batch, however it is sharded. A
  batch of one value becomes zeros.

  Args:
    first: (n, n_mels, frames).
    second: the same.
  """
  mean = (first.mean() + second.mean()) / 2
  centred = first - mean, second - mean
  variance = sum(jnp.square(x).mean() for x in centred) / 2
  scale = jnp.where(variance > 0, jax.lax.rsqrt(variance), 0.0)
  return tuple(scale * x for x in centred)


def augment(key: jax.Array, x: jax.Array, config: Augment) -> jax.Array:
  """One view: mixup, random resize crop, linear fader, equalizer, noise.

  Args:
    key: a JAX random key.
    x: z-scored log-mel, (batch, n_mels, frames).
    config: strengths; an augmentation of strength 0 is left out.

  Returns:
    The view, of the shape of `x`.

  Raises:
    ValueError: `config.mixup_group` does not divide the batch.
  """
  uniform_key, noise_key = jax.random.split(key)
  u = jax.random.uniform(uniform_key, (9, len(x)))
  if config.mixup_ratio:
    energy = jnp.exp(x)  # Before partners are picked, so that XLA computes it once for an example, in all its roles.
    x = mix(energy, group_partners(energy, u[0], config.mixup_group), config.mixup_ratio * u[1])
  x = random_resize_crop(x, u[2:6], config.resize_frequency, config.resize_time, config.canvas_time)
  if config.fader:
    start, end = config.fader * (2 * u[6:8] - 1)
    x = fade(x, start, end)
  if config.equalizer:
    own_key = jax.random.fold_in(key, 2)  # 0 and 1 are what `split` has made of the key above.
    gains = jax.random.uniform(own_key, (_EQUALIZER_KNOTS, len(x)), minval=-1)
    x = equalize(x, config.equalizer * gains)
  if config.noise:
    noise = jax.random.normal(noise_key, x.shape)
    x = mix(jnp.exp(x), jnp.exp(noise), config.noise * u[8])
  return x


def mix(energy: jax.Array, other: jax.Array, share: jax.Array) -> jax.Array:
  """The log spectrogram log((1 - share) energy + share other + eps) of two energies, `share` (batch,) in [0, 1]."""
  share = share[:, None, None]
  return jnp.log((1 - share) * energy + share * other + _EPS)


def group_partners(x: jax.Array, u: jax.Array, group: int) -> jax.Array:
  """For each example another one, uniform over its group of `group` consecutive examples.

  Partners stay within the group, so that no data moves between devices and the result does not depend on their number.

  Args:
    x: (batch, ...).
    u: (batch,) uniform in [0, 1).
    group: size of a group; it divides the batch.

  Returns:
    The partners, of the shape of `x`.

  Raises:
    ValueError: the group does not divide the batch.
  """
  if len(x) % group:
    raise ValueError(f'a mixup group of {group} does not divide the batch of {len(x)}')
  grouped = x.reshape(-1, group, *x.shape[1:])
  offset = 1 + jnp.floor(u.reshape(-1, group) * (group - 1)).astype(jnp.int32)
  partner = (jnp.arange(group) + offset) % group
  return jnp.take_along_axis(grouped, partner[:, :, None, None], axis=1).reshape(x.shape)


def random_resize_crop(
  x: jax.Array,
  u: jax.Array,
  frequency_range: tuple[float, float],
  time_range: tuple[float, float],
  canvas_time: float,
) -> jax.Array:
  """Crops a random rectangle from a zero canvas that has `x` in its middle and resizes it to the shape of `x`.

  Args:
    x: (batch, n_mels, frames).
    u: (4, batch) uniform in [0, 1): height, vertical position, width and horizontal position of the crop.
    frequency_range: the crop's height over n_mels, uniform in this range; the canvas limits it to n_mels.
    time_range: the crop's width over frames, uniform in this range.
    canvas_time: width of the canvas over frames.

  Returns:
    (batch, n_mels, frames).
  """
  n_mels, frames = x.shape[1:]
  canvas_frames = int(canvas_time * frames)
  height, top = random_span(u[0], u[1], n_mels, frequency_range, n_mels)
  width, left = random_span(u[2], u[3], frames, time_range, canvas_frames)
  # The canvas is never made: weights on its zero margin are simply left out.
  columns = bicubic_matrix(left - (canvas_frames - frames) // 2, width, frames, frames)
  # Full precision, so that a crop which is the whole image gives exactly the image back on every backend.
  x = jnp.einsum('bjk,blk->bjl', x, columns, precision=jax.lax.Precision.HIGHEST)
  return jax.lax.platform_dependent(x, top, height, cpu=resize_rows_by_taps, default=resize_rows_by_matrix)


def resize_rows_by_taps(x: jax.Array, top: jax.Array, height: jax.Array) -> jax.Array:
  """Resizes rows [top, top + height) of each example to the shape of `x` (batch, rows, columns), by sums of 4 rows.

  For CPUs, where picking whole rows costs little and a matrix product does 16 times the work (64 rows instead of 4).
  Picking single columns is as slow as a product. Accelerators keep the product, which they are made for.
  """
  positions, weights = bicubic_taps(top, height, x.shape[1], x.shape[1])
  return sum(
    weights[tap][..., None] * jnp.take_along_axis(x, positions[tap][..., None], axis=1, mode='promise_in_bounds')
    for tap in range(4)
  )


def resize_rows_by_matrix(x: jax.Array, top: jax.Array, height: jax.Array) -> jax.Array:
  """`resize_rows_by_taps`, by a matrix product."""
  rows = bicubic_matrix(top, height, x.shape[1], x.shape[1])
  return jnp.matmul(rows, x, precision=jax.lax.Precision.HIGHEST)


def random_span(
  u_length: jax.Array, u_position: jax.Array, size: int, scale: tuple[float, float], canvas: int
) -> tuple[jax.Array, jax.Array]:
  """Length clip(floor(U(scale) size), 1, canvas) and uniform start of spans on a canvas, both (batch,) int32."""
  low, high = scale
  length = jnp.clip(jnp.floor((low + (high - low) * u_length) * size).astype(jnp.int32), 1, canvas)
  start = jnp.floor(u_position * (canvas - length + 1)).astype(jnp.int32)
  return length, start


def bicubic_matrix(start: jax.Array, length: jax.Array, in_size: int, out_size: int) -> jax.Array:
  """`bicubic_taps` as matrices (batch, out_size, in_size): `weights @ axis` is the resized span."""
  positions, weights = bicubic_taps(start, length, in_size, out_size)
  matrix = jnp.zeros((len(start), out_size, in_size))
  for tap in range(4):
    one_hot = positions[tap][..., None] == jnp.arange(in_size)
    matrix += jnp.where(one_hot, weights[tap][..., None], 0)
  return matrix


def bicubic_taps(start: jax.Array, length: jax.Array, in_size: int, out_size: int) -> tuple[jax.Array, jax.Array]:
  """Positions and weights of the 4 values whose sum is a point of a resized span [start, start + length) of an axis.

  Keys's cubic convolution (IEEE Trans. ASSP 29(6), 1981) with a = -0.75, corners aligned and edges replicated: the
  formula of PyTorch's `interpolate(mode='bicubic', align_corners=True)`. Positions outside [0, in_size) are taken as
  zeros: they are moved inside, with no weight.

  Args:
    start: (batch,) first position of the span, possibly negative.
    length: (batch,) its length, at least 1.
    in_size: size of the axis.
    out_size: size of the resized axis, at least 2.

  Returns:
    Positions, int32 in [0, in_size), and weights, both (4, batch, out_size).
  """
  # The source coordinate point * (length - 1) / (out_size - 1), in integers so that whole coordinates stay exact.
  scaled = jnp.arange(out_size) * (length[:, None] - 1)
  base = scaled // (out_size - 1)
  fraction = (scaled % (out_size - 1)) / (out_size - 1)
  tap = jnp.arange(-1, 3)[:, None, None]
  positions = start[:, None] + jnp.clip(base + tap, 0, length[:, None] - 1)
  inside = (positions >= 0) & (positions < in_size)
  return jnp.clip(positions, 0, in_size - 1), jnp.where(inside, _cubic(fraction - tap), 0)


def _cubic(distance: jax.Array, a: float = -0.75) -> jax.Array:
  """Keys's cubic convolution kernel at distances up to 2."""
  d = jnp.abs(distance)
  near = ((a + 2) * d - (a + 3)) * d * d + 1
  far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
  return jnp.where(d <= 1, near, far)


def fade(x: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
  """Adds a line over time from `start` to `end` (batch,) to every band of log-mel `x` (batch, n_mels, frames)."""
  position = jnp.linspace(0, 1, x.shape[2])
  return x + (start[:, None] + (end - start)[:, None] * position)[:, None, :]


def equalize(x: jax.Array, gains: jax.Array) -> jax.Array:
  """Adds a gain to each band, the same at all times: as another microphone, room or instrument would.

  After FilterAugment's linear type (Nam et al., arXiv 2110.03282), but with knots at equal distances.

  Args:
    x: log-mel, (batch, n_mels, frames).
    gains: (knots, batch) at equal distances over the bands, the first and the last band among them; linear between.
  """
  position = jnp.linspace(0, len(gains) - 1, x.shape[1])
  hats = jnp.maximum(0, 1 - jnp.abs(position - jnp.arange(len(gains))[:, None]))  # (knots, n_mels)
  return x + (hats[:, None] * gains[..., None]).sum(0)[:, :, None]
