"""One task, from its files to its readouts' predictions, by one of two protocols.

`evar` is the protocol of EVAR, the package that the published tables of BYOL-A, MSM-MAE, M2D and others were made with,
every quirk of it included: its figures compare with those tables. `corrected` mends the quirks, and is the default.

                     evar                                       corrected
  z-scoring          scalar mean and std of at most 5,000       those of the pre-training data: what the encoder
  of log-mel         random train clips of this task, of fold   was trained with. So an embedding does not depend
                     1 for all folds; running means over        on the task, is the same as that of `embed`, and
                     batches of 256 [a] that drop the first     no fold sees another's test clips
  longer clips       cut to a unit: test clips at their head,   cut to their first unit
                     others anywhere, by a fixed seed [b]
  shorter clips      zero-padded to a unit, as if they were     zero-padded to the training crop, and what is past
                     so long                                    both is hidden from the encoder and the pooling
  embedding          the encoder's own pooling (AudioNTT: max + mean over time) of the whole unit, for all folds once
  scaler             where there are folds, fitted on the       fitted on the train clips alone
                     validation clips, too
  learning rate      one, published for each task: `evar_`      the best of `learning_rates` on the validation
                     `learning_rate` of task.json (or 1e-3)     clips
  loss               cross-entropy divided by the number of     cross-entropy (their mean over the batch in both)
                     classes
  readouts           linear                                     `READOUTS`; of few shots

In both: one linear layer, Adam, the epoch with the best validation score, folds averaged, then seeds; fold tasks hold
out a random tenth of each class of the other folds to validate with.

  [a] The size is our assumption. Of a task with no second batch the first one counts.
  [b] Where there are folds, every clip is tested once and embedded once: all are cut at their heads.
"""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from selfie_jax.config import Evaluation
from selfie_jax.embedding import embeddings
from selfie_jax.embedding.clips import Units
from selfie_jax.errors import UserError
from selfie_jax.evaluation.features.cache import ArrayCache
from selfie_jax.evaluation.features.shares import VERSION, Keyed, represent_all
from selfie_jax.evaluation.readouts.few_shot import clips_of_classes, probe_of_shots
from selfie_jax.evaluation.readouts.fine_tuning import fine_tune
from selfie_jax.evaluation.readouts.knn import nearest_neighbours
from selfie_jax.evaluation.readouts.linear import probe
from selfie_jax.evaluation.readouts.logistic_regression import logistic_regression
from selfie_jax.evaluation.readouts.prediction import Prediction
from selfie_jax.evaluation.tasks.folder import LabelledFolder
from selfie_jax.terminal import console, progress
from selfie_jax.training.state import Encoder, LoadedEncoder

PROTOCOLS = ('corrected', 'evar')
READOUTS = ('linear', 'logistic_regression', 'knn', 'fine_tuning')

LOG_MEL_STATISTICS = 'log_mel_statistics'
UNTRAINED = 'untrained'
TRAINED = 'trained'

_EVAR_SEED = 0  # Of the random cuts, and of the clips that the statistics are taken from.
_EVAR_STATISTICS_CLIPS = 5_000
_EVAR_STATISTICS_BATCH = 256
_LEAST_STD = 0.01  # Of log-mel values: digital silence has 0, up to rounding; any recording has more than 1.


@dataclasses.dataclass(frozen=True)
class TaskResult:
  """What one task gave."""

  folder: LabelledFolder
  # Readout (of `READOUTS`, or 'linear_5_shots') -> representation -> one a split, or fold.
  predictions: dict[str, dict[str, list[Prediction]]]
  mean: float  # Of log-mel values: the z-scoring of the encoders' input.
  std: float
  embeddings: np.ndarray  # (clips, features) float32 of the trained encoder.
  untrained_embeddings: np.ndarray | None  # Of the untrained one, if it was asked for.


def evaluate_task(
  folder: LabelledFolder, run: LoadedEncoder, untrained: Encoder | None, evaluation: Evaluation, cache: ArrayCache
) -> TaskResult | None:
  """Represents every clip and reads the labels from the representations. All processes must ask, in the same order.

  They share the clips; the first one reads the labels, while the others may go on to the next task.

  Args:
    folder: the task.
    run: the trained encoder, its front-end and statistics, and the length it was trained on.
    untrained: the same encoder untrained, to compare with; None leaves it and the log-mel statistics out.
    evaluation: the protocol, the readouts and their settings.
    cache: of representations.

  Returns:
    The result; None on all processes but the first.

  Raises:
    UserError: a clip cannot be read, or, where the task's statistics are taken, the train clips are all silent.
  """
  evar = evaluation.protocol == 'evar'
  units = _units(folder, run, evar)
  min_samples = units.samples if evar else run.config.crop_samples
  mean, std = _evar_statistics(folder, run, units, cache) if evar else (run.mean, run.std)
  encoders = {TRAINED: run.encoder} if untrained is None else {UNTRAINED: untrained, TRAINED: run.encoder}

  def keyed(encoder: Encoder) -> Keyed:
    represent = embeddings.encoder_representation(encoder, run.config.log_mel, mean, std, min_samples=min_samples)
    facts = {'kind': repr(run.config.encoder), 'weights': embeddings.digest(encoder), 'mean': mean, 'std': std}
    return Keyed(represent, facts)

  representations = {name: keyed(encoder) for name, encoder in encoders.items()}
  if untrained is not None:
    statistics = Keyed(embeddings.log_mel_statistics, {'kind': LOG_MEL_STATISTICS})
    representations = {LOG_MEL_STATISTICS: statistics} | representations
  features = represent_all(
    units,
    representations,
    run.config.log_mel,
    cache,
    _facts(folder, units, evaluation.protocol),
    min_samples=min_samples,
    title=folder.name,
  )
  if features is None:
    return None

  predictions = _read_out(features, folder, evaluation)
  if 'fine_tuning' in evaluation.readouts:
    predictions['fine_tuning'] = fine_tune(encoders, folder, units, run, evaluation)
  return TaskResult(folder, predictions, mean, std, features[TRAINED], features.get(UNTRAINED))


