"""2x2 max-pool, with its gradient written out."""

import jax
import jax.numpy as jnp


def max_pool_2x2(x: jax.Array) -> jax.Array:
  """2x2 max-pool with stride 2 of (n, h, w, c); an odd last row or column is dropped, as in PyTorch.

  Where several of the four are the greatest, the first in reading order gets the gradient, as in PyTorch.
  """
  _, h, w, _ = x.shape
  return _max_pool_even(x[:, : h // 2 * 2, : w // 2 * 2])


# The gradient is written out for two reasons. XLA's own for max-pools compare the input with the maximum once more, and
# where fusions compute the two apart they may differ by a rounding, which loses that window's gradient (seen on CPU in
# float64). And they are slow there: with `reduce_window`, slower than all convolutions together.
@jax.custom_vjp
def _max_pool_even(x: jax.Array) -> jax.Array:
  return _windows(x).max((2, 4))


def _windows(x: jax.Array) -> jax.Array:
  n, h, w, c = x.shape
  return x.reshape(n, h // 2, 2, w // 2, 2, c)


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  return _max_pool_even(x), x


def first_greatest(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
  """Which of the four is the greatest, 0 to 3, and the first of several, in int8."""
  second_row_wins = jnp.maximum(c, d) > jnp.maximum(a, b)
  return jnp.where(second_row_wins, 2 + (d > c).astype(jnp.int8), (b > a).astype(jnp.int8))


def _max_pool_backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
  windows = _windows(x)
  # The one of each window's four that gets the gradient, 0 to 3 in reading order. (Kept from the forward pass, it moves
  # 7 % more bytes on a TPU than when it is found again here.)
  winner = first_greatest(*(windows[:, :, row, :, column] for row in range(2) for column in range(2)))
  # To stack four gradients instead takes 1.6 times the memory on a TPU, and 4 times as long on a CPU.
  position = jnp.arange(4, dtype=jnp.int8).reshape(2, 1, 2, 1)
  wins = winner[:, :, None, :, None] == position
  return (jnp.where(wins, dy[:, :, None, :, None], 0).reshape(x.shape),)


_max_pool_even.defvjp(_max_pool_forward, _max_pool_backward)
