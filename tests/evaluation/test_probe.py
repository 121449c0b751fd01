import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from selfie_jax.config import Evaluation
from selfie_jax.errors import UserError
from selfie_jax.evaluation.readouts import metrics
from selfie_jax.evaluation.readouts.linear import probe, scaler
from selfie_jax.evaluation.readouts.probe_training import (
  Candidates,
  Members,
  Settings,
  _stable_argsort,
  epoch_order,
  fit,
  init,
  mean_average_precision,
)
from selfie_jax.evaluation.readouts.rows import cut_rows, pad_rows
from selfie_jax.evaluation.tasks.folder import Split

CONFIG = Evaluation(epochs=60, learning_rates=(1e-4, 1e-3, 1e-2, 3e-2), weight_decays=(1e-8,), seeds=(42, 43))
INIT = jax.jit(init, static_argnums=(1, 2))
ORDER = jax.jit(epoch_order, static_argnums=2)


def task(signal, classes=5, features=40, seed=0, parts=(400, 200, 800)):
  """Clips whose features are noise, plus `signal` times a direction of their class; their scales differ widely."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, sum(parts))
  directions = rng.normal(size=(classes, features))
  x = rng.normal(size=(sum(parts), features)) + signal * directions[labels]
  scales = np.exp(3 * rng.normal(size=features))
  split = Split(*np.split(np.arange(sum(parts)), np.cumsum(parts)[:-1]))
  return (x * scales + 3).astype(np.float32), labels, split


def probed(x, labels, split, config=CONFIG):
  [found] = probe(x, labels, [split], config, learning_rates=config.learning_rates, evar=False)
  return found


def accuracy(found, labels, split):
  return (found.predictions == labels[split.test]).mean()


def test_a_planted_linear_signal_is_found():
  x, labels, split = task(signal=1.0)
  assert accuracy(probed(x, labels, split), labels, split) > 0.97


def test_noise_is_worth_chance():
  x, labels, split = task(signal=0.0)
  low, high = metrics.wilson_interval(0.2, 800)
  assert low - 0.02 < accuracy(probed(x, labels, split), labels, split) < high + 0.02


@pytest.mark.parametrize('signal', [0.2, 0.4])
def test_the_accuracy_is_that_of_logistic_regression(signal):
  x, labels, split = task(signal)
  found = accuracy(probed(x, labels, split), labels, split)
  z = StandardScaler().fit(x[split.train]).transform(x)
  models = [
    LogisticRegression(C=c, max_iter=1_000).fit(z[split.train], labels[split.train]) for c in (0.003, 0.03, 0.3)
  ]
  best = max(models, key=lambda model: model.score(z[split.valid], labels[split.valid]))
  low, high = metrics.wilson_interval(best.score(z[split.test], labels[split.test]), len(split.test))
  assert low < found < high


def test_the_result_is_a_function_of_its_arguments_and_tasks_of_one_shape_share_a_program():
  x, labels, split = task(signal=0.2)
  first = probed(x, labels, split)
  programs = fit._cache_size()
  second = probed(x, labels, split)
  np.testing.assert_array_equal(first.predictions, second.predictions)
  assert first.details == second.details
  probed(*task(signal=0.2, seed=1))
  assert fit._cache_size() == programs


def test_folds_in_one_program_are_those_one_by_one():
  x, labels, first = task(signal=0.2)
  rest = np.random.default_rng(1).permutation(len(x))
  splits = [first] + [Split(rest[200:700], rest[:200], rest[700:]), Split(rest[150:750], rest[:150], rest[750:])]
  together = probe(x, labels, splits, CONFIG, learning_rates=CONFIG.learning_rates, evar=False)
  assert [found.predictions.shape for found in together] == [(2, 800), (2, 700), (2, 650)]
  alone = probed(x, labels, first)  # It was filled up to the length of the last, by a whole batch.
  np.testing.assert_array_equal(together[0].predictions, alone.predictions)
  assert together[0].details == alone.details


@pytest.mark.parametrize('size', [1, 700, 2**16, 2**16 + 1])
def test_the_quick_sort_of_an_epoch_is_numpys_stable_one_whatever_the_ties(size):
  rng = np.random.default_rng(0)
  numbers = rng.integers(0, 2**32, size, dtype=np.uint32)
  for each in (numbers, numbers & 0x80030001, np.full(size, 2**32 - 1, np.uint32)):
    np.testing.assert_array_equal(_stable_argsort(jnp.asarray(each)), np.argsort(each, kind='stable'))


def numpy_probe(train_x, train_y, valid_x, valid_y, seed, rate, decay, classes, batch, epochs, patience, divisor):
  """The protocol again, as plain as it gets, in float64."""
  params = {name: np.asarray(value, np.float64) for name, value in INIT(seed, train_x.shape[1], classes).items()}
  first = {name: 0.0 for name in params}
  second = {name: 0.0 for name in params}
  best, best_accuracy, best_epoch, step = None, -1.0, 0, 0
  for epoch in range(1, epochs + 1):
    order = np.asarray(ORDER(seed, epoch, 100, len(train_x)))[: len(train_x)]  # Of one length: one compilation.
    assert sorted(order) == list(range(len(train_x)))
    for start in range(0, len(order), batch):
      x, y = train_x[order[start : start + batch]], train_y[order[start : start + batch]]
      logits = x @ params['weight'].T + params['bias']
      error = np.exp(logits - logits.max(1, keepdims=True))
      error /= error.sum(1, keepdims=True)
      error[np.arange(len(y)), y] -= 1
      error /= len(y) * divisor
      step += 1
      for name, gradient in (('weight', error.T @ x), ('bias', error.sum(0))):
        gradient = gradient + decay * params[name]
        first[name] = 0.9 * first[name] + 0.1 * gradient
        second[name] = 0.999 * second[name] + 0.001 * gradient**2
        update = first[name] / (1 - 0.9**step) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
        params[name] = params[name] - rate * update
    hits = ((valid_x @ params['weight'].T + params['bias']).argmax(1) == valid_y).mean()
    if hits >= best_accuracy:
      best, best_accuracy, best_epoch = dict(params), hits, epoch
    if epoch - best_epoch >= patience:
      break
  return best, best_accuracy, best_epoch


@pytest.mark.parametrize(('divisor', 'side_by_side'), [(1, True), (5, False)])
def test_every_probe_is_the_plain_numpy_one_and_has_the_weights_of_its_best_epoch(divisor, side_by_side):
  """Two folds, the second with a batch less in an epoch. With 5, EVAR's loss, the decay is 5 times as strong."""
  x, labels, _ = task(signal=0.1, features=12, parts=(200, 0, 0))
  splits = [Split(np.arange(90), np.arange(90, 130), None), Split(np.arange(60, 115), np.arange(120, 172), None)]
  seeds, rates = (42, 7), (1e-3, 3e-2)
  flat = [split for split in splits for _ in seeds]
  mean, scale = (np.stack(values) for values in zip(*(scaler(x, s, with_valid=False) for s in flat), strict=True))
  members = Members(
    seeds=np.uint32(seeds * 2),
    mean=mean,
    scale=scale,
    train=pad_rows([split.train for split in flat]),
    valid=cut_rows([split.valid for split in flat], 16),
  )
  decays = (1e-2, 0.1)
  settings = {'epochs': 40, 'patience': 4, 'loss_divisor': divisor}
  static = {'batch_size': 32, 'num_classes': 5, 'side_by_side': side_by_side}
  found = fit(
    x, np.int32(labels), members, Candidates(np.float32(rates), np.float32(decays)), Settings(**settings), **static
  )
  best, accuracies, epochs = jax.device_get(found)
  for i, (split, seed) in enumerate(zip(flat, seeds * 2, strict=True)):
    z = StandardScaler().fit(x[split.train]).transform(x)
    arguments = z[split.train], labels[split.train], z[split.valid], labels[split.valid]
    for j, candidate in enumerate(zip(rates, decays, strict=True)):
      expected, expected_accuracy, epoch = numpy_probe(*arguments, seed, *candidate, 5, 32, *settings.values())
      assert (accuracies[i, j], epochs[i, j]) == (pytest.approx(expected_accuracy), epoch)
      for name in expected:
        np.testing.assert_allclose(best[name][i, j], expected[name], rtol=1e-3, atol=1e-4)
  # The story has a point only if some probes stopped long before others.
  assert epochs.min() + 4 < epochs.max()


