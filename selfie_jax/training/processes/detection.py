"""Which process of how many this one is, and where process 0 is, from what the cluster says."""

import dataclasses
import os
import subprocess
import warnings

from jax._src.clusters import ClusterEnv  # Not public, but the same that jax.distributed.initialize asks.
from jax._src.clusters.cloud_tpu_cluster import BaseTpuCluster

from selfie_jax.errors import ClusterError, UserError

# On Cloud TPUs JAX takes 8482 since 0.8.1, which Google Cloud's default firewall blocks (JAX issue 35905).
_TPU_PORT = '8476'

_SLURM_DEALS_GPUS = ('SLURM_GPUS_PER_TASK', 'SLURM_TRES_PER_TASK', 'SLURM_GPU_BIND', 'SLURM_TRES_BIND')


@dataclasses.dataclass(frozen=True)
class Place:
  """This process's place among the processes of a run."""

  address: str  # 'host:port' of process 0.
  num_processes: int
  process_id: int
  local_device_ids: tuple[int, ...] | None = None  # The GPUs of the host that are this process's; None: all it sees.
  names: tuple[str, ...] = ()  # Each process's host, or as much as the cluster says; empty where it says nothing.

  def describe(self, process_id: int) -> str:
    """Returns 'process 3 (n4)'."""
    return f'process {process_id} ({self.names[process_id]})' if self.names else f'process {process_id}'


def find_place(timeout_seconds: float) -> Place | None:
  """Returns this process's place, or None if it is the only one.

  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID come first, then what JAX detects: Slurm's step, Open
  MPI, TPUs on GKE, Cloud TPU VMs. JAX_COORDINATOR_PORT replaces the port that the detection chooses.

  Args:
    timeout_seconds: how long the name of process 0's host may be unknown, where a pod has to come up first.

  Raises:
    UserError: the variables contradict each other.
    ClusterError: the cluster does not say what it should.
  """
  if 'JAX_COORDINATOR_ADDRESS' in os.environ:
    place = _place_of_variables()
  else:
    try:
      environment = _detect()
      if environment is None or _alone_in_slurm(environment):
        return None
      place = _place_in(environment, timeout_seconds)
    except (RuntimeError, ValueError, KeyError, OSError) as error:  # OSError: a metadata server that does not answer.
      raise ClusterError(f'cannot find the other processes from what the cluster says: {error!r}') from error
  return place if place.num_processes > 1 else None


def _place_of_variables() -> Place:
  address = os.environ['JAX_COORDINATOR_ADDRESS']
  try:
    num_processes, process_id = int(os.environ['JAX_NUM_PROCESSES']), int(os.environ['JAX_PROCESS_ID'])
    int(address.rpartition(':')[2])
  except (KeyError, ValueError) as error:
    raise UserError(
      f'JAX_COORDINATOR_ADDRESS={address} must be HOST:PORT, and JAX_NUM_PROCESSES and JAX_PROCESS_ID must be whole '
      f'numbers beside it: {error}'
    ) from error
  if not 0 <= process_id < num_processes:
    raise UserError(f'JAX_PROCESS_ID={process_id} must be one of 0 to {num_processes - 1} (JAX_NUM_PROCESSES - 1)')
  return Place(address, num_processes, process_id)


def _detect() -> type[ClusterEnv] | None:
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # In any pod, that the package `kubernetes` is not installed.
    return next((e for e in ClusterEnv._cluster_types if not e.opt_in_only_method and e.is_env_present()), None)


def _alone_in_slurm(environment: type[ClusterEnv]) -> bool:
  """True in a step of one task, such as an interactive shell: SLURM_NTASKS may still be that of the allocation."""
  return environment.name == 'slurm' and os.environ.get('SLURM_STEP_NUM_TASKS') == '1'


def _place_in(environment: type[ClusterEnv], timeout_seconds: float) -> Place:
  num_processes = environment.get_process_count()
  if num_processes == 1:
    return Place('', 1, 0)
  port = os.environ.get('JAX_COORDINATOR_PORT')
  if issubclass(environment, BaseTpuCluster):
    port, names = port or _TPU_PORT, _tpu_hosts(environment, num_processes)
  else:
    names = _slurm_hosts(num_processes) if environment.name == 'slurm' else ()
  return Place(
    address=environment.get_coordinator_address(timeout_secs=round(timeout_seconds), override_coordinator_port=port),
    num_processes=num_processes,
    process_id=environment.get_process_id(),
    local_device_ids=_local_device_ids(environment),
    names=names,
  )


def _local_device_ids(environment: type[ClusterEnv]) -> tuple[int, ...] | None:
  """Returns the GPUs to take where a host has several tasks.

  JAX gives each process of Slurm and Open MPI one GPU, the one with its local number: right for a task a GPU, but a
  task a node would leave all GPUs but one idle, and where Slurm deals out the GPUs itself, all of a task's are its own.
  """
  local = environment.get_local_process_id()
  if local is None:
    return None
  if environment.name == 'slurm':
    tasks_here = os.environ.get('SLURM_GTIDS', '').count(',') + 1
    if tasks_here == 1 or any(name in os.environ for name in _SLURM_DEALS_GPUS):
      return None
  return (local,)


def _slurm_hosts(num_processes: int) -> tuple[str, ...]:
  """Returns the tasks' hosts where each has one of its own; Slurm's own tool reads a list such as n[01-16,20]."""
  try:
    listed = subprocess.run(
      ['scontrol', 'show', 'hostnames', os.environ['SLURM_STEP_NODELIST']],
      capture_output=True,
      text=True,
      timeout=10,
      check=True,
    ).stdout.split()
  except (OSError, subprocess.SubprocessError):
    return ()
  return tuple(listed) if len(listed) == num_processes else ()


def _tpu_hosts(environment: type[BaseTpuCluster], num_processes: int) -> tuple[str, ...]:
  hosts = environment._get_worker_list_in_slice()
  if len(hosts) == num_processes:
    return tuple(hosts)
  return tuple(f'slice {i // len(hosts)}, worker {i % len(hosts)}' for i in range(num_processes))
