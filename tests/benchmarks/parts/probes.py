"""Linear probes of 5 folds and 3 seeds on the same embeddings, against scikit-learn.

An eighth of the train rows of each fold is for validation; all standardise by the others. A unit is one seed: what
gives the predictions of all folds for it. Nothing is compiled while it is measured.

ours: the linear probe with the default search, 11 pairs of a learning rate and a weight decay: 165 probes.
LogisticRegression (lbfgs): for each fold 5 strengths, the best on valid is kept: 25 fits. It knows no seeds: one
  evaluation counts for all three. As it comes, and on one core, which takes the fewest CPU-seconds: its products are
  too thin for more threads, which wait for each other and spin.
MLPClassifier without a hidden layer: Adam, batches of 200, at most 200 epochs, its own early stopping with a patience
  of 20 on a tenth of its rows; on one core. With the same search (it divides `alpha` by the batch size), the best
  on valid is kept; and with one learning rate and no decay, beside ours with the same.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from selfie_jax.config import Evaluation
from selfie_jax.evaluation.tasks.folder import Split
from tests.benchmarks.rounds import ONE_CORE, Way

NAME = 'probes'
UNIT = 'seeds'
CONFIG = Evaluation()
FOLDS = 5
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
ONE_RATE = 1e-3
TARGETS = {
  'LogisticRegression': 5.0,
  'LogisticRegression, one core': 5.0,
  'MLPClassifier, same search, one core': 5.0,
  'MLPClassifier, one rate, one core': 5.0,
}

Predictions = list[np.ndarray]  # A fold: (seeds, test rows).


def ways(folder: Path) -> dict[str, Way]:
  """Ours and scikit-learn's, with a search and with one learning rate."""
  del folder  # There is nothing to read.
  this = 'tests.benchmarks.parts.probes'
  logistic, mlp = f'{this}:start_logistic', f'{this}:start_mlp'
  search, one = {'one_rate': False}, {'one_rate': True}
  one_core = f'{ONE_CORE}, one rate'
  return {
    'ours': Way(f'{this}:start_ours', search),
    'LogisticRegression': Way(logistic),
    'ours, one core': Way(f'{this}:start_ours', search, {}, ONE_CORE, cores=1),
    'LogisticRegression, one core': Way(logistic, {}, {}, ONE_CORE, cores=1),
    'MLPClassifier, same search, one core': Way(mlp, search, {}, ONE_CORE, cores=1),
    'ours, one rate, one core': Way(f'{this}:start_ours', one, {}, one_core, cores=1),
    'MLPClassifier, one rate, one core': Way(mlp, one, {}, one_core, cores=1),
  }


def synthetic(features: int = 256) -> tuple[np.ndarray, np.ndarray]:
  """1,000 embeddings of 10 classes with a weak signal."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 10, 1_000)
  x = rng.normal(size=(1_000, features)) + 2.4 / features**0.5 * rng.normal(size=(10, features))[labels]
  return (x * np.exp(rng.normal(size=features))).astype(np.float32), labels


def folds(labels: np.ndarray) -> list[Split]:
  """Five folds; an eighth of the rest of each is for validation."""
  from sklearn.model_selection import StratifiedKFold

  splits = []
  for rest, test in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels):
    rest = np.random.default_rng(0).permutation(rest)
    splits.append(Split(rest[len(rest) // 8 :], rest[: len(rest) // 8], test))
  return splits


def ours(x: np.ndarray, labels: np.ndarray, splits: list[Split], one_rate: bool = False) -> Predictions:
  """Predictions of the linear probe."""
  from selfie_jax.evaluation.readouts.linear import probe

  config = dataclasses.replace(CONFIG, weight_decays=(1e-8,)) if one_rate else CONFIG
  rates = (ONE_RATE,) if one_rate else CONFIG.learning_rates
  return [found.predictions for found in probe(x, labels, splits, config, learning_rates=rates, evar=False)]


def logistic(x: np.ndarray, labels: np.ndarray, splits: list[Split]) -> Predictions:
  """Predictions of the logistic regression that is best on valid."""
  from sklearn.linear_model import LogisticRegression

  def of_split(split: Split) -> np.ndarray:
    z = standardised(x, split)
    models = [LogisticRegression(C=c, max_iter=1_000).fit(z[split.train], labels[split.train]) for c in STRENGTHS]
    return max(models, key=lambda model: model.score(z[split.valid], labels[split.valid])).predict(z[split.test])[None]

  return [of_split(split) for split in splits]


def mlp(
  x: np.ndarray,
  labels: np.ndarray,
  splits: list[Split],
  one_rate: bool = False,
  seeds: tuple[int, ...] = CONFIG.seeds,
) -> Predictions:
  """Predictions of scikit-learn's layer trained by Adam; of each fold those of the pair that is best on valid."""
  from sklearn.exceptions import ConvergenceWarning
  from sklearn.neural_network import MLPClassifier

  warnings.simplefilter('ignore', ConvergenceWarning)
  # As `linear.probe`: no pair whose product is above 1e-3.
  search = [
    pair for pair in itertools.product(CONFIG.weight_decays, CONFIG.learning_rates) if np.prod(pair) <= 1.001e-3
  ]

  def of_pair(z: np.ndarray, split: Split, decay: float, rate: float) -> tuple[float, np.ndarray]:
    batch = min(CONFIG.batch_size, int(0.9 * len(split.train)))  # It takes a tenth for its early stopping.
    models = [
      MLPClassifier(
        (),
        alpha=decay * batch,
        batch_size=batch,
        learning_rate_init=rate,
        max_iter=CONFIG.epochs,
        early_stopping=True,
        n_iter_no_change=CONFIG.patience,
        random_state=seed,
      ).fit(z[split.train], labels[split.train])
      for seed in seeds
    ]
    valid = np.mean([model.score(z[split.valid], labels[split.valid]) for model in models])
    return valid, np.stack([model.predict(z[split.test]) for model in models])

  def of_split(split: Split) -> np.ndarray:
    z = standardised(x, split)
    found = [of_pair(z, split, *pair) for pair in ([(1e-8, ONE_RATE)] if one_rate else search)]
    return max(found, key=lambda pair: pair[0])[1]

  return [of_split(split) for split in splits]


def standardised(x: np.ndarray, split: Split) -> np.ndarray:
  """By the train rows."""
  from sklearn.preprocessing import StandardScaler

  return StandardScaler().fit(x[split.train]).transform(x)


def start_ours(one_rate: bool) -> Callable[[], int]:
  """All seeds at once."""
  x, labels = synthetic()
  splits = folds(labels)

  def work() -> int:
    ours(x, labels, splits, one_rate)
    return len(CONFIG.seeds)

  return work


def start_logistic() -> Callable[[], int]:
  """What it does once is worth all seeds."""
  x, labels = synthetic()
  splits = folds(labels)

  def work() -> int:
    logistic(x, labels, splits)
    return len(CONFIG.seeds)

  return work


def start_mlp(one_rate: bool) -> Callable[[], int]:
  """A seed a call, in turns."""
  x, labels = synthetic()
  splits, seeds = folds(labels), itertools.cycle(CONFIG.seeds)

  def work() -> int:
    mlp(x, labels, splits, one_rate, (next(seeds),))
    return 1

  return work
