"""What one training step relies on, on meshes of virtual devices: the numbers do not depend on how it is cut up."""

import collections
import json
import math
import re

import numpy as np
import pytest

from selfie_jax import config as config_lib
from tests.processes import run_python

STEPS = 3
CNN = {
  'steps': 10,
  'batch_size': 32,
  'augment': {'mixup_group': 4},
  'encoder': {'conv_channels': 8, 'width': 64, 'concat_conv': True},
  'projector': {'hidden_width': 64, 'output_width': 24},
  'objective': {'variance_statistics': 'global'},
  'optimizer': {'learning_rate': 1e-3},
}
# Without a hidden layer the projector has no batch normalisation, and the transformer has none.
VIT = CNN | {
  'batch_size': 16,
  'augment': {'mixup_group': 2},
  'encoder': {'name': 'vit', 'size': 'of two blocks', 'patch': (32, 16)},
  'projector': {'hidden_layers': 0, 'output_width': 24},
}
WIDTH, BLOCKS = 96, 2
VIT_KERNELS = 32 * 16 * WIDTH + BLOCKS * 12 * WIDTH**2 + 2 * WIDTH * 24
VIT_PARAMETERS = VIT_KERNELS + WIDTH + BLOCKS * (9 + 4) * WIDTH + 2 * WIDTH
PER_DEVICE = CNN | {'objective': {}}
# Of a microbatch, too, a few examples at a time are what the gradient of a convolution's kernel works on.
LARGE = CNN | {'batch_size': 256}
# A moving average that is far from the parameters after a step. One block and no resizing, which take long to compile.
BYOL_A = CNN | {
  'data': {'crop_seconds': 0.16},
  'augment': {'mixup_group': 4, 'normalize_views': True, 'resize_frequency': (1.0, 1.0), 'resize_time': (1.0, 1.0)},
  'encoder': {'conv_blocks': 1, 'conv_channels': 2, 'width': 16},
  'objective': config_lib.PRESETS['byol_a'],
  'average': {'decay': 0.5, 'evaluate': True},
}
CASES = {  # Devices, groups of rows that have a variance, config.
  'cnn': (1, 1, CNN),
  'cnn, fsdp 4': (8, 1, CNN | {'mesh': {'fsdp': 4}}),
  'large cnn': (1, 1, LARGE),
  'large cnn, 4 microbatches': (1, 1, LARGE | {'microbatches': 4}),
  'cnn, 8 groups': (1, 8, PER_DEVICE),
  'cnn, 8 groups on 8': (8, 8, PER_DEVICE),
  'byol_a': (1, 1, BYOL_A),
  'byol_a, fsdp 2': (4, 1, BYOL_A | {'mesh': {'fsdp': 2}}),
  'vit': (2, 1, VIT),
  'vit, 4 microbatches': (2, 1, VIT | {'microbatches': 4}),
  'vit, fsdp 2': (2, 1, VIT | {'mesh': {'fsdp': 2}}),
  'vit, bfloat16': (2, 1, VIT | {'compute_dtype': 'bfloat16'}),
}
# LLVM's optimisations take a third of the time. Without them a program needs other memory, and a network with ReLUs and
# maxima comes to roundings across their kinks.
OPTIMIZED = ('cnn', 'cnn, fsdp 4')
MEASURED = ('cnn', 'cnn, fsdp 4', 'vit', 'vit, fsdp 2')


@pytest.fixture(scope='module')
def runs():
  keys = ('devices', 'groups', 'config')
  cases = [
    dict(zip(keys, case, strict=True))
    | {'steps': 0 if 'large' in name else STEPS, 'measure_health': name in MEASURED, 'optimize': name in OPTIMIZED}
    for name, case in CASES.items()
  ]
  output = run_python('-m', 'tests.training.step_worker', devices=8, input=json.dumps(cases), timeout=600).stdout
  return dict(zip(CASES, json.loads(output), strict=True))


def assert_same_steps(ours, theirs):
  first, *later = zip(ours['metrics'], theirs['metrics'], strict=True)
  assert first[0] == pytest.approx(first[1], rel=1e-5)
  for a, b in later:
    # The gradient jumps where a rounding of the weights takes a ReLU or a maximum across its kink; the loss does not.
    assert a | {'gradient_norm': 0} == pytest.approx(b | {'gradient_norm': 0}, rel=1e-4)


def test_the_steps_are_the_same_on_a_mesh_of_both_axes(runs):
  assert_same_steps(runs['cnn, fsdp 4'], runs['cnn'])


