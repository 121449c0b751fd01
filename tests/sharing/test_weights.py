import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from selfie_jax.config import Part, ViT
from selfie_jax.errors import UserError
from selfie_jax.sharing.weights import Model, encoder_arrays, load_model, model_bytes
from tests.sharing.conftest import CONFIG, random_run


@pytest.fixture
def file(run, tmp_path):
  path = tmp_path / 'model.safetensors'
  path.write_bytes(model_bytes(Model(run, 'run', 'fingerprint', trained_in='bfloat16')))
  return path


def facts_of(file):
  with safetensors.safe_open(file, 'numpy') as opened:
    return json.loads(opened.metadata()['selfie_jax'])


def rewrite(file, arrays=None, **facts):
  """Writes the file again with other arrays or facts, and a checksum that agrees only with the old arrays."""
  arrays = safetensors.numpy.load_file(file) if arrays is None else arrays
  safetensors.numpy.save_file(arrays, file, {'selfie_jax': json.dumps(facts_of(file) | facts)})


@pytest.mark.parametrize('encoder', [CONFIG.encoder, ViT(size='tiny', positions='learned')])
def test_what_is_loaded_is_what_was_saved_to_the_bit(tmp_path, encoder, small_vit):
  settings = dataclasses.replace(CONFIG, encoder=encoder)
  saved = random_run(settings)
  path = tmp_path / 'model.safetensors'
  path.write_bytes(model_bytes(Model(saved, 'run', 'fingerprint')))
  model = load_model(path)
  assert (model.run.mean, model.run.std, model.run.step) == (saved.mean, saved.std, saved.step)
  assert (model.source, model.data_fingerprint) == ('run', 'fingerprint')
  assert model.run.config == settings
  assert nnx.graphdef(model.run.encoder) == nnx.graphdef(saved.encoder)
  found, expected = (encoder_arrays(run.encoder) for run in (model.run, saved))
  assert found.keys() == expected.keys()
  assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_any_safetensors_reader_finds_readable_names(file):
  arrays = safetensors.numpy.load_file(file)
  assert {'blocks.0.conv.kernel', 'blocks.2.norm.var', 'dense2.bias'} <= arrays.keys()
  assert all(array.dtype == np.float32 for array in arrays.values())


def test_the_same_model_gives_the_same_bytes(file):
  assert model_bytes(load_model(file)) == file.read_bytes()


def test_no_folder_of_the_machine_is_given_away(run, tmp_path):
  data = dataclasses.replace(CONFIG.data, mixture=(Part('/home/me/secret/clips'),))
  settings = dataclasses.replace(CONFIG, data=data, warm_start='/home/me/secret/first')
  content = model_bytes(Model(dataclasses.replace(run, config=settings), 'run'))
  assert b'secret' not in content
  path = tmp_path / 'model.safetensors'
  path.write_bytes(content)
  assert load_model(path).run.config.warm_start == 'first'


def test_it_is_used_in_float32_whatever_it_trained_in(file):
  model = load_model(file)
  assert (model.trained_in, model.run.config.compute_dtype) == ('bfloat16', 'float32')
  assert model.run.encoder.dtype == np.float32


def test_one_flipped_bit_of_a_weight_is_noticed(file):
  content = bytearray(file.read_bytes())
  content[-1_000] ^= 1
  file.write_bytes(content)
  with pytest.raises(UserError, match='its weights are not those that were saved'):
    load_model(file)


def test_a_file_that_ends_early_is_named(file):
  for size in (0, 5, 200, 3_000):
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=r'model\.safetensors is damaged, or no safetensors file'):
      load_model(file)


def test_a_file_of_somebody_else_is_named(tmp_path):
  path = tmp_path / 'model.safetensors'
  safetensors.numpy.save_file({'fc.weight': np.zeros((2, 2), np.float32)}, path)
  with pytest.raises(UserError, match='was not written by selfie_jax.export'):
    load_model(path)


@pytest.mark.parametrize(
  ('facts', 'message'),
  [
    ({'format': 2}, 'has format 2, and this version reads format 1: update selfie_jax'),
    ({'std': 0.0}, 'std 0.0: finite numbers, and std above 0'),
    ({'step': 'seven'}, '"step" in its metadata is \'seven\''),
    ({'step': None}, '"step" in its metadata is None'),  # Of a run it is known.
    ({'config': {'encoder': {'width': -1}}}, 'encoder.width" is -1'),
    ({'config': {'encoder': {'widht': 8}}}, 'Did you mean "width"'),
    (
      {'config': {'encoder': {'conv_channels': 4, 'width': 64, 'concat_conv': True}}},
      'dense1.bias is .*32.* wants .*64',
    ),
    (
      {'config': {'encoder': {'conv_channels': 4, 'width': 32, 'conv_blocks': 2}}},
      'blocks.2.conv.bias, which is not of',
    ),
    ({'config': {'encoder': {'conv_channels': 4, 'width': 32, 'conv_blocks': 4}}}, 'no array blocks.3.conv.bias'),
  ],
)
def test_facts_that_make_no_encoder_end_in_one_line(file, facts, message):
  rewrite(file, **facts)
  with pytest.raises(UserError, match=message) as caught:
    load_model(file)
  assert '\n' not in str(caught.value)
