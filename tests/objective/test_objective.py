import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from selfie_jax.config import Objective
from selfie_jax.objective.objective import objective
from tests.objective import cases, oracle


@functools.cache
def _compiled(config, num_groups):
  function = jax.value_and_grad(lambda a, b: objective(a, b, config, num_groups), argnums=(0, 1), has_aux=True)
  return jax.jit(function)


def _ours(z1, z2, config, num_groups=1):
  (loss, metrics), gradients = _compiled(config, num_groups)(jnp.asarray(z1), jnp.asarray(z2))
  return loss, np.stack(gradients), metrics


def _assert_equal_to_oracle(z1, z2, config, num_groups=1):
  loss, gradients, metrics = _ours(z1, z2, config, num_groups)
  their_loss, *their_gradients = oracle.loss_and_gradients(z1, z2, config, num_groups)
  terms = oracle.terms(z1, z2, config, num_groups)
  # Of terms of either sign the sum may be small: its error is measured by theirs.
  weights = (config.invariance, config.diversity, config.decorrelation)
  size = sum(abs(weight * term[0]) for weight, term in zip(weights, terms))
  assert abs(loss - their_loss) <= 1e-5 * size
  assert np.abs(gradients - their_gradients).max() <= 1e-5 * np.abs(their_gradients).max()
  for name, term in zip(('invariance', 'diversity', 'decorrelation'), terms):
    assert abs(metrics[name] - term[0]) <= 1e-5 * max(abs(term[0]), size / 25)


