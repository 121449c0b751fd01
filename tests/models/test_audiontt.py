import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from selfie_jax import config
from selfie_jax.models.audiontt import AudioNTT, ConvBlock, drop_out, max_pool_2x2

SMALL = config.AudioNTT(conv_channels=8, width=24)


def encoder(settings=SMALL, n_mels=16, **options):
  return AudioNTT(settings, n_mels, rngs=nnx.Rngs(0), **options)


@functools.partial(nnx.jit, static_argnames='train')
def encode(model, x, train=False, keys=None, valid=None):
  return model(x, train=train, keys=keys, valid=valid)


def keys_of(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def spectrograms(shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize(
  ('settings', 'parameters', 'features', 'stride'),
  [
    (config.AudioNTT(width=512), 600_192, 512, 8),
    (config.AudioNTT(width=1_024), 1_649_792, 1_024, 8),
    (config.AudioNTT(width=2_048), 5_321_856, 2_048, 8),
    (config.AudioNTT(conv_blocks=2, width=2_048, concat_conv=True), 6_333_376, 3_072, 4),
  ],
  ids=['AudioNTT2020/512', 'AudioNTT2020/1024', 'AudioNTT2020/2048', 'AudioNTT2022/3072'],
)
def test_parameter_counts_and_feature_widths_are_the_published_ones(settings, parameters, features, stride):
  model = nnx.eval_shape(lambda: encoder(settings, 64))
  assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters
  assert (model.features, model.frame_stride) == (features, stride)


@pytest.mark.parametrize('concat_conv', [False, True])
@pytest.mark.parametrize(('frames', 'out_frames'), [(96, 12), (103, 12), (8, 1)])
def test_output_shape(frames, out_frames, concat_conv):
  model = encoder(config.AudioNTT(conv_channels=8, width=24, concat_conv=concat_conv))
  output = nnx.eval_shape(lambda: model(spectrograms((2, 16, frames)), train=False))
  assert output.shape == (2, out_frames, model.features) == (2, out_frames, 24 + 16 * concat_conv)


def test_a_frame_is_mel_major_and_channel_minor():
  model = encoder(config.AudioNTT(conv_blocks=1, conv_channels=2, width=1, concat_conv=True), n_mels=4)
  kernel = np.zeros((3, 3, 1, 2), np.float32)
  kernel[1, 1, 0] = 1, 10  # Channel 1 is ten times channel 0, which is the input.
  model.blocks[0].conv.kernel.set_value(jnp.asarray(kernel))
  x = jnp.arange(1.0, 17).reshape(1, 4, 4)
  conv = encode(model, x)[..., :4] * np.sqrt(1 + 1e-5)  # Undoes the normalisation by the initial statistics.
  np.testing.assert_allclose(conv[0], [[6, 60, 14, 140], [8, 80, 16, 160]], rtol=1e-6)


def test_the_state_is_parameters_and_batch_statistics_only():
  kinds = {type(v) for v in jax.tree.leaves(nnx.state(encoder()), is_leaf=lambda v: isinstance(v, nnx.Variable))}
  assert kinds == {nnx.Param, nnx.BatchStat}


def test_in_evaluation_an_example_does_not_depend_on_its_neighbours():
  model = encoder()
  encode(model, spectrograms((32, 16, 96)), train=True, keys=keys_of(32))  # Running averages other than 0 and 1.
  x = spectrograms((4, 16, 96), seed=1)
  others = 100 * spectrograms((4, 16, 96), seed=2)
  together = encode(model, x)
  among_others = encode(model, jnp.concatenate([x[:1], others[1:]]))
  np.testing.assert_array_equal(among_others[0], together[0])
  alone = jnp.concatenate([encode(model, x[i : i + 1]) for i in range(4)])
  np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('frames', [96, 101, 103])
def test_a_padded_example_has_the_features_that_it_has_alone(frames):
  model = encoder(config.AudioNTT(conv_channels=8, width=24, concat_conv=True, concat_blocks=3))
  encode(model, spectrograms((32, 16, 96)), train=True, keys=keys_of(32))
  x = spectrograms((1, 16, frames), seed=1)
  padded = jnp.concatenate([x, 100 * spectrograms((1, 16, 144 - frames), seed=2)], axis=2)
  alone = encode(model, x)
  together = encode(model, padded, valid=jnp.array([frames]))
  np.testing.assert_allclose(together[:, : frames // 8], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('frames', 'n_mels'), [(96, 16), (103, 18)])
def test_features_of_earlier_blocks_are_max_pooled_to_the_last_one_s_frames(frames, n_mels):
  model = encoder(config.AudioNTT(conv_channels=8, width=24, concat_conv=True, concat_blocks=3), n_mels)
  x = spectrograms((2, n_mels, frames))
  layers = dict(zip(model.layer_strides, nnx.jit(AudioNTT.layers)(model, x), strict=True))
  blocks = [
    layers[f'conv{block}'][:, : 12 * 2 ** (3 - block)].reshape(2, 12, 2 ** (3 - block), -1).max(axis=2)
    for block in (1, 2, 3)
  ]
  np.testing.assert_array_equal(layers['output'], jnp.concatenate([*blocks, layers['dense2']], -1))
  assert layers['output'].shape[-1] == model.features


@pytest.mark.parametrize('concat_conv', [False, True])
def test_layers_are_the_blocks_and_dense_layers_up_to_the_output(concat_conv):
  model = encoder(config.AudioNTT(conv_channels=8, width=24, concat_conv=concat_conv))
  x = spectrograms((2, 16, 96))
  layers = dict(zip(model.layer_strides, nnx.jit(AudioNTT.layers)(model, x), strict=True))
  assert list(layers) == ['conv1', 'conv2', 'conv3', 'dense1', 'dense2'] + ['output'] * concat_conv
  assert [layer.shape for layer in layers.values()][:4] == [(2, 48, 64), (2, 24, 32), (2, 12, 16), (2, 12, 24)]
  assert [96 // layer.shape[1] for layer in layers.values()] == list(model.layer_strides.values())
  output = jnp.concatenate([layers['conv3'], layers['dense2']], -1) if concat_conv else layers['dense2']
  np.testing.assert_array_equal(list(layers.values())[-1], output)
  np.testing.assert_allclose(output, encode(model, x), rtol=1e-5, atol=1e-6)


def test_evaluation_does_not_touch_the_state_and_training_averages_the_statistics():
  model = encoder(config.AudioNTT(conv_blocks=1, conv_channels=8, width=24))
  x = 3 + spectrograms((32, 16, 96))
  before = jax.tree.map(jnp.copy, nnx.state(model))
  encode(model, x)
  jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)
  encode(model, x, train=True, keys=keys_of(32))
  block = model.blocks[0]
  convolved = block.conv(x[..., None])
  np.testing.assert_allclose(block.norm.mean[...], 0.1 * convolved.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(block.norm.var[...], 0.9 + 0.1 * convolved.var((0, 1, 2)), rtol=1e-4)


def test_dropout_takes_its_keys_from_the_call():
  model = encoder()
  x = spectrograms((32, 16, 96))
  first, again, other = (encode(model, x, train=True, keys=keys_of(32, seed)) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()
  with pytest.raises(ValueError, match='needs keys'):
    model(x, train=True)


def test_an_examples_dropout_does_not_depend_on_the_examples_beside_it():
  x = jnp.ones((6, 12, 40))
  keys = keys_of(6)
  together = drop_out(x, 0.3, keys)
  in_chunks = jnp.concatenate([drop_out(x[:2], 0.3, keys[:2]), drop_out(x[2:], 0.3, keys[2:])])
  np.testing.assert_array_equal(together, in_chunks)
  assert (together[0] != together[1]).any()


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_dropout_drops_its_share_and_keeps_the_mean(dtype):
  dropped = drop_out(jnp.ones((100, 20, 100), dtype), 0.3, keys_of(100))
  assert dropped.dtype == dtype
  assert abs((dropped == 0).mean() - 0.3) < 0.005  # Five standard deviations.
  share = 45_875 / 2**16  # 0.7 in 16 bits.
  np.testing.assert_allclose(dropped[dropped != 0].astype(jnp.float32), 1 / share, rtol=jnp.finfo(dtype).eps)


@pytest.mark.parametrize(('rate', 'least', 'most'), [(0, 999, 999), (1e-6, 999, 999), (0.999, 0, 10), (1 - 1e-6, 0, 2)])
def test_the_smallest_and_the_greatest_share_can_be_dropped(rate, least, most):
  kept = (drop_out(jnp.ones((1, 999)), rate, keys_of(1)) != 0).sum()
  assert least <= kept <= most


def value_and_gradients(model, x):
  """A loss of the pooled features, its gradients and the batch statistics after the call, all in one jit."""
  graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)

  @jax.jit
  def run(params, stats):
    def loss(params):
      model = nnx.merge(graphdef, params, stats, copy=True)
      clips = model.pool(model(x, train=True, keys=keys_of(len(x))))
      return (clips.astype(jnp.float32) ** 2).mean(), nnx.state(model, nnx.BatchStat)

    return jax.value_and_grad(loss, has_aux=True)(params)

  (loss, stats), gradients = run(params, stats)
  return loss, nnx.to_pure_dict(gradients), nnx.to_pure_dict(stats)


def test_computing_activations_again_changes_no_gradient_and_counts_statistics_once():
  x = 3 + spectrograms((8, 16, 96))
  kept = value_and_gradients(encoder(), x)
  again = value_and_gradients(encoder(remat=True), x)
  jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6), again, kept)


def test_computing_activations_again_keeps_the_inputs_of_blocks_alone():
  def kept_for_the_backward_pass(remat):
    graphdef, state = nnx.split(encoder(remat=remat))
    forward = lambda state, x: nnx.merge(graphdef, state, copy=True)(x, train=True, keys=keys_of(8))  # noqa: E731
    residuals = jax.eval_shape(lambda state, x: jax.vjp(forward, state, x)[1], state, spectrograms((8, 16, 96)))
    return sum(leaf.size for leaf in jax.tree.leaves(residuals))

  # Block 2 alone has (8, 8, 48, 8) values each of its convolution's, normalisation's and ReLU's. Block 1 keeps none.
  assert kept_for_the_backward_pass(True) < kept_for_the_backward_pass(False) - 3 * 8 * 8 * 48 * 8


def test_in_bfloat16_parameters_and_statistics_stay_in_float32():
  model = encoder(dtype=jnp.bfloat16)
  x = 3 + spectrograms((32, 16, 96))
  frames = encode(model, x, train=True, keys=keys_of(32))
  assert (frames.dtype, model.pool(frames).dtype) == (jnp.bfloat16, jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype(jnp.float32)}
  block = model.blocks[0]
  convolved = np.asarray(block.conv(x[..., None]), np.float64)  # The very values, in bfloat16, that were normalised.
  np.testing.assert_allclose(block.norm.mean[...], 0.1 * convolved.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(block.norm.var[...], 0.9 + 0.1 * convolved.var((0, 1, 2)), rtol=1e-5)


def test_in_bfloat16_features_and_gradients_are_those_of_float32_up_to_its_rounding():
  x = spectrograms((32, 16, 96))
  half, full = (value_and_gradients(encoder(dtype=dtype), x) for dtype in (jnp.bfloat16, jnp.float32))
  np.testing.assert_allclose(half[0], full[0], rtol=0.02)
  flat = lambda tree: jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])  # noqa: E731
  ours, theirs = flat(half[1]), flat(full[1])
  assert jnp.vdot(ours, theirs) / (jnp.linalg.norm(ours) * jnp.linalg.norm(theirs)) > 0.99


def test_max_pool_drops_an_odd_last_row_and_column():
  x = spectrograms((2, 5, 7, 3))
  expected = np.asarray(x)[:, :4, :6].reshape(2, 2, 2, 3, 2, 3).max((2, 4))
  np.testing.assert_array_equal(max_pool_2x2(x), expected)


def pool_gradient(x, dy):
  """The gradient of a max-pool in plain NumPy: it goes to the first of the greatest."""
  gradient = np.zeros_like(x)
  for n, i, j, c in np.ndindex(*dy.shape):
    row, column = np.divmod(x[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c].argmax(), 2)
    gradient[n, 2 * i + row, 2 * j + column, c] = dy[n, i, j, c]
  return gradient


@pytest.mark.parametrize('ties', [False, True])
def test_gradient_of_max_pool_is_exact_in_float64(ties):
  rng = np.random.default_rng(0)
  x = rng.integers(-1, 2, (2, 7, 8, 3)).astype(np.float64) if ties else rng.standard_normal((2, 7, 8, 3))
  dy = rng.standard_normal((2, 3, 4, 3))
  with jax.enable_x64(True):
    (gradient,) = jax.vjp(max_pool_2x2, jnp.asarray(x))[1](jnp.asarray(dy))
  np.testing.assert_array_equal(gradient, pool_gradient(x, dy))


def test_no_window_loses_its_gradient_when_xla_fuses_the_pool_with_the_normalisation():
  with jax.enable_x64(True):
    graphdef, state = nnx.split(ConvBlock(1, 64, rngs=nnx.Rngs(0)))
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), state)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((16, 64, 96, 1)))

    @jax.jit
    def outputs_and_gradient_of_their_sum(state):
      def total(state):
        y = nnx.merge(graphdef, state, copy=True)(x, train=True)
        return y.sum(), y

      gradient, y = jax.grad(total, has_aux=True)(state)
      return y, gradient['norm']['bias'][...]

    y, gradient = outputs_and_gradient_of_their_sum(state)
    np.testing.assert_array_equal(gradient, (y > 0).sum((0, 1, 2)))


def test_a_clip_is_maximum_plus_mean_over_time():
  frames = np.asarray(spectrograms((3, 12, 5)))
  np.testing.assert_allclose(encoder().pool(jnp.asarray(frames)), frames.max(1) + frames.mean(1), rtol=1e-6)


def test_frames_past_the_valid_ones_are_left_out():
  frames = np.asarray(spectrograms((4, 12, 5))) - 3  # All negative: a zero for a masked frame would win the maximum.
  valid = np.array([1, 5, 11, 12])
  padded = frames.copy()
  for i, count in enumerate(valid):
    padded[i, count:] = 1e6
  pooled = encoder().pool(jnp.asarray(padded), jnp.asarray(valid))
  expected = [frames[i, :count].max(0) + frames[i, :count].mean(0) for i, count in enumerate(valid)]
  np.testing.assert_allclose(pooled, expected, rtol=1e-6)
