import shutil

import numpy as np
import pytest
import soundfile

from tests.processes import run_python

# A run small enough for a test, with every part of a real one: dropout, batch statistics, all augmentations.
TINY = """
import ml_collections


def get_config():
  return ml_collections.ConfigDict(
    {
      'steps': 12,
      'batch_size': 16,
      'augment': {'mixup_group': 4},
      'encoder': {'conv_channels': 8, 'width': 32, 'concat_conv': True},
      'projector': {'hidden_width': 32, 'output_width': 24},
      'optimizer': {'name': 'adamw', 'learning_rate': 1e-3, 'weight_decay': 0.01, 'warmup_steps': 2},
      'checkpoint': {'every_steps': 4},
      'log': {'every_steps': 2, 'health_every_steps': 4},
    }
  )
"""


def write_sounds(folder, count, seed=0):
  """Plucked strings (Karplus and Strong, 1983) of random pitch and 0.5 to 1.5 seconds."""
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  for i in range(count):
    sound = np.zeros(int(rng.uniform(0.5, 1.5) * 16_000))
    period = int(rng.integers(20, 200))
    sound[:period] = rng.uniform(-0.5, 0.5, period)
    for start in range(period, len(sound), period):
      block = sound[start - period : start]
      sound[start : start + period] = (0.498 * (block + np.roll(block, 1)))[: len(sound) - start]
    soundfile.write(folder / f'pluck_{i:02d}.wav', sound, 16_000)


@pytest.fixture(scope='session')
def config_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('config') / 'tiny.py'
  path.write_text(TINY)
  return path


@pytest.fixture(scope='session')
def dataset(tmp_path_factory):
  folder = tmp_path_factory.mktemp('dataset')
  write_sounds(folder / 'sounds', 40)
  run_python('-m', 'selfie_jax.prepare', 'folder', '--input', folder / 'sounds', '--output', folder / 'records')
  return folder / 'records'


@pytest.fixture(scope='session')
def finished_run(tmp_path_factory, config_file, dataset):
  """The undisturbed run that others are compared with."""
  workdir = tmp_path_factory.mktemp('runs') / 'undisturbed'
  run_python('-m', 'selfie_jax.train', '--config', config_file, '--workdir', workdir, f'--config.data.path={dataset}')
  return workdir


@pytest.fixture
def run_copy(finished_run, tmp_path):
  """A copy of the finished run that a test may change."""
  return shutil.copytree(finished_run, tmp_path / 'run')
