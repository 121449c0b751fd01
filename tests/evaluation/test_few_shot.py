import numpy as np
import pytest

from selfie_jax.config import Evaluation
from selfie_jax.evaluation.readouts.few_shot import clips_of_classes, draw, probe_of_shots
from selfie_jax.evaluation.tasks.folder import Split

LABELS = np.repeat(np.arange(4), (50, 40, 30, 2))


@pytest.mark.parametrize('shots', [1, 5])
def test_a_class_gives_exactly_so_many_clips_or_all_it_has(shots):
  rows = np.random.default_rng(0).permutation(len(LABELS))
  drawn = draw(LABELS, rows, shots, 42)
  assert len(set(drawn)) == len(drawn)
  np.testing.assert_array_equal(np.bincount(LABELS[drawn]), [shots, shots, shots, min(shots, 2)])
  np.testing.assert_array_equal(drawn, draw(LABELS, rows, shots, 42))
  assert set(drawn) != set(draw(LABELS, rows, shots, 43))


def test_the_fewest_and_the_most_clips_of_a_class_are_those_of_all_folds():
  splits = [Split(np.arange(120), None, None), Split(np.arange(121), None, None)]
  assert clips_of_classes(LABELS, splits) == (0, 50)
  assert clips_of_classes(np.eye(4, dtype=bool)[LABELS], splits[1:]) == (1, 50)


def test_validation_clips_without_any_label_choose_nothing_and_break_nothing():
  rng = np.random.default_rng(0)
  labels = rng.random((60, 3)) < 0.5
  labels[30:40] = False
  split = Split(np.arange(30), np.arange(30, 40), np.arange(40, 60))
  features = rng.normal(size=(60, 4)).astype(np.float32)
  [found] = probe_of_shots(features, labels, [split], Evaluation(seeds=(1,), epochs=2), 2)
  assert found.details['valid_score'] == [0]
  assert found.predictions.shape == (1, 20, 3)


def test_every_label_of_a_multi_label_task_has_so_many_positives_and_no_clip_is_idle():
  labels = np.random.default_rng(0).random((300, 5)) < [0.5, 0.2, 0.1, 0.05, 0.005]
  labels[:, 4] = False
  labels[7, 4] = True  # All there is.
  drawn = draw(labels, np.arange(300), 3, 42)
  positives = labels[drawn].sum(0)
  assert (positives[:4] >= 3).all()
  assert positives[4] == 1
  assert len(drawn) <= 3 * 4 + 1


def test_no_other_clip_is_looked_at_and_fewer_labels_than_a_batch_teach_something():
  rng = np.random.default_rng(1)
  labels = rng.integers(0, 3, 500)
  x = (rng.normal(size=(500, 20)) + 2 * rng.normal(size=(3, 20))[labels]).astype(np.float32)
  split = Split(np.arange(200), np.arange(200, 300), np.arange(300, 500))
  config = Evaluation(epochs=30, seeds=(42, 43), learning_rates=(1e-3, 1e-2))
  [found] = probe_of_shots(x, labels, [split], config, 5)
  assert found.predictions.shape == (2, 200)
  assert found.details['train_clips'] == [15, 15]
  assert (found.predictions == labels[split.test]).mean() > 0.8

  used = [draw(labels, split.train, 5, (seed, 0, 0)) for seed in config.seeds]
  used += [draw(labels, split.valid, 4, (seed, 0, 1)) for seed in config.seeds]
  assert [len(rows) for rows in used] == [15, 15, 12, 12]
  assert set(used[0]) != set(used[1])
  unused = np.setdiff1d(np.arange(300), np.concatenate(used))
  x_used = x.copy()
  x_used[unused] = 1e6  # Not even the scaler sees them.
  [again] = probe_of_shots(x_used, labels, [split], config, 5)
  np.testing.assert_array_equal(again.predictions, found.predictions)
