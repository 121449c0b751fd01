"""Invariance + diversity + decorrelation: the loss that pre-training minimises.

SELFIE's abstract (arXiv 2303.03717) names the two families that keep embeddings from collapsing: high diversity among
them and decorrelated dimensions. Its formulas and coefficients are not public; the terms here are VICReg's, with the
diversity statistic per device or global.
"""

import jax
import jax.numpy as jnp

from selfie_jax import config as config_lib
from selfie_jax.objective import statistics, terms


def objective(
  z1: jax.Array, z2: jax.Array, config: config_lib.Objective, num_groups: int = 1
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the loss and what it is made of.

  The diversity term is the mean over the two views and the decorrelation term their sum, as in VICReg's published
  code (a public re-implementation that sums both has twice the diversity weight it states).

  Args:
    z1: (n, d) embeddings of the first views of the global batch.
    z2: (n, d) embeddings of the second views, row for row.
    config: the terms' weights.
    num_groups: blocks of consecutive rows that the variance is taken over; 1 for global statistics.

  Returns:
    The scalar loss, and scalars: `invariance`, `diversity`, `decorrelation` (each before its weight),
    `embedding_std` (mean over dimensions of the global standard deviation) and `effective_rank`, both the mean over
    the two views.
  """
  z1, z2 = (z.astype(jnp.promote_types(z.dtype, jnp.float32)) for z in (z1, z2))
  invariance = terms.invariance(z1, z2)
  diversity = (terms.variance_hinge(z1, num_groups) + terms.variance_hinge(z2, num_groups)) / 2
  decorrelation = terms.covariance(z1) + terms.covariance(z2)
  loss = config.invariance * invariance + config.diversity * diversity + config.decorrelation * decorrelation
  metrics = {
    'invariance': invariance,
    'diversity': diversity,
    'decorrelation': decorrelation,
    'embedding_std': jnp.stack([z1, z2]).std(axis=1, ddof=1).mean(),
    'effective_rank': (statistics.effective_rank(z1) + statistics.effective_rank(z2)) / 2,
  }
  return loss, metrics
