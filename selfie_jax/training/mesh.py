"""Devices, processes, and how a batch is laid out over them."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from selfie_jax.config import Config
from selfie_jax.errors import UserError

AXES = ('data', 'fsdp')


def make_mesh(fsdp: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns the mesh with the axes `data` and `fsdp`: groups of `fsdp` neighbouring devices share one set of weights.

  Devices are in the order of their processes, so that the rows of a batch that a process holds are consecutive.

  Args:
    fsdp: devices in a group.
    devices: all of those to use; the devices of all processes if None.

  Raises:
    UserError: the devices cannot be cut in such groups, or a group would reach over two TPU slices, between which the
      network is too slow to gather weights in every step.
  """
  devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
  if len(devices) % fsdp:
    raise UserError(f'mesh.fsdp {fsdp} does not divide the {len(devices)} devices: choose a divisor')
  grid = np.array(devices).reshape(-1, fsdp)
  if devices[0].platform == 'tpu':
    slices = [{getattr(device, 'slice_index', None) for device in group} for group in grid]
    if max(map(len, slices)) > 1:
      raise UserError(
        f'mesh.fsdp {fsdp} does not divide the {len(devices) // len(set().union(*slices))} devices of a slice: '
        'choose a divisor'
      )
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Consecutive blocks of the batch's rows go to consecutive devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def state_shardings(shapes: Any, mesh: Mesh, strategy: Sequence[tuple[str, str]]) -> Any:
  """Says for every array of a train state how it lies on the devices.

  Args:
    shapes: a tree of arrays or their shapes.
    mesh: the devices.
    strategy: pairs of a pattern and a rule. The first pattern that is found in an array's path, such as
      `params/encoder/dense1/kernel`, decides: `fsdp` cuts the longest of the dimensions that the axis `fsdp` divides
      (an array that has none is replicated), `replicate` puts all of it on every device, as does no match.

  Returns:
    A tree of `NamedSharding`.
  """

  def of_leaf(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> NamedSharding:
    name = jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value')  # NNX's box.
    rule = next((rule for pattern, rule in strategy if re.search(pattern, name)), 'replicate')
    return NamedSharding(mesh, _cut(shape.shape, mesh.shape['fsdp']) if rule == 'fsdp' else PartitionSpec())

  return jax.tree.map_with_path(of_leaf, shapes)


def _cut(shape: tuple[int, ...], size: int) -> PartitionSpec:
  divisible = [axis for axis, length in enumerate(shape) if length % size == 0]
  if size == 1 or not divisible:
    return PartitionSpec()
  longest = max(divisible, key=lambda axis: shape[axis])
  return PartitionSpec(*(('fsdp' if axis == longest else None) for axis in range(longest + 1)))


def axes_between(mesh: Mesh) -> tuple[str, ...]:
  """Returns the axes along which there is something to exchange: both, or none with a single device."""
  # XLA would carry out a single device's collectives, and on CPUs run nothing beside them: 15 % of a step.
  return AXES if mesh.size > 1 else ()


def gather(params: Any, specs: Any, axes: tuple[str, ...]) -> Any:
  """Within `shard_map`: makes a device's parts of the parameters whole, to be used (and differentiated) there alone."""

  def of_leaf(param: jax.Array, spec: PartitionSpec) -> jax.Array:
    if 'fsdp' in spec:
      param = jax.lax.all_gather(param, 'fsdp', axis=spec.index('fsdp'), tiled=True)
      return jax.lax.pcast(param, 'data', to='varying')
    # Without this, gradients would be summed over devices wherever a parameter is used: in each view and microbatch.
    return jax.lax.pcast(param, axes, to='varying')

  return jax.tree.map(of_leaf, params, specs)


def sum_and_scatter(gradients: Any, specs: Any, axes: tuple[str, ...]) -> Any:
  """Within `shard_map`: sums the devices' gradients of what `gather` made; each device gets the sum of its parts."""

  def of_leaf(gradient: jax.Array, spec: PartitionSpec) -> jax.Array:
    if 'fsdp' in spec:
      axis = spec.index('fsdp')
      return jax.lax.psum(jax.lax.psum_scatter(gradient, 'fsdp', scatter_dimension=axis, tiled=True), 'data')
    return jax.lax.psum(gradient, axes)

  return jax.tree.map(of_leaf, gradients, specs)


def replicated(mesh: Mesh) -> NamedSharding:
  """The same value on every device."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch(config: Config, num_devices: int) -> None:
  """Checks that the batch can be laid out over the devices.

  Raises:
    UserError: with both numbers and the nearest batch size that works.
  """
  per_device, rest = divmod(config.batch_size, num_devices)
  group = config.augment.mixup_group if config.augment.mixup_ratio > 0 else 1
  left_over = (
    (rest, 'equal parts'),
    (per_device % group, f'whole mixup groups of {group}'),
    (per_device % config.microbatches, 'equal microbatches'),
  )
  for clips, parts in left_over:
    if clips:
      step = num_devices * math.lcm(group, config.microbatches)
      raise UserError(
        f'batch_size {config.batch_size} cannot be divided over {num_devices} devices in {parts}: '
        f'choose a multiple of {step}, such as {max(1, round(config.batch_size / step)) * step}'
      )
  if config.objective.variance_groups(num_devices) > 1 and per_device < 2:
    raise UserError(
      f'a variance per device needs at least 2 clips on each, and batch_size {config.batch_size} over {num_devices} '
      f'devices gives {per_device}: raise batch_size or set objective.variance_statistics="global"'
    )


def to_devices(rows: np.ndarray, sharding: NamedSharding) -> jax.Array:
  """Makes the global array of which `rows` are this process's consecutive rows."""
  # With several processes JAX counts this transfer as an implicit one; it is the loop's only one, and wanted.
  with jax.transfer_guard_host_to_device('allow'):
    return jax.make_array_from_process_local_data(sharding, rows)
