import json

import numpy as np
import pytest

from tests.objective import oracle
from tests.processes import run_python


@pytest.fixture(scope='module')
def results():
  return json.loads(run_python('-m', 'tests.objective.device_worker', devices=8).stdout)


def test_loss_and_gradients_equal_the_oracle_on_1_2_4_and_8_devices(results):
  assert {r['devices'] for r in results} == {1, 2, 4, 8}
  for result in results:
    loss, *gradients = oracle.loss_and_gradients(*result['views'], num_groups=result['groups'])
    assert result['loss'] == pytest.approx(loss, rel=1e-5)
    for ours, theirs in zip(result['gradients'], gradients, strict=True):
      assert np.abs(np.array(ours) - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_global_statistics_give_the_same_loss_on_any_number_of_devices(results):
  losses = {}
  for result in results:
    if result['groups'] == 1:
      losses.setdefault(len(result['views'][0]), []).append(result['loss'])
  for values in losses.values():
    assert len(values) == 4
    assert max(values) - min(values) <= 1e-6 * max(values)


def test_per_device_variance_is_another_number_on_other_device_counts(results):
  losses = {r['devices']: r['loss'] for r in results if r['groups'] == r['devices'] and len(r['views'][0]) == 48}
  assert len(set(losses.values())) == 4
