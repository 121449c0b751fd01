"""Statistics of a batch of embeddings, in float32 whatever the network computes in.

Under `jit` over a sharded batch, every mean over axis 0 is a mean over the GLOBAL batch: XLA inserts the reduction
across replicas. Statistics of one device alone are had by giving each device's rows an axis of their own.
"""

import jax
import jax.numpy as jnp

# On TPUs a float32 matrix product rounds its inputs to bfloat16 unless told not to.
_EXACT = jax.lax.Precision.HIGHEST


def standard_deviation(z: jax.Array, num_groups: int = 1, epsilon: float = 1e-4) -> jax.Array:
  """Returns the standard deviation of each dimension within each of `num_groups` blocks of consecutive rows.

  Args:
    z: (n, d) float32 embeddings; the batch is laid out over devices in consecutive blocks.
    num_groups: 1 for the global batch, the number of devices for per-device statistics; it divides n.
    epsilon: added to the variance, so that the gradient at a constant dimension is finite (VICReg, section 4.1).

  Returns:
    (num_groups, d): sqrt(variance + epsilon), with n / num_groups - 1 degrees of freedom.
  """
  n, d = z.shape
  groups = z.reshape(num_groups, n // num_groups, d)
  centred = groups - groups.mean(axis=1, keepdims=True)
  variance = jnp.square(centred).sum(axis=1) / (n // num_groups - 1)
  return jnp.sqrt(variance + epsilon)


def covariance_energy(z: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the squared entries of the covariance matrix of `z`, summed off and on its diagonal.

  With K the centred n x d matrix the sums come from the d x d product K'K or, when n < d, from the smaller Gram
  matrix KK': both have the same sum of squares, the squared Frobenius norm.

  Args:
    z: (n, d) float32 embeddings of the global batch.

  Returns:
    (off_diagonal, diagonal): scalars, sum_{i != j} C_ij^2 and sum_i C_ii^2 with C = K'K / (n - 1).
  """
  n, d = z.shape
  centred = z - z.mean(axis=0)
  variance = jnp.square(centred).sum(axis=0) / (n - 1)
  diagonal = jnp.square(variance).sum()
  if n < d:
    gram = jnp.matmul(centred, centred.T, precision=_EXACT) / (n - 1)
    return jnp.square(gram).sum() - diagonal, diagonal
  covariance = jnp.matmul(centred.T, centred, precision=_EXACT) / (n - 1)
  # Leaving the diagonal out before the sum, not after, keeps the digits of small off-diagonal entries.
  off_diagonal = jnp.where(jnp.eye(d, dtype=bool), 0.0, covariance)
  return jnp.square(off_diagonal).sum(), diagonal


def effective_rank(z: jax.Array) -> jax.Array:
  """Returns the participation ratio (sum_i l_i)^2 / sum_i l_i^2 of the covariance's eigenvalues l_i.

  It lies between 1 (all embeddings on one line) and d, needs no eigenvalue, and is a lower bound of the
  entropy-based effective rank of Roy and Vetterli (2007), being the exponential of the eigenvalues' Renyi entropy of
  order 2 instead of their Shannon entropy.

  Args:
    z: (n, d) float32 embeddings of the global batch.

  Returns:
    A scalar; 0 if all embeddings are equal.
  """
  off_diagonal, diagonal = covariance_energy(z)
  trace = jnp.var(z, axis=0, ddof=1).sum()
  energy = off_diagonal + diagonal
  return jnp.where(energy > 0, jnp.square(trace) / jnp.where(energy > 0, energy, 1.0), 0.0)
