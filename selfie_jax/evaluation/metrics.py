"""Figures of merit, and how far to trust them."""

import dataclasses
import math

import numpy as np

from selfie_jax.evaluation.tasks.folder import Split

_Z95 = 1.959963984540054  # Two-sided 95 % of the normal distribution.


@dataclasses.dataclass(frozen=True)
class Score:
  """How well one representation does on one task."""

  accuracy: float  # Mean over folds, then over seeds.
  interval: tuple[float, float]  # 95 %, over the choice of test clips.
  macro_f1: float  # Mean over folds, then over seeds.
  accuracies: tuple[float, ...]  # One a seed.


def score(predictions: list[np.ndarray], labels: np.ndarray, splits: tuple[Split, ...]) -> Score:
  """Scores predictions of the test clips.

  Args:
    predictions: for each split (seeds, test clips) class numbers.
    labels: (clips,) class numbers.
    splits: one, or one a fold.
  """
  from sklearn.metrics import f1_score  # Slow to import.

  truths = [labels[split.test] for split in splits]
  accuracies = np.mean([(found == truth).mean(1) for found, truth in zip(predictions, truths, strict=True)], axis=0)
  macro_f1 = np.mean(
    [[f1_score(truth, row, average='macro') for row in found] for found, truth in zip(predictions, truths, strict=True)]
  )
  accuracy = float(accuracies.mean())
  interval = wilson_interval(accuracy, sum(map(len, truths)))
  return Score(accuracy, interval, float(macro_f1), tuple(map(float, accuracies)))


def majority_class(labels: np.ndarray, splits: tuple[Split, ...]) -> list[np.ndarray]:
  """Predicts the most frequent train label for every test clip; for each split (1, test clips)."""
  return [np.full((1, len(split.test)), np.bincount(labels[split.train]).argmax()) for split in splits]


def wilson_interval(proportion: float, count: int) -> tuple[float, float]:
  """Wilson's 95 % score interval of a proportion seen in `count` trials (E. B. Wilson, JASA 22, 1927)."""
  z2 = _Z95**2
  centre = (proportion + z2 / (2 * count)) / (1 + z2 / count)
  half = _Z95 * math.sqrt(proportion * (1 - proportion) / count + z2 / (4 * count**2)) / (1 + z2 / count)
  return max(0.0, centre - half), min(1.0, centre + half)


@dataclasses.dataclass(frozen=True)
class Difference:
  """One representation's accuracy minus another's, on the same clips."""

  accuracy: float
  interval: tuple[float, float]  # 95 %, over the choice of test clips.


def paired_difference(
  ours: list[np.ndarray], theirs: list[np.ndarray], labels: np.ndarray, splits: tuple[Split, ...]
) -> Difference:
  """Compares two representations clip by clip, which is far sharper than to compare two intervals.

  A clip's difference is its hits averaged over seeds, ours minus theirs; the interval is that of their mean by the
  central limit theorem. Arguments as of `score`.
  """
  hits = [
    np.concatenate([(found == labels[split.test]).mean(0) for found, split in zip(predictions, splits, strict=True)])
    for predictions in (ours, theirs)
  ]
  # Every fold has the same say, as in the accuracy, whatever its size.
  weights = np.concatenate([np.full(len(split.test), 1 / (len(splits) * len(split.test))) for split in splits])
  differences = hits[0] - hits[1]
  mean = float(weights @ differences)
  half = _Z95 * math.sqrt(weights**2 @ (differences - mean) ** 2)
  return Difference(mean, (mean - half, mean + half))
