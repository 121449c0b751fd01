import time

import pytest

from selfie_jax.training.monitoring import performance
from selfie_jax.training.monitoring.performance import PEAK_FLOPS, Spent, Stretch


def test_goodput_is_the_share_of_steps_that_were_kept_over_all_restarts():
  first = Spent().after_start(30.0, compile_seconds=10.0).after_steps(100.0, data_wait=5.0, save=15.0)
  assert first == Spent(steps=80.0, data_wait=5.0, save=15.0, compile=10.0, restart=20.0)
  # It is killed 50 s after its last line that is kept, is down for 30 s, and needs 20 s, of which it compiles for 4.
  second = Spent.read(first.as_line()).after_start(100.0, compile_seconds=4.0).after_steps(70.0, 0.0, 0.0)
  assert second == Spent(steps=150.0, data_wait=5.0, save=15.0, compile=14.0, restart=116.0)
  assert second.total == 300.0
  assert second.goodput == 0.5
  line = second.as_line()
  assert line['run_seconds'] == sum(line[f'run_{name}_seconds'] for name in vars(second))


def test_a_clock_that_was_set_back_takes_nothing_away():
  before = Spent(steps=100.0, restart=10.0)
  after = before.after_start(-3_600.0, compile_seconds=5.0)
  assert after == Spent(steps=100.0, restart=10.0, compile=5.0)
  line = {'time': time.time() + 3_600, **before.as_line()}
  assert performance.spent_before(line, 5.0) == after


def test_a_run_that_begins_has_spent_what_its_process_is_old():
  spent = performance.spent_before(None, 0.5)
  assert spent.compile == 0.5
  assert 0 < spent.restart < 24 * 3_600


def test_step_times_are_between_completions_without_saves():
  stretch = Stretch(100.0)
  for now in (101.0, 104.0, 105.0, 107.0):
    stretch.completed(now)
  stretch.saving(107.0, 117.0)
  stretch.completed(118.0)
  stretch.waited += 0.9
  assert stretch.step_seconds == [1.0, 3.0, 1.0, 2.0, 1.0]
  line = stretch.as_line(118.0, batch_size=18, flops=None, device_kind='TPU v4')
  assert line == {
    'step_seconds_median': 1.0,
    'step_seconds_p95': pytest.approx(2.8),
    'clips_per_second': 5.0,
    'data_wait_fraction': pytest.approx(0.05),
    'save_seconds': 10.0,
  }
  following = stretch.next(118.5)
  following.completed(119.0)
  assert following.step_seconds == [1.0]


def test_mfu_is_told_where_the_peak_and_the_flops_are_known():
  stretch = Stretch(0.0, since=0.0)
  for now in (0.5, 1.0):
    stretch.completed(now)
  assert stretch.as_line(1.0, 1, PEAK_FLOPS['TPU v5 lite'] / 8, 'TPU v5 lite')['mfu'] == pytest.approx(0.25)
  assert 'mfu' not in stretch.as_line(1.0, 1, None, 'TPU v5 lite')
  assert 'mfu' not in stretch.as_line(1.0, 1, 1e12, 'cpu')


def test_memory_is_that_of_this_process_and_cpu_devices_have_none():
  found = performance.memory()
  assert found.keys() == {'host_memory_bytes', 'host_memory_peak_bytes'}
  assert 2**20 < found['host_memory_bytes'] <= found['host_memory_peak_bytes'] * 1.1
