import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from selfie_jax.evaluation.readouts import knn, metrics
from selfie_jax.evaluation.tasks.folder import Split


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
  monkeypatch.setattr(knn, '_KEYS', 64)
  monkeypatch.setattr(knn, '_QUERIES', 32)


def task(signal=0.4, classes=4, parts=(100, 60, 100)):
  rng = np.random.default_rng(0)
  labels = rng.integers(0, classes, sum(parts))
  x = rng.normal(size=(sum(parts), 16)) + 2 * signal * rng.normal(size=(classes, 16))[labels]
  return x.astype(np.float32), labels, Split(*np.split(np.arange(sum(parts)), np.cumsum(parts)[:-1]))


def peer(k, x, labels, split):
  """Ours as scikit-learn says it."""
  vote = lambda distances: np.exp((1 - distances) / 0.07)  # noqa: E731
  return KNeighborsClassifier(k, metric='cosine', weights=vote).fit(x[split.train], labels[split.train])


def test_it_is_scikit_learns_with_the_k_that_is_best_on_valid():
  x, labels, split = task()
  [found] = knn.nearest_neighbours(x, labels, [split])
  scores = [peer(k, x, labels, split).score(x[split.valid], labels[split.valid]) for k in knn.NEIGHBOURS]
  k = knn.NEIGHBOURS[int(np.argmax(scores))]
  assert found.details == {'neighbours': k, 'valid_score': pytest.approx(max(scores))}
  np.testing.assert_array_equal(found.predictions, [peer(k, x, labels, split).predict(x[split.test])])


def test_each_fold_has_neighbours_of_its_own():
  x, labels, split = task()
  other = Split(split.test, split.valid, split.train)
  _, found = knn.nearest_neighbours(x, labels, [split, other])
  k = found.details['neighbours']
  np.testing.assert_array_equal(found.predictions, [peer(k, x, labels, other).predict(x[other.test])])


def test_a_multi_label_tasks_scores_are_the_share_of_neighbours_that_have_the_label():
  x, first, split = task()
  labels = (first[:, None] == np.arange(4)) | (first[:, None] == 1)  # All of class 1 have all labels.
  [found] = knn.nearest_neighbours(x, labels, [split])
  assert found.predictions.shape == (1, 100, 4)
  k = found.details['neighbours']
  for column in range(4):
    expected = peer(k, x, labels[:, column], split).predict_proba(x[split.test])[:, 1]
    np.testing.assert_allclose(found.predictions[0, :, column], expected, rtol=1e-4, atol=1e-6)
  assert metrics.score([found.predictions], labels, [split]).score > 0.6
