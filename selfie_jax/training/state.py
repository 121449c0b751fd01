"""The train state: one explicit pytree, and how it is made from a config."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from selfie_jax.config import Config
from selfie_jax.models.audiontt import AudioNTT, pool_frames
from selfie_jax.models.projector import Projector


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything a step changes. `step` counts finished updates, so it is also the number of the next batch."""

  step: jax.Array  # int32 scalar
  params: nnx.State
  batch_stats: nnx.State
  opt_state: Any


class Model(nnx.Module):
  """Encoder and projector. The encoder is what pre-training is for; the projector is thrown away after it."""

  def __init__(self, config: Config, *, rngs: nnx.Rngs) -> None:
    self.encoder = AudioNTT(config.encoder, config.log_mel.n_mels, rngs=rngs)
    self.projected = config.encoder.width if config.projector.dense_only else self.encoder.features
    self.projector = Projector(config.projector, self.projected, rngs=rngs)

  def __call__(self, x: jax.Array, rngs: nnx.Rngs) -> jax.Array:
    """Maps one view, (n, n_mels, frames), to its embeddings, (n, d), in training mode."""
    representation = pool_frames(self.encoder(x, train=True, rngs=rngs))
    return self.projector(representation[:, -self.projected :], train=True)  # The dense layers' features come last.


def random_keys(seed: int) -> tuple[jax.Array, jax.Array]:
  """Returns the keys of a run's two sources of randomness: its initial weights, and its steps."""
  init_key, step_key = jax.random.split(jax.random.key(seed))
  return init_key, step_key


def build_model(config: Config) -> Model:
  """Returns the model as initialised from `config.seed`, on the default device."""
  return Model(config, rngs=nnx.Rngs(random_keys(config.seed)[0]))


def build_encoder(config: Config) -> AudioNTT:
  """Returns the encoder of `build_model`: the untrained baseline, and the mould that trained weights go into."""
  return build_model(config).encoder


def split_model(model: Model) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
  """Splits a model into its structure, its parameters and its batch statistics."""
  return nnx.split(model, nnx.Param, nnx.BatchStat)


def init_state(config: Config, optimizer: optax.GradientTransformation) -> TrainState:
  """Returns the state before the first step. Pure in `config`: jit it with output shardings to place it."""
  _, params, batch_stats = split_model(build_model(config))
  return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))
