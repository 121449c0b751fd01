import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfie_jax.objective import off_diagonal
from selfie_jax.objective.off_diagonal import covariance_route, off_diagonal_energy, scattered_blocks
from selfie_jax.objective.statistics import Rows


@pytest.mark.parametrize(
  ('n', 'd', 'route'),
  [
    (1024, 256, 'all_reduce'),
    (256, 256, 'all_reduce'),
    (255, 256, 'gram'),
    (4096, 8192, 'gram'),
    (4096, 2048, 'all_reduce'),
    (4096, 2049, 'reduce_scatter'),
  ],
)
def test_the_route_is_the_one_that_moves_and_computes_least(n, d, route):
  assert covariance_route(n, d) == route


@given(d=st.integers(1, 20_000), views=st.sampled_from([1, 2]))
def test_blocks_respect_the_bound_and_hold_each_pair_of_dimensions_once(d, views):
  num_blocks, width, window = scattered_blocks(views, d, cross=views == 1)
  assert views * width * window <= off_diagonal.MAX_REPLICATED_WIDTH**2
  assert num_blocks * width >= d
  if views == 1:
    assert window == num_blocks * width
  else:
    assert num_blocks % 2 == 1
    assert 2 * window == (num_blocks + 1) * width


@pytest.mark.parametrize('cross', [False, True])
@pytest.mark.parametrize(
  ('n', 'd', 'bound', 'route'),
  [
    (9, 1, 2048, 'all_reduce'),
    (9, 6, 2048, 'all_reduce'),
    (9, 5, 2048, 'all_reduce'),
    (9, 5, 3, 'reduce_scatter'),
    (9, 8, 6, 'reduce_scatter'),
    (3, 8, 2048, 'gram'),
  ],
)
def test_every_route_gives_the_energy_and_its_gradient(monkeypatch, n, d, bound, route, cross):
  monkeypatch.setattr(off_diagonal, 'MAX_REPLICATED_WIDTH', bound)
  assert covariance_route(n, d) == route
  a, b = z = np.random.default_rng(0).standard_normal((2, n, d))
  products = [a.T @ b] if cross else [a.T @ a, b.T @ b]
  products = [product - np.diag(np.diag(product)) for product in products]
  # With P = offdiag(A'B): df/dA = 2 B P', df/dB = 2 A P, and their sum where B = A.
  gradient = [2 * b @ products[0].T, 2 * a @ products[0]] if cross else [4 * x @ p for x, p in zip(z, products)]

  @jax.jit
  def ours(z):
    energy, backward = jax.vjp(lambda z: off_diagonal_energy(Rows(z, z, ()), cross), z)
    return energy, backward(jnp.ones_like(energy))[0]

  our_energy, our_gradient = ours(jnp.float32(z))
  np.testing.assert_allclose(our_energy, [(p**2).sum() for p in products], rtol=1e-5)
  np.testing.assert_allclose(our_gradient, gradient, atol=1e-5 * np.abs(gradient).max())
