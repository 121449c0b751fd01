"""The objective on meshes of 1 to 8 devices: its numbers, and what its compiled programs send."""

import json
import math

import numpy as np
import pytest

from selfie_jax.objective.off_diagonal import MAX_REPLICATED_WIDTH
from tests.objective import cases, oracle
from tests.processes import run_python

MESHES = ('1x1', '2x1', '4x1', '4x2')


@pytest.fixture(scope='module')
def output(tmp_path_factory):
  path = tmp_path_factory.mktemp('devices') / 'output'
  run_python('-m', 'tests.objective.device_worker', path, devices=8)
  return path


@pytest.fixture(scope='module')
def results(output):
  return np.load(f'{output}.npz')


@pytest.fixture(scope='module')
def programs(output):
  return json.loads(output.with_name('output.json').read_text())


def _assert_equal_to_oracle(results, mesh, case):
  name = f'{mesh}/{case.name}'
  num_devices = np.prod([int(size) for size in mesh.split('x')])
  loss, *gradients = oracle.loss_and_gradients(*case.views(), case.objective, case.groups_on(num_devices))
  assert results[f'{name}/loss'] == pytest.approx(loss, rel=1e-5)
  assert np.abs(results[f'{name}/gradients'] - gradients).max() <= 1e-5 * np.abs(gradients).max()
  for metric in ('embedding_std', 'effective_rank'):
    theirs = getattr(oracle, metric)(*case.seen())
    assert results[f'{name}/{metric}'] == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize('case', cases.COUNTED_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize('mesh', MESHES)
def test_every_presets_loss_and_gradients_equal_the_oracle_on_1_2_4_and_8_devices(results, mesh, case):
  _assert_equal_to_oracle(results, mesh, case)


@pytest.mark.parametrize('case', cases.PRESET_CASES + cases.OTHER_CASES, ids=lambda case: case.name)
def test_all_terms_routes_and_groups_equal_the_oracle_on_8_devices(results, case):
  _assert_equal_to_oracle(results, '4x2', case)


@pytest.mark.parametrize('case', cases.COUNTED_CASES[:2], ids=lambda case: case.name)
def test_devices_are_counted_row_by_row_on_any_mesh(results, case):
  for key in ('loss', 'gradients'):
    ours, theirs = (results[f'{mesh}/{case.name}/{key}'] for mesh in ('8x1', '4x2'))
    assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max()


@pytest.mark.parametrize('case', cases.COUNTED_CASES, ids=lambda case: case.name)
def test_only_the_variance_per_device_depends_on_the_number_of_devices(results, case):
  losses = [float(results[f'{mesh}/{case.name}/loss']) for mesh in MESHES]
  if case.objective_name == 'selfie':
    assert len(set(losses)) == len(MESHES)
    return
  assert max(losses) - min(losses) <= 1e-6 * max(map(abs, losses))
  first, *others = (results[f'{mesh}/{case.name}/gradients'] for mesh in MESHES)
  assert max(np.abs(other - first).max() for other in others) <= 5e-6 * np.abs(first).max()


MOMENTS = [['all-reduce', 'forward', 4], ['all-reduce', 'forward', 2]]  # In rows of d entries: both views' moments.


def _predicted(case, num_devices):
  """The collectives of a program, in entries, by the arithmetic that the documentation gives."""
  n, d, terms = case.n, case.d, case.objective
  predicted = [[kind, direction, rows * d] for kind, direction, rows in MOMENTS]
  gathers = n < d or terms.diversity_term in ('uniformity', 'hyperspherical_energy')
  if gathers:
    predicted.append(['all-gather', 'forward', 2 * n * d])
  # Scalars, and the two views' sums over pairs.
  if terms.invariance_term == 'mean_squared_error':
    predicted.append(['all-reduce', 'forward', 1])
  if terms.diversity_term == 'variance' and terms.variance_statistics == 'per_device':
    if case.groups_on(num_devices) % num_devices == 0:
      predicted.append(['all-reduce', 'forward', 1])
    else:
      predicted += [['all-reduce', 'forward', k * case.num_groups * d] for k in (2, 4)]
  if terms.diversity_term in ('uniformity', 'hyperspherical_energy'):
    predicted.append(['all-reduce', 'forward', 2])
  if terms.diversity_term == 'coding_rate' and n >= d:
    predicted.append(['all-reduce', 'forward', 2 * d * d])
  predicted += _predicted_energy(case, 2, num_devices, terms.decorrelation_term != 'cross_correlation')
  if terms.decorrelation_term == 'debiased_covariance':
    predicted += [['all-reduce', direction, 2 * d] for direction in ('forward', 'backward')]  # Through the mean.
    # The pairs of a row with itself; XLA sends them, and the invariance, along with the mean's gradient.
    predicted.remove(['all-reduce', 'forward', 1])
    predicted += [['all-reduce', 'backward', entries] for entries in (1, 2)]
  if terms.decorrelation_term == 'cross_correlation':
    predicted += _predicted_energy(case, 1, num_devices, True)
    predicted.append(['all-reduce', 'forward', d])  # The diagonal, for the invariance.
    predicted.append(['all-reduce', 'backward', 2 * d])  # Through the standard deviations.
  return sorted(predicted)


def _predicted_energy(case, views, num_devices, differentiated):
  n, d, bound = case.n, case.d, case.max_replicated_width
  if n < d:
    return [['all-reduce', 'forward', views]]
  symmetric = views == 2
  if d <= bound:
    return [['all-reduce', 'forward', views * -(-d // 2) * d if symmetric else d * d]]
  # Cut between rows of 128 or, where there are many, between tiles of 8 rows.
  rows = math.ceil(_window(case, symmetric) / 128)
  unit = 8 * num_devices if rows >= 64 * num_devices else num_devices
  piece = views * 128 * math.ceil(rows / unit) * unit // num_devices
  gather = [['all-gather', 'backward', piece * num_devices]] if differentiated else []
  return [['all-reduce', 'forward', views], ['reduce-scatter', 'forward', piece], *gather]


def _window(case, symmetric):
  # Blocks as few as the bound allows. 21 columns and 8^2 entries: 11 blocks of 2 x 12, of both views, where the matrix
  # is symmetric, and 7 of 3 x 21 where it is not. 2056 columns and 2048^2 entries: 3 blocks of 686 x 1372.
  return {(21, True): 2 * 12, (21, False): 3 * 21, (2056, True): 686 * 1372}[case.d, symmetric]


@pytest.mark.parametrize('case', cases.PRESET_CASES + cases.OTHER_CASES, ids=lambda case: case.name)
def test_the_compiled_program_has_the_predicted_collectives_and_no_other(programs, case):
  assert programs[f'4x2/{case.name}']['collectives'] == _predicted(case, 8)


@pytest.mark.parametrize('case', cases.COUNTED_CASES, ids=lambda case: case.name)
def test_among_2_or_4_devices_the_collectives_are_the_same(programs, case):
  for num_devices in (2, 4):
    assert programs[f'{num_devices}x1/{case.name}']['collectives'] == _predicted(case, num_devices)


def test_above_the_bound_no_device_ever_holds_a_whole_matrix(programs):
  program = programs['4x2/selfie_2056x2056']
  assert program['largest'] <= MAX_REPLICATED_WIDTH**2 < 2056**2
  assert program['turns'] == [3, 3]  # Blocks, forward and backward.
