"""What a run reads: one dataset, or a mixture of several, opened and checked once."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Sequence

import numpy as np

from selfie_jax.config import Data, LogMel, Part
from selfie_jax.data.dataset import Dataset, check_log_mel, open_dataset
from selfie_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DataSource:
  """Datasets with the weights that they are mixed by, and how they are read.

  The clips of all of them have numbers: those of the first dataset, then those of the second, and so on.
  """

  datasets: tuple[Dataset, ...]
  weights: tuple[float, ...]
  settings: Data

  @functools.cached_property
  def starts(self) -> list[int]:
    """The number of each dataset's first clip."""
    return [0, *itertools.accumulate(len(dataset.clips) for dataset in self.datasets[:-1])]

  def find(self, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which datasets (n,) clips are of, and their numbers in there, both (n,) int64."""
    starts = np.array(self.starts)
    places = np.searchsorted(starts, clips, side='right') - 1
    return places, clips - starts[places]

  def samples(self, clips: np.ndarray) -> np.ndarray:
    """Returns how long (n,) clips are: (n,) int64."""
    places, numbers = self.find(clips)
    samples = np.empty_like(clips)
    for place in set(places.tolist()):
      samples[places == place] = self.datasets[place].clips.samples(numbers[places == place])
    return samples

  @property
  def num_clips(self) -> int:
    """Clips of all datasets."""
    return sum(len(dataset.clips) for dataset in self.datasets)

  @property
  def fingerprint(self) -> str:
    """SHA-256 of what is read: one dataset's own, or of every dataset's with its weight."""
    if len(self.datasets) == 1:
      return self.datasets[0].fingerprint
    parts = [
      [dataset.fingerprint, dataset.splits, weight] for dataset, weight in zip(self.datasets, self.weights, strict=True)
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

  @property
  def mean(self) -> float:
    """Of the log-mel values."""
    return self._statistics()[0]

  @property
  def std(self) -> float:
    """Standard deviation of the log-mel values."""
    return self._statistics()[1]

  def _statistics(self) -> tuple[float, float]:
    manifests = [dataset.manifest for dataset in self.datasets]
    return mix_statistics(self.weights, [each.mean for each in manifests], [each.std for each in manifests])


def open_data(data: Data, log_mel: LogMel) -> DataSource:
  """Opens what `data` names, having checked that it is whole and was prepared with these log-mel settings.

  Raises:
    UserError: it is not, or it cannot be read as `data` says; the message names the dataset and the remedy.
  """
  datasets = []
  left = data.max_damaged if data.on_damage == 'skip' else 0
  parts = data.mixture or (Part(data.path, splits=data.splits),)
  for part in parts:
    dataset = open_dataset(part.path, part.splits, max_lost=left)
    check_log_mel(dataset, log_mel)
    audio_format = dataset.manifest.source.audio_format
    if data.read == 'crop' and audio_format != 'int16':
      raise UserError(
        f'{part.path} holds {audio_format}, and data.read="crop" needs int16: a crop of {audio_format} cannot be read '
        'alone; give data.read="record"'
      )
    if data.read == 'crop' and (replaced := dataset.clips.find_replaced()) and data.on_damage == 'stop':
      raise UserError(f'cannot read {replaced[0]}; look at the dataset with python -m selfie_jax.prepare verify')
    left -= dataset.lost
    datasets.append(dataset)
  return DataSource(tuple(datasets), tuple(part.weight for part in parts), data)


def mix_statistics(weights: Sequence[float], means: Sequence[float], stds: Sequence[float]) -> tuple[float, float]:
  """Returns mean and standard deviation of a mixture of distributions (the law of total variance)."""
  if len(weights) == 1:
    return means[0], stds[0]  # To the bit.
  total = math.fsum(weights)
  mean = math.fsum(weight * mean for weight, mean in zip(weights, means, strict=True)) / total
  variance = math.fsum(w * (std**2 + (m - mean) ** 2) for w, m, std in zip(weights, means, stds, strict=True)) / total
  return mean, math.sqrt(variance)
