"""The encoder's health: how its embeddings fill their space, from the clips of the evaluated tasks.

`measure` returns, for each representation (the trained encoder, and the untrained one to compare with):
  clips, dimensions    of the embeddings below
  rankme               effective rank: exp of the entropy of the singular values over their sum
  spectrum             rank (1 is the largest) and value of singular values, over the largest one; at most 200, denser
                       among the first
  std                  of each dimension: median and other quantiles; a histogram (counts, edges)
  dead_dimensions      those that hardly vary
  mean_correlation     mean |Pearson's r| between two different dimensions
  correlation          the matrix for a heat map: at most 64 of the dimensions that vary, evenly spaced among them, in
                       the order of an average-linkage clustering by 1 - |r|, so that what moves together lies together
and, where there are views of crops,
  crops                how many
  alignment, uniformity   of the two views' unit-norm embeddings

The formulas: `selfie_jax/health.py`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from selfie_jax import health
from selfie_jax.audio.augment import two_views
from selfie_jax.audio.log_mel import log_mel
from selfie_jax.config import Config
from selfie_jax.embedding.clips import decode_clips
from selfie_jax.evaluation.tasks.folder import LabelledFolder
from selfie_jax.training.state import Encoder

MOST_CROPS = 512
MOST_EMBEDDINGS = 4_096  # The SVD takes seconds.
_MOST_VALUES = 200
_MOST_CORRELATED = 64
_BINS = 30
_QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)

Views = tuple[np.ndarray, np.ndarray]


def measure(embeddings: Sequence[np.ndarray], views: Views | None = None) -> dict[str, Any]:
  """Returns what this module's head says of one encoder, to 4 digits, for results.json.

  Args:
    embeddings: (n, d) of each task; together they are thinned out evenly to at most 4,096.
    views: two of (m, d), of the same crops row for row, m at least 2.
  """
  x = pool(embeddings).astype(np.float64)
  values = health.singular_values(x)
  std = x.std(axis=0)
  matrix = health.correlation(x)
  counts, edges = np.histogram(std, _BINS, range=(0, max(std.max(), 1e-6)))
  ranks = np.unique(np.geomspace(1, len(values), _MOST_VALUES).round().astype(int))
  measured: dict[str, Any] = {
    'clips': len(x),
    'dimensions': x.shape[1],
    'rankme': health.rankme(values),
    'spectrum': {'rank': ranks.tolist(), 'value': (values[ranks - 1] / max(values[0], 1e-30)).tolist()},
    'std': {
      'quantiles': {f'{100 * q:g}%': float(np.quantile(std, q)) for q in _QUANTILES},
      'counts': counts.tolist(),
      'edges': edges.tolist(),
    },
    'dead_dimensions': health.num_dead(std),
    'mean_correlation': health.mean_correlation(matrix),
    'correlation': _clustered(health.thinned(_living(matrix), _MOST_CORRELATED)).round(2).tolist(),
  }
  if views is not None:
    measured |= {
      'crops': len(views[0]),
      'alignment': health.alignment(*views),
      'uniformity': float(np.mean([health.uniformity(view) for view in views])),
    }
  return _rounded(measured)


def pool(embeddings: Sequence[np.ndarray], most: int = MOST_EMBEDDINGS) -> np.ndarray:
  """Returns the rows of all tasks' embeddings, or `most` of them: evenly spaced, so each task has its share.

  Args:
    embeddings: (n, d) of each task.
    most: rows.
  """
  x = np.concatenate(embeddings)
  return x[_evenly(len(x), most)]


def _evenly(count: int, most: int) -> np.ndarray:
  """Returns at most `most` evenly spaced numbers below `count`."""
  return np.linspace(0, count - 1, min(most, count)).round().astype(int)


def _living(matrix: np.ndarray) -> np.ndarray:
  """Returns a correlation matrix without the dimensions that do not vary: those have 0 on the diagonal."""
  index = np.flatnonzero(np.diagonal(matrix) > 0.5)
  return matrix[np.ix_(index, index)]


def _clustered(matrix: np.ndarray) -> np.ndarray:
  """Returns a correlation matrix with similar dimensions beside each other."""
  if len(matrix) < 3:
    return matrix
  from scipy.cluster.hierarchy import leaves_list, linkage  # Slow to import.

  distances = np.clip(1 - np.abs(matrix[np.triu_indices(len(matrix), 1)]), 0, 1)
  order = leaves_list(linkage(distances, 'average', optimal_ordering=True))
  return matrix[np.ix_(order, order)]


def _rounded(value: Any) -> Any:
  """Returns nested figures with floats of 4 significant digits."""
  if isinstance(value, dict):
    return {key: _rounded(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_rounded(item) for item in value]
  return float(f'{value:.4g}') if isinstance(value, float) else value


def choose_crops(folders: Sequence[LabelledFolder], config: Config, most: int = MOST_CROPS) -> np.ndarray:
  """Returns crops of the training's length from evenly spaced clips of all tasks: (n, crop_samples) int16.

  As in training, a crop begins anywhere in its clip, and a clip that is shorter is zero-padded at its end. The same
  files give the same crops.

  Raises:
    UserError: a file that cannot be read, by name.
  """
  files = [file for folder in folders for file in folder.files]
  chosen = [files[row] for row in _evenly(len(files), most)]
  length = max(1, round(max(folder.unit_seconds for folder in folders) * config.log_mel.sample_rate))
  crops = np.zeros((len(chosen), config.crop_samples), np.int16)
  random = np.random.default_rng(0)
  for crop, clip in zip(crops, decode_clips(chosen, config.log_mel.sample_rate, length), strict=True):
    start = random.integers(max(0, len(clip) - len(crop)) + 1)
    part = clip[start : start + len(crop)]
    crop[: len(part)] = part
  return crops


def embed_views(encoder: Encoder, crops: np.ndarray, config: Config, mean: float, std: float) -> Views | None:
  """Embeds two augmented views of each crop, as training with `data.crops=1` makes them; None of fewer than 2 crops.

  Args:
    encoder: used in evaluation mode.
    crops: (n, crop_samples) int16. What is left over of whole groups of mixup partners is not used.
    config: the run's: its front-end and augmentations.
    mean: of the log-mel values in pre-training, for z-scoring.
    std: of the log-mel values in pre-training.

  Returns:
    Two arrays (m, d) float32, row for row of the same crops.
  """
  group = min(config.augment.mixup_group, len(crops))
  count = len(crops) // group * group if group else 0
  if count < 2:
    return None
  augmentation = dataclasses.replace(config.augment, mixup_group=group)
  graphdef, state = nnx.split(encoder)

  @jax.jit
  def embed(state: nnx.State, key: jax.Array, audio: jax.Array) -> list[jax.Array]:
    encoder = nnx.merge(graphdef, state)
    x = (log_mel(audio, config.log_mel) - mean) / std
    return [encoder.pool(encoder(view, train=False)) for view in two_views(key, x, x, augmentation)]

  # One batch of each group's multiple keeps the memory of a long crop's activations small.
  size = group * max(1, 64 // group)
  batches = [crops[start : start + size] for start in range(0, count, size)]
  batches[-1] = batches[-1][: count - size * (len(batches) - 1)]
  keys = jax.random.split(jax.random.key(0), len(batches))
  found = [embed(state, key, jnp.asarray(batch)) for key, batch in zip(keys, batches, strict=True)]
  first, second = zip(*found, strict=True)
  return np.concatenate(first).astype(np.float32), np.concatenate(second).astype(np.float32)
