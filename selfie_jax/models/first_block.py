"""The first convolution block in training, without any array as large as its convolution's output.

Its input has one channel and its convolution 64, so that output is 64 times the input: to normalise, rectify and pool
it, forwards and back, takes longer on a CPU than its products. But its mean and variance, which the normalisation needs
first, are known without it (`output_statistics`). Then the normalisation is part of the kernel, and a pooled pixel is a
function of the 4x4 pixels of the input beneath it (`convolve_rectify_pool`).
"""

import jax
import jax.numpy as jnp

from selfie_jax.models.convolution import in_chunks
from selfie_jax.models.max_pool import first_greatest, max_pool_2x2

_TAPS = [(i, j) for i in range(3) for j in range(3)]
_HIGHEST = jax.lax.Precision.HIGHEST


def output_statistics(
  x: jax.Array, kernel: jax.Array, bias: jax.Array, axis_name: str | tuple[str, ...] | None
) -> tuple[jax.Array, jax.Array]:
  """Mean and variance of each channel of a 3x3 convolution's output, from its input.

  An output pixel is k^T p + b, p being the nine pixels of the input around it. So its mean is k^T m + b and its
  variance k^T S k, where m and S are the mean and covariance of p over all pixels: 9 and 81 numbers.

  Args:
    x: (n, h, w).
    kernel: (3, 3, channels).
    bias: (channels,).
    axis_name: the axes of a `shard_map` over which the examples are spread, if any.

  Returns:
    (channels,) means and (channels,) variances.
  """
  # About the mean pixel: neighbours are nearly equal, and sums of squares far from 0 would lose what tells them apart.
  centre = x.mean()

  def sums_of_chunk(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    _, h, w = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1))) - centre
    patches = jnp.stack([padded[:, i : i + h, j : j + w] for i, j in _TAPS]).reshape(9, -1)
    return patches.sum(1), jnp.matmul(patches, patches.T, precision=_HIGHEST)

  # A few examples at a time stay in a CPU's cache.
  sums, products = (sum_of_chunks.sum(0) for sum_of_chunks in jax.lax.map(sums_of_chunk, *in_chunks((x,), 4)))
  mean_patch = sums / x.size
  covariance = products / x.size - jnp.outer(mean_patch, mean_patch)
  mean_patch += centre
  kernel = kernel.reshape(9, -1)
  mean = jnp.matmul(mean_patch, kernel, precision=_HIGHEST) + bias
  variance = (kernel * jnp.matmul(covariance, kernel, precision=_HIGHEST)).sum(0)
  if axis_name is None:
    return mean, variance
  # The devices' variances, and that of their means: squares about 0 would lose digits again. The means' deviations sum
  # to 0, so no gradient comes from what they deviate from: a constant, it costs no collective in the backward pass.
  mean_of_all = jax.lax.pmean(mean, axis_name)
  deviation = mean - jax.lax.stop_gradient(mean_of_all)
  return mean_of_all, jax.lax.pmean(variance + deviation**2, axis_name)


@jax.custom_vjp
def convolve_rectify_pool(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """3x3 convolution with a border of zeros, bias, ReLU and 2x2 max-pool of images with one channel.

  The backward pass has only the input and the output from the forward pass: it convolves again to find each window's
  greatest pixel. That one is chosen among the four values that it computed itself, and never by looking for the forward
  pass's maximum among them, from which all four may differ by a rounding.

  Args:
    x: (n, h, w).
    kernel: (3, 3, channels).
    bias: (channels,).

  Returns:
    (n, h // 2, w // 2, channels).
  """
  return jax.lax.platform_dependent(x, kernel, bias, cpu=_fused, default=_one_by_one)


def _one_by_one(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  return max_pool_2x2(jax.nn.relu(_convolve(x, kernel) + bias))


def _forward(
  x: jax.Array, kernel: jax.Array, bias: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array, jax.Array]]:
  y = convolve_rectify_pool(x, kernel, bias)
  return y, (x, kernel, bias, y)


def _backward(
  kept: tuple[jax.Array, jax.Array, jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  x, kernel, bias, y = kept
  dy = jnp.where(y > 0, dy, 0)

  def dkernel_one_by_one(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
    return jax.vjp(lambda kernel: _convolve_pool(x, kernel), kernel)[1](dy)[0]

  # Left out of the program where nobody asks for it, which is always so in training.
  dx = jax.vjp(lambda x: _convolve_pool(x, kernel), x)[1](dy)[0]
  dkernel = jax.lax.platform_dependent(x, kernel, dy, cpu=_dkernel_fused, default=dkernel_one_by_one)
  return dx, dkernel, dy.sum((0, 1, 2))


convolve_rectify_pool.defvjp(_forward, _backward)


def _convolve_pool(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return max_pool_2x2(_convolve(x, kernel))


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  dimensions = ('NHWC', 'HWIO', 'NHWC')
  # Exact also where float32 products are not by default: the statistics, which are exact, are to be this output's.
  return jax.lax.conv_general_dilated(
    x[..., None], kernel[:, :, None], (1, 1), 'SAME', dimension_numbers=dimensions, precision=_HIGHEST
  )


def _fused(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """The forward pass as one loop over the pooled pixels."""
  a, b, c, d = _four_pixels(x, kernel)
  return jax.nn.relu(jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d)) + bias)


def _dkernel_fused(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
  """The kernel's gradient: each pooled pixel adds dy times the nine inputs around the pixel that won its window."""

  def of_chunk(x_and_dy: tuple[jax.Array, jax.Array]) -> jax.Array:
    x, dy = x_and_dy
    # Written out once, for four uses.
    winner = jax.lax.optimization_barrier(first_greatest(*_four_pixels(x, kernel)))
    windows = _windows(x)
    gradient = jnp.zeros((), x.dtype)
    for position, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
      patches = jnp.stack([windows[row + i][column + j] for i, j in _TAPS]).reshape(9, -1)
      gradient += patches @ jnp.where(winner == position, dy, 0).reshape(patches.shape[1], -1)
    return gradient.reshape(kernel.shape)

  return jax.lax.map(of_chunk, in_chunks((x, dy), 4)).sum(0)


def _windows(x: jax.Array) -> list[list[jax.Array]]:
  """The 4x4 inputs beneath each pooled pixel: [i][j] is (n, h // 2, w // 2), those at row i and column j."""
  _, h, w = x.shape
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
  rows, columns = h // 2 * 2 - 1, w // 2 * 2 - 1
  return [[padded[:, i : i + rows : 2, j : j + columns : 2] for j in range(4)] for i in range(4)]


def _four_pixels(x: jax.Array, kernel: jax.Array) -> list[jax.Array]:
  """The convolution's four pixels in each window, in reading order: each (n, h // 2, w // 2, channels)."""
  windows = _windows(x)
  return [
    sum(windows[row + i][column + j][..., None] * kernel[i, j] for i, j in _TAPS)
    for row in range(2)
    for column in range(2)
  ]
