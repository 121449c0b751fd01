"""What a compiled train step costs, counted and not timed, against what its config asks for.

The network is AudioNTT2020 in its published size, d = 2048, with a projector to 256: to compile it takes no longer than
a small one, and its products outweigh all else.
"""

import json
import re

import pytest

from selfie_jax.config import Config
from selfie_jax.from_mapping import from_mapping
from tests.processes import run_python

DEVICES = 2
SETTINGS = {'batch_size': 64}
CONFIG = from_mapping(Config, SETTINGS)
CASES = {
  'float32': {'devices': DEVICES, 'config': SETTINGS, 'is_compiled': True},
  # A CPU has no products of bfloat16: what matters is what the compiler of another machine is given.
  'bfloat16': {'devices': 1, 'config': SETTINGS | {'compute_dtype': 'bfloat16'}, 'is_compiled': False},
}


@pytest.fixture(scope='module')
def costs():
  process = run_python('-m', 'tests.training.costs_worker', input=json.dumps(list(CASES.values())), devices=DEVICES)
  return dict(zip(CASES, json.loads(process.stdout), strict=True))


@pytest.fixture(scope='module')
def step(costs):
  return costs['float32']


def flops_of(step, *, front_end=False, objective=False):
  """FLOPs of the products of a part of the step; without either, of the networks."""

  def part(name):
    return 'dot_general' in name and 'shard_map' not in name, 'objective' in name

  return sum(flops for name, _, flops in step['products'] if part(name) == (front_end, objective))


def forward_flops(clips):
  """FLOPs of one view's products on the way forward: [convolutions], [dense layers and projector]."""
  encoder, projector = CONFIG.encoder, CONFIG.projector
  mels, frames, channels = CONFIG.log_mel.n_mels, 1 + CONFIG.crop_samples // CONFIG.log_mel.hop_length, 1
  convolutions = []
  for _ in range(encoder.conv_blocks):
    positions = (3 * mels - 2) * (3 * frames - 2)  # Of 3 x 3 kernels on the image, those in the padding left out.
    convolutions.append(2 * clips * positions * channels * encoder.conv_channels)
    mels, frames, channels = mels // 2, frames // 2, encoder.conv_channels
  dense = [(clips * frames, mels * channels, encoder.width), (clips * frames, encoder.width, encoder.width)]
  dense += [(clips, encoder.width, projector.hidden_width), (clips, projector.hidden_width, projector.output_width)]
  return convolutions, [2 * rows * i * o for rows, i, o in dense]


def network_flops(clips):
  """Both views forwards, and backwards a product for the weights and one for the inputs, but for the spectrogram."""
  convolutions, dense = forward_flops(clips)
  return 2 * (3 * sum(convolutions + dense) - convolutions[0])


def test_the_networks_multiply_what_their_config_says_and_nothing_twice(step):
  assert flops_of(step) == pytest.approx(network_flops(CONFIG.batch_size // DEVICES), rel=0.01)


def test_the_objective_of_fewer_rows_than_dimensions_multiplies_rows_by_rows(step):
  n, d = CONFIG.batch_size, CONFIG.projector.output_width
  products = 2  # Of both views: a device's rows with all rows, and the gradient's.
  assert flops_of(step, objective=True) == products * 2 * 2 * (n // DEVICES) * n * d


def test_the_front_end_and_the_views_multiply_at_most_what_their_matrices_have(step):
  config, clips = CONFIG.log_mel, CONFIG.batch_size // DEVICES
  mels, frames = config.n_mels, 1 + CONFIG.crop_samples // config.hop_length
  mel_bands = 2 * frames * (config.n_fft // 2 + 1) * mels
  resizing = 2 * mels * frames * (mels + frames)
  assert flops_of(step, front_end=True) <= clips * (mel_bands + 2 * resizing)


def test_all_that_is_no_product_is_a_small_part(step):
  assert step['flops'] <= 1.06 * network_flops(CONFIG.batch_size // DEVICES)


def convolution_bytes(clips):
  """Bytes of the outputs of both views' convolutions, in float32."""
  mels, frames = CONFIG.log_mel.n_mels, 1 + CONFIG.crop_samples // CONFIG.log_mel.hop_length
  pixels = sum((mels >> block) * (frames >> block) for block in range(CONFIG.encoder.conv_blocks))
  return 2 * clips * pixels * CONFIG.encoder.conv_channels * 4


def test_temporaries_take_no_more_than_the_convolutions_outputs_and_two_of_all_weights(step):
  weights = 4 * step['parameters']
  assert step['temporary_bytes'] <= convolution_bytes(CONFIG.batch_size // DEVICES) + 2 * weights


def test_memory_is_passed_over_so_many_times(step):
  """A bound that is a tenth above what was counted when it was set: 20 times the convolutions' outputs, 5 the state."""
  convolutions = convolution_bytes(CONFIG.batch_size // DEVICES)
  assert step['bytes'] <= 20 * convolutions + 5 * step['state_bytes']


def test_gradients_are_summed_once_and_else_only_statistics(step):
  """Two means forwards and two sums backwards, of each view and channel of a batch normalisation."""
  channels = CONFIG.encoder.conv_blocks * CONFIG.encoder.conv_channels + CONFIG.projector.hidden_width
  networks = [(kind, size * runs) for kind, size, name, runs in step['collectives'] if 'objective' not in name]
  assert {kind for kind, _ in networks} == {'all-reduce'}
  assert step['parameters'] < sum(size for _, size in networks) <= step['parameters'] + 2 * 4 * channels


def test_no_data_goes_to_the_host_and_python_is_never_called(step):
  assert step['host_transfers'] == []
  assert [target for target in step['calls_out'] if re.search('callback|python|host', target, re.IGNORECASE)] == []


def test_the_new_state_takes_the_place_of_the_old_one(step):
  assert step['donated_bytes'] == step['state_bytes']


def test_only_the_front_end_computes_in_float64(step):
  widths = {int(shape.split(',')[-1]) for shape in step['float64_shapes']}
  assert widths <= {CONFIG.log_mel.n_fft, CONFIG.log_mel.n_fft // 2 + 1}


def test_in_bfloat16_networks_multiply_bfloat16_and_all_else_float32(costs):
  """The projector's last product gives float32, so its gradient's two products have float32 operands as well."""
  products = costs['bfloat16']['products']
  # All of the others' are einsums, and no network's. A product in a loop has its own name alone in this text.
  networks = [product for product in products if '->' not in product[0]]
  others = [product for product in products if '->' in product[0]]
  in_float32 = [flops for _, types, flops in networks if types != ['bf16', 'bf16']]
  *_, last = forward_flops(CONFIG.batch_size)[1]
  assert in_float32 == 4 * [last]
  assert {kind for _, types, _ in others for kind in types} == {'f32'}
  assert any('objective' in name for name, _, _ in others)
