"""The moving average of the weights: what it is, who learns from it, and who reads it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from selfie_jax import config as config_lib
from selfie_jax.config import AudioNTT, Augment, Average, Config, Data, Objective, Projector
from selfie_jax.files import as_path
from selfie_jax.models import projector
from selfie_jax.objective.objective import objective_of_rows
from selfie_jax.training import mesh as mesh_lib
from selfie_jax.training.checkpointing import checkpoints
from selfie_jax.training.checkpointing.checkpoints import DataState
from selfie_jax.training.checkpointing.checksums import leaf_checksums, leaf_name
from selfie_jax.training.gradients import embedding_gradients
from selfie_jax.training.health import make_health_step
from selfie_jax.training.optimizer import make_optimizer
from selfie_jax.training.state import Weights, abstract_state, init_state, split_model
from selfie_jax.training.step import prediction_pairs

CONFIG = Config(
  steps=10,
  batch_size=8,
  data=Data(crop_seconds=0.16),
  augment=Augment(mixup_group=4),
  encoder=AudioNTT(conv_channels=2, width=12, dropout=0.0),
  projector=Projector(hidden_width=10, output_width=6),
  objective=Objective(**config_lib.PRESETS['byol_a']),
  average=Average(decay=0.9, evaluate=True),
)
DATA = DataState('fingerprint', -5.0, 4.0, 1)


def batch_norm(x):
  return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def mlp(weights, x):
  """[Linear, BatchNorm, ReLU], Linear: of the projector and of the predictor."""
  hidden, norm = weights['hidden'][0], weights['norms'][0]
  x = batch_norm(x @ hidden['kernel'] + hidden['bias']) * norm['scale'] + norm['bias']
  return np.maximum(x, 0) @ weights['output']['kernel']


def byol_loss(online, average, views):
  """Float64 NumPy, from both views' features: the mean over directions of 2 - 2 cos(prediction, other's target)."""
  losses = []
  for features, others in zip(views, views[::-1], strict=True):
    prediction, target = mlp(online['predictor'], mlp(online['projector'], features)), mlp(average['projector'], others)
    norms = np.linalg.norm(prediction, axis=1) * np.linalg.norm(target, axis=1)
    losses.append((2 - 2 * (prediction * target).sum(1) / norms).mean())
  return np.mean(losses)


class Heads(nnx.Module):
  """A model without an encoder: its views are features."""

  def __init__(self, seed):
    rngs = nnx.Rngs(seed)
    self.projector = projector.Projector(CONFIG.projector, 12, rngs=rngs)
    self.predictor = projector.Projector(CONFIG.projector, CONFIG.projector.output_width, rngs=rngs)

  def __call__(self, x, keys):
    return self.projector(x, train=True)


def test_loss_and_gradients_of_byol_equal_float64_numpys_and_targets_have_none():
  (graphdef, params, batch_stats), (_, average, _) = (split_model(Heads(seed)) for seed in (0, 1))
  views = np.float32(np.random.default_rng(0).standard_normal((2, CONFIG.batch_size, 12)))
  inputs = [(view, None) for view in views]

  def embed(params, batch_stats, inputs):
    model = nnx.merge(graphdef, params, batch_stats, copy=True)
    embeddings = [model(*view_and_keys) for view_and_keys in inputs]
    return (embeddings, prediction_pairs(model, embeddings, average, inputs)), split_model(model)[2]

  def loss_fn(embeddings_and_pairs):
    embeddings, pairs = embeddings_and_pairs
    return objective_of_rows(*embeddings, CONFIG.objective, 1, (), pairs)

  @jax.jit
  def ours(params):
    return embedding_gradients(embed, loss_fn, params, batch_stats, inputs, microbatches=1)[:2]

  (loss, _), gradients = ours(params)
  online, target, gradients = (as_float64(tree) for tree in (params, average, gradients))
  assert loss == pytest.approx(byol_loss(online, target, views), rel=1e-5)
  rng = np.random.default_rng(0)
  for part in ('projector', 'predictor'):
    for name in ('hidden', 'norms', 'output'):
      direction = jax.tree.map(lambda x: rng.standard_normal(x.shape), online[part][name])
      sides = []
      for sign in (1, -1):
        moved = online | {part: online[part] | {name: add(online[part][name], direction, sign * 1e-6)}}
        sides.append(byol_loss(moved, target, views))
      dots = jax.tree.map(lambda g, v: (g * v).sum(), gradients[part][name], direction)
      assert sum(jax.tree.leaves(dots)) == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4, abs=1e-7)


def as_float64(params):
  return jax.tree.map(np.float64, nnx.to_pure_dict(params))


def add(tree, direction, scale):
  return jax.tree.map(lambda x, v: x + scale * v, tree, direction)


# --------------------------------------------------------------------- who reads it


@pytest.fixture(scope='module')
def state():
  """As after a step, with other numbers in the average than in the weights."""
  rng = np.random.default_rng(0)
  template = abstract_state(CONFIG, make_optimizer(CONFIG), mesh_lib.make_mesh(1))
  state = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0, 0.2, leaf.shape), leaf.dtype), template)
  return dataclasses.replace(state, step=jnp.int32(1))


def leaves(tree):
  return {leaf_name(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def test_it_is_saved_and_restored_bitwise_and_its_encoder_is_the_one_that_is_evaluated(state, tmp_path):
  for evaluate, weights in ((True, state.average), (False, state)):
    config = dataclasses.replace(CONFIG, average=Average(0.9, evaluate))
    workdir = as_path(tmp_path / str(evaluate))
    with checkpoints.open_manager(workdir, config) as manager:
      checkpoints.save(manager, 1, state, DATA, config)
    template = abstract_state(config, make_optimizer(config), mesh_lib.make_mesh(1))
    restored, _ = checkpoints.restore(workdir, template, DATA)
    assert leaf_checksums(restored) == leaf_checksums(state)
    loaded = leaves(nnx.state(checkpoints.load_encoder(workdir).encoder))
    wanted = leaves(weights.params['encoder']) | leaves(weights.batch_stats['encoder'])
    assert loaded.keys() == wanted.keys()
    assert all((loaded[name] == wanted[name]).all() for name in wanted)


def test_health_is_that_of_the_encoder_that_is_evaluated(state):
  clips = np.random.default_rng(0).integers(-9_000, 9_000, (8, CONFIG.crop_samples)).astype(np.int16)
  health = make_health_step(CONFIG, mesh_lib.make_mesh(1), DATA)
  other_weights = dataclasses.replace(state, params=state.average.params)
  other_average = dataclasses.replace(state, average=Weights(state.params, state.batch_stats))
  np.testing.assert_array_equal(health(other_weights, clips), health(state, clips))
  assert (health(other_average, clips) != health(state, clips)).any()


def test_a_warm_start_begins_it_at_the_other_runs_encoder(state, tmp_path):
  with checkpoints.open_manager(as_path(tmp_path), CONFIG) as manager:
    checkpoints.save(manager, 1, state, DATA, CONFIG)
  fresh = jax.tree.map(jnp.zeros_like, state)
  started = checkpoints.warm_start(fresh, dataclasses.replace(CONFIG, warm_start=str(tmp_path)))
  ours, theirs = leaves(started.average), leaves(Weights(started.params, started.batch_stats))
  assert all((ours[name] == theirs[name]).all() for name in theirs)
  kernel = 'params/encoder/dense1/kernel'
  assert (ours[kernel] == np.asarray(state.params['encoder']['dense1']['kernel'])).all()


def test_a_run_that_keeps_none_has_the_tree_that_it_always_had():
  config = dataclasses.replace(CONFIG, objective=Objective(), average=Average())
  state = jax.eval_shape(lambda: init_state(config, make_optimizer(config)))
  assert {leaf_name(path).partition('/')[0] for path, _ in jax.tree.leaves_with_path(state)} == {
    'step',
    'params',
    'batch_stats',
    'opt_state',
  }
  assert state.params.keys() == {'encoder', 'projector'}
  # Not even an empty place: Orbax refuses a checkpoint without it.
  assert jax.tree.map(lambda leaf: leaf, state).average is None
  assert len(jax.tree.structure(state).children()) == 4
