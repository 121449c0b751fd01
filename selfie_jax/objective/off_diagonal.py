"""The energy off the diagonal of a matrix A'B whose factors' rows are sharded over devices.

A covariance matrix (B = A) and a cross-correlation matrix are both of this kind, d x d, and cost more than any other
part of the objective to compute and to send. There are three exact routes; `covariance_route` says which is taken.
"""

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from selfie_jax.objective.collectives import Axes, scatter_sum, sum_over_devices
from selfie_jax.objective.statistics import EXACT, Rows

# No device gathers or sums more than the square of this number of entries, 16 MiB in float32, at a time. Beside that it
# keeps its own share of a larger matrix, d * d / devices entries.
MAX_REPLICATED_WIDTH = 2_048


def covariance_route(n: int, d: int) -> str:
  """Returns how the energy of (n, d) embeddings is computed.

  * 'gram', if n < d: every device gathers all rows, n x d, and computes its rows of the smaller Gram matrix, n x n.
  * 'all_reduce': the devices' d x d products are summed.
  * 'reduce_scatter', if d > MAX_REPLICATED_WIDTH: the same, block by block; of the sum each device keeps a piece.

  Per view, device and step, and for many devices, the first route moves n * d entries and the others d * d (half of
  the symmetric matrix, in two passes: an all-reduce is a reduce-scatter and an all-gather, and of those the energy
  needs the first and its gradient the second). So the shape that computes less is also the one that moves less.
  """
  if n < d:
    return 'gram'
  return 'all_reduce' if d <= MAX_REPLICATED_WIDTH else 'reduce_scatter'


def off_diagonal_energy(rows: Rows, cross: bool = False) -> jax.Array:
  """Returns sum_{i != j} (A'B)_ij^2 by the route that `covariance_route` names.

  Args:
    rows: (2, n / devices, d) of each view; `everyone` is needed for the route 'gram'.
    cross: False for two energies, of A = B = each view; True for one, of A = the first and B = the second view.

  Returns:
    (2,), or (1,) if `cross`; the same on every device.
  """
  route = covariance_route(rows.count, rows.own.shape[-1])
  if route == 'gram':
    return _gram_energy(rows, cross)
  a, b = _factors(rows.own, cross)
  if route == 'reduce_scatter':
    return _scattered_energy(a, b, cross, rows.axes)
  if cross:
    product = sum_over_devices(_without_diagonal(_product(a, b)), rows.axes)
    return jnp.square(product).sum(axis=(1, 2))
  return 2 * jnp.square(sum_over_devices(_upper_triangle(a), rows.axes)).sum(axis=(1, 2))


def _factors(z: jax.Array, cross: bool) -> tuple[jax.Array, jax.Array]:
  return (z[:1], z[1:]) if cross else (z, z)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.einsum('vni,vnj->vij', a, b, precision=EXACT)


def _without_diagonal(x: jax.Array) -> jax.Array:
  # Before any sum of squares, not subtracted from it after: that keeps the digits of small entries.
  return jnp.where(jnp.eye(*x.shape[1:], dtype=bool), 0.0, x)


def _upper_triangle(a: jax.Array) -> jax.Array:
  """Returns the entries of A'A above its diagonal, folded into half a square, since the others are the same again.

  With the columns of A in two halves, A'A = [[P, Q], [Q', R]]. P's and R's triangles share one square (R's, transposed,
  lies below P's diagonal) and Q goes beside it.

  Args:
    a: (views, n, d).

  Returns:
    (views, ceil(d / 2), d).
  """
  d = a.shape[-1]
  half = (d + 1) // 2
  top = _product(a[..., :half], a)
  bottom = jnp.tril(_product(a[..., half:], a[..., half:]), -1)
  margin = half - bottom.shape[-1]  # 1 if d is odd.
  square = jnp.triu(top[..., :half], 1) + jnp.pad(bottom, ((0, 0), (0, margin), (0, margin)))
  return jnp.concatenate([square, top[..., half:]], axis=-1)