def test_a_weak_signal_in_many_features_is_not_lost_in_the_noise_of_the_others():
  """Where logistic regression needs its strongest regularisation."""
  x, labels, split = task(signal=0.15, features=256, parts=(400, 200, 800))
  z = StandardScaler().fit(x[split.train]).transform(x)
  peers = [LogisticRegression(C=c).fit(z[split.train], labels[split.train]) for c in (1e-3, 1e-2, 0.1, 1)]
  peer = max(peers, key=lambda model: model.score(z[split.valid], labels[split.valid]))
  ours = dataclasses.replace(CONFIG, learning_rates=(1e-3, 1e-2), weight_decays=(1e-8, 0.1))
  found = probed(x, labels, split, ours)
  low, high = metrics.wilson_interval(peer.score(z[split.test], labels[split.test]), len(split.test))
  assert low < accuracy(found, labels, split)
  assert found.details['weight_decay'] == 0.1


def test_pairs_that_are_all_unstable_are_one_clear_line():
  with pytest.raises(UserError, match='is 0.003, and at most 0.001 is stable'):
    probed(*task(signal=1.0), config=dataclasses.replace(CONFIG, learning_rates=(3e-2,), weight_decays=(0.1,)))


def test_a_tie_on_the_validation_set_goes_to_the_later_epoch():
  found = probed(*task(signal=4.0))
  assert found.details['valid_score'] == [1, 1]
  assert found.details['best_epoch'] == [CONFIG.epochs] * 2


