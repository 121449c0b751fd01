import dataclasses
import importlib.util
import sys

import numpy as np
import pytest

import selfie_jax
from selfie_jax import config
from selfie_jax.errors import UserError
from selfie_jax.evaluation import hear
from tests.conftest import require
from tests.evaluation.conftest import CONFIG, SAMPLE_RATE, tone, write_run
from tests.processes import run_python

# What the command `hear-validator` runs, for several models: importing PyTorch and TensorFlow takes most of the time.
VALIDATE = """
import sys
from hearvalidator.validate import ValidateModel
from selfie_jax.models import vit
vit.SIZES['test'] = (16, 2, 2)
for path in sys.argv[1:]:
  ValidateModel('selfie_jax.evaluation.hear', path, device='cpu')()
  print('valid')
"""


def is_installed(*packages):
  return all(importlib.util.find_spec(package) for package in packages)


@pytest.fixture
def vit_run(tmp_path, _small_vit):
  """With patches of 160 ms."""
  return write_run(tmp_path, dataclasses.replace(CONFIG, encoder=config.ViT(size='test', patch=(16, 16))))


def test_the_validator_finds_nothing_wrong_with_either_encoder(workdir, vit_run):
  require('hearvalidator', is_installed('hearvalidator', 'torch', 'tensorflow'))
  result = run_python('-W', 'error::UserWarning', '-c', VALIDATE, workdir, vit_run)
  assert result.stdout.count('valid\n') == 2
  assert result.stdout.count('Interval between timestamps is 40.0ms') == 2


def test_tensors_go_in_and_out(workdir, monkeypatch):
  require('hearvalidator', is_installed('torch'))
  import torch

  monkeypatch.setenv('SELFIE_JAX_MODEL', str(workdir))
  model, encoder = hear.load_model(), selfie_jax.load(workdir)
  assert (model.sample_rate, model.scene_embedding_size, model.timestamp_embedding_size) == (SAMPLE_RATE, 64, 64)
  for seconds in (0.93, 0.03):
    clips = np.stack([tone(300, seconds, seed).astype(np.float32) for seed in range(3)])
    audio = torch.from_numpy(clips).requires_grad_()
    scenes = hear.get_scene_embeddings(audio, model)
    frames, milliseconds = hear.get_timestamp_embeddings(audio, model)
    assert scenes.dtype == frames.dtype == milliseconds.dtype == torch.float32
    assert milliseconds.shape == frames.shape[:2]
    assert milliseconds.max() <= 1_000 * seconds
    np.testing.assert_array_equal(scenes, encoder.embed(clips, SAMPLE_RATE))
    np.testing.assert_allclose(frames[:, ::2], encoder.frames(clips, SAMPLE_RATE)[0], rtol=1e-5, atol=1e-5)
  with pytest.raises(UserError, match=r'shape \(100,\): HEAR wants'):
    hear.get_scene_embeddings(torch.zeros(100), model)


def test_what_is_missing_is_named(workdir, monkeypatch):
  monkeypatch.delenv('SELFIE_JAX_MODEL', raising=False)
  with pytest.raises(UserError, match='no encoder is given: .* SELFIE_JAX_MODEL'):
    hear.load_model()
  monkeypatch.setitem(sys.modules, 'torch', None)  # As if it were not installed.
  hear._module_class.cache_clear()
  with pytest.raises(UserError, match='PyTorch is not installed: pip install torch'):
    hear.load_model(str(workdir))