# Two shapes, N > D and N < D, here and below: compiling is what takes the time.
@given(
  name=st.sampled_from(sorted(cases.OBJECTIVES)),
  shape=st.sampled_from([(24, 7), (8, 33)]),
  log_scale=st.floats(-3, 4),
  seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_loss_and_gradients_equal_the_float64_oracle_at_any_scale(name, shape, log_scale, seed):
  _assert_equal_to_oracle(*cases.views(*shape, 10**log_scale, seed), cases.OBJECTIVES[name], num_groups=2)


@given(
  rows=st.integers(2, 12),
  num_groups=st.sampled_from([1, 2, 4]),
  d=st.integers(1, 70),
  log_scale=st.floats(-3, 4),
  seed=st.integers(0, 1000),
)
@example(rows=12, num_groups=1, d=12, log_scale=0.0, seed=0)
@settings(max_examples=10, deadline=None)
def test_loss_and_gradients_equal_the_float64_oracle_for_any_shape(rows, num_groups, d, log_scale, seed):
  _assert_equal_to_oracle(*cases.views(rows * num_groups, d, 10**log_scale, seed), Objective(), num_groups)


def _duplicates(z1, z2, scale):
  z1[2:4], z2[2:4] = z1[1], z2[1]


def _constant_dimension(z1, z2, scale):
  z1[:, 1] = z2[:, 1] = 0.7 * scale


def _zero_rows(z1, z2, scale):
  z1[1] = z2[2] = 0


@pytest.mark.parametrize('name', cases.OBJECTIVES)
@pytest.mark.parametrize('shape', [(24, 7), (8, 33)])
@pytest.mark.parametrize('scale', [1e-3, 1.0, 1e4])
@pytest.mark.parametrize('spoil', [_duplicates, _constant_dimension, _zero_rows])
def test_degenerate_batches_are_handled_as_the_oracle_does(name, shape, scale, spoil):
  z1, z2 = cases.views(*shape, scale)
  spoil(z1, z2, scale)
  _assert_equal_to_oracle(z1, z2, cases.OBJECTIVES[name], num_groups=2)


@pytest.mark.parametrize('name', ['selfie', 'vicreg', 'barlow_twins'])
@pytest.mark.parametrize('shape', [(24, 7), (8, 33)])
@pytest.mark.parametrize('scale', [1e-3, 1.0, 1e4])
def test_a_batch_of_which_one_dimension_is_left_is_handled_as_the_oracle_does(name, shape, scale):
  z1, z2 = cases.views(*shape, scale)
  z1[:, 1:], z2[:, 1:] = scale, 0.5 * scale
  _assert_equal_to_oracle(z1, z2, cases.OBJECTIVES[name], num_groups=2)


@pytest.mark.parametrize('name', cases.OBJECTIVES)
def test_a_collapsed_batch_has_finite_gradients(name):
  for value in (3.0, 0.0):
    z = np.full((8, 33), value, np.float32)
    loss, gradients, metrics = _ours(z, z, cases.OBJECTIVES[name], num_groups=2)
    assert np.isfinite(loss)
    assert np.isfinite(gradients).all()
    assert metrics['effective_rank'] == metrics['embedding_std'] == 0


def test_a_collapsed_batch_has_the_greatest_diversity_loss():
  z = np.full((8, 33), 3.0, np.float32)
  assert _ours(z, z, Objective(), num_groups=2)[0] == pytest.approx(25 * (1 - 0.01), rel=1e-4)  # std = sqrt(1e-4)


def test_bfloat16_embeddings_get_float32_statistics():
  z1, z2 = (jnp.asarray(z, jnp.bfloat16) for z in cases.views(32, 16))
  loss, gradients, metrics = _ours(z1, z2, Objective())
  assert loss.dtype == jnp.float32
  assert gradients.dtype == jnp.bfloat16
  assert loss == pytest.approx(oracle.loss_and_gradients(z1, z2, Objective())[0], rel=1e-5)
  assert all(value.dtype == jnp.float32 for value in metrics.values())


def test_float64_embeddings_keep_their_precision():
  z1, z2 = (np.float64(z) for z in cases.views(24, 7))
  with jax.enable_x64():
    for name in ('selfie', 'barlow_twins', 'uniformity_covariance'):
      config = cases.OBJECTIVES[name]
      loss, gradients, _ = _ours(z1, z2, config)
      their_loss, *their_gradients = oracle.loss_and_gradients(z1, z2, config)
      assert loss == pytest.approx(their_loss, rel=1e-12)
      assert np.abs(gradients - their_gradients).max() <= 1e-12 * np.abs(their_gradients).max()


def test_a_term_with_weight_zero_is_reported_and_leaves_no_trace_in_the_loss():
  z1, z2 = cases.views(16, 8)
  only = Objective(invariance=1.0, diversity=0.0, decorrelation=0.0)
  loss, _, metrics = _ours(z1, z2, only)
  assert loss == pytest.approx(np.mean((z1 - z2) ** 2), rel=1e-5)
  assert metrics['decorrelation'] == pytest.approx(oracle.terms(z1, z2, only)[2][0], rel=1e-5)


def test_metrics_are_those_of_the_global_batch():
  z1, z2 = cases.views(24, 7)
  metrics = _ours(z1, z2, Objective(), num_groups=2)[2]
  assert metrics['embedding_std'] == pytest.approx(oracle.embedding_std(z1, z2), rel=1e-5)
  assert metrics['effective_rank'] == pytest.approx(oracle.effective_rank(z1, z2), rel=1e-5)


def test_effective_rank_counts_the_directions_that_embeddings_use():
  rng = np.random.default_rng(0)
  directions = np.linalg.qr(rng.standard_normal((32, 32)))[0]
  for rank in (1, 4, 32):
    z = np.float32(rng.standard_normal((20_000, rank)) @ directions[:rank])
    for name in ('selfie', 'barlow_twins'):
      assert _ours(z, z, cases.OBJECTIVES[name])[2]['effective_rank'] == pytest.approx(rank, rel=0.02)


def test_unit_embeddings_do_not_feel_their_own_scale():
  config = cases.OBJECTIVES['uniformity_covariance']
  z1, z2 = cases.views(24, 7)
  loss, gradients, _ = _ours(z1, z2, config, num_groups=2)
  other_loss, other_gradients, _ = _ours(1000 * z1, 1000 * z2, config, num_groups=2)
  assert float(other_loss) == pytest.approx(float(loss), rel=1e-5)
  assert np.abs(1000 * other_gradients - gradients).max() <= 1e-5 * np.abs(gradients).max()


@pytest.mark.parametrize('num_groups', [8, 5])
def test_groups_that_have_no_variance_are_refused_with_both_numbers(num_groups):
  z = np.zeros((8, 3), np.float32)
  with pytest.raises(ValueError, match=f'a batch of 8 in {num_groups} groups'):
    objective(z, z, Objective(), num_groups)
  # Not where no term has groups.
  for change in ({'variance_statistics': 'global'}, {'diversity_term': 'uniformity'}):
    config = dataclasses.replace(Objective(), **change)
    assert jax.eval_shape(lambda a, config=config: objective(a, a, config, num_groups)[0], z).shape == ()