def test_predictions_of_a_moving_averages_targets_are_the_same_on_a_mesh_of_both_axes(runs):
  ours, theirs = (
    {'metrics': [line | {'misplaced': 0} for line in runs[name]['metrics']]} for name in ('byol_a, fsdp 2', 'byol_a')
  )
  assert_same_steps(ours, theirs)
  # Kernels of a convolution, 2 dense layers, and 2 each of projector and predictor: also of the moving average.
  assert runs['byol_a, fsdp 2']['cut'] == 4 * 7


def test_the_average_is_moved_after_each_step_towards_the_weights_of_that_step(runs):
  for line in runs['byol_a, fsdp 2']['metrics']:
    assert line['moved'] > 1e-4
    assert line['misplaced'] < 1e-6


def test_the_health_of_the_representations_is_the_same_on_a_mesh_of_both_axes(runs):
  for one, several in (MEASURED[:2], MEASURED[2:]):
    ours, theirs = runs[several]['health'], runs[one]['health']
    assert 1 < theirs['rankme'] < 32
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


def test_the_groups_of_a_per_device_variance_are_kept_on_other_devices(runs):
  assert runs['cnn, 8 groups']['metrics'][0]['diversity'] != runs['cnn']['metrics'][0]['diversity']
  assert_same_steps(runs['cnn, 8 groups on 8'], runs['cnn, 8 groups'])


def counts(run, objective):
  of = [(kind, shape, runs) for kind, shape, name, runs in run['collectives'] if ('objective' in name) == objective]
  found = collections.Counter()
  for kind, shape, runs in of:
    found[kind, math.prod(map(int, re.findall(r'\d+', shape.partition('[')[2])))] += runs
  return found


def test_the_objectives_collectives_in_the_compiled_step_are_those_predicted(runs):
  """32 x 24 embeddings on 8 devices: the covariance is summed, as the folded upper triangles of both views."""
  n, d = 32, 24
  assert n >= d
  means, moments, covariances = 2 * d, 4 * d, 2 * (d // 2) * d
  shared = {('all-reduce', means): 1, ('all-reduce', moments): 1, ('all-reduce', covariances): 1}
  scalars = {'invariance': 1, 'variance of own groups': 1}
  assert counts(runs['cnn, 8 groups on 8'], True) == shared | {('all-reduce', 1): sum(scalars.values())}
  assert counts(runs['cnn, fsdp 4'], True) == shared | {('all-reduce', 1): 1}  # The variance is global.


def test_every_gradient_is_summed_once_for_both_views_and_all_microbatches(runs):
  """The transformer has no batch normalisation, so all else that is sent is its parameters' gradients."""
  for name in ('vit', 'vit, 4 microbatches'):
    sent = counts(runs[name], False)
    assert {kind for kind, _ in sent} == {'all-reduce'}
    assert sum(size * count for (_, size), count in sent.items()) == VIT_PARAMETERS


def test_fsdp_gathers_each_weight_once_and_scatters_its_gradient(runs):
  sent = counts(runs['vit, fsdp 2'], False)
  gathered = sum(size * count for (kind, size), count in sent.items() if kind == 'all-gather')
  scattered = sum(size * count for (kind, size), count in sent.items() if kind == 'reduce-scatter')
  assert gathered == 2 * scattered == VIT_KERNELS


def test_microbatches_take_the_same_steps_where_there_is_no_batch_normalisation(runs):
  assert_same_steps(runs['vit, 4 microbatches'], runs['vit'])


def test_microbatches_need_less_memory(runs):
  assert runs['large cnn, 4 microbatches']['temporary_bytes'] < 0.35 * runs['large cnn']['temporary_bytes']


def test_fsdp_keeps_a_share_of_the_state_on_each_device(runs):
  assert_same_steps(runs['vit, fsdp 2'], runs['vit'])
  assert runs['vit']['cut'] == 0
  # 14 kernels (two blocks of 6, patches and projector) of the parameters and of both moments.
  assert runs['vit, fsdp 2']['cut'] == 3 * 14
  assert runs['vit, fsdp 2']['argument_bytes'] < 0.55 * runs['vit']['argument_bytes']


def test_bfloat16_computes_nearly_the_same_losses_and_keeps_its_state_in_float32(runs):
  losses = [[line['loss'] for line in runs[name]['metrics']] for name in ('vit', 'vit, bfloat16')]
  np.testing.assert_allclose(*losses, rtol=0.02)
  assert losses[0] != losses[1]
  assert runs['vit, bfloat16']['computes_in_bfloat16']
  assert not runs['vit']['computes_in_bfloat16']
  assert runs['vit, bfloat16']['argument_bytes'] == runs['vit']['argument_bytes']
