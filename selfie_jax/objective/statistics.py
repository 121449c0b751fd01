"""Statistics of a batch of embeddings that is sharded over devices, in float32 whatever the network computes in.

One rule keeps the backward pass free of collectives: embeddings are centred on the global mean as on a constant. That
changes no gradient of a function of centred second moments, since such a gradient, summed over the rows, is zero:
what the mean would pass on to each row vanishes. (`through_the_mean` is for what is not such a function.)
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from selfie_jax.objective.collectives import Axes, device_index, num_devices, sum_over_devices

# On TPUs a float32 matrix product rounds its inputs to bfloat16 unless told not to.
EXACT = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Rows:
  """Both views of a batch: the rows that this device owns and, where a term asks for them, everyone's."""

  own: jax.Array  # (2, n / devices, d)
  everyone: jax.Array | None  # (2, n, d), the same on every device.
  axes: Axes

  @property
  def count(self) -> int:
    """The number n of rows of the global batch."""
    return self.own.shape[1] * num_devices(self.axes)

  def map(self, function: Callable[[jax.Array], jax.Array]) -> 'Rows':
    """Applies a function that works row by row."""
    everyone = None if self.everyone is None else function(self.everyone)
    return Rows(function(self.own), everyone, self.axes)


def centre(rows: Rows) -> tuple[Rows, jax.Array]:
  """Returns the rows minus their global mean, and the global variances.

  The corrected two-pass algorithm (Chan, Golub and LeVeque 1983, equation 1.7): the sum of the rows' deviations from
  the rounded mean, zero but for that rounding, travels with their squares. So a constant dimension is centred to zero
  at any scale, where the rounding, divided by the standard deviation, would look like a signal.

  Returns:
    The centred rows, and (2, d) variances with n - 1 degrees of freedom.
  """
  n = rows.count
  # Divided before the sum: compilers fuse a division after it into some of the subtractions, which then see the mean
  # before it is rounded, and the others after.
  mean = jax.lax.stop_gradient(sum_over_devices((rows.own / n).sum(axis=1, keepdims=True), rows.axes))
  shifted = rows.own - mean
  sums = jnp.stack([shifted.sum(axis=1), jnp.square(shifted).sum(axis=1)])
  deviations, squares = sum_over_devices(sums, rows.axes)
  variance = jnp.maximum(squares - jnp.square(deviations) / n, 0.0) / (n - 1)
  correction = jax.lax.stop_gradient(deviations[:, None] / n)
  return rows.map(lambda z: (z - mean) - correction), variance


def through_the_mean(centred: Rows) -> Rows:
  """Returns this device's centred rows minus their mean, which is 0, and has a gradient: for more than second moments.

  The gradient takes one more all-reduce of (2, d), and so does the mean.
  """
  mean = sum_over_devices((centred.own / centred.count).sum(axis=1, keepdims=True), centred.axes)
  return Rows(centred.own - mean, None, centred.axes)


def standardise(centred: Rows, variance: jax.Array, epsilon: float = 1e-5) -> Rows:
  """Returns centred rows over their dimension's standard deviation, as a batch normalisation does.

  Barlow Twins' published code: the biased variance, to which batch normalisation adds its default epsilon.

  Args:
    centred: from `centre`.
    variance: (2, d) from `centre`, unbiased.
    epsilon: added to the variance.
  """
  n = centred.count
  scale = jax.lax.rsqrt(variance * ((n - 1) / n) + epsilon)[:, None]
  return centred.map(lambda z: z * scale)


def unit_norm(z: jax.Array) -> jax.Array:
  """Returns the rows of `z`, (..., d), scaled to the norm 1. A row of zeros stays one, with the gradient zero."""
  squares = jnp.square(z).sum(axis=-1, keepdims=True)
  # Guarded inside the root, too: an infinite derivative in the branch not taken would make the gradient NaN.
  return jnp.where(squares > 0, z / jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def group_variance(rows: Rows, num_groups: int) -> tuple[jax.Array, bool]:
  """Returns the variances within each of `num_groups` blocks of consecutive rows of the global batch.

  Where the groups divide evenly over the devices, each device computes its own and nothing is sent. Other numbers
  occur where a run goes on with another number of devices and keeps its groups; then the groups' sums are added over
  all devices.

  Args:
    rows: of the global batch.
    num_groups: at least 1; it divides the number of rows.

  Returns:
    (2, groups, d) with n / num_groups - 1 degrees of freedom, and whether these are this device's groups only
    (or all of the batch's).
  """
  size = rows.count // num_groups
  views, num_own, d = rows.own.shape
  if num_groups % num_devices(rows.axes) == 0:
    groups = rows.own.reshape(views, num_own // size, size, d)
    centred = groups - (groups / size).sum(axis=2, keepdims=True)
    centred -= centred.mean(axis=2, keepdims=True)  # As in `centre`.
    return jnp.square(centred).sum(axis=2) / (size - 1), True
  group_of_row = (device_index(rows.axes) * num_own + jnp.arange(num_own)) // size

  def sums(x: jax.Array) -> jax.Array:
    by_row = jax.ops.segment_sum(jnp.moveaxis(x, 1, 0), group_of_row, num_groups, indices_are_sorted=True)
    return sum_over_devices(jnp.moveaxis(by_row, 0, 1), rows.axes)

  mean = jax.lax.stop_gradient(sums(rows.own / size))
  shifted = rows.own - mean[:, group_of_row]
  deviations, squares = jnp.split(sums(jnp.concatenate([shifted, jnp.square(shifted)])), 2)
  return jnp.maximum(squares - jnp.square(deviations) / size, 0.0) / (size - 1), False


def effective_rank(variance: jax.Array, off_diagonal_energy: jax.Array) -> jax.Array:
  """Returns the participation ratio (sum_i l_i)^2 / sum_i l_i^2 of the covariance's eigenvalues l_i.

  It lies between 1 (all embeddings on one line) and d, needs no eigenvalue, and is a lower bound of the
  entropy-based effective rank of Roy and Vetterli (2007), being the exponential of the eigenvalues' Renyi entropy of
  order 2 instead of their Shannon entropy.

  Args:
    variance: (views, d), the covariance matrix's diagonal.
    off_diagonal_energy: (views,), the sum of the squares of its other entries.

  Returns:
    (views,); 0 if all embeddings are equal.
  """
  energy = jnp.square(variance).sum(axis=-1) + off_diagonal_energy
  return jnp.where(energy > 0, jnp.square(variance.sum(axis=-1)) / jnp.where(energy > 0, energy, 1.0), 0.0)
