"""`torch_audiontt.npz` was written by a PyTorch program made from the papers alone, in evaluation mode.

It has an AudioNTT2020 of 12 channels and width 48, and an AudioNTT2022 of 8 and 40, with random weights and running
statistics: `2020.weights.*` by BYOL-A's names, and what they make of `log_mel` (3 recordings, 64 bands, 101 frames),
`2020.frames` and `2020.embeddings`; and the same of 2022.
"""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import soundfile
from flax import nnx

from selfie_jax import embed, export, import_torch
from selfie_jax.config import AudioNTT, Config
from selfie_jax.errors import UserError
from selfie_jax.sharing.loading import load_encoder
from selfie_jax.sharing.torch_weights import convert, read_state_dict
from selfie_jax.training.state import build_encoder
from tests.conftest import require

RELATIVE = 1e-5


@pytest.fixture(scope='module')
def reference():
  with np.load(Path(__file__).with_name('torch_audiontt.npz')) as arrays:
    return dict(arrays)


def weights_of(reference, year):
  prefix = f'{year}.weights.'
  return {name.removeprefix(prefix): value for name, value in reference.items() if name.startswith(prefix)}


def run_import(weights, output, *arguments):
  import_torch.main(['--weights', str(weights), '--mean=-5.5', '--std=5', '--output', str(output), *arguments])


def write(folder, state_dict):
  path = folder / 'weights.safetensors'
  safetensors.numpy.save_file(state_dict, path)
  return path


def assert_near(found, expected):
  np.testing.assert_allclose(found, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


@pytest.mark.parametrize('year', ['2020', '2022'])
def test_an_imported_encoder_computes_what_pytorch_does(reference, tmp_path, year):
  run_import(write(tmp_path, weights_of(reference, year)), tmp_path / 'model')
  run = load_encoder(tmp_path / 'model')
  assert (run.mean, run.std, run.step) == (-5.5, 5.0, None)
  frames = run.encoder(reference['log_mel'], train=False)
  assert_near(frames, reference[f'{year}.frames'])
  assert_near(run.encoder.pool(frames), reference[f'{year}.embeddings'])


def test_imported_weights_have_no_step_and_nobody_says_that_they_have(reference, tmp_path, capfd):
  model, again, embeddings = tmp_path / 'model', tmp_path / 'again', tmp_path / 'out.npz'
  run_import(write(tmp_path, weights_of(reference, '2020')), model)
  export.main(['--workdir', str(model), '--output', str(again)])
  soundfile.write(tmp_path / 'clip.wav', np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
  embed.main(['--workdir', str(again), '--output', str(embeddings), str(tmp_path / 'clip.wav')])
  told = capfd.readouterr().err
  assert 'embeddings of 48 dimensions: ' in told
  assert 'step' not in told
  assert (again / 'model.safetensors').read_bytes() == (model / 'model.safetensors').read_bytes()
  assert 'Steps' not in (again / 'README.md').read_text()
  with pytest.raises(UserError, match='holds weights of an unknown step: step 0 is not there'):
    load_encoder(model, 0)


def torch_encoder(blocks, width):
  """The published encoders' structure, with random weights and running statistics."""
  import torch
  from torch import nn

  layers = []
  for block in range(blocks):
    layers += [nn.Conv2d(64 if block else 1, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)]
  inputs = 64 * 64 // 2**blocks
  dense = [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, width), nn.ReLU()]
  torch.manual_seed(blocks)
  encoder = nn.ModuleDict({'features': nn.Sequential(*layers), 'fc': nn.Sequential(*dense)}).eval()
  with torch.no_grad():
    for layer in layers[1::4]:
      layer.running_mean.normal_(0, 0.3)
      layer.running_var.uniform_(0.3, 2)
      layer.weight.uniform_(0.5, 1.5)
      layer.bias.normal_(0, 0.2)
  return encoder


@pytest.mark.parametrize(
  ('blocks', 'width', 'features', 'prefix'), [(3, 128, 128, ''), (2, 64, 1_088, 'module.encoder.')]
)
def test_a_file_of_torch_save_is_read(reference, tmp_path, blocks, width, features, prefix):
  require('torch', importlib.util.find_spec('torch'))
  import torch

  encoder = torch_encoder(blocks, width)
  path = tmp_path / 'encoder.pth'
  torch.save({prefix + name: value for name, value in encoder.state_dict().items()}, path)  # With counters.
  run_import(path, tmp_path / 'model')
  found = load_encoder(tmp_path / 'model').encoder
  assert found.features == features

  with torch.no_grad():
    conv = encoder['features'](torch.tensor(reference['log_mel'])[:, None]).permute(0, 3, 2, 1).flatten(2)
    dense = encoder['fc'](conv)
    expected = torch.cat([conv, dense], dim=-1) if blocks == 2 else dense
  assert_near(found(reference['log_mel'], train=False), expected.numpy())


@pytest.mark.parametrize(
  ('width', 'concat_conv', 'parameters'),
  [(512, False, 600_192), (1_024, False, 1_649_792), (2_048, False, 5_321_856), (2_048, True, 6_333_376)],
)
def test_the_published_sizes_have_the_published_numbers_of_parameters(width, concat_conv, parameters):
  blocks = 2 if concat_conv else 3
  shapes = {'features.0.weight': (64, 1, 3, 3), 'features.0.bias': (64,)}
  for block in range(blocks):
    shapes |= {f'features.{4 * block}.weight': (64, 64 if block else 1, 3, 3), f'features.{4 * block}.bias': (64,)}
    shapes |= {f'features.{4 * block + 1}.{name}': (64,) for name in ('weight', 'bias', 'running_mean', 'running_var')}
  shapes |= {'fc.0.weight': (width, 4_096 // 2**blocks), 'fc.0.bias': (width,)}
  shapes |= {'fc.3.weight': (width, width), 'fc.3.bias': (width,)}
  config, _ = convert({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, 64, 'it')
  assert config == AudioNTT(conv_blocks=blocks, width=width, concat_conv=concat_conv)
  encoder = nnx.eval_shape(lambda: build_encoder(Config(encoder=config)))
  assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(encoder, nnx.Param))) == parameters


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'fc.3.bias': None}, 'lacks fc.3.bias'),
    ({'features.0.weight': None}, 'lacks features.0.weight'),
    ({'features.5.running_var': None}, 'lacks features.5.running_var'),
    ({'features.9.running_var': np.full(12, -1.0)}, 'features.9.running_var has a negative value, -1'),
    ({'fc.0.bias': np.full(48, np.nan)}, 'fc.0.bias has values that are not finite'),
    ({'fc.5.weight': np.zeros(3)}, 'has fc.5.weight, which an encoder of 3 blocks does not have'),
    ({'features.12.weight': np.zeros(3)}, 'has 4 convolution blocks: AudioNTT2020 has 3'),
    ({'predictor.0.weight': np.zeros(3)}, 'has predictor.0.weight, which is not of an AudioNTT'),
    ({'target.fc.0.weight': np.zeros(3)}, 'has several encoders or none .*"target."'),
    ({'features.4.weight': np.zeros((12, 12, 5, 5))}, r'features.4.weight is \[12, 12, 5, 5\], and \[12, 12, 3, 3\]'),
  ],
)
def test_a_state_dict_that_is_no_audiontt_ends_in_one_line(reference, tmp_path, change, message):
  weights = weights_of(reference, '2020') | change
  path = write(tmp_path, {name: np.asarray(value, np.float32) for name, value in weights.items() if value is not None})
  with pytest.raises(UserError, match=message) as caught:
    run_import(path, tmp_path / 'model')
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'model').exists()


