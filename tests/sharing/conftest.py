import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from selfie_jax import export
from selfie_jax.config import AudioNTT, Config, Projector
from selfie_jax.embedding.clips import decode_clips
from selfie_jax.embedding.embeddings import embed_clips
from selfie_jax.models import vit
from selfie_jax.training.state import LoadedEncoder, build_encoder
from tests.evaluation.conftest import write_run

CONFIG = Config(
  seed=1,
  encoder=AudioNTT(conv_channels=4, width=32, concat_conv=True, concat_blocks=2),
  projector=Projector(hidden_width=16, output_width=8),
)
STEP = 7  # Of `write_run`.


def random_encoder(settings):
  """Every array has values of its own, also the statistics; to initialise one as a run does takes seconds."""
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    values = rng.normal(0, 0.3, leaf.shape)
    is_variance = jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value').endswith('/var')
    return jnp.asarray(0.5 + np.abs(values) if is_variance else values, leaf.dtype)

  graphdef, state = nnx.split(nnx.eval_shape(lambda: build_encoder(settings)))
  return nnx.merge(graphdef, jax.tree.map_with_path(fill, state))


def random_run(settings):
  return LoadedEncoder(random_encoder(settings), settings, -6.0, 4.5, STEP)


@pytest.fixture(scope='session')
def run():
  return random_run(CONFIG)


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
  """A training run's folder."""
  return write_run(tmp_path_factory.mktemp('trained'), dataclasses.replace(CONFIG, compute_dtype='bfloat16'))


@pytest.fixture(scope='session')
def exported(trained, tmp_path_factory):
  """It, exported in all formats that can be written here."""
  folder = tmp_path_factory.mktemp('exported') / 'my encoder'
  formats = ['safetensors', 'stablehlo', *(['onnx'] if importlib.util.find_spec('onnx') else [])]
  export.main(['--workdir', str(trained), '--output', str(folder), '--format', *formats])
  return folder


@pytest.fixture(scope='session')
def clips():
  """Recordings, int16 at 16 kHz: shorter than the training crop, longer, and of an odd number of frames."""
  files = sorted((Path(__file__).parents[1] / 'audio' / 'clips').glob('*.wav'))
  short, middle, other = decode_clips(files, CONFIG.log_mel.sample_rate)
  return [short, np.concatenate([middle, other, short]), np.tile(np.concatenate([short, other]), 3)]


@pytest.fixture
def small_vit(monkeypatch):
  monkeypatch.setitem(vit.SIZES, 'tiny', (16, 2, 2))


def embed(run, clips):
  return embed_clips(run.encoder, clips, run.config.log_mel, run.mean, run.std, min_samples=run.config.crop_samples)
