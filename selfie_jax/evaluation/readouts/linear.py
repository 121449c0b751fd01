"""A linear probe on frozen features: how much of a task is linearly readable from a representation.

Features are standardised; one linear layer is trained by Adam; training stops once `patience` epochs in a row were
worse on the validation set than the best so far; the weights of the best epoch are kept. Learning rate and weight decay
are chosen on the validation set, never on the test set: without a decay, a few noisy clips would be learnt by heart. Of
a multi-label task the loss is the binary cross-entropy of each class, and the validation score is the mean average
precision instead of the accuracy.

The protocol is that of EVAR (the evaluation package of BYOL-A's authors) with its quirks mended. With `evar` they are
there: the loss is the cross-entropy divided by the number of classes, the weight decay is next to nothing, and where
there are folds, the scaler has seen the validation rows.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np

from selfie_jax.config import Evaluation
from selfie_jax.errors import UserError
from selfie_jax.evaluation.readouts.prediction import Prediction
from selfie_jax.evaluation.readouts.probe_training import Candidates, Members, Settings, fit, predict
from selfie_jax.evaluation.readouts.rows import cut_rows, pad_rows
from selfie_jax.evaluation.tasks.folder import Split

_EVAR_WEIGHT_DECAY = 1e-8
# Learning rate times weight decay. Above, the weights never settle, and the best of so many noisy epochs on a small
# validation set is a matter of luck: on a task of 78 clips 44 % instead of 57.
_MOST_SHRINKAGE = 1e-3
_SCALER_ROWS = 8_192  # Read at once: a copy of all train rows could be gigabytes.
_CHUNK = 256  # Validation and test rows that are predicted at once.


def probe(
  features: np.ndarray,
  labels: np.ndarray,
  splits: Sequence[Split],
  evaluation: Evaluation,
  *,
  learning_rates: Sequence[float],
  evar: bool,
) -> list[Prediction]:
  """Trains probes on each split's train rows and predicts its test rows. A function of the arguments alone.

  Args:
    features: (n, d) float32, a row a clip.
    labels: (n,) class numbers from 0, or of a multi-label task (n, classes) bool.
    splits: which rows are train, valid and test: one, or one a fold.
    evaluation: seeds, batch size, epochs, patience and weight decays.
    learning_rates: with each of the weight decays, but for pairs whose product is above 1e-3. The pair with the best
      validation score (the mean over the seeds) is kept for a split; a tie goes to the first.
    evar: with the published protocol's quirks.

  Returns:
    One prediction a split; of a multi-label task they are logits.

  Raises:
    UserError: the product of every pair is above 1e-3.
  """
  of_seeds = [[split] * len(evaluation.seeds) for split in splits]
  return probe_each(features, labels, of_seeds, evaluation, learning_rates=learning_rates, evar=evar)


def probe_each(
  features: np.ndarray,
  labels: np.ndarray,
  splits: Sequence[Sequence[Split]],
  evaluation: Evaluation,
  *,
  learning_rates: Sequence[float],
  evar: bool,
) -> list[Prediction]:
  """As `probe`, where each seed may have rows of its own to train and validate with.

  Args:
    features: see `probe`.
    labels: see `probe`.
    splits: a list a fold, in it a split a seed; they have the same test rows.
    evaluation: see `probe`.
    learning_rates: see `probe`.
    evar: see `probe`.
  """
  flat = [split for of_fold in splits for split in of_fold]
  multi_label = labels.ndim == 2
  num_classes = labels.shape[1] if multi_label else int(labels.max()) + 1
  decays = (_EVAR_WEIGHT_DECAY,) if evar else evaluation.weight_decays
  pairs = [pair for pair in itertools.product(decays, learning_rates) if math.prod(pair) <= 1.001 * _MOST_SHRINKAGE]
  if not pairs:
    raise UserError(
      f'the smallest product of a learning rate and a weight decay is {min(learning_rates) * min(decays):g}, and '
      f'at most {_MOST_SHRINKAGE:g} is stable: add a smaller one to learning_rates or weight_decays'
    )
  decays, rates = zip(*pairs, strict=True)
  settings = Settings(
    epochs=evaluation.epochs,
    patience=evaluation.patience,
    loss_divisor=num_classes if evar else 1,
  )
  # Seeds that share a split share its scaler.
  scalers = {id(split): scaler(features, split, with_valid=evar and len(splits) > 1) for split in flat}
  mean, scale = (np.stack(values) for values in zip(*(scalers[id(split)] for split in flat), strict=True))
  members = Members(
    seeds=np.tile(np.asarray(evaluation.seeds, np.uint32), len(splits)),
    mean=mean,
    scale=scale,
    train=pad_rows([split.train for split in flat]),
    valid=cut_rows([split.valid for split in flat], _CHUNK),
  )
  features, labels = jax.device_put((features, labels if multi_label else labels.astype(np.int32)))
  params, scores, epochs = fit(
    features,
    labels,
    members,
    Candidates(np.asarray(rates, np.float32), np.asarray(decays, np.float32)),
    settings,
    batch_size=evaluation.batch_size,
    num_classes=num_classes,
    side_by_side=jax.default_backend() != 'cpu',
  )

  by_fold = len(splits), len(evaluation.seeds)
  scores, epochs = (np.asarray(values).reshape(*by_fold, -1) for values in (scores, epochs))
  chosen = scores.mean(1).argmax(1)  # (folds,)
  test = cut_rows([split.test for split in flat], _CHUNK)
  logits_or_classes = predict(features, params, members, test, np.repeat(chosen, by_fold[1]), return_logits=multi_label)
  found = np.asarray(logits_or_classes).reshape(*by_fold, *logits_or_classes.shape[1:])
  return [
    Prediction(
      found[fold, :, : len(of_fold[0].test)],
      {
        'learning_rate': rates[best],
        'weight_decay': decays[best],
        'valid_score': scores[fold, :, best].tolist(),
        'best_epoch': epochs[fold, :, best].tolist(),
      },
    )
    for fold, (of_fold, best) in enumerate(zip(splits, chosen, strict=True))
  ]


def scaler(features: np.ndarray, split: Split, *, with_valid: bool) -> tuple[np.ndarray, np.ndarray]:
  """Returns each column's mean, and the factor that makes its variance 1, both of the train rows: (d,) float32."""
  from sklearn.preprocessing import StandardScaler  # Slow to import. It also copes with constant columns (dead units).

  rows = np.concatenate([split.train, split.valid]) if with_valid else split.train
  found = StandardScaler()
  for start in range(0, len(rows), _SCALER_ROWS):
    found.partial_fit(features[rows[start : start + _SCALER_ROWS]])
  return found.mean_.astype(np.float32), (1 / found.scale_).astype(np.float32)