def _gram_energy(rows: Rows, cross: bool) -> jax.Array:
  """Returns the energy from the n x n Gram matrices.

  |A'B|^2 = sum_mk (AA')_mk (BB')_mk, less the diagonal's share, sum_m sum_j A_mj B_mj (A'B)_jj. The difference is as
  exact as float32 is for |A'B|^2, not for its own size. That would drown the loss in rounding where one dimension
  outlives all others, so the row and column of the largest diagonal entry are computed directly.
  """
  a, b = _factors(rows.own, cross)
  # Everyone's rows count as constants. The energy is symmetric in the two rows of a pair, so the gradient through
  # this device's own is half of the whole, and no device has to send another one its rows' gradient.
  all_a, all_b = _factors(jax.lax.stop_gradient(rows.everyone), cross)
  diagonal = (all_a * all_b).sum(axis=1, keepdims=True)  # (views, 1, d)
  largest = jax.nn.one_hot(jnp.abs(diagonal).argmax(axis=-1), diagonal.shape[-1], dtype=a.dtype)
  column_a, column_b, all_column_a, all_column_b = (
    (x * largest).sum(axis=-1, keepdims=True) for x in (a, b, all_a, all_b)
  )
  a, b, all_a, all_b, diagonal = (x * (1 - largest) for x in (a, b, all_a, all_b, diagonal))

  gram_a = jnp.einsum('vmi,vki->vmk', a, all_a, precision=EXACT)
  gram_b = jnp.einsum('vmi,vki->vmk', b, all_b, precision=EXACT) if cross else gram_a
  others = (gram_a * gram_b).sum(axis=2) - (a * b * diagonal).sum(axis=2)
  row_of_largest = (all_column_a * all_b).sum(axis=1, keepdims=True)
  column_of_largest = (all_a * all_column_b).sum(axis=1, keepdims=True)
  direct = (column_a * b * row_of_largest + a * column_b * column_of_largest).sum(axis=2)
  return sum_over_devices(twice_the_gradient((others + direct).sum(axis=1)), rows.axes)


def twice_the_gradient(x: jax.Array) -> jax.Array:
  """Returns `x`, with twice its gradient."""
  return 2 * x - jax.lax.stop_gradient(x)


def _scattered_energy(a: jax.Array, b: jax.Array, cross: bool, axes: Axes) -> jax.Array:
  """Returns the energy from blocks of columns of A times windows of columns of B, one after the other.

  The columns, padded with zeros, are seen as a circle of blocks. A window starts with its block's own columns; it is
  the whole circle or, for a symmetric matrix, the first half of it: in a circle of an odd number of blocks, that
  meets every two blocks once. In the backward pass a device gathers the sum of one block's products at a time.
  """
  views, _, d = a.shape
  num_blocks, width, window = scattered_blocks(views, d, cross)
  padding = ((0, 0), (0, 0), (0, num_blocks * width - d))
  a, b = jnp.pad(a, padding), jnp.pad(b, padding)
  circle = jnp.concatenate([b, b[..., : window - width]], axis=-1)

  def energy_of_block(start: jax.Array) -> jax.Array:
    product = _product(
      jax.lax.dynamic_slice_in_dim(a, start, width, axis=-1),
      jax.lax.dynamic_slice_in_dim(circle, start, window, axis=-1),
    )
    piece = scatter_sum(_without_diagonal(product) if cross else jnp.triu(product, 1), axes)
    if axes:
      piece = checkpoint_name(piece, 'piece')
    return jnp.square(piece).sum(axis=(1, 2))

  # For the backward pass only the pieces are kept, which took a collective to compute. The blocks' columns are sliced
  # again: kept, they would be half as many copies of the batch as there are blocks. On one device, where a piece is
  # all of the product, nothing is kept.
  policy = jax.checkpoint_policies.save_only_these_names('piece')
  energies = jax.lax.map(jax.checkpoint(energy_of_block, policy=policy), width * jnp.arange(num_blocks))
  return (1 if cross else 2) * sum_over_devices(energies.sum(axis=0), axes)


def scattered_blocks(views: int, d: int, cross: bool) -> tuple[int, int, int]:
  """Returns the fewest blocks that respect the bound: their number, their width and their window's, in columns."""
  num_blocks, width, window = 1, d, d
  while views * width * window > MAX_REPLICATED_WIDTH**2 and width > 1:
    num_blocks += 1 if cross else 2
    width = math.ceil(d / num_blocks)
    window = width * (num_blocks if cross else (num_blocks + 1) // 2)
  return num_blocks, width, window
