"""Fine-tuning: the encoder with a linear layer on its embedding, all of it trained on a task's clips.

Batch normalisation and dropout are in training mode, the log-mel spectrogram is computed on the device, and each batch
is cut over the devices of this process. Adam; a linear warm-up, then a cosine to 0. The epoch and the learning rate are
chosen on the validation clips. In training a clip longer than a unit is cut anywhere in its first three, by the seed;
validation and test clips are whole units, from their heads. What the untrained encoder gives in this way is the task
learned from scratch.

The task's clips are held in memory, as int16: 32 kB a second.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from selfie_jax.audio.log_mel import log_mel, num_frames
from selfie_jax.config import Evaluation, LogMel
from selfie_jax.embedding.clips import Units
from selfie_jax.evaluation.readouts import metrics
from selfie_jax.evaluation.readouts.prediction import Prediction
from selfie_jax.evaluation.tasks.folder import LabelledFolder, Split
from selfie_jax.terminal import progress, progress_bar
from selfie_jax.training.state import Encoder, LoadedEncoder
from selfie_jax.training.step import example_keys

_HELD_UNITS = 3  # Of a long clip.

_Weights = tuple[Any, nnx.State]  # {'encoder': its parameters, 'head': the linear layer's}, and batch statistics.


def fine_tune(
  encoders: Mapping[str, Encoder], folder: LabelledFolder, units: Units, run: LoadedEncoder, evaluation: Evaluation
) -> dict[str, list[Prediction]]:
  """Fine-tunes each encoder on each split. On the CPU a function of the arguments alone.

  Args:
    encoders: by name, all with the settings of `run`; they stay as they are.
    folder: the task.
    units: its clips.
    run: the front-end, the z-scoring and the length it was trained on, to which shorter clips are padded.
    evaluation: seeds, and `fine_tuning`.

  Returns:
    For each name a prediction a split; of a multi-label task they are logits.
  """
  held = Units(units.files, units.sample_rate, _HELD_UNITS * units.samples)
  clips = list(progress(held.decode(np.arange(len(units.files))), f'{folder.name}: clips', len(units.files)))
  unit_samples = min(units.samples, max(map(len, clips)))
  training = _Training(clips, folder, run, evaluation, unit_samples)
  settings = evaluation.fine_tuning
  runs = len(encoders) * len(folder.splits) * len(evaluation.seeds) * len(settings.learning_rates)
  with progress_bar(f'{folder.name}: fine-tuning', runs, unit='trainings') as show:
    done = iter(range(1, runs + 1))
    return {
      name: [training.predict_split(encoder, split, lambda: show(next(done))) for split in folder.splits]
      for name, encoder in encoders.items()
    }


class _Training:
  """What all trainings of one task have in common."""

  def __init__(
    self,
    clips: Sequence[np.ndarray],
    folder: LabelledFolder,
    run: LoadedEncoder,
    evaluation: Evaluation,
    unit_samples: int,
  ) -> None:
    self._clips = clips
    self._unit_samples = unit_samples  # Longer clips are cut to them.
    self._samples = max(run.config.crop_samples, unit_samples)  # Of a row of a batch.
    self._labels = folder.labels if folder.multi_label else folder.labels.astype(np.int32)
    self._classes = len(folder.classes)
    self._multi_label = folder.multi_label
    self._seeds = evaluation.seeds
    self._settings = evaluation.fine_tuning
    self._input = (run.config.log_mel, run.config.crop_samples)  # Hashable: each program is compiled once.
    self._z_scoring = run.mean, run.std

  def predict_split(self, encoder: Encoder, split: Split, tell: Callable[[], None]) -> Prediction:
    """Trains with all seeds and rates; returns what those of the best rate say of the test clips."""
    graphdef, params, statistics = nnx.split(encoder, nnx.Param, nnx.BatchStat)
    head = {'kernel': jnp.zeros((encoder.features, self._classes)), 'bias': jnp.zeros(self._classes)}
    start = ({'encoder': params, 'head': head}, statistics)
    found = []
    for rate in self._settings.learning_rates:
      found.append([self._train(graphdef, start, split, rate, seed, tell) for seed in self._seeds])
    scores = [[score for score, _, _ in of_rate] for of_rate in found]
    chosen = int(np.mean(scores, axis=1).argmax())
    predictions = np.stack([logits for _, _, logits in found[chosen]])
    return Prediction(
      predictions if self._multi_label else predictions.argmax(-1),
      {
        'learning_rate': self._settings.learning_rates[chosen],
        'valid_score': scores[chosen],
        'best_epoch': [epoch for _, epoch, _ in found[chosen]],
      },
    )

  def _train(
    self, graphdef: nnx.GraphDef, weights: _Weights, split: Split, rate: float, seed: int, tell: Callable[[], None]
  ) -> tuple[float, int, np.ndarray]:
    """Returns the best epoch's validation score, its number (1 is the first) and its logits of the test clips."""
    settings = self._settings
    size = min(settings.batch_size, len(split.train))
    batches = len(split.train) // size  # What is left over of an epoch's order is left out.
    rates = _rates(rate, batches, settings.epochs, settings.warmup_epochs)
    by_row, everywhere = _layout(size)
    weights = jax.device_put(weights, everywhere)
    moments = jax.device_put(optax.scale_by_adam().init(weights[0]), everywhere)
    best, best_score, best_epoch = weights, -1.0, 0
    for epoch in range(1, settings.epochs + 1):
      random = np.random.default_rng((seed, epoch))
      order = random.permutation(split.train)[: batches * size].reshape(batches, size)
      for i, rows in enumerate(order):
        step = (epoch - 1) * batches + i
        batch = jax.device_put((*self._batch(rows, size, random), self._labels[rows]), by_row)
        key = jax.random.fold_in(jax.random.key(seed), step)
        weights, moments = _step(
          graphdef, weights, moments, batch, rates[step], key, *self._z_scoring, self._input, self._multi_label
        )
      score = metrics.valid_score(self._logits(graphdef, weights, split.valid, size), self._labels[split.valid])
      if score >= best_score:
        best, best_score, best_epoch = weights, score, epoch
      if epoch - best_epoch >= settings.patience:
        break
    tell()
    return best_score, best_epoch, self._logits(graphdef, best, split.test, size)

  def _batch(
    self, rows: np.ndarray, size: int, random: np.random.Generator | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns clips (size, samples) int16, zeros behind the last, and how many samples each has (size,)."""
    audio, counts = np.zeros((size, self._samples), np.int16), np.ones(size, np.int32)
    for i, row in enumerate(rows):
      clip = self._clips[row]
      start = random.integers(max(0, len(clip) - self._unit_samples) + 1) if random is not None else 0
      clip = clip[start : start + self._unit_samples]
      audio[i, : len(clip)], counts[i] = clip, len(clip)
    return audio, counts

  def _logits(self, graphdef: nnx.GraphDef, weights: _Weights, rows: np.ndarray, size: int) -> np.ndarray:
    by_row, _ = _layout(size)
    found = []
    for part in np.split(rows, range(size, len(rows), size)):
      batch = jax.device_put(self._batch(part, size), by_row)
      found.append(np.asarray(_predict(graphdef, weights, batch, *self._z_scoring, self._input))[: len(part)])
    return np.concatenate(found)


def _rates(peak: float, batches: int, epochs: int, warmup_epochs: int) -> np.ndarray:
  """Returns each step's learning rate."""
  warmup = batches * min(warmup_epochs, epochs - 1)
  schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, batches * epochs)
  return np.asarray(schedule(jnp.arange(1, batches * epochs + 1)), np.float32)


