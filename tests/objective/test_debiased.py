"""What the debiased covariance promises, by enumerating every batch that can be drawn."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfie_jax.objective import statistics, terms
from selfie_jax.objective.statistics import Rows


def _every_batch(values, n):
  """All batches of `n` rows, each drawn from the rows of `values`: (batches, n, d)."""
  return np.float64([values[list(rows)] for rows in itertools.product(range(len(values)), repeat=n)])


def _energies(batches, estimated_mean):
  """The debiased energy of each batch, with the mean taken away or taken for zero."""

  def energy(z):
    views = jnp.stack([z, z])
    rows = Rows(views, views, ())
    centred = statistics.centre(rows)[0] if estimated_mean else rows
    return terms.debiased_covariance_energy(centred, terms.covariance_energy(centred))[0]

  with jax.enable_x64():
    return np.asarray(jax.jit(jax.vmap(energy))(batches))


# Independent dimensions of mean 0 and the variances 1 and 4; and one that is twice the other, covariance 2.
INDEPENDENT = np.array(list(itertools.product((1, -1), (2, -2))))
DEPENDENT = np.array([(1, 2), (-1, -2)])


def test_of_rows_of_a_known_mean_it_expects_the_squared_covariances_and_nothing_for_chance():
  energies = _energies(_every_batch(INDEPENDENT, 3), estimated_mean=False)
  assert energies.std() > 1
  assert energies.mean() == pytest.approx(0, abs=1e-12)
  # The sum over a != b: two entries.
  assert _energies(_every_batch(DEPENDENT, 3), estimated_mean=False).mean() == pytest.approx(2 * 2**2)


def test_an_estimated_mean_leaves_the_variances_product_over_n_squared():
  assert _energies(_every_batch(INDEPENDENT, 3), estimated_mean=True).mean() == pytest.approx(2 * 1 * 4 / 3**2)


def test_it_is_the_mean_over_pairs_of_different_rows():
  z = np.random.default_rng(0).normal(size=(4, 6)) + [3, 0, 1, 0, 0, -2]
  k = z - z.mean(0)
  pairs = [((k[i] @ k[j]) ** 2 - (k[i] ** 2 * k[j] ** 2).sum()) for i, j in itertools.permutations(range(4), 2)]
  assert _energies(z[None], estimated_mean=True)[0] == pytest.approx(np.mean(pairs), rel=1e-12)
