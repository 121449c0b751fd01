"""The objective in 1, 2 and 4 processes that really talk to each other: 4 devices, however many processes own them."""

import concurrent.futures
import socket

import numpy as np
import pytest

from tests.objective import cases, oracle
from tests.processes import run_python

NUM_DEVICES = 4


@pytest.fixture(scope='module', params=[1, 2, 4], ids=lambda count: f'{count}_processes')
def results(request, tmp_path_factory):
  count = request.param
  output = tmp_path_factory.mktemp('processes') / 'output'
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  worker = ('-m', 'tests.objective.device_worker', output, port, count)
  with concurrent.futures.ThreadPoolExecutor(count) as pool:
    list(pool.map(lambda index: run_python(*worker, index, devices=NUM_DEVICES // count), range(count)))
  return np.load(f'{output}.npz')


@pytest.mark.parametrize('case', cases.PROCESS_CASES, ids=lambda case: case.name)
def test_loss_and_gradients_equal_the_oracle_in_1_2_and_4_processes(results, case):
  name = f'{NUM_DEVICES}x1/{case.name}'
  loss, *gradients = oracle.loss_and_gradients(*case.views(), case.objective, NUM_DEVICES)
  assert results[f'{name}/loss'] == pytest.approx(loss, rel=1e-5)
  assert np.abs(results[f'{name}/gradients'] - gradients).max() <= 1e-5 * np.abs(gradients).max()
