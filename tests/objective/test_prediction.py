"""The term `prediction`: how far predictions of the other view's target are from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfie_jax.config import PRESETS, Objective
from selfie_jax.objective.objective import objective_of_rows
from tests.objective import cases, oracle

BYOL_A = Objective(**PRESETS['byol_a'])


@jax.jit
def _ours(embeddings, predictions, targets):
  def loss(embeddings, predictions, targets):
    return objective_of_rows(*embeddings, BYOL_A, 1, (), list(zip(predictions, targets, strict=True)))

  return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(embeddings, predictions, targets)


@pytest.mark.parametrize(('scale', 'dtype'), [(1e-3, 'float32'), (1e4, 'float32'), (1.0, 'float64')])
def test_loss_and_gradients_equal_the_float64_oracle(scale, dtype):
  predictions, targets = (np.stack(cases.views(8, 12, scale, seed)) for seed in (0, 1))
  rel = {'float32': 1e-5, 'float64': 1e-12}[dtype]
  with jax.enable_x64(dtype == 'float64'):
    arrays = [jnp.asarray(x, dtype) for x in (cases.views(8, 12), predictions, targets)]
    (loss, metrics), gradients = jax.device_get(_ours(*arrays))
  to_embeddings, to_predictions, to_targets = gradients
  expected, gradients = oracle.prediction(list(zip(np.float64(predictions), np.float64(targets), strict=True)))
  assert loss == metrics['invariance'] == pytest.approx(expected, rel=rel)
  assert np.abs(to_predictions - np.stack(gradients)).max() <= rel * np.abs(gradients).max()
  assert not np.any(to_targets)
  assert not np.any(to_embeddings)


def test_the_other_terms_of_the_embeddings_are_reported():
  embeddings = np.stack(cases.views(8, 12))
  (_, metrics), _ = _ours(embeddings, 0 * embeddings, 0 * embeddings)
  assert metrics['embedding_std'] == pytest.approx(oracle.embedding_std(*embeddings), rel=1e-5)
  assert metrics['decorrelation'] == pytest.approx(oracle.terms(*embeddings, Objective())[2][0], rel=1e-5)
