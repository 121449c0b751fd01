import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

from selfie_jax import config
from selfie_jax.config import Config, Projector
from selfie_jax.models import audiontt, vit
from selfie_jax.training.checkpointing import checkpoints
from selfie_jax.training.optimizer import make_optimizer
from selfie_jax.training.state import init_state

SAMPLE_RATE = 16_000
CONFIG = Config(
  seed=1, encoder=config.AudioNTT(conv_channels=8, width=64), projector=Projector(hidden_width=16, output_width=8)
)


@pytest.fixture(scope='session')
def encoder():
  return audiontt.AudioNTT(CONFIG.encoder, CONFIG.log_mel.n_mels, rngs=nnx.Rngs(0))


VIT = config.ViT(size='test', patch=(16, 8))


@pytest.fixture
def _small_vit(monkeypatch):
  monkeypatch.setitem(vit.SIZES, 'test', (16, 2, 2))


@pytest.fixture
def learned_vit(_small_vit):
  """Of crops of 96 frames."""
  return vit.ViT(dataclasses.replace(VIT, positions='learned'), CONFIG.log_mel.n_mels, 96, rngs=nnx.Rngs(0))


@pytest.fixture(params=['audiontt', 'vit'])
def any_encoder(request, encoder, _small_vit):
  if request.param == 'audiontt':
    return encoder
  return vit.ViT(VIT, CONFIG.log_mel.n_mels, 96, rngs=nnx.Rngs(0))


def _fill(path, leaf):
  """Random numbers: to initialise as a run does takes seconds."""
  if not jnp.issubdtype(leaf.dtype, jnp.floating):
    return jnp.zeros(leaf.shape, leaf.dtype)
  name = jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value').rpartition('/')[2]
  values = np.random.default_rng(leaf.size).normal(0, 0.15, leaf.shape)
  return jnp.asarray(np.abs(1 + values) if name in ('scale', 'var') else values, leaf.dtype)


def write_run(folder, settings):
  """What a run leaves behind, without the training: the checkpoint's encoder has other weights than the untrained."""
  trained = jax.tree.map_with_path(_fill, jax.eval_shape(lambda: init_state(settings, make_optimizer(settings))))
  with checkpoints.open_manager(folder, settings) as manager:
    checkpoints.save(manager, 7, trained, checkpoints.DataState('fingerprint', -6.0, 4.0, variance_groups=1), settings)
    manager.wait_until_finished()
  metrics = {'loss': 3.0, 'invariance': 0.1, 'diversity': 0.01, 'decorrelation': 0.25, 'effective_rank': 20.0}
  lines = [json.dumps({'step': step, **metrics}) for step in (1, 2)] + ['{"step": 3, "lo']  # Killed while writing.
  (folder / 'metrics.jsonl').write_text('\n'.join(lines))
  return folder


@pytest.fixture(scope='session')
def workdir(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp('run'), CONFIG)


def tone(frequency, seconds, seed):
  rng = np.random.default_rng(seed)
  times = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
  return 0.3 * np.sin(2 * np.pi * frequency * times) + 0.01 * rng.normal(size=len(times))


def write_table(path, columns, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('w', newline='') as stream:
    writer = csv.writer(stream)
    writer.writerow(columns)
    writer.writerows(rows)


def write_tones(folder, part, per_class=10, **classes):
  """A labelled folder of tones. `classes`: label=frequency. `part(label, i)` gives the value of the column `split`."""
  rows = []
  for label, frequency in classes.items():
    for i in range(per_class):
      name = f'{label}_{i}.wav'
      folder.mkdir(parents=True, exist_ok=True)
      sound = tone(frequency * (1 + 0.01 * i), 0.3 + 0.1 * i, seed=i)
      soundfile.write(folder / name, sound, SAMPLE_RATE)
      rows.append((name, part(label, i), label))
  write_table(folder / 'metadata.csv', ('file_name', 'split', 'label'), rows)
  return folder


@pytest.fixture(scope='session')
def tones(tmp_path_factory):
  split = lambda label, i: 'train' if i < 5 else 'valid' if i < 7 else 'test'  # noqa: E731
  return write_tones(tmp_path_factory.mktemp('tones'), split, low=200, middle=800, high=3_000)
