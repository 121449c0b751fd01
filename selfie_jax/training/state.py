"""The train state: one explicit pytree, and how it is made from a config."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from selfie_jax import config as config_lib
from selfie_jax.audio.log_mel import num_frames
from selfie_jax.config import Config
from selfie_jax.models.audiontt import AudioNTT
from selfie_jax.models.projector import Projector
from selfie_jax.models.vit import ViT
from selfie_jax.training import mesh as mesh_lib

Encoder = AudioNTT | ViT


@dataclasses.dataclass(frozen=True)
class LoadedEncoder:
  """An encoder and what its input must look like: log-mel by `config.log_mel`, z-scored with `mean` and `std`."""

  encoder: Encoder
  config: Config
  mean: float
  std: float
  step: int | None  # None: unknown, of imported weights.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
  """A model's parameters, and the batch statistics that go with them."""

  params: nnx.State
  batch_stats: nnx.State


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything a step changes. `step` counts finished updates, so it is also the number of the next batch."""

  step: jax.Array  # int32 scalar
  params: nnx.State
  batch_stats: nnx.State
  opt_state: Any
  average: Weights | None = None  # Their moving average, if `config.average.decay` asks for one.

  def tree_flatten_with_keys(self) -> tuple[list[tuple[jax.tree_util.GetAttrKey, Any]], tuple[str, ...]]:
    """As a registered dataclass, but for an average that is not kept, which is no part of the tree."""
    # None would be a node of it, and Orbax would refuse the checkpoints that were written without.
    names = tuple(
      field.name for field in dataclasses.fields(self) if field.name != 'average' or self.average is not None
    )
    return [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in names], names

  @classmethod
  def tree_unflatten(cls, names: tuple[str, ...], values: Iterable[Any]) -> 'TrainState':
    """Undoes it."""
    return cls(**dict(zip(names, values, strict=True)))


class Model(nnx.Module):
  """Encoder, projector and, for the term `prediction` alone, a predictor.

  The encoder is what pre-training is for; the others are thrown away after it.
  """

  def __init__(self, config: Config, *, rngs: nnx.Rngs) -> None:
    dtype = jnp.dtype(config.compute_dtype)
    frames = num_frames(config.crop_samples, config.log_mel)
    options = {'rngs': rngs, 'dtype': dtype, 'remat': config.remat}
    if isinstance(config.encoder, config_lib.ViT):
      self.encoder = ViT(config.encoder, config.log_mel.n_mels, frames, **options)
    else:
      self.encoder = AudioNTT(config.encoder, config.log_mel.n_mels, **options)
    self.projected = config.encoder.width if config.projector.dense_only else self.encoder.features
    self.projector = Projector(config.projector, self.projected, rngs=rngs, dtype=dtype)
    # Made last: with it or without, encoder and projector begin with the same weights.
    if config.objective.invariance_term == 'prediction':
      self.predictor = Projector(config.projector, config.projector.output_width, rngs=rngs, dtype=dtype)

  def __call__(self, x: jax.Array, keys: jax.Array) -> jax.Array:
    """Maps one view to its embeddings, in training mode.

    Args:
      x: (n, n_mels, frames).
      keys: (n,) random keys, one an example, for dropout.

    Returns:
      (n, d), in float32 at least, whatever the networks compute in.
    """
    representation = self.encoder.pool(self.encoder(x, train=True, keys=keys))
    return self.projector(representation[:, -self.projected :], train=True)  # The dense layers' features come last.


def random_keys(seed: int) -> tuple[jax.Array, jax.Array]:
  """Returns the keys of a run's two sources of randomness: its initial weights, and its steps."""
  init_key, step_key = jax.random.split(jax.random.key(seed))
  return init_key, step_key


def build_model(config: Config) -> Model:
  """Returns the model as initialised from `config.seed`, on the default device."""
  return Model(config, rngs=nnx.Rngs(random_keys(config.seed)[0]))


def build_encoder(config: Config) -> Encoder:
  """Returns the encoder of `build_model`: the untrained baseline, and the mould that trained weights go into."""
  return build_model(config).encoder


def split_model(model: Model) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
  """Splits a model into its structure, its parameters and its batch statistics."""
  return nnx.split(model, nnx.Param, nnx.BatchStat)


def init_state(config: Config, optimizer: optax.GradientTransformation) -> TrainState:
  """Returns the state before the first step. Pure in `config`: jit it with output shardings to place it."""
  _, params, batch_stats = split_model(build_model(config))
  average = begin_average(Weights(params, batch_stats)) if config.average.decay else None
  return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), average)


def begin_average(weights: Weights) -> Weights:
  """Returns the moving average before the first step: a copy, since a step is given the memory of both."""
  return jax.tree.map(jnp.copy, weights)


def move_average(average: Weights, weights: Weights, decay: float) -> Weights:
  """Returns decay * average + (1 - decay) * weights, of parameters and running batch statistics alike."""
  return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), average, weights)


def evaluated_weights(state: TrainState, config: Config) -> Weights:
  """Returns the weights that evaluations read: the average's or, unless `config.average` says so, the last ones."""
  return state.average if config.average.evaluate else Weights(state.params, state.batch_stats)


def abstract_state(config: Config, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> TrainState:
  """Returns the state's shapes with their shardings: what to initialise or restore, and where to."""
  shapes = jax.eval_shape(lambda: init_state(config, optimizer))
  shardings = mesh_lib.state_shardings(shapes, mesh, config.mesh.strategy)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
