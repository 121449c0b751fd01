"""Accelerators that are not there: what a program can be compiled for on any machine that has their compiler."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from selfie_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Generation:
  """A generation of TPUs.

  Sizes are those in Cloud TPU's documentation (https://cloud.google.com/tpu/docs/system-architecture-tpu-vm);
  libtpu itself would lay out slices that nobody can rent.
  """

  dimensions: int  # Of a slice's grid of chips.
  max_chips: int  # Of a slice.
  memory_gib: float  # Of a device, what the compiler lets a program have: it keeps up to 1.25 GiB of 16, 32, 95 or 96.
  options: dict[str, Any] = dataclasses.field(default_factory=dict)


GENERATIONS = {
  # Without these options each v4 chip counts as two devices with half of the memory.
  'v4': Generation(
    3, 4_096, 30.75, {'chip_config_name': 'megacore', 'chips_per_host_bounds': (2, 2, 1), 'wrap': (True,) * 3}
  ),
  'v5e': Generation(2, 256, 15.75),
  'v5p': Generation(3, 8_960, 95.74),
  'v6e': Generation(2, 256, 31.25),
  'tpu7x': Generation(3, 9_216, 94.75),  # Its chips have two devices each.
}


GPUS_PER_HOST = 8
# Of 79.14 GiB, the three quarters that JAX takes by default (XLA_PYTHON_CLIENT_MEM_FRACTION).
H100_MEMORY_GIB = 59.35
# What XLA would ask of the GPU, as a `GpuTargetConfigProto` (xla/stream_executor/device_description.proto); the figures
# are those of NVIDIA's H100 SXM data sheet and the limits of CUDA's compute capability 9.0.
H100 = """
  platform_name: "CUDA"
  device_description_str: "NVIDIA H100 80GB HBM3"
  dnn_version_info { major: 9 minor: 10 }
  gpu_device_info {
    cuda_compute_capability { major: 9 }
    core_count: 132
    fpus_per_core: 128
    clock_rate_ghz: 1.98
    device_memory_size: 84978434048
    memory_bandwidth: 3352320000000
    l2_cache_size: 52428800
    threads_per_warp: 32
    threads_per_block_limit: 1024
    threads_per_core_limit: 2048
    block_dim_limit_x: 2147483647
    block_dim_limit_y: 65535
    block_dim_limit_z: 65535
    registers_per_block_limit: 65536
    registers_per_core_limit: 65536
    shared_memory_per_block: 49152
    shared_memory_per_block_optin: 232448
    shared_memory_per_core: 233472
  }
"""


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of TPUs, several equal ones that a data-centre network joins, or hosts of GPUs."""

  name: str  # Such as v5e:16x16, h100:64.
  num_slices: int = 1

  @property
  def label(self) -> str:
    """What to call it in a report."""
    return self.name if self.num_slices == 1 else f'{self.num_slices} slices of {self.name}'

  @property
  def is_gpu(self) -> bool:
    """Whether it is made of GPUs."""
    return self.name.startswith('h100:')

  @property
  def memory(self) -> int:
    """Bytes of a device that a program can have."""
    gib = H100_MEMORY_GIB if self.is_gpu else GENERATIONS[self.name.partition(':')[0]].memory_gib
    return int(gib * 2**30)


def parse(name: str, num_slices: int = 1) -> Topology:
  """Reads a topology's name.

  Args:
    name: a generation of TPUs and the sides of a slice in chips, v5e:16x16 or v5p:4x4x4; or a number of GPUs, h100:64.
    num_slices: how many such slices.

  Raises:
    UserError: there is no such accelerator, or no such slice of it.
  """
  kind, _, size = name.partition(':')
  if kind == 'h100':
    _check_gpus(name, size, num_slices)
  elif kind in GENERATIONS:
    _check_slice(name, kind, size, num_slices)
  else:
    known = ', '.join((*GENERATIONS, 'h100'))
    raise UserError(f'unknown topology "{name}": it can be {known}, as in v5e:16x16, v5p:4x4x4 or h100:64')
  return Topology(name, num_slices)


def _check_gpus(name: str, size: str, num_slices: int) -> None:
  if not re.fullmatch(r'[1-9]\d*', size) or (int(size) > GPUS_PER_HOST and int(size) % GPUS_PER_HOST):
    raise UserError(f'unknown topology "{name}": give a number of GPUs, whole hosts of {GPUS_PER_HOST}, as in h100:64')
  if num_slices != 1:
    raise UserError(f'--num_slices is {num_slices}, and {name} has no slices: leave it out')


def _check_slice(name: str, kind: str, size: str, num_slices: int) -> None:
  generation = GENERATIONS[kind]
  if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', size) or size.count('x') != generation.dimensions - 1:
    raise UserError(
      f'unknown topology "{name}": a slice of {kind} has {generation.dimensions} sides, as in '
      f'{kind}:{"x".join(["4"] * generation.dimensions)}'
    )
  chips = math.prod(map(int, size.split('x')))
  if chips > generation.max_chips:
    raise UserError(
      f'{name} has {chips} chips, and a slice of {kind} at most {generation.max_chips}: '
      'give a smaller one and --num_slices'
    )
  if num_slices < 1:
    raise UserError(f'--num_slices is {num_slices}; it must be at least 1')


def prepare_process() -> None:
  """Makes this process one that compiles and never looks for an accelerator; call it before JAX uses any device."""
  # libtpu reads these when it is loaded. Without the type and the host name it asks for both on stderr; without a log
  # directory it fills /tmp/tpu_logs.
  os.environ.update(
    TPU_SKIP_MDS_QUERY='1',  # Do not ask Google Cloud what machine this is.
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',  # Or a second process that compiles is aborted at a lock file.
    TPU_ACCELERATOR_TYPE='v5litepod-8',
    TPU_WORKER_HOSTNAMES='localhost',
    TPU_MIN_LOG_LEVEL='3',
    TPU_STDERR_LOG_LEVEL='3',
    TPU_LOG_DIR='disabled',
  )
  # The GPU compiler would choose between kernels by running them.
  no_trials = '--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false'
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {no_trials}'
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_enable_compilation_cache', False)  # A program from a cache was not compiled in the time shown.


def devices(topology: Topology) -> list[jax.Device]:
  """Returns the topology's devices, for which programs can be compiled but not run.

  Raises:
    UserError: their compiler is not installed, or has no such topology.
  """
  options: dict[str, Any]
  if topology.is_gpu:
    _require('jax_cuda13_plugin', 'GPUs', 'launch/requirements-gpu-compiler.txt')
    count = int(topology.name.partition(':')[2])
    per_host = min(count, GPUS_PER_HOST)
    # Domains of fast links x hosts of each x GPUs of each.
    options = {'platform': 'cuda', 'topology': f'{count // per_host}x1x{per_host}', 'target_config': H100}
  else:
    _require('libtpu', 'TPUs', 'launch/requirements-tpu.txt')
    options = {'platform': 'tpu', 'topology_name': topology.name, 'num_slices': topology.num_slices}
    options |= GENERATIONS[topology.name.partition(':')[0]].options
  try:
    return list(topologies.get_topology_desc(**options).devices)
  except jax.errors.JaxRuntimeError as error:
    raise UserError(f"{options['platform']}'s compiler has no topology {topology.name}: {error}") from error


def _require(package: str, what: str, requirements: str) -> None:
  if importlib.util.find_spec(package) is None:
    raise UserError(f'compiling for {what} needs {package}, which is not installed: pip install -r {requirements}')
