"""A process of a small run without a model: `python -m tests.training.cluster_worker STORY`, see test_cluster.py."""

import dataclasses
import time

from selfie_jax.training.processes import preemption

stop = preemption.heed()  # As train.py does, before the imports that take time.
print('heeds', flush=True)

import jax  # noqa: E402
import numpy as np  # noqa: E402

from selfie_jax.config import Checkpoint, Cluster, Config  # noqa: E402
from selfie_jax.errors import UserError, run_command  # noqa: E402
from selfie_jax.training.processes import cluster  # noqa: E402


def agree(process_id):
  for _ in range(3):
    answers = (
      cluster.any_process(process_id == 1),
      cluster.any_process(False),
      cluster.of_first_process(process_id == 0),
      cluster.of_first_process(process_id == 1),
    )
    assert answers == (True, False, True, False)
    assert cluster.of_first_process([[process_id, 'a'], {}]) == [[0, 'a'], {}]
    assert cluster.gather(str(process_id)) == {0: '0', 1: '1'}
    assert cluster.gather('me' if process_id == 1 else '') == {1: 'me'}
    cluster.check_alike(Asked(Config()))
    cluster.barrier('again', 10)


@dataclasses.dataclass(frozen=True)
class Asked:
  config: Config


def differ(process_id):
  cluster.check_alike(Asked(Config(checkpoint=Checkpoint(every_steps=5 if process_id else 10))))
  raise AssertionError('they differ')


def leave_alone(process_id):
  if process_id == 0:
    cluster.barrier('save', 1)
  time.sleep(60)


def fail(process_id):
  if process_id == 1:
    raise UserError('the disk of process 1 is full')
  cluster.barrier('never', 60)  # Inside of C++, as in a collective.


def device_fails(process_id):
  if process_id == 1:
    raise jax.errors.JaxRuntimeError('INTERNAL: no such luck')
  time.sleep(60)


def fail_alike(process_id):
  raise UserError('all of them found the same')


def end_slowly(process_id):
  end = preemption.end_process
  if process_id == 1:
    preemption.end_process = lambda code: (time.sleep(0.5), end(code))
  raise UserError('all of them found the same')


def sleep(process_id):
  time.sleep(60)


def step(process_id):
  """Steps that wait for each other on the device, at a pace of their own on the host."""
  axis_types = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((jax.device_count(),), ('data',), axis_types=axis_types)
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  total = jax.jit(lambda x: 0 * x + x.sum(), out_shardings=sharding)
  x = jax.make_array_from_process_local_data(sharding, np.ones(1, np.float32))
  rng = np.random.default_rng(process_id)
  with stop.stepping(0):
    for number in range(1, 10_000):
      y = total(x)
      time.sleep(rng.uniform(0, 0.01 * (1 + 2 * process_id)))
      if number % 10 == 0:
        y.block_until_ready()
      if number == 10:
        print('steps', flush=True)
      if stop.stop_after(number):
        print(f'stopped after {number}', flush=True)
        return 75
  raise AssertionError('was told nothing')


def main(arguments):
  with cluster.joined(Cluster(join_minutes=float(arguments[1]), barrier_minutes=0.5, heartbeat_seconds=10)):
    print('joined', flush=True)
    return globals()[arguments[0]](jax.process_index())


if __name__ == '__main__':
  run_command(main)
