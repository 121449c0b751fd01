import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfie_jax import config
from selfie_jax.objective import statistics
from selfie_jax.objective.objective import objective
from tests.objective import oracle


def _ours(z1, z2, weights=None, num_groups=1):
  weights = weights or config.Objective()
  function = jax.value_and_grad(lambda a, b: objective(a, b, weights, num_groups)[0], argnums=(0, 1))
  loss, (g1, g2) = function(jnp.asarray(z1, jnp.float32), jnp.asarray(z2, jnp.float32))
  return loss, g1, g2


def _assert_equal_to_oracle(z1, z2, num_groups=1):
  z1, z2 = np.float32(z1), np.float32(z2)
  for ours, theirs in zip(
    _ours(z1, z2, num_groups=num_groups), oracle.loss_and_gradients(z1, z2, num_groups=num_groups), strict=True
  ):
    assert np.abs(ours - theirs).max() <= 2e-5 * max(np.abs(theirs).max(), 1e-12)


def _views(n, d, scale=1.0, seed=0):
  rng = np.random.default_rng(seed)
  mixing = rng.standard_normal((d, d)) / np.sqrt(d)
  z1 = scale * rng.standard_normal((n, d)) @ mixing
  return z1, z1 + 0.3 * scale * rng.standard_normal((n, d))


def test_the_oracles_gradient_is_that_of_finite_differences():
  z1, z2 = _views(6, 4, scale=0.7)
  _, g1, g2 = oracle.loss_and_gradients(z1, z2, num_groups=2)
  for view, gradient in ((0, g1), (1, g2)):
    for index in np.ndindex(z1.shape):
      losses = []
      for sign in (1, -1):
        views = [z1.copy(), z2.copy()]
        views[view][index] += sign * 1e-6
        losses.append(oracle.loss_and_gradients(*views, num_groups=2)[0])
      assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(gradient[index], rel=1e-5, abs=1e-7)


@given(
  rows=st.integers(2, 12),
  num_groups=st.sampled_from([1, 2, 4]),
  d=st.integers(1, 70),
  log_scale=st.floats(-3, 2),
  seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_loss_and_gradients_equal_the_float64_oracle_for_any_shape_and_scale(rows, num_groups, d, log_scale, seed):
  _assert_equal_to_oracle(*_views(rows * num_groups, d, 10**log_scale, seed), num_groups=num_groups)


@pytest.mark.parametrize(('n', 'd'), [(8, 64), (64, 8), (32, 32)])
def test_both_routes_to_the_covariance_give_the_same_energy(n, d):
  z = _views(n, d)[0]
  centred = z - z.mean(0)
  covariance = centred.T @ centred / (n - 1)
  off, diagonal = statistics.covariance_energy(jnp.asarray(z, jnp.float32))
  assert off == pytest.approx((covariance**2).sum() - (np.diag(covariance) ** 2).sum(), rel=1e-5)
  assert diagonal == pytest.approx((np.diag(covariance) ** 2).sum(), rel=1e-5)


def test_duplicate_rows_and_constant_dimensions_are_handled_as_the_oracle_does():
  z1, z2 = _views(16, 12)
  z1[3:7] = z1[3]
  z1[:, 5] = 0.25
  z2[:, 5] = 0.25
  _assert_equal_to_oracle(z1, z2)


def test_a_collapsed_batch_has_a_finite_gradient_and_the_greatest_diversity_loss():
  z = np.full((8, 5), 3.0)
  loss, g1, _ = _ours(z, z)
  assert np.isfinite(g1).all()
  assert loss == pytest.approx(25 * (1 - 0.01), rel=1e-4)  # std = sqrt(1e-4)
  assert objective(jnp.asarray(z), jnp.asarray(z), config.Objective())[1]['effective_rank'] == 0


def test_bfloat16_embeddings_get_float32_statistics():
  z1, z2 = (jnp.asarray(z, jnp.bfloat16) for z in _views(32, 16))
  loss, metrics = objective(z1, z2, config.Objective())
  assert loss.dtype == jnp.float32
  theirs = oracle.loss_and_gradients(z1.astype(jnp.float32), z2.astype(jnp.float32))[0]
  assert loss == pytest.approx(theirs, rel=1e-5)
  assert all(value.dtype == jnp.float32 for value in metrics.values())


def test_a_term_with_weight_zero_leaves_no_trace_in_the_loss():
  z1, z2 = _views(16, 8)
  only = config.Objective(invariance=1.0, diversity=0.0, decorrelation=0.0)
  assert _ours(z1, z2, only)[0] == pytest.approx(np.mean((np.float32(z1) - np.float32(z2)) ** 2), rel=1e-5)


def test_effective_rank_counts_the_directions_that_embeddings_use():
  rng = np.random.default_rng(0)
  directions = np.linalg.qr(rng.standard_normal((32, 32)))[0]
  for rank in (1, 4, 32):
    z = rng.standard_normal((20_000, rank)) @ directions[:rank]
    assert statistics.effective_rank(jnp.asarray(z, jnp.float32)) == pytest.approx(rank, rel=0.02)
