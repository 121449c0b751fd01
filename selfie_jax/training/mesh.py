"""Devices, processes, and how a batch is laid out over them."""

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from selfie_jax.config import Config
from selfie_jax.errors import UserError


def initialize_distributed() -> None:
  """Joins the other processes, where the launcher says that there are some, before any device is used.

  The launcher says so with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in the environment.

  Raises:
    UserError: the address is there, and one of the two numbers is not.
  """
  if 'JAX_COORDINATOR_ADDRESS' not in os.environ:
    return
  try:
    num_processes, process_id = int(os.environ['JAX_NUM_PROCESSES']), int(os.environ['JAX_PROCESS_ID'])
  except (KeyError, ValueError) as error:
    raise UserError(f'JAX_COORDINATOR_ADDRESS is set, so two whole numbers must be, too: {error}') from error
  jax.distributed.initialize(os.environ['JAX_COORDINATOR_ADDRESS'], num_processes, process_id)


def make_mesh() -> jax.sharding.Mesh:
  """Returns the mesh of all devices of all processes, in process order, with the one axis `data`."""
  return jax.make_mesh((jax.device_count(),), ('data',), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Consecutive blocks of the batch's rows go to consecutive devices."""
  return NamedSharding(mesh, PartitionSpec('data'))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The same value on every device."""
  return NamedSharding(mesh, PartitionSpec())


def replicate_shapes(shapes: Any, mesh: jax.sharding.Mesh) -> Any:
  """Gives each `ShapeDtypeStruct` of a tree the replicated sharding: what to restore, and where to."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), shapes)


def check_batch(config: Config, num_devices: int) -> None:
  """Checks that the batch can be laid out over the devices.

  Raises:
    UserError: with both numbers and the nearest batch size that works.
  """
  per_device, rest = divmod(config.batch_size, num_devices)
  group = config.augment.mixup_group if config.augment.mixup_ratio > 0 else 1
  if rest or per_device % group:
    unit = num_devices * group
    raise UserError(
      f'batch_size {config.batch_size} cannot be divided over {num_devices} devices in whole mixup groups of {group}: '
      f'choose a multiple of {unit}, such as {max(1, round(config.batch_size / unit)) * unit}'
    )
  if config.objective.variance_statistics == 'per_device' and per_device < 2:
    raise UserError(
      f'a variance per device needs at least 2 clips on each, and batch_size {config.batch_size} over {num_devices} '
      f'devices gives {per_device}: raise batch_size or set objective.variance_statistics="global"'
    )


def to_devices(rows: np.ndarray, sharding: NamedSharding) -> jax.Array:
  """Makes the global array of which `rows` are this process's consecutive rows."""
  # With several processes JAX counts this transfer as an implicit one; it is the loop's only one, and wanted.
  with jax.transfer_guard_host_to_device('allow'):
    return jax.make_array_from_process_local_data(sharding, rows)
