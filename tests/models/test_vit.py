import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from selfie_jax import config
from selfie_jax.models import vit
from selfie_jax.models.vit import ViT, sincos_positions

N_MELS, FRAMES = 16, 48


@pytest.fixture(autouse=True)
def _small_size(monkeypatch):
  monkeypatch.setitem(vit.SIZES, 'test', (16, 2, 2))


def encoder(positions='sincos', patch=(8, 8), n_mels=N_MELS, max_frames=FRAMES, **options):
  settings = config.ViT(size='test', patch=patch, positions=positions)
  return ViT(settings, n_mels, max_frames, rngs=nnx.Rngs(0), **options)


@functools.partial(nnx.jit, static_argnames='train')
def encode(model, x, train=False, valid=None):
  return model(x, train=train, valid=valid)


def spectrograms(shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize(
  ('size', 'width', 'parameters'), [('tiny', 192, 5_388_096), ('small', 384, 21_393_024), ('base', 768, 85_253_376)]
)
def test_parameter_counts_are_those_of_the_formula(size, width, parameters):
  patch = 16 * 16 * width + width
  attention = 4 * (width * width + width)
  mlp = (width * 4 * width + 4 * width) + (4 * width * width + width)
  norm = 2 * width
  assert patch + 12 * (attention + mlp + 2 * norm) + norm == parameters
  for positions, table in (('sincos', 0), ('learned', 37 * 4 * width)):
    model = nnx.eval_shape(
      lambda positions=positions: ViT(config.ViT(size=size, positions=positions), 64, 601, rngs=nnx.Rngs(0))
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters + table
    assert (model.features, model.frame_stride) == (4 * width, 16)


def test_names_of_parameters_can_be_read():
  paths = {'/'.join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(encoder('learned')))}
  layers = [f'attention/{name}' for name in ('query', 'key', 'value', 'output')] + ['mlp/up', 'mlp/down']
  norms = ['attention_norm', 'mlp_norm']
  expected = {f'blocks/{i}/{layer}/{kind}' for i in (0, 1) for layer in layers for kind in ('kernel', 'bias')}
  expected |= {f'blocks/{i}/{norm}/{kind}' for i in (0, 1) for norm in norms for kind in ('scale', 'bias')}
  assert paths == expected | {'embed/kernel', 'embed/bias', 'norm/scale', 'norm/bias', 'positions'}


@pytest.mark.parametrize(('frames', 'steps'), [(48, 6), (55, 6), (8, 1), (200, 25)])
def test_output_shape(frames, steps):
  model = encoder()
  x = spectrograms((2, N_MELS, frames))
  output = encode(model, x, train=True)
  assert output.shape == (2, steps, model.features) == (2, steps, 2 * 16)
  np.testing.assert_array_equal(output, encode(model, x[..., : steps * 8]))  # What is left over is dropped.


def numpy_vit(params, x, patch, heads):
  """The network in float64, written from the papers, one example (mels, frames) and one token at a time."""

  def linear(p, x):
    return x @ p['kernel'] + p['bias']

  def norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p['scale'] + p['bias']

  def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

  def attention(p, x):
    query, key, value = (np.split(linear(p[name], x), heads, axis=-1) for name in ('query', 'key', 'value'))
    outputs = []
    for q, k, v in zip(query, key, value, strict=True):
      scores = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
      outputs.append(scores / scores.sum(-1, keepdims=True) @ v)
    return linear(p['output'], np.concatenate(outputs, axis=-1))

  mels, frames = x.shape[0] // patch[0], x.shape[1] // patch[1]
  grid = [
    x[m * patch[0] : (m + 1) * patch[0], t * patch[1] : (t + 1) * patch[1]].ravel()
    for t in range(frames)
    for m in range(mels)
  ]
  tokens = linear(params['embed'], np.stack(grid)) + params['positions'][:frames].reshape(frames * mels, -1)
  for i in sorted(params['blocks']):
    block = params['blocks'][i]
    tokens = tokens + attention(block['attention'], norm(block['attention_norm'], tokens))
    hidden = gelu(linear(block['mlp']['up'], norm(block['mlp_norm'], tokens)))
    tokens = tokens + linear(block['mlp']['down'], hidden)
  return norm(params['norm'], tokens).reshape(frames, -1)


@pytest.mark.parametrize('patch', [(8, 8), (16, 4), (4, 6)])
def test_features_are_those_of_an_independent_implementation(patch):
  graphdef, state = nnx.split(encoder('learned', patch))
  rng = np.random.default_rng(0)
  state = jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32), state)
  x = spectrograms((2, N_MELS, FRAMES))
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(state))
  expected = [numpy_vit(params, np.asarray(row, np.float64), patch, heads=2) for row in x]
  np.testing.assert_allclose(encode(nnx.merge(graphdef, state), x), expected, rtol=1e-4, atol=1e-5)


def test_sincos_positions_are_those_of_the_formula():
  positions = sincos_positions(steps=50, mel_patches=3, width=16)
  assert positions.shape == (50, 3, 16)
  for step, mel, half, i in ((0, 0, 0, 0), (49, 2, 0, 3), (49, 2, 8, 3), (31, 1, 8, 1)):
    angle = (step if half else mel) / 10_000 ** (i / 4)
    np.testing.assert_allclose(positions[step, mel, half + i], np.sin(angle), atol=1e-6)
    np.testing.assert_allclose(positions[step, mel, half + 4 + i], np.cos(angle), atol=1e-6)


def test_positions_tell_time_steps_and_mel_patches_apart():
  same_everywhere = jnp.ones((1, N_MELS, FRAMES))
  for positions in ('sincos', 'learned'):
    tokens = encode(encoder(positions), same_everywhere).reshape(-1, 16)
    distances = jnp.abs(tokens[:, None] - tokens).max(-1) + jnp.eye(len(tokens))
    assert distances.min() > 1e-4


