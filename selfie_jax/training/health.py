"""Representations of some clips of a training batch, from which a run's health is measured now and then."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from selfie_jax.config import Config
from selfie_jax.training import mesh as mesh_lib
from selfie_jax.training.checkpointing.checkpoints import DataState
from selfie_jax.training.state import TrainState, build_model, evaluated_weights, random_keys, split_model
from selfie_jax.training.views import make_views

MOST_CLIPS = 512  # The SVD is on the host, which would otherwise fall behind the device.


def make_health_step(
  config: Config, mesh: jax.sharding.Mesh, data: DataState
) -> Callable[[TrainState, jax.Array], jax.Array]:
  """Compiles lazily: (state, clips) -> the representations of two views of the batch's first clips.

  They are what evaluations read: the encoder's, pooled, in evaluation mode. The state stays as it is, and the views
  are a function of (seed, step).

  Args:
    config: the run's configuration.
    mesh: the devices.
    data: the log-mel values' mean and standard deviation.

  Returns:
    A jitted function of the state and of clips of `config.batch_shape`, int16, to (2, n, features) float32 that
    every process has whole; n is at most 512.
  """
  graphdef = split_model(nnx.eval_shape(lambda: build_model(config)))[0]
  count = min(config.batch_size, max(1, MOST_CLIPS // config.augment.mixup_group) * config.augment.mixup_group)

  def health_step(state: TrainState, clips: jax.Array) -> jax.Array:
    weights = evaluated_weights(state, config)
    encoder = nnx.merge(graphdef, weights.params, weights.batch_stats, copy=True).encoder
    key = jax.random.fold_in(jax.random.fold_in(random_keys(config.seed)[1], state.step), 1)  # Not a step's own.
    views = make_views(key, clips[:count], config, data)
    return jnp.stack([encoder.pool(encoder(view, train=False)).astype(jnp.float32) for view in views])

  return jax.jit(health_step, out_shardings=mesh_lib.replicated(mesh))