def test_the_learning_rate_is_chosen_on_valid_and_never_on_test():
  x, labels, split = task(signal=0.4)
  config = dataclasses.replace(CONFIG, learning_rates=(1e-6, 1e-5, 1e-2, 1e-7))
  honest = probed(x, labels, split, config)
  assert honest.details['learning_rate'] == 1e-2
  corrupted = labels.copy()
  corrupted[split.test] = np.random.default_rng(1).integers(0, 5, len(split.test))
  np.testing.assert_array_equal(probed(x, corrupted, split, config).predictions, honest.predictions)


@pytest.mark.parametrize(
  ('folds', 'evar', 'seen'), [(1, False, False), (1, True, False), (2, False, False), (2, True, True)]
)
def test_the_scaler_sees_train_rows_only_but_those_of_evar_of_a_task_with_folds(folds, evar, seen):
  x, labels, split = task(signal=0.2)
  splits = [split, Split(split.train, split.valid, split.test[:100])][:folds]
  # After one epoch nothing is left to be decided on the validation set. Folds x seeds are two: one program for all.
  config = dataclasses.replace(CONFIG, epochs=1, seeds=(42, 43)[: 3 - folds])
  run = lambda x: probe(x, labels, splits, config, learning_rates=(1e-2,) * 4, evar=evar)  # noqa: E731
  moved = x.copy()
  moved[split.valid[0]] *= 100
  same = (run(x)[0].predictions == run(moved)[0].predictions).all()
  assert same != seen


def test_the_scaler_is_scikit_learns_in_parts_too(monkeypatch):
  monkeypatch.setattr('selfie_jax.evaluation.readouts.linear._SCALER_ROWS', 64)
  x, _, split = task(signal=0.4)
  x[:, 3] = 0.7  # A dead unit.
  expected = StandardScaler().fit(x[split.train].astype(np.float64))
  mean, scale = scaler(x, split, with_valid=False)
  np.testing.assert_allclose(mean, expected.mean_, rtol=1e-5)
  np.testing.assert_allclose(1 / scale, expected.scale_, rtol=1e-5)
  assert scale[3] == 1


def test_a_dead_unit_does_no_harm():
  x, labels, split = task(signal=1.0)
  x[:, 3] = 0.7
  assert accuracy(probed(x, labels, split), labels, split) > 0.95


def test_the_mean_average_precision_of_a_probe_is_scikit_learns_whatever_the_ties_and_the_filling():
  rng = np.random.default_rng(0)
  positives = rng.random((60, 4)) < [0.5, 0.1, 0.3, 0.0]  # Of the last class there is nothing to be found.
  scores = rng.normal(size=(60, 2, 4)).round(1).astype(np.float32)  # Of two learning rates, with many ties.
  counts = np.arange(60) < 45
  found = jax.jit(mean_average_precision)(jnp.asarray(scores), jnp.asarray(positives), jnp.asarray(counts))
  for rate in range(2):
    expected = [average_precision_score(positives[:45, c], scores[:45, rate, c]) for c in range(3)]
    assert found[rate] == pytest.approx(np.mean(expected), abs=1e-6)


def test_a_multi_label_probe_is_as_good_as_logistic_regressions():
  x, first, split = task(signal=0.5, parts=(500, 200, 800))
  labels = (first[:, None] == np.arange(5)) | (np.roll(first, 1)[:, None] == np.arange(5))  # The others are noise.
  found = probed(x, labels, split)
  assert found.predictions.shape == (2, 800, 5)
  z = StandardScaler().fit(x[split.train]).transform(x)
  peers = [LogisticRegression(C=0.01).fit(z[split.train], labels[split.train, c]) for c in range(5)]
  peer = np.stack([model.decision_function(z[split.test]) for model in peers], axis=-1)
  result = metrics.score([found.predictions], labels, [split])
  assert result.score > 0.5 > metrics.score(metrics.majority_class(labels, [split]), labels, [split]).score
  assert result.interval[0] < metrics.mean_average_precision(peer, labels[split.test]) < result.interval[1]
