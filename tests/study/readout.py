"""What an encoder's readout should be: layers and poolings of a frozen AudioNTT, by logistic regression.

  python -m tests.study.readout --workdir RUN --data DIR --record FILE [--untrained]

Writes a record of each choice of layers and pooling, which `tests.study.report` makes a table of if it is in the
folder of the results, under readout/. Choose on valid. A convolution block's frame is its channels times its bands;
whole clips, padded as an evaluation pads them; each layer is pooled over its own frames.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from selfie_jax.config import Task
from selfie_jax.embedding.clips import decode_clips
from selfie_jax.embedding.embeddings import Representation, represent
from selfie_jax.errors import ArgumentParser, run_command
from selfie_jax.evaluation.readouts.logistic_regression import logistic_regression
from selfie_jax.evaluation.tasks.folder import LabelledFolder, load_folder
from selfie_jax.models.audiontt import AudioNTT
from selfie_jax.sharing.loading import load_encoder
from selfie_jax.terminal import console
from selfie_jax.training.state import LoadedEncoder, build_encoder
from tests.study import records

STATISTICS = ('mean', 'max', 'std')
MAX_PLUS_MEAN = 'max + mean'  # As the encoder pools: as wide as one statistic.
_READ_OUT = ('conv1', 'conv2', 'conv3', 'dense2')  # By `concat_blocks=3`.
CHOICES = (
  *((layers, MAX_PLUS_MEAN) for layers in (('conv1',), ('conv2',), ('conv3',), ('dense1',), ('dense2',))),
  *((layers, MAX_PLUS_MEAN) for layers in (('conv3', 'dense2'), ('conv2', 'conv3', 'dense2'), _READ_OUT)),
  (('conv1', 'conv2', 'conv3', 'dense1', 'dense2'), MAX_PLUS_MEAN),
  *((_READ_OUT, pool) for pool in ('mean', 'max', 'mean, max', 'mean, std')),
)

Blocks = Mapping[tuple[str, str], np.ndarray]  # (layer, statistic) -> (clips, width).
Scores = dict[str, dict[str, float]]  # 'valid' or 'test' -> task -> percent.


def main(arguments: Sequence[str]) -> None:
  """Runs the command."""
  parser = ArgumentParser(prog='python -m tests.study.readout', description='Reads out layers and poolings.')
  parser.add_argument('--workdir', required=True, help='the training run')
  parser.add_argument('--data', required=True, help="where the public tasks' folders are")
  parser.add_argument('--record', type=Path, required=True, help='the file to write')
  parser.add_argument('--untrained', action='store_true', help='its encoder as it was before the first step')
  asked = parser.parse_args(arguments)
  run = load_encoder(asked.workdir)
  encoder = build_encoder(run.config) if asked.untrained else run.encoder
  found: dict[tuple[tuple[str, ...], str], Scores] = {}
  for name in (*records.FIVE, records.PITCH):
    folder = load_folder(Task(name), asked.data)
    blocks = layer_statistics(encoder, run, folder)
    for layers, pool in CHOICES:
      if not {layer for layer, _ in blocks}.issuperset(layers):
        continue  # Of an encoder with two blocks.
      of_choice = found.setdefault((layers, pool), {'valid': {}, 'test': {}})
      features = read_out(blocks, layers, pool)
      of_choice['valid'][name], of_choice['test'][name] = scores(features, folder)
      console.print(f'{name}: {", ".join(layers)} ({pool})', of_choice['valid'][name])
  record = {
    'run': Path(asked.workdir).name + (', untrained' if asked.untrained else ''),
    'settings': records.settings_of(run.config),
    'choices': [{'layers': layers, 'pool': pool, 'scores': of_choice} for (layers, pool), of_choice in found.items()],
  }
  records.write(record, asked.record)


def layer_statistics(encoder: AudioNTT, run: LoadedEncoder, folder: LabelledFolder) -> Blocks:
  """Returns each layer's mean, maximum and standard deviation over the frames of each clip of a task."""
  config = run.config
  names = [name for name in encoder.layer_strides if name != 'output']  # It is made of the others.
  representation, widths = statistics_representation(encoder, names, config.log_mel.n_mels, run, config.crop_samples)
  longest = round(folder.unit_seconds * config.log_mel.sample_rate)
  clips = decode_clips(folder.files, config.log_mel.sample_rate, longest)
  [flat] = represent(clips, [representation], config.log_mel, min_samples=config.crop_samples, max_samples=longest)
  keys = [(name, statistic) for name in names for statistic in STATISTICS]
  cuts = np.cumsum([widths[name] for name, _ in keys])[:-1]
  return dict(zip(keys, np.split(flat, cuts, axis=1), strict=True))


def statistics_representation(
  encoder: AudioNTT, names: Sequence[str], n_mels: int, run: LoadedEncoder, min_samples: int
) -> tuple[Representation, dict[str, int]]:
  """Returns the map from log-mel to all layers' statistics side by side, (clips, values), and each layer's width."""
  graphdef, state = nnx.split(encoder)
  strides = [encoder.layer_strides[name] for name in names]
  least = 1 + min_samples // run.config.log_mel.hop_length
  shapes = nnx.eval_shape(lambda encoder, x: encoder.layers(x), encoder, jnp.zeros((1, n_mels, least)))
  widths = {name: shape.shape[-1] for name, shape in zip(names, shapes, strict=False)}

  @jax.jit
  def encode(state: nnx.State, x: jax.Array, frames: jax.Array) -> jax.Array:
    frames = jnp.maximum(frames, least)
    layers = nnx.merge(graphdef, state).layers((x - run.mean) / run.std, valid=frames)
    found = [statistics(layer, frames // stride) for layer, stride in zip(layers, strides, strict=False)]
    return jnp.concatenate(found, axis=1)

  return lambda x, frames: encode(state, x, frames), widths


def statistics(frames: jax.Array, valid: jax.Array) -> jax.Array:
  """Returns the mean, the maximum and the standard deviation over time side by side, (n, 3 * features).

  Args:
    frames: (n, frames, features).
    valid: (n,) how many leading frames of each example count, at least 1.
  """
  counts = (jnp.arange(frames.shape[1]) < valid[:, None])[..., None]
  largest = frames.max(1, where=counts, initial=-jnp.inf)
  return jnp.concatenate([frames.mean(1, where=counts), largest, frames.std(1, where=counts)], axis=1)


def read_out(blocks: Blocks, layers: Sequence[str], pool: str) -> np.ndarray:
  """Returns the features of a choice of layers and pooling, (clips, width)."""
  if pool == MAX_PLUS_MEAN:
    parts = [blocks[layer, 'max'] + blocks[layer, 'mean'] for layer in layers]
  else:
    parts = [blocks[layer, statistic] for layer in layers for statistic in pool.split(', ')]
  return np.concatenate(parts, axis=1)


def scores(features: np.ndarray, folder: LabelledFolder) -> tuple[float, float]:
  """Returns the accuracy on valid and on test, in percent."""
  [found] = logistic_regression(features, folder.labels, folder.splits)
  right = found.predictions[0] == folder.labels[folder.splits[0].test]
  return records.percent(found.details['valid_score']), records.percent(right.mean())


if __name__ == '__main__':
  run_command(main)
