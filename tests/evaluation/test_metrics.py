import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

from selfie_jax.evaluation.readouts import metrics
from selfie_jax.evaluation.readouts.metrics import (
  majority_class,
  mean_average_precision,
  paired_difference,
  score,
  wilson_interval,
)
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
  for i, accuracy in enumerate(found.scores):
    expected = np.mean([accuracy_score(y, p[i]) for y, p in zip(truths, predictions, strict=True)])
    assert accuracy == pytest.approx(expected)
  macro_f1 = np.mean(
    [f1_score(y, p[i], average='macro') for y, p in zip(truths, predictions, strict=True) for i in range(3)]
  )
  assert found.macro_f1 == pytest.approx(macro_f1)
  assert found.score == pytest.approx(np.mean(found.scores))
  assert found.interval == wilson_interval(found.score, 120)


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
  assert found.score == pytest.approx(a.score - b.score)
  assert found.interval[0] < found.score < found.interval[1]
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


def tags(clips=300, seed=0):
  """A multi-label task of two folds, whose last class has no positive in the first; the scores have many ties."""
  rng = np.random.default_rng(seed)
  labels = rng.random((clips, 4)) < [0.5, 0.2, 0.1, 0.05]
  half = clips // 2
  labels[:half, 3] = False
  splits = (Split(np.arange(half, clips), None, np.arange(half)), Split(np.arange(half), None, np.arange(half, clips)))
  predictions = [(labels[s.test] + rng.normal(size=(2, half, 4))).round(1) for s in splits]
  return labels, splits, predictions


def test_a_multi_label_score_is_scikit_learns_mean_average_precision():
  labels, splits, predictions = tags()
  found = score(predictions, labels, splits)
  for seed in range(2):
    each = [
      np.mean([average_precision_score(labels[s.test, c], p[seed, :, c]) for c in range(4) if labels[s.test, c].any()])
      for s, p in zip(splits, predictions, strict=True)
    ]
    assert found.scores[seed] == pytest.approx(np.mean(each))
  assert found.score == pytest.approx(np.mean(found.scores))
  assert found.macro_f1 is None
  assert found.interval[0] < found.score < found.interval[1]
  assert found == score(predictions, labels, splits)


def test_a_resampled_average_precision_is_that_of_clips_that_are_there_several_times():
  labels, splits, predictions = tags()
  rng = np.random.default_rng(1)
  test, scores = labels[splits[1].test], predictions[1][0]
  counts = rng.multinomial(len(test), np.full(len(test), 1 / len(test)))
  repeated = np.repeat(np.arange(len(test)), counts)
  expected = mean_average_precision(scores[repeated], test[repeated])
  found = metrics._weighted_mean_average_precision(scores, test, counts[:, None].astype(float))
  assert found == pytest.approx(expected)


def test_the_interval_of_a_mean_average_precision_is_as_wide_as_scores_of_new_clips_differ():
  found = [score(p, y, s) for y, s, p in (tags(seed=seed) for seed in range(60))]
  spread = np.std([result.score for result in found])
  assert np.mean([np.subtract(*result.interval[::-1]) for result in found]) == pytest.approx(
    2 * 1.96 * spread, rel=0.25
  )


def test_a_paired_difference_of_mean_average_precisions_is_sharper_than_either():
  labels, splits, ours = tags()
  theirs = [p + np.random.default_rng(0).normal(0, 0.2, p.shape) for p in ours]
  found = paired_difference(ours, theirs, labels, splits)
  a, b = score(ours, labels, splits), score(theirs, labels, splits)
  assert found.score == pytest.approx(a.score - b.score)
  assert found.interval[1] - found.interval[0] < (a.interval[1] - a.interval[0]) / 2
  shared = [metrics.resample(p, labels, splits) for p in (ours, theirs)]
  assert paired_difference(ours, theirs, labels, splits, shared) == found
  assert score(ours, labels, splits, shared[0]) == a


def test_the_majority_of_a_multi_label_task_is_worth_the_share_of_positives():
  labels, splits, _ = tags()
  scores = majority_class(labels, splits)
  assert scores[0].shape == (1, 150, 4)
  np.testing.assert_allclose(scores[0][0, 0], labels[150:].mean(0))
  expected = np.mean([labels[:150, :3].mean(), labels[150:].mean()])
  assert score(scores, labels, splits).score == pytest.approx(expected)