def _read_out(
  features: Mapping[str, np.ndarray], folder: LabelledFolder, evaluation: Evaluation
) -> dict[str, dict[str, list[Prediction]]]:
  """Returns the predictions of the readouts that see a representation and no more, the headline's first."""
  evar = evaluation.protocol == 'evar'
  rates = (folder.evar_learning_rate,) if evar else evaluation.learning_rates
  labels, splits = folder.labels, folder.splits
  readouts = {
    'linear': lambda x: probe(x, labels, splits, evaluation, learning_rates=rates, evar=evar),
    'logistic_regression': lambda x: logistic_regression(x, labels, splits),
    'knn': lambda x: nearest_neighbours(x, labels, splits),
    'fine_tuning': None,  # Its place in the order; it sees the clips.
  }
  wanted = {name: readouts[name] for name in evaluation.readouts}
  fewest, most = clips_of_classes(labels, splits)
  if (asked := max(evaluation.shots, default=0)) > fewest:
    have = f'{fewest}' if fewest == most else f'{fewest} to {most}'
    console.print(f'{folder.name}: {asked} shots asked for, classes have {have} training clips')
  for shots in evaluation.shots:
    wanted[f'linear_{shots}_shots'] = lambda x, shots=shots: probe_of_shots(x, labels, splits, evaluation, shots)
  return {
    readout: {name: read(x) for name, x in progress(features.items(), f'{folder.name}: {readout}')} if read else {}
    for readout, read in wanted.items()
  }


def _units(folder: LabelledFolder, run: LoadedEncoder, evar: bool) -> Units:
  """Returns how the protocol cuts and pads the task's clips."""
  sample_rate = run.config.log_mel.sample_rate
  samples = max(1, round(folder.unit_seconds * sample_rate))
  if not evar:
    return Units(folder.files, sample_rate, samples)
  places = np.random.default_rng(_EVAR_SEED).random(len(folder.files))
  places[np.concatenate([split.test for split in folder.splits])] = 0
  return Units(folder.files, sample_rate, samples, places, padded=True)


def _facts(folder: LabelledFolder, units: Units, protocol: str) -> dict[str, object]:
  """Returns what tells the task's clips, as they are cut here, from all others."""
  return {'folder': folder.fingerprint, 'samples': units.samples, 'protocol': protocol}


def _evar_statistics(
  folder: LabelledFolder, run: LoadedEncoder, units: Units, cache: ArrayCache
) -> tuple[float, float]:
  """Returns the mean and the standard deviation that EVAR would z-score this task's log-mel with.

  Each process computes them: the encoders' input needs them before the clips can be shared out.
  """
  train = folder.splits[0].train
  rows = np.random.default_rng(_EVAR_SEED).permutation(train)[:_EVAR_STATISTICS_CLIPS]
  config = run.config.log_mel
  facts = {'statistics': _facts(folder, units, 'evar'), 'log_mel': dataclasses.asdict(config)}
  facts |= {'version': VERSION, 'platform': jax.default_backend(), 'rows': len(rows), 'batch': _EVAR_STATISTICS_BATCH}
  found = cache.read(facts)
  if found is None:
    clips = progress(units.decode(rows), f'{folder.name}: statistics of train clips', len(rows))
    moments = embeddings.log_mel_moments(clips, config, min_samples=units.samples, max_samples=units.samples)
    found = np.array(running_statistics(moments, _EVAR_STATISTICS_BATCH))
    cache.write(facts, found)
  mean, std = map(float, found)
  if std < _LEAST_STD:
    raise UserError(f'{folder.name}: the {len(rows)} train clips are all silent (log-mel standard deviation {std:.2g})')
  return mean, std


def running_statistics(moments: np.ndarray, batch: int) -> tuple[float, float]:
  """Mean and standard deviation as EVAR's running means over batches find them, which drop the first batch.

  Args:
    moments: (clips, 3) number, sum and sum of squares of each clip's values, in the order in which they are seen.
    batch: clips in a batch; the last one may be smaller, and counts as much as the others.
  """
  sums = [part.astype(np.float64).sum(0) for part in np.split(moments, range(batch, len(moments), batch))]
  counts, totals, squares = np.stack(sums[1:] or sums).T
  mean = (totals / counts).mean()
  # Of a second pass, with that mean.
  variance = ((squares - 2 * mean * totals) / counts + mean**2).mean()
  return float(mean), float(np.sqrt(max(0.0, variance)))
