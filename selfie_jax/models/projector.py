"""The projector: an MLP from the representation to the embedding that the objective sees."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from selfie_jax import config as config_lib
from selfie_jax.models.normalization import batch_norm


class Projector(nnx.Module):
  """[Linear, BatchNorm, ReLU] x `hidden_layers`, then a Linear without bias."""

  def __init__(
    self, config: config_lib.Projector, in_features: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
  ) -> None:
    """Initialises the projector.

    Args:
      config: its settings.
      in_features: width of a representation.
      rngs: the source of the initial weights.
      dtype: what the linear layers compute in. Parameters, batch normalisation and the embeddings are in float32.
    """
    widths = [in_features] + [config.hidden_width] * config.hidden_layers
    self.hidden = nnx.List(
      [nnx.Linear(i, o, dtype=dtype, rngs=rngs) for i, o in zip(widths[:-1], widths[1:], strict=True)]
    )
    self.norms = nnx.List([batch_norm(width, rngs=rngs, dtype=dtype) for width in widths[1:]])
    # The objective's statistics are differences of embeddings: a rounding to bfloat16 here would be noise in them, and
    # the product is summed in float32 anyway.
    self.output = nnx.Linear(
      widths[-1],
      config.output_width,
      use_bias=False,
      dtype=dtype,
      preferred_element_type=jnp.promote_types(dtype, jnp.float32),
      rngs=rngs,
    )

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Projects representations (n, in_features) to embeddings (n, output_width) in float32 at least."""
    for linear, norm in zip(self.hidden, self.norms, strict=True):
      x = nnx.relu(norm(linear(x), use_running_average=not train))
    return self.output(x)
