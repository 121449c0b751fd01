"""What an encoder's readout should be: every layer and pooling of a frozen AudioNTT, by the project's linear probe.

  python -m tests.study.readout --workdir RUN --data DIR [--untrained] [--only TASK ...] [--json FILE]

Prints a row for each choice of layers and pooling: mean of the five on valid and test, then each task. Choose on valid.
A convolution block's frame is its channels times its bands; whole clips, padded as an evaluation pads them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from selfie_jax.config import Evaluation, Task
from selfie_jax.embedding.clips import decode_clips
from selfie_jax.embedding.embeddings import Representation, represent
from selfie_jax.errors import ArgumentParser, run_command
from selfie_jax.evaluation.readouts.linear import probe
from selfie_jax.evaluation.tasks.folder import LabelledFolder, load_folder
from selfie_jax.models.audiontt import AudioNTT
from selfie_jax.sharing.loading import load_encoder
from selfie_jax.terminal import console
from selfie_jax.training.state import LoadedEncoder, build_encoder
from tests.study import records

LAYERS = (
  *(('conv1',), ('conv2',), ('conv3',), ('dense1',), ('dense2',)),
  *(('conv3', 'dense2'), ('conv2', 'conv3'), ('conv2', 'conv3', 'dense2')),
  *(('conv1', 'conv2', 'conv3'), ('conv1', 'conv2', 'conv3', 'dense1', 'dense2')),
)
STATISTICS = ('mean', 'max', 'std')
POOLS = ('max + mean', 'mean, max', 'mean, std')

Blocks = Mapping[tuple[str, str], np.ndarray]  # (layer, statistic) -> (clips, width).
Scores = dict[str, dict[str, float]]  # 'valid' or 'test' -> task -> percent.


def main(arguments: Sequence[str]) -> None:
  """Runs the command."""
  parser = ArgumentParser(prog='python -m tests.study.readout', description='Probes every layer and pooling.')
  parser.add_argument('--workdir', required=True, help='the training run')
  parser.add_argument('--data', required=True, help="where the public tasks' folders are")
  parser.add_argument('--untrained', action='store_true', help='its encoder as it was before the first step')
  parser.add_argument('--only', nargs='+', default=[*records.FIVE, records.PITCH], metavar='TASK')
  parser.add_argument('--json', type=Path, help='keep the scores there')
  asked = parser.parse_args(arguments)
  run = load_encoder(asked.workdir)
  encoder = build_encoder(run.config) if asked.untrained else run.encoder
  found: dict[tuple[str, str], Scores] = {}
  for name in asked.only:
    folder = load_folder(Task(name), asked.data)
    blocks = layer_statistics(encoder, run, folder)
    for layers, pool, features in readouts(blocks):
      valid, test = scores(features, folder)
      of_choice = found.setdefault((', '.join(layers), pool), {'valid': {}, 'test': {}})
      of_choice['valid'][name], of_choice['test'][name] = valid, test
      console.print(f'{name}: {", ".join(layers)} ({pool}): valid {valid:.1f}, test {test:.1f}', markup=False)
  print(table(found))
  if asked.json:
    rows = [{'layers': layers, 'pool': pool, 'scores': of_choice} for (layers, pool), of_choice in found.items()]
    asked.json.write_text(json.dumps(rows, indent=1) + '\n')


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


def readouts(blocks: Blocks) -> Iterator[tuple[tuple[str, ...], str, np.ndarray]]:
  """Yields every choice of layers and of pooling, with its features (clips, width)."""
  there = {layer for layer, _ in blocks}
  for layers in LAYERS:
    if not there.issuperset(layers):
      continue  # Of an encoder with two blocks.
    for pool in POOLS:
      if pool == 'max + mean':
        parts = [blocks[layer, 'max'] + blocks[layer, 'mean'] for layer in layers]
      else:
        parts = [blocks[layer, statistic] for layer in layers for statistic in pool.split(', ')]
      yield layers, pool, np.concatenate(parts, axis=1)


def scores(features: np.ndarray, folder: LabelledFolder) -> tuple[float, float]:
  """Returns the linear probe's score on valid and on test, in percent, with one seed."""
  evaluation = Evaluation(seeds=(42,))
  [found] = probe(
    features, folder.labels, folder.splits, evaluation, learning_rates=evaluation.learning_rates, evar=False
  )
  right = found.predictions == folder.labels[folder.splits[0].test]
  return 100 * float(np.mean(found.details['valid_score'])), 100 * float(right.mean())


def table(found: Mapping[tuple[str, str], Scores]) -> str:
  """Returns the scores as Markdown: valid / test."""
  tasks = list(next(iter(found.values()))['valid'])
  rows = [['layers', 'pool', 'mean of five', *tasks], ['---'] * (3 + len(tasks))]
  for (layers, pool), of_choice in found.items():
    means = [records.mean_of_five(of_choice[split]) for split in ('valid', 'test')]
    pairs = [means, *([of_choice[split][task] for split in ('valid', 'test')] for task in tasks)]
    rows.append([layers, pool, *(' / '.join('–' if x is None else f'{x:.1f}' for x in pair) for pair in pairs)])
  return records.markdown(rows)


if __name__ == '__main__':
  run_command(main)
