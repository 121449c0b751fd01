"""One training step: a pure function of (state, clips); its random numbers are a function of (seed, step)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from selfie_jax.audio.augment import two_views
from selfie_jax.audio.log_mel import log_mel
from selfie_jax.config import Config
from selfie_jax.objective.objective import objective_of_rows
from selfie_jax.training import mesh as mesh_lib
from selfie_jax.training.checkpointing.checkpoints import DataState
from selfie_jax.training.gradients import embedding_gradients, join, split
from selfie_jax.training.optimizer import learning_rate_schedule
from selfie_jax.training.state import TrainState, abstract_state, build_model, random_keys, split_model

Metrics = dict[str, jax.Array]


def make_train_step(
  config: Config, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh, data: DataState
) -> Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]:
  """Compiles lazily: (state, clips) -> (state, metrics). The old state's memory is given to the new one.

  Args:
    config: the run's configuration.
    optimizer: from `make_optimizer`.
    mesh: the devices; the batch is sharded over all of them, the state as `config.mesh` says.
    data: the log-mel values' mean and standard deviation, for z-scoring, and the groups of the variance.

  Returns:
    A jitted function of the state and of clips (batch_size, crop_samples), int16.
  """
  model = nnx.eval_shape(lambda: build_model(config))
  axes = mesh_lib.axes_between(mesh)
  # Batch normalisation is over the global batch: its means are taken over all devices.
  model.set_attributes(nnx.BatchNorm, axis_name=axes or None, raise_if_not_found=False)
  graphdef = split_model(model)[0]
  schedule = learning_rate_schedule(config)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, optimizer, mesh))
  specs = jax.tree.map(lambda sharding: sharding.spec, shardings.params)
  rows, replicated = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)

  def embed(params: nnx.State, batch_stats: nnx.State, inputs: Any) -> tuple[Any, nnx.State]:
    # A copy, because merging the traced variables in place would tie the model to this trace.
    model = nnx.merge(graphdef, params, batch_stats, copy=True)
    # Each view goes through the network in a call of its own, so batch normalisation uses that view's statistics.
    embeddings = [model(*view_and_keys) for view_and_keys in inputs]
    return embeddings, split_model(model)[2]

  def loss_fn(embeddings: list[jax.Array]) -> tuple[jax.Array, Metrics]:
    return objective_of_rows(*embeddings, config.objective, data.variance_groups, axes)

  # Each device works on its rows, and every collective of the networks and the objective stands in the code: left to
  # itself, XLA sums a weight's gradient over devices once for each view and microbatch.
  def loss_and_gradients(
    params: nnx.State, batch_stats: nnx.State, inputs: Any
  ) -> tuple[tuple[jax.Array, Metrics], nnx.State, nnx.State]:
    weights = mesh_lib.gather(params, specs, axes)
    loss_and_metrics, gradients, batch_stats = embedding_gradients(
      embed, loss_fn, weights, batch_stats, inputs, config.microbatches
    )
    return loss_and_metrics, mesh_lib.sum_and_scatter(gradients, specs, axes), batch_stats

  if axes:
    loss_and_gradients = jax.shard_map(
      loss_and_gradients,
      mesh=mesh,
      in_specs=(specs, replicated.spec, rows.spec),
      out_specs=(replicated.spec, specs, replicated.spec),
    )

  def train_step(state: TrainState, clips: jax.Array) -> tuple[TrainState, Metrics]:
    # Random numbers are drawn for the global batch (partitionable threefry): the same on 1 device or on 1,000.
    view_key, *dropout_keys = jax.random.split(jax.random.fold_in(random_keys(config.seed)[1], state.step), 3)
    spectrograms = (log_mel_in_parts(clips, config) - data.mean) / data.std
    views = two_views(view_key, spectrograms, config.augment)
    inputs = [(view, example_keys(key, config.batch_size)) for view, key in zip(views, dropout_keys, strict=True)]

    (loss, metrics), gradients, batch_stats = loss_and_gradients(state.params, state.batch_stats, inputs)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= {
      'loss': loss,
      'gradient_norm': optax.global_norm(gradients),
      'parameter_norm': optax.global_norm(params),
      'learning_rate': schedule(state.step),
    }
    return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

  return jax.jit(
    train_step,
    in_shardings=(shardings, rows),
    out_shardings=(shardings, replicated),
    donate_argnums=0,
  )


def log_mel_in_parts(clips: jax.Array, config: Config) -> jax.Array:
  """`log_mel` of a microbatch at a time, because its overlapping frames take more memory than a small encoder."""
  if config.microbatches == 1:
    return log_mel(clips, config.log_mel)
  parts = split(clips, config.microbatches)
  return join(jax.lax.map(functools.partial(log_mel, config=config.log_mel), parts))


def example_keys(key: jax.Array, n: int) -> jax.Array:
  """Returns (n,) keys, one for each example of the global batch, that do not depend on how it is cut."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))
