"""The readout by logistic regression is scikit-learn's, with its strength chosen on valid."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from selfie_jax.evaluation.readouts import metrics
from selfie_jax.evaluation.readouts.logistic_regression import STRENGTHS, logistic_regression
from selfie_jax.evaluation.tasks.folder import Split


def task(classes=4, parts=(60, 60, 80), dimensions=100):
  """More dimensions than train rows, and little in them: the penalty matters."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, classes, sum(parts))
  x = 3 + 2 * rng.normal(size=(sum(parts), dimensions)) + 0.8 * rng.normal(size=(classes, dimensions))[labels]
  return x.astype(np.float32), labels, Split(*np.split(np.arange(sum(parts)), np.cumsum(parts)[:-1]))


def peer(strength, x, labels, split):
  model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
  return model.fit(x[split.train], labels[split.train])


@pytest.mark.parametrize('dimensions', [30, 100])
def test_it_is_scikit_learns_with_the_strength_of_the_least_log_loss_on_valid(dimensions):
  x, labels, split = task(dimensions=dimensions)
  [found] = logistic_regression(x, labels, [split])
  models = [peer(strength, x, labels, split) for strength in STRENGTHS]
  losses = [log_loss(labels[split.valid], model.predict_proba(x[split.valid])) for model in models]
  best = int(np.argmin(losses))
  assert best > 0
  assert found.details['strength'] == STRENGTHS[best]
  assert found.details['valid_score'] == models[best].score(x[split.valid], labels[split.valid])
  np.testing.assert_array_equal(found.predictions, [models[best].predict(x[split.test])])


def test_a_fold_may_lack_a_class_and_a_dimension_may_be_dead():
  x, labels, split = task()
  x[:, 7] = 1
  lacking = Split(split.train[labels[split.train] != 1], split.valid, split.test)
  full, found = logistic_regression(x, labels, [split, lacking])
  assert 1 in full.predictions
  assert set(found.predictions.ravel()) == {0, 2, 3}


def test_a_multi_label_task_is_ranked_class_by_class():
  x, first, split = task()
  labels = (first[:, None] == np.arange(4)) | (first[:, None] == 1)
  labels = np.concatenate([labels, np.zeros((len(x), 1), bool)], axis=1)  # Nobody has the last one.
  [found] = logistic_regression(x, labels, [split])
  assert found.predictions.shape == (1, 80, 5)
  losses = []
  for strength in STRENGTHS:
    models = [(label[split.valid], peer(strength, x, label, split)) for label in labels.T[:4]]
    losses.append(sum(log_loss(truth, model.predict_proba(x[split.valid])) for truth, model in models))
  assert found.details['strength'] == STRENGTHS[int(np.argmin(losses))] > STRENGTHS[0]
  assert metrics.score([found.predictions], labels, [split]).score > 0.6
