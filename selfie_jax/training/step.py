"""One training step: a pure function of (state, clips); its random numbers are a function of (seed, step)."""

from collections.abc import Callable

import jax
import optax
from flax import nnx

from selfie_jax.audio.augment import two_views
from selfie_jax.audio.log_mel import log_mel
from selfie_jax.config import Config
from selfie_jax.objective.objective import objective
from selfie_jax.training import mesh as mesh_lib
from selfie_jax.training.checkpoints import DataState
from selfie_jax.training.optimizer import learning_rate_schedule
from selfie_jax.training.state import Model, TrainState, build_model, random_keys, split_model

Metrics = dict[str, jax.Array]


def embedding_loss(
  model: Model, views: tuple[jax.Array, jax.Array], key: jax.Array, config: Config, num_groups: int
) -> tuple[jax.Array, Metrics]:
  """Embeds two views, each (n, n_mels, frames), and compares them. Updates the model's batch statistics.

  Each view goes through the network in a call of its own, so batch normalisation uses that view's statistics, over
  the global batch.
  """
  key1, key2 = jax.random.split(key)
  z1 = model(views[0], nnx.Rngs(dropout=key1))
  z2 = model(views[1], nnx.Rngs(dropout=key2))
  return objective(z1, z2, config.objective, num_groups)


def make_train_step(
  config: Config, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh, data: DataState
) -> Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]:
  """Compiles lazily: (state, clips) -> (state, metrics). The old state's memory is given to the new one.

  Args:
    config: the run's configuration.
    optimizer: from `make_optimizer`.
    mesh: the devices; the batch is sharded over them, the state replicated.
    data: the log-mel values' mean and standard deviation, for z-scoring, and the groups of the variance.

  Returns:
    A function of the state and of clips (batch_size, crop_samples), int16.
  """
  graphdef = split_model(nnx.eval_shape(lambda: build_model(config)))[0]
  schedule = learning_rate_schedule(config)

  def loss_fn(params: nnx.State, batch_stats: nnx.State, views: tuple[jax.Array, jax.Array], key: jax.Array):  # noqa: ANN202
    # A copy, because merging the traced variables in place would tie the model to this trace.
    model = nnx.merge(graphdef, params, batch_stats, copy=True)
    loss, metrics = embedding_loss(model, views, key, config, data.variance_groups)
    return loss, (split_model(model)[2], metrics)

  def train_step(state: TrainState, clips: jax.Array) -> tuple[TrainState, Metrics]:
    # Random numbers are drawn for the global batch (partitionable threefry): the same on 1 device or on 1,000.
    key = jax.random.fold_in(random_keys(config.seed)[1], state.step)
    view_key, dropout_key = jax.random.split(key)
    spectrograms = (log_mel(clips, config.log_mel) - data.mean) / data.std
    views = two_views(view_key, spectrograms, config.augment)
    (loss, (batch_stats, metrics)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
      state.params, state.batch_stats, views, dropout_key
    )
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= {
      'loss': loss,
      'gradient_norm': optax.global_norm(gradients),
      'parameter_norm': optax.global_norm(params),
      'learning_rate': schedule(state.step),
    }
    return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

  replicated = mesh_lib.replicated(mesh)
  return jax.jit(
    train_step,
    in_shardings=(replicated, mesh_lib.batch_sharding(mesh)),
    out_shardings=(replicated, replicated),
    donate_argnums=0,
  )