def _layout(size: int) -> tuple[NamedSharding, NamedSharding]:
  """Returns how a batch lies on the devices, as many of this process's as divide it, and how the weights do."""
  devices = jax.local_devices()
  devices = devices[: max(count for count in range(1, len(devices) + 1) if size % count == 0)]
  mesh = Mesh(np.array(devices), ('data',), axis_types=(AxisType.Auto,))
  return NamedSharding(mesh, PartitionSpec('data')), NamedSharding(mesh, PartitionSpec())


def _apply(
  graphdef: nnx.GraphDef,
  weights: _Weights,
  audio: jax.Array,
  counts: jax.Array,
  keys: jax.Array | None,
  mean: float,
  std: float,
  settings: tuple[LogMel, int],
) -> tuple[jax.Array, nnx.State]:
  """Returns the logits (n, classes) and the batch statistics; in training mode if there are `keys` (n,)."""
  config, min_samples = settings
  params, statistics = weights
  encoder = nnx.merge(graphdef, params['encoder'], statistics, copy=True)
  x = (log_mel(audio, config) - mean) / std
  frames = num_frames(jnp.maximum(counts, min_samples), config)
  features = encoder(x, train=keys is not None, keys=keys, valid=frames)
  embedding = encoder.pool(features, frames // encoder.frame_stride)
  head = params['head']
  return embedding @ head['kernel'] + head['bias'], nnx.split(encoder, nnx.Param, nnx.BatchStat)[2]


@functools.partial(jax.jit, static_argnums=(0, 8, 9))
def _step(
  graphdef: nnx.GraphDef,
  weights: _Weights,
  moments: optax.OptState,
  batch: tuple[jax.Array, jax.Array, jax.Array],
  rate: float,
  key: jax.Array,
  mean: float,
  std: float,
  settings: tuple[LogMel, int],
  multi_label: bool,
) -> tuple[_Weights, optax.OptState]:
  audio, counts, labels = batch

  def loss_fn(params: Any) -> tuple[jax.Array, nnx.State]:
    keys = example_keys(key, len(audio))
    logits, statistics = _apply(graphdef, (params, weights[1]), audio, counts, keys, mean, std, settings)
    loss = optax.sigmoid_binary_cross_entropy if multi_label else optax.softmax_cross_entropy_with_integer_labels
    return loss(logits, labels).mean(), statistics

  gradients, statistics = jax.grad(loss_fn, has_aux=True)(weights[0])
  updates, moments = optax.scale_by_adam().update(gradients, moments)
  params = optax.apply_updates(weights[0], jax.tree.map(lambda update: -rate * update, updates))
  return (params, statistics), moments


@functools.partial(jax.jit, static_argnums=(0, 5))
def _predict(
  graphdef: nnx.GraphDef,
  weights: _Weights,
  batch: tuple[jax.Array, jax.Array],
  mean: float,
  std: float,
  settings: tuple[LogMel, int],
) -> jax.Array:
  return _apply(graphdef, weights, *batch, None, mean, std, settings)[0]
