import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from selfie_jax.config import Evaluation
from selfie_jax.evaluation import probe as probe_lib
from selfie_jax.evaluation.metrics import wilson_interval
from selfie_jax.evaluation.probe import epoch_order, fit, init, probe, standardize
from selfie_jax.evaluation.tasks.folder import Split

CONFIG = Evaluation(epochs=60)


def task(signal, classes=5, features=40, seed=0, parts=(500, 200, 800)):
  """Clips whose features are noise, plus `signal` times a direction of their class."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, sum(parts))
  directions = rng.normal(size=(classes, features))
  x = rng.normal(size=(sum(parts), features)) + signal * directions[labels]
  scales = np.exp(rng.normal(size=features))
  split = Split(*np.split(np.arange(sum(parts)), np.cumsum(parts)[:-1]))
  return (x * scales + 3).astype(np.float32), labels, split


def accuracy(result, labels, split):
  return (result.predictions == labels[split.test]).mean()


def test_a_planted_linear_signal_is_found():
  x, labels, split = task(signal=1.0)
  assert accuracy(probe(x, labels, 5, split, CONFIG), labels, split) > 0.97


def test_noise_is_worth_chance():
  x, labels, split = task(signal=0.0, parts=(500, 200, 2_000))
  low, high = wilson_interval(0.2, 2_000)
  assert low - 0.02 < accuracy(probe(x, labels, 5, split, CONFIG), labels, split) < high + 0.02


@pytest.mark.parametrize('signal', [0.2, 0.4])
def test_the_accuracy_is_that_of_logistic_regression(signal):
  x, labels, split = task(signal)
  found = accuracy(probe(x, labels, 5, split, CONFIG), labels, split)
  train, valid, test = standardize(x[split.train], x[split.valid], x[split.test])
  models = [LogisticRegression(C=c, max_iter=1_000).fit(train, labels[split.train]) for c in (0.003, 0.03, 0.3)]
  best = max(models, key=lambda model: model.score(valid, labels[split.valid]))
  low, high = wilson_interval(best.score(test, labels[split.test]), len(test))
  assert low < found < high


def test_the_result_is_a_function_of_its_arguments():
  x, labels, split = task(signal=0.2)
  first, second = (probe(x, labels, 5, split, CONFIG) for _ in range(2))
  np.testing.assert_array_equal(first.predictions, second.predictions)
  assert first.learning_rate == second.learning_rate


def numpy_probe(train_x, train_y, valid_x, valid_y, seed, rate, classes, batch, epochs, patience, decay):
  """The protocol again, as plain as it gets, in float64."""
  params = {name: np.asarray(value, np.float64) for name, value in init(seed, train_x.shape[1], classes).items()}
  first = {name: 0.0 for name in params}
  second = {name: 0.0 for name in params}
  best, best_accuracy, best_epoch, step = None, -1.0, 0, 0
  for epoch in range(1, epochs + 1):
    order = np.asarray(epoch_order(seed, epoch, len(train_x)))
    for start in range(0, len(order), batch):
      x, y = train_x[order[start : start + batch]], train_y[order[start : start + batch]]
      logits = x @ params['weight'] + params['bias']
      error = np.exp(logits - logits.max(1, keepdims=True))
      error /= error.sum(1, keepdims=True)
      error[np.arange(len(y)), y] -= 1
      error /= len(y)
      step += 1
      for name, gradient in (('weight', x.T @ error), ('bias', error.sum(0))):
        gradient = gradient + decay * params[name]
        first[name] = 0.9 * first[name] + 0.1 * gradient
        second[name] = 0.999 * second[name] + 0.001 * gradient**2
        update = first[name] / (1 - 0.9**step) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
        params[name] = params[name] - rate * update
    hits = ((valid_x @ params['weight'] + params['bias']).argmax(1) == valid_y).mean()
    if hits >= best_accuracy:
      best, best_accuracy, best_epoch = dict(params), hits, epoch
    if epoch - best_epoch >= patience:
      break
  return best, best_accuracy, best_epoch


def test_every_probe_is_the_plain_numpy_one_and_has_the_weights_of_its_best_epoch():
  x, labels, split = task(signal=0.1, features=12, parts=(90, 40, 1))
  train, valid = standardize(x[split.train], x[split.valid])
  arguments = train, labels[split.train], valid, labels[split.valid]
  seeds, rates = (42, 7), (1e-3, 3e-2)
  settings = {'batch_size': 32, 'epochs': 40, 'patience': 4, 'weight_decay': 1e-2}
  best, accuracies, epochs = fit(*arguments, np.uint32(seeds), np.float32(rates), num_classes=5, **settings)
  for i, seed in enumerate(seeds):
    for j, rate in enumerate(rates):
      expected, accuracy, epoch = numpy_probe(*arguments, seed, rate, 5, *settings.values())
      assert (accuracies[i, j], epochs[i, j]) == (pytest.approx(accuracy), epoch)
      for name in expected:
        np.testing.assert_allclose(best[name][i, j], expected[name], rtol=1e-3, atol=1e-4)
  # The story has a point only if some probes stopped long before others.
  assert epochs.min() + 4 < epochs.max()


def test_a_tie_on_the_validation_set_goes_to_the_later_epoch():
  x, labels, split = task(signal=4.0)
  result = probe(x, labels, 5, split, CONFIG)
  assert (result.valid_accuracy == 1).all()
  assert (result.best_epoch == CONFIG.epochs).all()


def test_the_learning_rate_is_chosen_on_valid_and_never_on_test():
  x, labels, split = task(signal=0.4)
  config = dataclasses.replace(CONFIG, learning_rates=(1e-6, 1e-5, 1e-4, 1e-2, 1e-7))
  honest = probe(x, labels, 5, split, config)
  assert honest.learning_rate == 1e-2
  corrupted = labels.copy()
  corrupted[split.test] = np.random.default_rng(1).integers(0, 5, len(split.test))
  other = probe(x, corrupted, 5, split, config)
  np.testing.assert_array_equal(other.predictions, honest.predictions)


def test_the_scaler_sees_the_train_rows_only(monkeypatch):
  x, labels, split = task(signal=0.4)
  seen = []
  monkeypatch.setattr(probe_lib, 'standardize', lambda *parts: seen.append(parts) or standardize(*parts))
  first = probe(x, labels, 5, split, CONFIG)
  moved = x.copy()
  moved[split.test[0]] += 1e6  # Nothing else may feel it.
  second = probe(moved, labels, 5, split, CONFIG)
  np.testing.assert_array_equal(first.predictions[:, 1:], second.predictions[:, 1:])
  train, valid, _ = standardize(*seen[0])
  np.testing.assert_allclose(train.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(train.std(0), 1, atol=1e-5)
  assert np.abs(valid.mean(0)).max() > 1e-3


def test_a_dead_unit_does_no_harm():
  x, labels, split = task(signal=1.0)
  x[:, 3] = 0.7
  result = probe(x, labels, 5, split, CONFIG)
  assert accuracy(result, labels, split) > 0.95


def test_fewer_train_rows_than_a_batch_will_do():
  x, labels, split = task(signal=2.0, parts=(30, 20, 100))
  assert accuracy(probe(x, labels, 5, split, CONFIG), labels, split) > 0.8
