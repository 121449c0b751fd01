import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from selfie_jax.models.audiontt import ConvBlock
from selfie_jax.models.convolution import convolve_3x3
from selfie_jax.models.first_block import convolve_rectify_pool, output_statistics
from selfie_jax.models.max_pool import max_pool_2x2


def random(shape, seed, whole_numbers=False):
  rng = np.random.default_rng(seed)
  return rng.integers(-1, 2, shape).astype(np.float64) if whole_numbers else rng.standard_normal(shape)


def convolve(x, kernel):
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def convolve_with_numpy(x, kernel):
  """Of images with one channel."""
  _, h, w = x.shape
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
  return sum(padded[:, i : i + h, j : j + w, None] * kernel[i, j] for i in range(3) for j in range(3))


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(function, dy, *inputs):
  y, backward = jax.vjp(function, *inputs)
  return y, *backward(dy)


def one_by_one(x, kernel, bias):
  return max_pool_2x2(jax.nn.relu(convolve(x[..., None], kernel[:, :, None]) + bias))


@pytest.mark.parametrize(('examples', 'ties'), [(6, False), (6, True), (3, False)])
def test_convolution_relu_and_pool_in_one_are_exact_in_float64(examples, ties):
  x, kernel = (random(shape, seed, ties) for seed, shape in enumerate([(examples, 7, 10), (3, 3, 5)]))
  bias = random(5, 2) * (not ties)  # Whole numbers: equal pixels in a window, and zeros before the ReLU.
  dy = random((examples, 3, 5, 5), 3)
  with jax.enable_x64(True):
    ours = value_and_gradients(convolve_rectify_pool, dy, x, kernel, bias)
    plain = value_and_gradients(one_by_one, dy, x, kernel, bias)
  for our, theirs in zip(ours, plain, strict=True):
    np.testing.assert_allclose(our, theirs, rtol=1e-12, atol=1e-12)


def test_gradients_of_a_convolution_are_exact_in_float64():
  inputs = random((6, 5, 6, 3), 0), random((3, 3, 3, 4), 1)
  dy = random((6, 5, 6, 4), 2)
  with jax.enable_x64(True):
    ours, plain = (value_and_gradients(function, dy, *inputs) for function in (convolve_3x3, convolve))
  for our, theirs in zip(ours, plain, strict=True):
    np.testing.assert_allclose(our, theirs, rtol=1e-12, atol=1e-12)


def test_statistics_of_a_convolution_need_its_input_alone():
  x, kernel, bias = random((5, 7, 10), 0) + 3, random((3, 3, 4), 1), random(4, 2)
  convolved = convolve_with_numpy(x, kernel) + bias
  with jax.enable_x64(True):
    mean, variance = jax.jit(output_statistics, static_argnums=3)(x, kernel, bias, None)
  np.testing.assert_allclose(mean, convolved.mean((0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(variance, convolved.var((0, 1, 2)), rtol=1e-12)


def test_variances_are_right_in_float32_where_neighbours_are_nearly_equal():
  x = (random((8, 64, 96), 0) * 0.02).cumsum(2) + random((8, 64, 1), 1) * 0.1  # Neighbours correlate with 0.98 or more.
  kernel = random((3, 3, 64), 2)
  kernel[..., 32:] -= kernel[..., 32:].mean((0, 1))  # Half of the channels see differences alone.
  arrays = (array.astype(np.float32) for array in (x, kernel, np.zeros(64)))
  mean, variance = jax.jit(output_statistics, static_argnums=3)(*arrays, None)
  convolved = convolve_with_numpy(x, kernel)
  np.testing.assert_allclose(variance, convolved.var((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(mean, convolved.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)


def test_every_gradient_of_a_block_is_that_of_convolution_normalisation_relu_and_pool():
  x, dy = random((4, 6, 8), 0), random((4, 3, 4, 5), 1)
  graphdef, state = nnx.split(nnx.eval_shape(lambda: ConvBlock(1, 5, rngs=nnx.Rngs(0), dtype=jnp.float64)))
  state = jax.tree.map(lambda leaf: random(leaf.shape, leaf.size), state)

  def block(model, x):
    return model(x[..., None], train=True)

  def plain(model, x):
    return max_pool_2x2(nnx.relu(model.norm(model.conv(x[..., None]), use_running_average=False)))

  @functools.partial(jax.jit, static_argnums=0)
  def run(function, x, state, dy):
    def forward(x, state):
      model = nnx.merge(graphdef, state, copy=True)
      y = function(model, x)
      return y, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    y, backward, averages = jax.vjp(forward, x, state, has_aux=True)
    return y, averages, backward(dy)

  with jax.enable_x64(True):
    ours, theirs = (run(function, x, state, dy) for function in (block, plain))
  assert ours[0].dtype == jnp.float64
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours, theirs)