@pytest.mark.parametrize('frames', [48, 53, 55, 5])
def test_a_padded_example_has_the_features_that_it_has_alone(frames):
  model = encoder()
  steps = max(1, frames // 8)
  x = spectrograms((1, N_MELS, max(8, frames)), seed=1)
  padded = jnp.concatenate([x, 100 * spectrograms((1, N_MELS, 96 - x.shape[2]), seed=2)], axis=2)
  among_others = jnp.concatenate([padded, spectrograms((1, N_MELS, 96), seed=3)])
  together = encode(model, among_others, valid=jnp.array([frames, 96]))
  alone = encode(model, x)
  np.testing.assert_allclose(together[:1, :steps], alone, rtol=1e-5, atol=1e-5)
  clip = model.pool(together, jnp.array([steps, 12]))[:1]
  np.testing.assert_allclose(clip, model.pool(alone), rtol=1e-5, atol=1e-5)


def test_layers_are_the_embedding_and_each_block_up_to_the_output():
  model = encoder()
  x = spectrograms((2, N_MELS, 48))
  layers = nnx.jit(ViT.layers)(model, x)
  assert list(model.layer_strides.items()) == [(name, 8) for name in ('embedding', 'block1', 'block2', 'output')]
  assert [layer.shape for layer in layers] == [(2, 6, model.features)] * 4
  tokens = layers[0].reshape(2, 12, 16)
  for block, layer in zip(model.blocks, layers[1:3], strict=True):
    tokens = block(tokens, None)
    np.testing.assert_allclose(tokens.reshape(layer.shape), layer, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(layers[-1], encode(model, x), rtol=1e-5, atol=1e-5)


def test_learned_positions_end_with_the_training_crop():
  model = encoder('learned', max_frames=50)
  assert model.max_frames == 55  # Six patches, and a rest that is dropped.
  assert encode(model, spectrograms((1, N_MELS, 55))).shape[1] == 6
  assert encode(model, spectrograms((1, N_MELS, 17))).shape[1] == 2
  with pytest.raises(ValueError, match='56 frames, and learned positions for 55'):
    encode(model, spectrograms((1, N_MELS, 56)))
  assert encoder('sincos').max_frames is None


def value_and_gradients(model, x):
  graphdef, params = nnx.split(model)

  @jax.jit
  def run(params):
    model = nnx.merge(graphdef, params, copy=True)
    return (model.pool(model(x, train=True)).astype(jnp.float32)[:, ::3] ** 2).mean()

  loss, gradients = jax.value_and_grad(run)(params)
  return loss, nnx.to_pure_dict(gradients)


def test_computing_activations_again_changes_no_gradient():
  x = spectrograms((4, N_MELS, FRAMES))
  kept, again = value_and_gradients(encoder(), x), value_and_gradients(encoder(remat=True), x)
  jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6), again, kept)


def test_computing_activations_again_keeps_the_inputs_of_blocks_alone():
  def kept_for_the_backward_pass(remat):
    graphdef, state = nnx.split(encoder(remat=remat))
    forward = lambda state, x: nnx.merge(graphdef, state, copy=True)(x, train=True)  # noqa: E731
    residuals = jax.eval_shape(lambda state, x: jax.vjp(forward, state, x)[1], state, spectrograms((8, N_MELS, FRAMES)))
    return sum(leaf.size for leaf in jax.tree.leaves(residuals))

  tokens = 8 * 12 * 16
  # A block keeps its input instead of two normalised inputs, queries, keys, values, and the MLP's hidden layer twice.
  assert kept_for_the_backward_pass(True) < kept_for_the_backward_pass(False) - 2 * (5 + 2 * 4) * tokens


def test_in_bfloat16_parameters_stay_in_float32_and_features_are_right_up_to_its_rounding():
  x = spectrograms((4, N_MELS, FRAMES))
  model = encoder('learned', dtype=jnp.bfloat16)
  features = encode(model, x, train=True)
  assert features.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype(jnp.float32)}
  np.testing.assert_allclose(features.astype(jnp.float32), encode(encoder('learned'), x, train=True), atol=0.05)


def test_in_bfloat16_normalisations_and_the_softmax_are_in_float32():
  model = encoder(dtype=jnp.bfloat16)
  program = str(jax.make_jaxpr(lambda x: model(x, train=True))(spectrograms((4, N_MELS, FRAMES))))
  reductions = [line for line in program.splitlines() if ' = exp' in line or ' = rsqrt' in line]
  assert len(reductions) == 2 + 5  # The softmax of each block; two normalisations of each, and the last.
  assert all('f32[' in line.partition(' = ')[0] and 'bf16[' not in line.partition(' = ')[0] for line in reductions)


def test_two_models_of_one_config_share_compiled_programs():
  # They do if their structures, which are static arguments of jit, are equal.
  assert nnx.split(encoder())[0] == nnx.split(encoder())[0]


def test_kernels_begin_xavier_uniform_and_biases_at_zero(monkeypatch):
  monkeypatch.setitem(vit.SIZES, 'test', (64, 1, 2))
  for path, leaf in nnx.to_flat_state(nnx.state(encoder())):
    if path[-1] == 'kernel':
      bound = np.sqrt(6 / sum(leaf[...].shape))
      assert bound * 0.98 < jnp.abs(leaf[...]).max() <= bound
      np.testing.assert_allclose(leaf[...].std(), bound / np.sqrt(3), rtol=0.05)
    elif path[-1] == 'bias':
      assert not leaf[...].any()
