"""The linear probe against scikit-learn, on the same embeddings, all in one run.

  python -m tests.benchmarks.probes [--tasks_dir DIR --workdir RUN] [--only NAME ...] [--rounds 2]

Each task's train and validation clips are split into five folds; what is timed is five folds with three seeds:

  ours: the linear probe, all learning rates.
  ours, compiling: the same, where the programs are compiled, too: once for all tasks of one shape.
  LogisticRegression: for each fold every C of a grid, the best on valid is kept. It knows no seeds: it runs once.
  MLPClassifier without a hidden layer: for each fold and seed one learning rate; Adam, batches of 200, at most 200
    epochs, its own early stopping with a patience of 20. (Ours trains all the rates in its time.)

All standardise by the train rows. The ways take turns for some rounds; a ratio is that of two ways in the same round,
and the report has the median of the rounds' and the smallest and the largest. The CPU time of all threads depends less
on what else the machine does. Without --tasks_dir and --workdir the embeddings are synthetic.
"""

import argparse
import time
import warnings
from collections.abc import Iterator

import jax
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from selfie_jax.command_line import open_workdir
from selfie_jax.config import Evaluation, Task
from selfie_jax.embedding.clips import decode_clips
from selfie_jax.embedding.embeddings import embed_clips
from selfie_jax.evaluation.readouts.linear import probe
from selfie_jax.evaluation.readouts.metrics import score
from selfie_jax.evaluation.tasks.folder import Split, find_tasks, load_folder
from selfie_jax.training.checkpointing.checkpoints import load_encoder
from tests.benchmarks.data import machine, spread

FOLDS = 5
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
MLP_RATE = 1e-3
CONFIG = Evaluation()


def synthetic() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
  """Embeddings with a weak signal."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 10, 1_000)
  x = rng.normal(size=(1_000, 256)) + 0.15 * rng.normal(size=(10, 256))[labels]
  yield 'synthetic', (x * np.exp(rng.normal(size=256))).astype(np.float32), labels


def embedded(tasks_dir: str, workdir: str, only: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
  """Embeddings and labels of the labelled folders in a folder, by a run's newest checkpoint."""
  run = load_encoder(open_workdir(workdir))
  for task in find_tasks(Evaluation(tasks_dir=tasks_dir, only=only)):
    folder = load_folder(Task(task.name, task.path, task.unit_seconds), tasks_dir)
    if folder.multi_label:
      continue
    samples = max(round(folder.unit_seconds * run.config.log_mel.sample_rate), run.config.crop_samples)
    clips = decode_clips(folder.files, run.config.log_mel.sample_rate, samples)
    crop = run.config.crop_samples
    x = embed_clips(run.encoder, clips, run.config.log_mel, run.mean, run.std, min_samples=crop, max_samples=samples)
    yield task.name, x, folder.labels


def folds(labels: np.ndarray) -> list[Split]:
  """Five folds; an eighth of the rest of each is for validation."""
  splits = []
  for rest, test in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels):
    rest = np.random.default_rng(0).permutation(rest)
    splits.append(Split(rest[len(rest) // 8 :], rest[: len(rest) // 8], test))
  return splits


def ours(x: np.ndarray, labels: np.ndarray, splits: list[Split]) -> list[np.ndarray]:
  """Predictions of the linear probe."""
  found = probe(x, labels, splits, CONFIG, learning_rates=CONFIG.learning_rates, evar=False)
  return [prediction.predictions for prediction in found]


def logistic(x: np.ndarray, labels: np.ndarray, splits: list[Split]) -> list[np.ndarray]:
  """Predictions of the logistic regression that is best on valid."""

  def of_split(split: Split) -> np.ndarray:
    z = StandardScaler().fit(x[split.train]).transform(x)
    models = [LogisticRegression(C=c, max_iter=1_000).fit(z[split.train], labels[split.train]) for c in STRENGTHS]
    return max(models, key=lambda model: model.score(z[split.valid], labels[split.valid])).predict(z[split.test])[None]

  return [of_split(split) for split in splits]


def mlp(x: np.ndarray, labels: np.ndarray, splits: list[Split]) -> list[np.ndarray]:
  """Predictions of scikit-learn's layer trained by Adam."""

  def of_seed(z: np.ndarray, split: Split, seed: int) -> np.ndarray:
    model = MLPClassifier(
      (),
      alpha=1e-8,
      batch_size=min(CONFIG.batch_size, int(0.9 * len(split.train))),  # It takes a tenth for its early stopping.
      learning_rate_init=MLP_RATE,
      max_iter=CONFIG.epochs,
      early_stopping=True,
      n_iter_no_change=CONFIG.patience,
      random_state=seed,
    )
    return model.fit(z[split.train], labels[split.train]).predict(z[split.test])

  def of_split(split: Split) -> np.ndarray:
    z = StandardScaler().fit(x[split.train]).transform(x)
    return np.stack([of_seed(z, split, seed) for seed in CONFIG.seeds])

  return [of_split(split) for split in splits]


WAYS = {'ours, compiling': ours, 'ours': ours, 'LogisticRegression': logistic, 'MLPClassifier': mlp}


def compare(name: str, x: np.ndarray, labels: np.ndarray, rounds: int) -> None:
  """Prints seconds, ratios and accuracies of a task."""
  splits = folds(labels)
  seconds, cpu_seconds = ({way: [] for way in WAYS} for _ in range(2))
  for _ in range(rounds):
    jax.clear_caches()
    for way, run in WAYS.items():
      begin, cpu_begin = time.perf_counter(), time.process_time()
      found = run(x, labels, splits)
      seconds[way].append(time.perf_counter() - begin)
      cpu_seconds[way].append(time.process_time() - cpu_begin)
      if len(seconds[way]) == 1:
        result = score(found, labels, splits)
        low, high = result.interval
        print(f'{name}: {way}: accuracy {100 * result.score:.1f} % ({100 * low:.1f} to {100 * high:.1f})', flush=True)
  print(f'{name}: {x.shape[0]:,} x {x.shape[1]:,}, {labels.max() + 1} classes')
  for way in WAYS:
    for unit, values in (('s', seconds), ('s of CPU', cpu_seconds)):
      ratios = [theirs / mine for theirs, mine in zip(values[way], values['ours'], strict=True)]
      print(f'  {way}: {spread(values[way], 2)} {unit}, {spread(ratios, 1)} times ours', flush=True)


def main() -> None:
  """Prints the report."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--tasks_dir', help='the folder of the labelled folders')
  parser.add_argument('--workdir', help='the run whose encoder embeds them')
  parser.add_argument('--only', nargs='*', default=[], metavar='NAME', help='of the tasks, these')
  parser.add_argument('--rounds', type=int, default=2)
  options = parser.parse_args()
  if bool(options.tasks_dir) != bool(options.workdir):
    parser.error('--tasks_dir and --workdir go together')
  warnings.simplefilter('ignore', ConvergenceWarning)
  print(machine())
  print(
    f'{FOLDS} folds x {len(CONFIG.seeds)} seeds, learning rates {CONFIG.learning_rates}, C {STRENGTHS}, MLP {MLP_RATE}'
  )
  real = options.tasks_dir is not None
  tasks = embedded(options.tasks_dir, options.workdir, tuple(options.only)) if real else synthetic()
  for name, x, labels in tasks:
    compare(name, x, labels, options.rounds)


if __name__ == '__main__':
  main()
