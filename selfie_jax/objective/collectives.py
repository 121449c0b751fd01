"""The collectives that the objective needs, over all of a mesh's axes; without axes they do nothing.

They are called inside `jax.shard_map`, on this device's rows. `axes` are the names of the mesh's axes, over all of
which rows are sharded in consecutive blocks, or () where one array holds every row.

What each costs in the backward pass follows from JAX's types for values that vary over devices: a sum's and a
gather's results are the same everywhere, so their gradients are local (the cotangent as it is, and a slice of it).
Where a value that is the same everywhere meets one that varies, its cotangent is summed over the devices: one more
all-reduce, which `jax.lax.stop_gradient` avoids where the gradient is known to vanish.
"""

import math

import jax
import jax.numpy as jnp

Axes = tuple[str, ...]


def num_devices(axes: Axes) -> int:
  """Returns over how many devices the rows are sharded."""
  return math.prod(jax.lax.axis_size(axis) for axis in axes)


def device_index(axes: Axes) -> jax.Array | int:
  """Returns the place of this device's block among all blocks of rows."""
  return jax.lax.axis_index(axes) if axes else 0


def sum_over_devices(x: jax.Array, axes: Axes) -> jax.Array:
  """Returns the sum of all devices' `x`: an all-reduce, none in the backward pass."""
  return jax.lax.psum(x, axes) if axes else x


def gather_rows(x: jax.Array, axes: Axes) -> jax.Array:
  """Returns (views, n, d), all devices' (views, n / devices, d) in order: an all-gather, none in the backward pass."""
  return jax.lax.all_gather(x, axes, axis=1, tiled=True, to='invarying') if axes else x


def scatter_sum(x: jax.Array, axes: Axes) -> jax.Array:
  """Returns this device's piece of the sum of all devices' `x`.

  A reduce-scatter; the backward pass has an all-gather of the same size. Pieces are cut between rows of 128 entries,
  and between tiles of 8 such rows where that adds less than an eighth of zeros: a TPU's compiler turns the
  reduce-scatter of other pieces into an all-reduce of everything. (For many chips it does so anyway.)

  Args:
    x: (views, ...).
    axes: see above.

  Returns:
    (views, rows, 128). All devices' pieces, put together, are each view's sum, flattened and padded with zeros.
  """
  devices = num_devices(axes)
  flat = x.reshape(x.shape[0], -1)
  rows = math.ceil(flat.shape[1] / 128)
  rows += -rows % (8 * devices if rows >= 64 * devices else devices)
  pieces = jnp.pad(flat, ((0, 0), (0, 128 * rows - flat.shape[1]))).reshape(-1, rows, 128)
  return jax.lax.psum_scatter(pieces, axes, scatter_dimension=1, tiled=True) if axes else pieces
