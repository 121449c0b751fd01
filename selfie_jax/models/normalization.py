"""Normalisations that stay in float32 where the network computes in bfloat16."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


def batch_norm(width: int, *, rngs: nnx.Rngs, dtype: DTypeLike) -> nnx.BatchNorm:
  """Batch normalisation in a network that computes in `dtype`: computes and returns float32, or wider if that is.

  Its statistics are of the rows that it sees, or of all devices' where `axis_name` is set: see `training/step.py`.
  """
  # If its own dtype were bfloat16, flax would take a batch's statistics in float32 all the same, but round the running
  # averages to bfloat16 wherever they are used.
  return nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, dtype=jnp.promote_types(dtype, jnp.float32), rngs=rngs)


def average_in(norm: nnx.BatchNorm, mean: jax.Array, variance: jax.Array) -> None:
  """Moves the running averages towards a batch's statistics, as `norm` does when it takes them itself."""
  for average, value in ((norm.mean, mean), (norm.var, variance)):
    average[...] = jax.lax.stop_gradient(norm.momentum * average[...] + (1 - norm.momentum) * value)


def layer_norm(width: int, *, rngs: nnx.Rngs, dtype: DTypeLike) -> nnx.LayerNorm:
  """Layer normalisation in a network that computes in `dtype`: computes and returns float32, or wider if that is."""
  return nnx.LayerNorm(width, epsilon=1e-6, dtype=jnp.promote_types(dtype, jnp.float32), rngs=rngs)
