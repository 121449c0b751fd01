"""The terms of the objective, each a pure function of float32 embeddings; the value is the same on every device.

Of the two views, diversity terms give the mean and the covariance term the sum, as in VICReg's published code (a
public re-implementation that sums both has twice the diversity weight it states).
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from selfie_jax.objective import statistics
from selfie_jax.objective.collectives import Axes, device_index, num_devices, sum_over_devices
from selfie_jax.objective.off_diagonal import off_diagonal_energy, twice_the_gradient
from selfie_jax.objective.statistics import EXACT, Rows

# Two embeddings closer than 1e-3 on the unit sphere count as that close in the hyperspherical energy, which has a pole
# at duplicates; they no longer repel each other.
MIN_SQUARED_DISTANCE = 1e-6


def mean_squared_error(rows: Rows) -> jax.Array:
  """Mean squared difference of the two views' embeddings, over all entries of (n, d).

  VICReg (Bardes et al., ICLR 2022), equation 5, divided by d as in its published code. Of embeddings of the norm
  sqrt(d) it is the alignment E|x - y|^2 of the unit vectors of Wang and Isola (ICML 2020), equation 1 with alpha = 2.
  """
  n, d = rows.count, rows.own.shape[-1]
  return sum_over_devices(jnp.square(rows.own[0] - rows.own[1]).sum(), rows.axes) / (n * d)


def prediction_error(pairs: Sequence[tuple[jax.Array, jax.Array]], axes: Axes) -> jax.Array:
  """2 - 2 cos(prediction, target), the mean over the batch and over the two directions; no gradient to the targets.

  BYOL (Grill et al., NeurIPS 2020), equation 2, whose loss is the sum of the directions, twice this. Computed as the
  squared distance of the unit vectors, which keeps the digits of a small one.

  Args:
    pairs: predictions made from one view and the moving-average network's embeddings of the other, (n / devices, d)
      each.
    axes: of the mesh that the rows are sharded over.
  """
  predictions, targets = (jnp.stack(part) for part in zip(*pairs, strict=True))
  predictions, targets = (z.astype(jnp.promote_types(z.dtype, jnp.float32)) for z in (predictions, targets))
  distances = statistics.unit_norm(predictions) - jax.lax.stop_gradient(statistics.unit_norm(targets))
  count = len(pairs) * predictions.shape[1] * num_devices(axes)
  return sum_over_devices(jnp.square(distances).sum(), axes) / count


def cross_correlation_diagonal(standardised: Rows) -> jax.Array:
  """sum_i (1 - c_ii)^2 of the views' cross-correlation matrix c, d x d.

  Barlow Twins (Zbontar et al., ICML 2021), equation 1, the invariance term.

  Args:
    standardised: from `statistics.standardise`.
  """
  own = standardised.own
  diagonal = sum_over_devices((own[0] * own[1]).sum(axis=0), standardised.axes) / standardised.count
  return jnp.square(1.0 - diagonal).sum()


def cross_correlation_off_diagonal(standardised: Rows) -> jax.Array:
  """sum_{i != j} c_ij^2 of the views' cross-correlation matrix c, d x d.

  Barlow Twins (Zbontar et al., ICML 2021), equation 1, the redundancy reduction term.

  Args:
    standardised: from `statistics.standardise`.
  """
  n = standardised.count
  return off_diagonal_energy(standardised.map(lambda z: z / math.sqrt(n)), cross=True).sum()


def covariance_energy(centred: Rows) -> jax.Array:
  """(2,): the sum of the squared off-diagonal covariances of each view, n - 1 degrees of freedom.

  VICReg (Bardes et al., ICLR 2022), equations 3 and 4; divided by d and summed over the views it is the term of the
  loss. Taken across replicas, over the global batch: the decorrelation of our design.

  Args:
    centred: from `statistics.centre`.
  """
  n = centred.count
  return off_diagonal_energy(centred.map(lambda z: z / math.sqrt(n - 1)))


def debiased_covariance_energy(centred: Rows, energy: jax.Array) -> jax.Array:
  """(2,): an estimate of the energy that `covariance_energy` would find in infinitely many rows.

  Of n rows even independent dimensions have covariances that differ from 0 by chance, about s^4 / n each in squares
  for a variance of s^2, and more of them the wider d is: a floor that no encoder can go below. It comes from rows that
  meet themselves. With (sum_i x_ia x_ib)^2 = sum_ij x_ia x_ib x_ja x_jb, the pairs i != j alone make a U-statistic
  (Hoeffding, 1948),

    1 / (n (n - 1)) sum_{a != b} [(sum_i x_ia x_ib)^2 - sum_i x_ia^2 x_ib^2],

  whose mean is exactly sum_{a != b} E[x_a x_b]^2 for independent rows of a known mean. The estimated mean leaves
  s_a^2 s_b^2 / n^2 of independent dimensions, and O(1 / n) of a covariance's own square. It can be negative.

  Args:
    centred: from `statistics.centre`, and then `through_the_mean`, since this is no function of second moments alone.
    energy: (2,) from `covariance_energy`.
  """
  n = centred.count
  squares = jnp.square(centred.own) / (n - 1)
  # The sum over a != b as twice that over b < a: sums of what is positive, where (sum_a x_a^2)^2 - sum_a x_a^4 would be
  # the small difference of large numbers if one dimension outlives all others.
  before = jnp.cumsum(squares[..., :-1], axis=-1)
  with_themselves = 2 * (squares[..., 1:] * before).sum(axis=(1, 2))
  return (n - 1) / n * (energy - sum_over_devices(with_themselves, centred.axes))


def group_variance_hinge(rows: Rows, num_groups: int) -> jax.Array:
  """The hinge of `global_variance_hinge`, of each block of rows alone, and the mean over the blocks.

  With one block a device this is the per-device variance of our design, which needs no other device.

  Args:
    rows: (2, n / devices, d).
    num_groups: blocks of consecutive rows of the global batch; it divides n.
  """
  variance, own_groups_only = statistics.group_variance(rows, num_groups)
  total = _hinge(variance).sum()
  if own_groups_only:
    total = sum_over_devices(total, rows.axes)
  return total / (2 * num_groups * rows.own.shape[-1])


def global_variance_hinge(variance: jax.Array) -> jax.Array:
  """Mean over dimensions of relu(1 - standard deviation): how far the batch is from diverse.

  VICReg (Bardes et al., ICLR 2022), equations 1 and 2.

  Args:
    variance: (2, d) of the global batch.
  """
  return _hinge(variance).mean()


def _hinge(variance: jax.Array, epsilon: float = 1e-4) -> jax.Array:
  # The epsilon keeps the gradient at a constant dimension finite (VICReg, section 4.1).
  return jax.nn.relu(1.0 - jnp.sqrt(variance + epsilon))


def uniformity(unit: Rows) -> jax.Array:
  """Logarithm of the mean over pairs of exp(-2 |x - y|^2): how close the embeddings are to each other.

  Wang and Isola (ICML 2020), equation 2 with t = 2, over the pairs i < j of the global batch as in their published
  code.

  Args:
    unit: (2, n / devices, d) rows of the norm 1, and everyone's.
  """
  return jnp.log(_mean_over_pairs(unit, lambda squared_distance: jnp.exp(-2.0 * squared_distance))).mean()


def hyperspherical_energy(unit: Rows, exponent: float) -> jax.Array:
  """Mean over pairs of |x - y|^-s, or of -log |x - y| if s = 0: the energy of charges that repel each other.

  Liu et al. (NeurIPS 2018), equation 1, over the number of pairs. Squared distances below MIN_SQUARED_DISTANCE count
  as that.

  Args:
    unit: (2, n / devices, d) rows of the norm 1, and everyone's.
    exponent: s.
  """

  def potential(squared_distance: jax.Array) -> jax.Array:
    clamped = jnp.maximum(squared_distance, MIN_SQUARED_DISTANCE)
    return clamped ** (-exponent / 2) if exponent else -0.5 * jnp.log(clamped)

  return _mean_over_pairs(unit, potential).mean()


def _mean_over_pairs(rows: Rows, potential: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """(2,): the mean of `potential(|x - y|^2)` over the pairs of different rows of each view of the global batch.

  Distances come from differences, not from inner products: those of near duplicates keep their digits. One own row
  meets everyone's at a time, and again in the backward pass, so that memory is that of n x d entries.
  """
  num_own, n = rows.own.shape[1], rows.count
  first = device_index(rows.axes) * num_own
  # Constants, with half of the gradient: see `_gram_energy` in off_diagonal.py.
  everyone = jax.lax.stop_gradient(rows.everyone)

  @jax.checkpoint
  def sum_over_others(row_and_place: tuple[jax.Array, jax.Array]) -> jax.Array:
    row, place = row_and_place  # (2, d), scalar
    squared_distance = jnp.square(row[:, None] - everyone).sum(axis=-1)
    other = jnp.arange(n) != place
    return jnp.where(other, potential(squared_distance), 0.0).sum(axis=-1)

  sums = jax.lax.map(sum_over_others, (jnp.moveaxis(rows.own, 1, 0), first + jnp.arange(num_own)))
  return sum_over_devices(twice_the_gradient(sums.sum(axis=0)), rows.axes) / (n * (n - 1))


def coding_rate(unit: Rows, epsilon: float = 0.2) -> jax.Array:
  """-1/2 logdet(I + d / (n epsilon) Z'Z): minus the rate, in nats, at which the embeddings can be told apart.

  The coding rate of Yu et al. (NeurIPS 2020), with epsilon for its epsilon^2, as in the total coding rate of EMP-SSL
  (Tong et al., 2023), whose 0.2 is the default. Not centred. Where n < d it is the determinant of the n x n matrix ZZ',
  by Sylvester's identity, and everyone's rows are gathered instead of d x d products summed.

  Args:
    unit: (2, n / devices, d) rows of the norm 1, and everyone's if n < d.
    epsilon: the squared distortion.
  """
  n, d = unit.count, unit.own.shape[-1]
  if n < d:
    # Every device computes all of it; the gradient passes through `gather_rows` to each device's own rows.
    product = jnp.einsum('vmi,vki->vmk', unit.everyone, unit.everyone, precision=EXACT)
  else:
    product = sum_over_devices(jnp.einsum('vni,vnj->vij', unit.own, unit.own, precision=EXACT), unit.axes)
  factor = jnp.linalg.cholesky(jnp.eye(min(n, d)) + d / (n * epsilon) * product)
  return -jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)).sum(axis=1).mean()
