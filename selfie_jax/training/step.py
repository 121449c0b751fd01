"""One training step: a pure function of (state, clips); its random numbers are a function of (seed, step)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from selfie_jax.config import Config
from selfie_jax.objective.objective import objective_of_rows
from selfie_jax.training import mesh as mesh_lib
from selfie_jax.training.checkpointing.checkpoints import DataState
from selfie_jax.training.gradients import embedding_gradients
from selfie_jax.training.optimizer import learning_rate_schedule
from selfie_jax.training.state import (
  Model,
  TrainState,
  Weights,
  abstract_state,
  build_model,
  move_average,
  random_keys,
  split_model,
)
from selfie_jax.training.views import make_views

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
    A jitted function of the state and of clips of `config.batch_shape`, int16.
  """
  model = nnx.eval_shape(lambda: build_model(config))
  axes = mesh_lib.axes_between(mesh)
  # Batch normalisation is over the global batch: its means are taken over all devices.
  model.set_attributes(nnx.BatchNorm, axis_name=axes or None, raise_if_not_found=False)
  graphdef = split_model(model)[0]
  schedule = learning_rate_schedule(config)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, optimizer, mesh))
  predicts = config.objective.invariance_term == 'prediction'
  # Of the parameters and, for predictions, their moving average: the network that makes the targets.
  specs = jax.tree.map(
    lambda sharding: sharding.spec, (shardings.params, shardings.average.params if predicts else None)
  )
  rows, replicated = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)

  def embed(average: nnx.State | None, params: nnx.State, batch_stats: nnx.State, inputs: Any) -> tuple[Any, nnx.State]:
    # A copy, because merging the traced variables in place would tie the model to this trace.
    model = nnx.merge(graphdef, params, batch_stats, copy=True)
    # Each view goes through the network in a call of its own, so batch normalisation uses that view's statistics.
    embeddings = [model(*view_and_keys) for view_and_keys in inputs]
    pairs = prediction_pairs(model, embeddings, average, inputs) if predicts else []
    return (embeddings, pairs), split_model(model)[2]

  def loss_fn(embeddings_and_pairs: Any) -> tuple[jax.Array, Metrics]:
    embeddings, pairs = embeddings_and_pairs
    return objective_of_rows(*embeddings, config.objective, data.variance_groups, axes, pairs)

  # Each device works on its rows, and every collective of the networks and the objective stands in the code: left to
  # itself, XLA sums a weight's gradient over devices once for each view and microbatch.
  def loss_and_gradients(
    params_and_average: tuple[nnx.State, nnx.State | None], batch_stats: nnx.State, inputs: Any
  ) -> tuple[tuple[jax.Array, Metrics], nnx.State, nnx.State]:
    params, average = mesh_lib.gather(params_and_average, specs, axes)
    loss_and_metrics, gradients, batch_stats = embedding_gradients(
      functools.partial(embed, average), loss_fn, params, batch_stats, inputs, config.microbatches
    )
    return loss_and_metrics, mesh_lib.sum_and_scatter(gradients, specs[0], axes), batch_stats

  if axes:
    loss_and_gradients = jax.shard_map(
      loss_and_gradients,
      mesh=mesh,
      in_specs=(specs, replicated.spec, rows.spec),
      out_specs=(replicated.spec, specs[0], replicated.spec),
    )

  def train_step(state: TrainState, clips: jax.Array) -> tuple[TrainState, Metrics]:
    # Random numbers are drawn for the global batch (partitionable threefry): the same on 1 device or on 1,000.
    view_key, *dropout_keys = jax.random.split(jax.random.fold_in(random_keys(config.seed)[1], state.step), 3)
    views = make_views(view_key, clips, config, data, parts=config.microbatches)
    inputs = [(view, example_keys(key, config.batch_size)) for view, key in zip(views, dropout_keys, strict=True)]

    params_and_average = state.params, state.average.params if predicts else None
    (loss, metrics), gradients, batch_stats = loss_and_gradients(params_and_average, state.batch_stats, inputs)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
      average = move_average(average, Weights(params, batch_stats), config.average.decay)
    metrics |= {
      'loss': loss,
      'gradient_norm': optax.global_norm(gradients),
      'parameter_norm': optax.global_norm(params),
      'learning_rate': schedule(state.step),
    }
    return TrainState(state.step + 1, params, batch_stats, opt_state, average), metrics

  return jax.jit(
    train_step,
    in_shardings=(shardings, rows),
    out_shardings=(shardings, replicated),
    donate_argnums=0,
  )


def prediction_pairs(
  model: Model, embeddings: Sequence[jax.Array], average: nnx.State, inputs: Sequence[tuple[jax.Array, jax.Array]]
) -> list[tuple[jax.Array, jax.Array]]:
  """Returns, for each view, what the predictor makes of its embeddings, and the target: the OTHER view's.

  BYOL (arXiv 2006.07733), section 3.1. Targets are a forward pass of the averaged weights in training mode, as BYOL-A
  has it: batch normalisation uses the batch's statistics of that pass, and dropout is on. A view's dropout is the same
  in both networks, and a pair is of two views, whose dropouts are independent.

  Args:
    model: the network that is trained.
    embeddings: (n, d) of each view, from `model`.
    average: the moving average of its parameters.
    inputs: each view and its keys.
  """
  graphdef, _, batch_stats = split_model(model)
  target_model = nnx.merge(graphdef, average, batch_stats, copy=True)
  targets = [target_model(*view_and_keys) for view_and_keys in inputs]
  return [(model.predictor(z, train=True), target) for z, target in zip(embeddings, targets[::-1], strict=True)]


def example_keys(key: jax.Array, n: int) -> jax.Array:
  """Returns (n,) keys, one for each example of the global batch, that do not depend on how it is cut."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))
