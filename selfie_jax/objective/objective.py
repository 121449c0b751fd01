"""Invariance + diversity + decorrelation: the loss that pre-training minimises.

SELFIE's abstract (arXiv 2303.03717) names the two families that keep embeddings from collapsing: high diversity among
them and decorrelated dimensions. The paper's own formulas and coefficients are not known to us. What is this
project's design: the variance of each device's own rows beside a covariance across replicas. What is published
elsewhere: every formula, with its source in `terms`, and the weights of VICReg and Barlow Twins.

Each option but the variance per device has the same value and gradient on any number of devices.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from selfie_jax import config as config_lib
from selfie_jax.objective import statistics, terms
from selfie_jax.objective.collectives import Axes, gather_rows, num_devices
from selfie_jax.objective.off_diagonal import covariance_route
from selfie_jax.objective.statistics import Rows

Metrics = dict[str, jax.Array]


def objective(
  z1: jax.Array,
  z2: jax.Array,
  config: config_lib.Objective,
  num_groups: int = 1,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[jax.Array, Metrics]:
  """Returns the loss and what it is made of.

  Args:
    z1: (n, d) embeddings of the first views of the global batch.
    z2: (n, d) embeddings of the second views, row for row.
    config: the terms and their weights.
    num_groups: blocks of consecutive rows that the `per_device` variance is taken over.
    mesh: devices over all of whose axes the rows are sharded; without it the same is computed on whole arrays.

  Returns:
    The scalar loss, and scalars: `invariance`, `diversity`, `decorrelation` (each before its weight),
    `embedding_std` (mean over dimensions of the global standard deviation) and `effective_rank`, both the mean over
    the two views.

  Raises:
    ValueError: the batch cannot be divided over the devices or the groups, or is too small for a variance; or the term
      is `prediction`, which is of more networks than made `z1` and `z2`.
  """
  if config.invariance_term == 'prediction':
    raise ValueError('the term `prediction` needs pairs of predictions and targets: give them to objective_of_rows')
  if mesh and len(z1) % mesh.size:
    raise ValueError(f'a batch of {len(z1)} cannot be divided evenly over {mesh.size} devices')
  if mesh is None:
    return objective_of_rows(z1, z2, config, num_groups, ())
  axes = mesh.axis_names
  return jax.shard_map(
    lambda own1, own2: objective_of_rows(own1, own2, config, num_groups, axes),
    mesh=mesh,
    in_specs=PartitionSpec(axes),
    out_specs=PartitionSpec(),
  )(z1, z2)


# The one name by which compiled programs tell these collectives from others.
@jax.named_scope('objective')
def objective_of_rows(
  z1: jax.Array,
  z2: jax.Array,
  config: config_lib.Objective,
  num_groups: int,
  axes: Axes,
  pairs: Sequence[tuple[jax.Array, jax.Array]] = (),
) -> tuple[jax.Array, Metrics]:
  """`objective` from this device's rows of each view, within a `shard_map` over the mesh's `axes`.

  Without axes these are all rows. The term `prediction`, which `objective` has no networks for, is of `pairs`: see
  `terms.prediction_error`.
  """
  num_groups = config.variance_groups(num_groups)
  n = len(z1) * num_devices(axes)
  if n % num_groups or n // num_groups < 2:
    raise ValueError(f'a batch of {n} in {num_groups} groups: a variance needs equal groups of at least 2 embeddings')
  views = jnp.stack([z1, z2])
  # Gathered once, as they come, instead of after each of the transformations below.
  everyone = gather_rows(views, axes) if _needs_everyone(config, views, axes) else None
  rows = Rows(views, everyone, axes).map(lambda z: z.astype(jnp.promote_types(z.dtype, jnp.float32)))
  if config.normalize:
    rows = rows.map(lambda z: math.sqrt(z.shape[-1]) * statistics.unit_norm(z))
  centred, variance = statistics.centre(rows)
  standardised = statistics.standardise(centred, variance)

  match config.invariance_term:
    case 'mean_squared_error':
      invariance = terms.mean_squared_error(rows)
    case 'cross_correlation':
      invariance = terms.cross_correlation_diagonal(standardised)
    case 'prediction':
      invariance = terms.prediction_error(pairs, axes)
  match config.diversity_term:
    case 'variance' if num_groups == 1:
      diversity = terms.global_variance_hinge(variance)
    case 'variance':
      diversity = terms.group_variance_hinge(rows, num_groups)
    case 'uniformity':
      diversity = terms.uniformity(rows.map(statistics.unit_norm))
    case 'hyperspherical_energy':
      diversity = terms.hyperspherical_energy(rows.map(statistics.unit_norm), config.energy_exponent)
    case 'coding_rate':
      diversity = terms.coding_rate(rows.map(statistics.unit_norm))
  match config.decorrelation_term:
    case 'covariance':
      energy = terms.covariance_energy(centred)
      decorrelation = energy.sum() / views.shape[-1]
    case 'debiased_covariance':
      energy = terms.covariance_energy(centred)
      debiased = terms.debiased_covariance_energy(statistics.through_the_mean(centred), energy)
      decorrelation = debiased.sum() / views.shape[-1]
    case 'cross_correlation':
      energy = terms.covariance_energy(centred.map(jax.lax.stop_gradient))  # For the effective rank alone.
      decorrelation = terms.cross_correlation_off_diagonal(standardised)

  # A term of weight 0 is reported, and leaves the loss even where it is infinite.
  weighted = (
    (config.invariance, invariance),
    (config.diversity, diversity),
    (config.decorrelation, decorrelation),
  )
  loss = sum((weight * term for weight, term in weighted if weight), jnp.zeros((), rows.own.dtype))
  metrics = {
    'invariance': invariance,
    'diversity': diversity,
    'decorrelation': decorrelation,
    'embedding_std': jnp.sqrt(jax.lax.stop_gradient(variance)).mean(),
    'effective_rank': statistics.effective_rank(variance, energy).mean(),
  }
  return loss, jax.lax.stop_gradient(metrics)


def _needs_everyone(config: config_lib.Objective, views: jax.Array, axes: Axes) -> bool:
  """Whether a term sees all rows of the global batch, (2, n, d), on each device."""
  n, d = views.shape[1] * num_devices(axes), views.shape[2]
  return covariance_route(n, d) == 'gram' or config.diversity_term in ('uniformity', 'hyperspherical_energy')
