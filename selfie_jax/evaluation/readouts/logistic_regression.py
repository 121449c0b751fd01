"""Logistic regression on frozen features: the linear readout for few clips and many features.

scikit-learn's, on standardised features, with an L2 penalty whose strength is chosen on the validation set: by its log
loss, because the accuracy on a hundred clips ties, or tells strengths apart by chance. The fit is convex: there is no
seed, no learning rate and no epoch to choose. It is on the host, on one thread: large tasks are better off with
`linear`.
"""

import warnings
from collections.abc import Sequence

import numpy as np

from selfie_jax.evaluation.readouts import metrics
from selfie_jax.evaluation.readouts.linear import scaler
from selfie_jax.evaluation.readouts.prediction import Prediction
from selfie_jax.evaluation.tasks.folder import Split

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # `C` of scikit-learn, the strongest penalty first.
_ITERATIONS = 300  # At the most.
_LOG_OF_ZERO = -30.0  # The log-probability of a class that a fold's train rows lack.


def logistic_regression(features: np.ndarray, labels: np.ndarray, splits: Sequence[Split]) -> list[Prediction]:
  """Fits each split's train rows and predicts its test rows.

  Args:
    features: (n, d) float32, a row a clip.
    labels: (n,) class numbers from 0, or of a multi-label task (n, classes) bool, whose classes are fitted one by one.
    splits: one, or one a fold. The strength is the one of `STRENGTHS` with the least log loss on the validation rows.

  Returns:
    For each split (1, test clips) class numbers, or (1, test clips, classes) scores.
  """
  from threadpoolctl import threadpool_limits  # scikit-learn's own; as slow to import.

  classes = labels.shape[1] if labels.ndim == 2 else labels.max() + 1
  predictions = []
  # The products are too thin for threads: two would take 24 times the CPU-seconds, to wait for each other.
  with threadpool_limits(1), warnings.catch_warnings():
    warnings.filterwarnings('ignore', category=FutureWarning, module='sklearn')
    warnings.filterwarnings('ignore', message='lbfgs failed to converge')
    for split in splits:
      mean, scale = scaler(features, split, with_valid=False)
      train, valid, test = ((features[rows] - mean) * scale for rows in (split.train, split.valid, split.test))
      if len(train) < features.shape[1]:
        train, valid, test = _in_span(train, valid, test)
      parts = [valid, test]
      found = [_fit_and_score(strength, train, labels[split.train], parts, classes) for strength in STRENGTHS]
      best = int(np.argmin([_log_loss(of_valid, labels[split.valid]) for of_valid, _ in found]))
      of_valid, of_test = found[best]
      of_test = of_test if labels.ndim == 2 else of_test.argmax(-1)
      score = metrics.valid_score(of_valid, labels[split.valid])
      predictions.append(Prediction(of_test[None], {'strength': STRENGTHS[best], 'valid_score': score}))
  return predictions


def _in_span(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
  """Returns the coordinates of all rows in an orthonormal basis of the train rows' span, (rows, train rows) each.

  The fit is the same, and cheaper. Its weights are a sum of train rows, because what is orthogonal to them changes no
  train score and the penalty shrinks it to zero (Kimeldorf and Wahba, 1971); and no product with a train row changes.
  """
  basis, triangle = np.linalg.qr(train.T)
  return [triangle.T, *(rows @ basis for rows in others)]


def _fit_and_score(
  strength: float, train: np.ndarray, labels: np.ndarray, parts: Sequence[np.ndarray], classes: int
) -> list[np.ndarray]:
  """Returns (rows, classes) for each part: log-probabilities of the classes, or log-odds of each label."""
  from sklearn.linear_model import LogisticRegression  # Slow to import.

  model = LogisticRegression(C=strength, max_iter=_ITERATIONS)
  if labels.ndim == 1:
    model.fit(train, labels)
    found = [np.full((len(part), classes), _LOG_OF_ZERO) for part in parts]
    for scores, part in zip(found, parts, strict=True):
      with np.errstate(divide='ignore'):  # A probability of 0 has a floor.
        scores[:, model.classes_] = np.maximum(model.predict_log_proba(part), _LOG_OF_ZERO)
    return found
  found = [np.zeros((len(part), classes)) for part in parts]
  for column, positives in enumerate(labels.T):
    if 0 < positives.sum() < len(positives):  # Else there is nothing to tell apart.
      model.fit(train, positives)
      for scores, part in zip(found, parts, strict=True):
        scores[:, column] = model.decision_function(part)
  return found


def _log_loss(scores: np.ndarray, labels: np.ndarray) -> float:
  """Returns the mean negative log-likelihood of class numbers, or of all labels of a multi-label task."""
  if labels.ndim == 2:
    return float(np.mean(np.logaddexp(0, scores) - labels * scores))
  return float(-np.mean(scores[np.arange(len(labels)), labels]))
