"""From an encoder's frames to one vector a clip."""

import jax
import jax.numpy as jnp


def mean(frames: jax.Array, valid: jax.Array | None = None) -> jax.Array:
  """The mean over time.

  Args:
    frames: (n, frames, features).
    valid: (n,) how many leading frames of each example count, at least 1; None: all.

  Returns:
    (n, features).
  """
  return frames.mean(1, where=_counts(frames, valid))


def max_plus_mean(frames: jax.Array, valid: jax.Array | None = None) -> jax.Array:
  """The maximum over time plus the mean over time: a sum, not a concatenation (BYOL-A, arXiv 2204.07402).

  Args:
    frames: (n, frames, features).
    valid: (n,) how many leading frames of each example count, at least 1; None: all.

  Returns:
    (n, features).
  """
  return frames.max(1, where=_counts(frames, valid), initial=-jnp.inf) + mean(frames, valid)


def _counts(frames: jax.Array, valid: jax.Array | None) -> jax.Array | None:
  return None if valid is None else (jnp.arange(frames.shape[1]) < valid[:, None])[..., None]