def test_other_mel_bands_are_told_and_checked(reference, tmp_path):
  path = write(tmp_path, weights_of(reference, '2020'))
  with pytest.raises(UserError, match=r'fc.0.weight is \[48, 96\], and \[48, 120\] .* 80 mel bands'):
    run_import(path, tmp_path / 'model', '--log_mel.n_mels=80')
  run_import(path, tmp_path / 'model', '--log_mel.f_max=8000.0', '--crop_seconds=2')
  run = load_encoder(tmp_path / 'model')
  assert (run.config.log_mel.f_max, run.config.crop_samples) == (8_000.0, 32_000)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--log_mel.mels=64'], 'unknown config key "log_mel.mels". Did you mean "n_mels"'),
    (['--n_mels=64'], 'cannot read the argument "--n_mels=64"'),
    (['--log_mel.f_max=9000.0'], 'half the sample rate'),
    (['--std=0'], '--std 0.0: finite numbers, and --std above 0'),
  ],
)
def test_a_mistake_is_one_clear_line(reference, tmp_path, arguments, message):
  with pytest.raises(UserError, match=message):
    run_import(write(tmp_path, weights_of(reference, '2020')), tmp_path / 'model', *arguments)
  assert not (tmp_path / 'model').exists()


def test_what_is_no_state_dict_is_named_and_not_executed(tmp_path):
  require('torch', importlib.util.find_spec('torch'))
  import torch

  path = tmp_path / 'encoder.pth'
  for content, message in (
    ({'epoch': 3, 'model': {}}, 'holds a dict with the keys epoch, model, and not a state_dict'),
    (torch.zeros(3), 'holds a Tensor, and not a state_dict'),
    (torch.nn.Linear(2, 2), r'holds no weights alone, or is damaged \([\w .:]*Linear was not[\w ]*\): write it'),
  ):
    torch.save(content, path)
    with pytest.raises(UserError, match=message) as caught:
      read_state_dict(path)
    assert '\n' not in str(caught.value)
  for damaged in (b'', b'text', path.read_bytes()[:300]):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match='or is damaged'):
      read_state_dict(path)
  with pytest.raises(UserError, match='is no file'):
    read_state_dict(tmp_path / 'nothing.pth')
