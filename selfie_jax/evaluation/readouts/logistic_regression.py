"""Logistic regression on frozen features: the linear readout for few clips and many features.

scikit-learn's, on standardised features, with an L2 penalty whose strength is chosen on the validation set. The fit is
convex: there is no seed, no learning rate and no epoch to choose, so a small validation set chooses among few. The fit
is on the host, on one thread: large tasks are better off with `linear`.
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


def logistic_regression(features: np.ndarray, labels: np.ndarray, splits: Sequence[Split]) -> list[Prediction]:
  """Fits each split's train rows and predicts its test rows.

  Args:
    features: (n, d) float32, a row a clip.
    labels: (n,) class numbers from 0, or of a multi-label task (n, classes) bool, whose classes are fitted one by one.
    splits: one, or one a fold. The strength is the one of `STRENGTHS` with the best validation score; a tie goes to the
      strongest penalty.

  Returns:
    For each split (1, test clips) class numbers, or (1, test clips, classes) scores.
  """
  from threadpoolctl import threadpool_limits  # scikit-learn's own; as slow to import.

  predictions = []
  # The products are too thin for threads: two would take 24 times the CPU-seconds, to wait for each other.
  with threadpool_limits(1), warnings.catch_warnings():
    warnings.filterwarnings('ignore', category=FutureWarning, module='sklearn')
    warnings.filterwarnings('ignore', message='lbfgs failed to converge')
    for split in splits:
      mean, scale = scaler(features, split, with_valid=False)
      train, valid, test = ((features[rows] - mean) * scale for rows in (split.train, split.valid, split.test))
      found = [_fit_and_score(strength, train, labels[split.train], [valid, test]) for strength in STRENGTHS]
      scores = [metrics.valid_score(of_valid, labels[split.valid]) for of_valid, _ in found]
      best = int(np.argmax(scores))
      of_test = found[best][1]
      of_test = of_test if labels.ndim == 2 else of_test.argmax(-1)
      predictions.append(Prediction(of_test[None], {'strength': STRENGTHS[best], 'valid_score': scores[best]}))
  return predictions


def _fit_and_score(
  strength: float, train: np.ndarray, labels: np.ndarray, parts: Sequence[np.ndarray]
) -> list[np.ndarray]:
  """Returns (rows, classes) for each part: probabilities of the classes, or a score for each label."""
  from sklearn.linear_model import LogisticRegression  # Slow to import.

  model = LogisticRegression(C=strength, max_iter=_ITERATIONS)
  if labels.ndim == 1:
    model.fit(train, labels)
    found = [np.zeros((len(part), labels.max() + 1)) for part in parts]
    for scores, part in zip(found, parts, strict=True):
      scores[:, model.classes_] = model.predict_proba(part)  # A fold may lack a class.
    return found
  found = [np.zeros((len(part), labels.shape[1])) for part in parts]
  for column, positives in enumerate(labels.T):
    if 0 < positives.sum() < len(positives):  # Else there is nothing to tell apart.
      model.fit(train, positives)
      for scores, part in zip(found, parts, strict=True):
        scores[:, column] = model.decision_function(part)
  return found
