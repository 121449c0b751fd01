"""The projector: an MLP from the representation to the embedding that the objective sees."""

import jax
from flax import nnx

from selfie_jax import config as config_lib


class Projector(nnx.Module):
  """[Linear, BatchNorm, ReLU] x `hidden_layers`, then a Linear without bias."""

  def __init__(self, config: config_lib.Projector, in_features: int, *, rngs: nnx.Rngs) -> None:
    widths = [in_features] + [config.hidden_width] * config.hidden_layers
    self.hidden = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in zip(widths[:-1], widths[1:], strict=True)])
    self.norms = nnx.List([nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, rngs=rngs) for width in widths[1:]])
    self.output = nnx.Linear(widths[-1], config.output_width, use_bias=False, rngs=rngs)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Projects representations (n, in_features) to embeddings (n, output_width)."""
    for linear, norm in zip(self.hidden, self.norms, strict=True):
      x = nnx.relu(norm(linear(x), use_running_average=not train))
    return self.output(x)
