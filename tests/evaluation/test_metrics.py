import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, f1_score

from selfie_jax.evaluation.metrics import majority_class, paired_difference, score, wilson_interval
from selfie_jax.evaluation.tasks.folder import Split


def folds(sizes=(30, 50, 40), classes=4, seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.choice(classes, sum(sizes), p=[0.4, 0.3, 0.2, 0.1])
  parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
  splits = tuple(Split(np.setdiff1d(np.arange(sum(sizes)), part), part[:1], part) for part in parts)
  predictions = [
    np.where(rng.random((3, len(part))) < 0.6, labels[part], rng.integers(0, classes, (3, len(part)))) for part in parts
  ]
  return labels, splits, predictions


@pytest.mark.parametrize(('hits', 'count'), [(0, 10), (10, 10), (37, 50), (812, 1_000)])
def test_the_interval_is_wilsons(hits, count):
  expected = binomtest(hits, count).proportion_ci(0.95, method='wilson')
  assert wilson_interval(hits / count, count) == pytest.approx((expected.low, expected.high))


def test_a_score_is_scikit_learns_averaged_over_folds_and_seeds():
  labels, splits, predictions = folds()
  found = score(predictions, labels, splits)
  truths = [labels[split.test] for split in splits]
  for i, accuracy in enumerate(found.accuracies):
    expected = np.mean([accuracy_score(y, p[i]) for y, p in zip(truths, predictions, strict=True)])
    assert accuracy == pytest.approx(expected)
  macro_f1 = np.mean(
    [f1_score(y, p[i], average='macro') for y, p in zip(truths, predictions, strict=True) for i in range(3)]
  )
  assert found.macro_f1 == pytest.approx(macro_f1)
  assert found.accuracy == pytest.approx(np.mean(found.accuracies))
  assert found.interval == wilson_interval(found.accuracy, 120)


def test_the_majority_class_is_scikit_learns():
  labels, splits, _ = folds()
  for split, [found] in zip(splits, majority_class(labels, splits), strict=True):
    dummy = DummyClassifier(strategy='most_frequent').fit(labels[split.train, None], labels[split.train])
    np.testing.assert_array_equal(found, dummy.predict(labels[split.test, None]))


def test_a_paired_difference_is_the_difference_of_the_accuracies_and_sharper_than_either():
  labels, splits, ours = folds()
  theirs = [p.copy() for p in ours]
  for p in theirs:
    p[:, :6] = 3 - p[:, :6]
  found = paired_difference(ours, theirs, labels, splits)
  a, b = score(ours, labels, splits), score(theirs, labels, splits)
  assert found.accuracy == pytest.approx(a.accuracy - b.accuracy)
  assert found.interval[0] < found.accuracy < found.interval[1]
  assert found.interval[1] - found.interval[0] < a.interval[1] - a.interval[0]


def test_the_interval_of_a_difference_holds_the_truth_19_times_of_20():
  rng = np.random.default_rng(0)
  split = Split(np.arange(1), np.arange(1), np.arange(400))
  labels = np.zeros(400, int)
  covered = 0
  for _ in range(400):
    hard = rng.random(400)
    ours, theirs = ([(rng.random((3, 400)) > hard * weight).astype(int) ^ 1] for weight in (0.8, 1.0))
    low, high = paired_difference(ours, theirs, labels, (split,)).interval
    covered += low < 0.1 < high  # E[1 - 0.8 h] - E[1 - h] with h uniform.
  assert 0.92 < covered / 400 < 0.98
