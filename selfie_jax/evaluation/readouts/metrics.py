"""Figures of merit, and how far to trust them.

The score of a task is the accuracy, and of a multi-label task the mean average precision: the mean over the classes
that have a positive test clip (of a fold, in that fold), each as scikit-learn's `average_precision_score`.

Where there are folds, Wilson's interval takes the test clips of all of them together, as if they were of one test set.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from selfie_jax.evaluation.tasks.folder import Split

_Z95 = 1.959963984540054  # Two-sided 95 % of the normal distribution.
_RESAMPLES = 200  # Enough for a standard error (Efron and Tibshirani, An Introduction to the Bootstrap, section 6.4).


@dataclasses.dataclass(frozen=True)
class Score:
  """How well one representation does on one task."""

  score: float  # Mean over folds, then over seeds.
  interval: tuple[float, float]  # 95 %, over the choice of test clips.
  macro_f1: float | None  # Mean over folds, then over seeds; None of a multi-label task.
  scores: tuple[float, ...]  # One a seed.


@dataclasses.dataclass(frozen=True)
class Difference:
  """One representation's score minus another's, on the same clips."""

  score: float
  interval: tuple[float, float]  # 95 %, over the choice of test clips.


def score(
  predictions: Sequence[np.ndarray],
  labels: np.ndarray,
  splits: Sequence[Split],
  resampled: np.ndarray | None = None,
) -> Score:
  """Scores predictions of the test clips.

  Args:
    predictions: for each split (seeds, test clips) class numbers, or of a multi-label task (seeds, test clips, classes)
      scores.
    labels: (clips,) class numbers, or (clips, classes) bool.
    splits: one, or one a fold.
    resampled: what `resample` returns for these predictions, where that is there already.
  """
  truths = [labels[split.test] for split in splits]
  if labels.ndim == 2:
    scores = _mean_average_precisions(predictions, truths)
    mean = float(scores.mean())
    resampled = resample(predictions, labels, splits) if resampled is None else resampled
    half = _Z95 * float(np.std(resampled, ddof=1))
    return Score(mean, (max(0.0, mean - half), min(1.0, mean + half)), None, tuple(map(float, scores)))

  from sklearn.metrics import f1_score  # Slow to import.

  scores = np.mean([(found == truth).mean(1) for found, truth in zip(predictions, truths, strict=True)], axis=0)
  macro_f1 = np.mean(
    [[f1_score(truth, row, average='macro') for row in found] for found, truth in zip(predictions, truths, strict=True)]
  )
  mean = float(scores.mean())
  interval = wilson_interval(mean, sum(map(len, truths)))
  return Score(mean, interval, float(macro_f1), tuple(map(float, scores)))


def paired_difference(
  ours: Sequence[np.ndarray],
  theirs: Sequence[np.ndarray],
  labels: np.ndarray,
  splits: Sequence[Split],
  resampled: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
) -> Difference:
  """Compares two representations clip by clip, which is far sharper than to compare two intervals.

  Of accuracies, a clip's difference is its hits averaged over seeds, ours minus theirs; the interval is that of their
  mean by the central limit theorem. Of mean average precisions, both are taken of the same bootstrap samples of clips.
  Arguments as of `score`; `resampled` is that of ours and of theirs.
  """
  truths = [labels[split.test] for split in splits]
  if labels.ndim == 2:
    mean = float((_mean_average_precisions(ours, truths) - _mean_average_precisions(theirs, truths)).mean())
    first, second = (
      resample(predictions, labels, splits) if there is None else there
      for predictions, there in zip((ours, theirs), resampled, strict=True)
    )
    half = _Z95 * float(np.std(first - second, ddof=1))
    return Difference(mean, (mean - half, mean + half))
  hits = [
    np.concatenate([(found == truth).mean(0) for found, truth in zip(predictions, truths, strict=True)])
    for predictions in (ours, theirs)
  ]
  # Every fold has the same say, as in the accuracy, whatever its size.
  weights = np.concatenate([np.full(len(truth), 1 / (len(truths) * len(truth))) for truth in truths])
  differences = hits[0] - hits[1]
  mean = float(weights @ differences)
  half = _Z95 * math.sqrt(weights**2 @ (differences - mean) ** 2)
  return Difference(mean, (mean - half, mean + half))


def valid_score(scores: np.ndarray, labels: np.ndarray) -> float:
  """Returns the validation score, which most readouts' settings are chosen by: accuracy, or mean average precision.

  Args:
    scores: (clips, classes), higher is likelier.
    labels: (clips,) class numbers, or of a multi-label task (clips, classes) bool.
  """
  if labels.ndim == 2:
    return mean_average_precision(scores, labels)
  return float((scores.argmax(-1) == labels).mean())


def majority_class(labels: np.ndarray, splits: Sequence[Split]) -> list[np.ndarray]:
  """Predicts the most frequent train label for every test clip; for each split (1, test clips).

  Of a multi-label task, a class's share of the train clips for every test clip: (1, test clips, classes).
  """
  if labels.ndim == 2:
    return [np.tile(labels[split.train].mean(0), (1, len(split.test), 1)) for split in splits]
  return [np.full((1, len(split.test)), np.bincount(labels[split.train]).argmax()) for split in splits]


def wilson_interval(proportion: float, count: int) -> tuple[float, float]:
  """Wilson's 95 % score interval of a proportion seen in `count` trials (E. B. Wilson, JASA 22, 1927)."""
  z2 = _Z95**2
  centre = (proportion + z2 / (2 * count)) / (1 + z2 / count)
  half = _Z95 * math.sqrt(proportion * (1 - proportion) / count + z2 / (4 * count**2)) / (1 + z2 / count)
  return max(0.0, centre - half), min(1.0, centre + half)


