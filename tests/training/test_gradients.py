import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from selfie_jax import config
from selfie_jax.models.audiontt import AudioNTT
from selfie_jax.objective.objective import objective
from selfie_jax.training.gradients import embedding_gradients, join, split
from selfie_jax.training.state import split_model
from selfie_jax.training.step import example_keys

N = 24


def test_parts_deal_out_the_rows_in_turn_and_are_put_together_again():
  x = jnp.arange(N)
  parts = split({'x': x}, 4)['x']
  assert parts[1].tolist() == [1, 5, 9, 13, 17, 21]
  np.testing.assert_array_equal(join(parts), x)


@pytest.fixture(scope='module')
def network():
  encoder = AudioNTT(config.AudioNTT(conv_channels=4, width=16, dropout=0.3), 64, rngs=nnx.Rngs(0))
  graphdef, params, batch_stats = split_model(encoder)
  views = jax.random.normal(jax.random.key(0), (2, N, 64, 32))
  keys = [example_keys(key, N) for key in jax.random.split(jax.random.key(1))]
  return graphdef, params, batch_stats, list(zip(views, keys, strict=True))


def gradients(network, microbatches, *, train):
  graphdef, params, batch_stats, inputs = network

  def embed(params, batch_stats, inputs):
    model = nnx.merge(graphdef, params, batch_stats, copy=True)
    return [model.pool(model(view, train=train, keys=key)) for view, key in inputs], split_model(model)[2]

  def loss_fn(embeddings):
    return objective(*embeddings, config.Objective(), num_groups=2)

  step = jax.jit(lambda: embedding_gradients(embed, loss_fn, params, batch_stats, inputs, microbatches))
  return jax.tree.map(np.asarray, step())


@pytest.fixture(scope='module')
def whole_batch(network):
  return gradients(network, 1, train=False)


@pytest.mark.parametrize('microbatches', [3, 12])
def test_microbatches_change_nothing_where_batch_normalisation_is_frozen(network, whole_batch, microbatches):
  (loss, metrics), whole, _ = whole_batch
  (chunked_loss, chunked_metrics), chunked, _ = gradients(network, microbatches, train=False)
  assert chunked_loss == pytest.approx(loss, rel=1e-6)
  for name, value in metrics.items():
    assert chunked_metrics[name] == pytest.approx(value, rel=1e-5)
  for ours, theirs in zip(jax.tree.leaves(chunked), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@nnx.jit
def embed_in_training(model, view, keys):
  return model(view, train=True, keys=keys)


def test_running_averages_see_every_chunk_once(network):
  """What two forward passes over the chunks, in turn, would leave behind."""
  graphdef, params, batch_stats, inputs = network
  _, _, ours = gradients(network, 2, train=True)
  model = nnx.merge(graphdef, params, batch_stats, copy=True)
  for part in range(2):
    for view, keys in inputs:
      embed_in_training(model, view[part::2], keys[part::2])
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(split_model(model)[2]), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
