"""The three terms of the objective, each a pure function of float32 embeddings."""

import jax
import jax.numpy as jnp

from selfie_jax.objective import statistics


def invariance(z1: jax.Array, z2: jax.Array) -> jax.Array:
  """Mean squared difference of the two views' embeddings, over all entries of (n, d).

  VICReg (Bardes et al., ICLR 2022), equation 5, divided by d as in its published code.
  """
  return jnp.square(z1 - z2).mean()


def variance_hinge(z: jax.Array, num_groups: int) -> jax.Array:
  """Mean over dimensions (and groups) of relu(1 - standard deviation): how far the batch is from diverse.

  VICReg, equations 1 and 2. With one group a device this is the per-device statistic of our design.
  """
  return jax.nn.relu(1.0 - statistics.standard_deviation(z, num_groups)).mean()


def covariance(z: jax.Array) -> jax.Array:
  """Sum of the squared off-diagonal covariances over d, across replicas.

  VICReg, equations 3 and 4.
  """
  off_diagonal, _ = statistics.covariance_energy(z)
  return off_diagonal / z.shape[1]