def mean_average_precision(scores: np.ndarray, positives: np.ndarray) -> float:
  """Mean over the classes that have a positive; 0 if none has one. Both (clips, classes)."""
  return float(_weighted_mean_average_precision(scores, positives, np.ones((len(scores), 1)))[0])


def _mean_average_precisions(predictions: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> np.ndarray:
  """(seeds,) mean over folds."""
  return np.mean(
    [[mean_average_precision(row, truth) for row in found] for found, truth in zip(predictions, truths, strict=True)],
    axis=0,
  )


def resample(predictions: Sequence[np.ndarray], labels: np.ndarray, splits: Sequence[Split]) -> np.ndarray | None:
  """Returns the mean average precision (over folds and seeds) of bootstrap samples of the test clips: (resamples,).

  It is dear, and a score and a difference can share it. None where the score is an accuracy, which needs no resampling.
  Arguments as of `score`.
  """
  if labels.ndim == 1:
    return None
  truths = [labels[split.test] for split in splits]
  random = np.random.default_rng(0)  # The same samples whatever is predicted: differences are paired.
  means = []
  for found, truth in zip(predictions, truths, strict=True):
    counts = random.multinomial(len(truth), np.full(len(truth), 1 / len(truth)), _RESAMPLES).T.astype(np.float64)
    means.append(np.mean([_weighted_mean_average_precision(row, truth, counts) for row in found], axis=0))
  return np.mean(means, axis=0)


def _weighted_mean_average_precision(scores: np.ndarray, positives: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """(samples,) of clips that count `weights` (clips, samples) times."""
  total, classes = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
  for column in np.flatnonzero(positives.any(0)):
    precision, present = _weighted_average_precision(scores[:, column], positives[:, column], weights)
    total += precision
    classes += present
  return total / np.maximum(classes, 1)


def _weighted_average_precision(
  scores: np.ndarray, positives: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (samples,) a class's average precision, and whether it has a positive at all: else the former is 0.

  The precision changes at positives only, so that sums up to the thresholds at which there is one are enough.
  """
  thresholds, group = np.unique(-scores[positives], return_inverse=True)  # Rising, the highest score first.
  # The first threshold that a clip passes; the last number is that of clips below all of them.
  first = np.searchsorted(thresholds, -scores)
  order = np.argsort(first, kind='stable')
  starts = np.searchsorted(first[order], np.arange(len(thresholds)))
  end = np.searchsorted(first[order], len(thresholds))
  passed = np.add.reduceat(weights[order[:end]], starts).cumsum(0)
  hits = np.zeros_like(passed)
  np.add.at(hits, group, weights[positives])
  count = hits.sum(0)
  precision = hits.cumsum(0) / np.maximum(passed, 1)
  return (precision * hits).sum(0) / np.maximum(count, 1), count > 0
