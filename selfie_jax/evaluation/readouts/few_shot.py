"""A linear probe from a few labelled clips a class.

The clips are drawn from the train rows, afresh for each seed. The probe is validated with min(n, 4) clips a class of
the validation rows, as in CoOp's few-shot protocol (Zhou et al., Learning to Prompt for Vision-Language Models, 2022):
with all of them it would learn from many more labels than it is said to.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from selfie_jax.config import Evaluation
from selfie_jax.evaluation.readouts.linear import probe_each
from selfie_jax.evaluation.readouts.prediction import Prediction
from selfie_jax.evaluation.tasks.folder import Split

_MOST_VALID = 4  # Clips a class.


def probe_of_shots(
  features: np.ndarray, labels: np.ndarray, splits: Sequence[Split], evaluation: Evaluation, shots: int
) -> list[Prediction]:
  """Trains the linear probe on `shots` clips a class of each split's train rows and predicts its test rows.

  Scaler, learning rate and best epoch, too, are decided by the clips drawn, and no others. The protocol is always the
  corrected one: no published table has these figures.

  Args:
    features: as of `linear.probe`.
    labels: as of `linear.probe`.
    splits: one, or one a fold.
    evaluation: as of `linear.probe`; each seed draws clips of its own.
    shots: labelled clips a class.

  Returns:
    As of `linear.probe`. Their details also have `train_clips`: how many were drawn, one a seed.
  """
  drawn = [
    [_draw_split(labels, split, shots, (seed, fold)) for seed in evaluation.seeds] for fold, split in enumerate(splits)
  ]
  found = probe_each(features, labels, drawn, evaluation, learning_rates=evaluation.learning_rates, evar=False)
  return [
    dataclasses.replace(each, details=each.details | {'train_clips': [len(split.train) for split in of_fold]})
    for each, of_fold in zip(found, drawn, strict=True)
  ]


def clips_of_classes(labels: np.ndarray, splits: Sequence[Split]) -> tuple[int, int]:
  """Returns the train clips of the class that has the fewest, and of that with the most, over all folds."""
  counts = [
    labels[split.train].sum(0) if labels.ndim == 2 else np.bincount(labels[split.train], minlength=labels.max() + 1)
    for split in splits
  ]
  return int(np.min(counts)), int(np.max(counts))


def _draw_split(labels: np.ndarray, split: Split, shots: int, seed: tuple[int, int]) -> Split:
  train = draw(labels, split.train, shots, (*seed, 0))
  valid = draw(labels, split.valid, min(shots, _MOST_VALID), (*seed, 1))
  # No validation clip of a multi-label task may have a label: they cannot tell epochs or rates apart, all score 0.
  return Split(train, valid if len(valid) else split.valid, split.test)


def draw(labels: np.ndarray, rows: np.ndarray, shots: int, seed: Sequence[int]) -> np.ndarray:
  """Returns `shots` rows of each class, or all that a class has if these are fewer; a function of the arguments alone.

  Of a multi-label task, classes are looked at from the rarest on, and each is given as many more clips as it lacks:
  every class has at least `shots` positives (or all that there are), and one that often comes with others has more.

  Args:
    labels: (n,) class numbers, or (n, classes) bool.
    rows: what is drawn from.
    shots: clips a class.
    seed: one number or several.
  """
  positives = labels[rows] if labels.ndim == 2 else labels[rows, None] == np.unique(labels[rows])
  order = np.random.default_rng(seed).permutation(len(rows))
  taken = np.zeros(len(rows), bool)
  for column in np.argsort(positives.sum(0), kind='stable'):
    candidates = order[positives[order, column]]
    lacking = max(0, shots - taken[candidates].sum())
    taken[candidates[~taken[candidates]][:lacking]] = True
  return rows[taken]
