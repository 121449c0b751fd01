"""The measures of a space's health: their papers' formulas, pair by pair and in other words than the code's."""

import numpy as np
import pytest

from selfie_jax import health


@pytest.fixture
def views():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(20, 7)) @ rng.normal(size=(7, 7)) + 0.5
  x[:, 3] = 0.25  # A dead unit.
  return x.astype(np.float32), (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)


def test_the_measures_are_their_papers_formulas_pair_by_pair(views):
  x, y = (view.astype(np.float64) for view in views)
  on_sphere = [view / np.sqrt((view**2).sum(1, keepdims=True)) for view in (x, y)]
  assert health.alignment(*views) == pytest.approx(
    np.mean([((a - b) ** 2).sum() for a, b in zip(*on_sphere, strict=True)])
  )
  pairs = [np.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(on_sphere[0]) for b in on_sphere[0][:i]]
  assert health.uniformity(views[0]) == pytest.approx(np.log(np.mean(pairs)))
  eigenvalues = np.linalg.eigvalsh(x.T @ x)
  shares = np.sqrt(np.maximum(eigenvalues, 0)) / np.sqrt(np.maximum(eigenvalues, 0)).sum()
  entropy = -sum(share * np.log(share) for share in shares if share > 0)
  assert health.rankme(health.singular_values(views[0])) == pytest.approx(np.exp(entropy), rel=1e-4)
  alive = np.delete(np.arange(7), 3)
  ours = health.correlation(views[0])
  np.testing.assert_allclose(ours[np.ix_(alive, alive)], np.corrcoef(x[:, alive].T), atol=1e-12)
  assert not ours[3].any()
  pairs = [abs(np.corrcoef(x[:, i], x[:, j])[0, 1]) for i in alive for j in alive if i != j]
  assert health.mean_correlation(ours[np.ix_(alive, alive)]) == pytest.approx(np.mean(pairs))


def test_collapse_of_either_kind_is_seen():
  point = np.ones((10, 4), np.float32)
  line = np.linspace(1, 2, 10)[:, None] * np.ones((1, 4), np.float32)
  for collapsed in (point, line):
    found = health.summarize(collapsed, collapsed)
    assert found['rankme'] == pytest.approx(1, abs=0.01)
    assert found['uniformity'] == pytest.approx(0)
    assert found['alignment'] == pytest.approx(0)
  assert health.summarize(point, point)['dead_dimensions'] == 4
  assert health.summarize(line, line)['mean_correlation'] == pytest.approx(1)
  assert health.summarize(0 * point, 0 * point)['rankme'] == 0
