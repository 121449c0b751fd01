"""One split of one task, from its files to its probes' predictions."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from selfie_jax.config import Evaluation
from selfie_jax.errors import UserError
from selfie_jax.evaluation import embeddings
from selfie_jax.evaluation.clips import decode_clips
from selfie_jax.evaluation.probe import ProbeResult, probe
from selfie_jax.evaluation.tasks.folder import LabelledFolder, Split
from selfie_jax.terminal import progress
from selfie_jax.training.checkpointing.checkpoints import LoadedEncoder
from selfie_jax.training.state import Encoder

LOG_MEL_STATISTICS = 'log_mel_statistics'
UNTRAINED = 'untrained'
TRAINED = 'trained'

_STATISTICS_CLIPS = 5_000  # Train clips that the z-scoring statistics are taken from, at most.
_LEAST_STD = 0.01  # Of log-mel values: digital silence has 0, up to rounding; any recording has more than 1.


@dataclasses.dataclass(frozen=True)
class SplitResult:
  """What one split gave."""

  mean: float  # Of the train clips' log-mel values: the z-scoring of the encoders' input.
  std: float
  probes: dict[str, ProbeResult]  # One a representation.
  test_embeddings: np.ndarray  # (test clips, features) of the trained encoder.


def evaluate_split(
  folder: LabelledFolder,
  split: Split,
  run: LoadedEncoder,
  untrained: Encoder | None,
  evaluation: Evaluation,
  *,
  unit_seconds: float,
  title: str,
) -> SplitResult:
  """Represents every clip and probes the representations. The train clips alone decide z-scoring, scaler and probe.

  Args:
    folder: the task.
    split: of `folder.splits`.
    run: the trained encoder, its front-end and the length it was trained on, to which shorter clips are padded.
    untrained: the same encoder untrained, to compare with; None leaves it and the log-mel statistics out.
    evaluation: the probes' settings.
    unit_seconds: longer clips are cut there.
    title: what the progress bars say.

  Raises:
    UserError: a clip cannot be read, or the train clips are all silent.
  """
  config = run.config.log_mel
  max_samples = max(1, round(unit_seconds * config.sample_rate))
  lengths = {'min_samples': run.config.crop_samples, 'max_samples': max_samples}

  def decoded(rows: np.ndarray, what: str) -> Iterator[np.ndarray]:
    clips = decode_clips([folder.files[row] for row in rows], config.sample_rate, max_samples)
    return progress(clips, f'{title}: {what}', len(rows))

  random = np.random.default_rng(0)
  sample = random.choice(split.train, min(_STATISTICS_CLIPS, len(split.train)), replace=False)
  mean, std = embeddings.log_mel_mean_and_std(decoded(sample, 'statistics of train clips'), config, **lengths)
  if std < _LEAST_STD:
    raise UserError(f'{title}: the {len(sample)} train clips are all silent (log-mel standard deviation {std:.2g})')

  def encoding(encoder: Encoder) -> embeddings.Representation:
    return embeddings.encoder_representation(encoder, config, mean, std, min_samples=run.config.crop_samples)

  representations = {TRAINED: encoding(run.encoder)}
  if untrained is not None:
    representations = {
      LOG_MEL_STATISTICS: embeddings.log_mel_statistics,
      UNTRAINED: encoding(untrained),
    } | representations
  everything = decoded(np.arange(len(folder.files)), 'embeddings')
  vectors = embeddings.represent(everything, representations.values(), config, **lengths)
  features = dict(zip(representations, vectors, strict=True))
  probes = {
    name: probe(features[name], folder.labels, len(folder.classes), split, evaluation)
    for name in progress(list(features), f'{title}: probes')
  }
  return SplitResult(mean, std, probes, features[TRAINED][split.test])
