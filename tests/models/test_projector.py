import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from selfie_jax import config
from selfie_jax.models.projector import Projector


@pytest.mark.parametrize('hidden_layers', [0, 1, 3])
def test_the_hidden_layers_are_those_asked_for_and_the_last_has_no_bias(hidden_layers):
  settings = config.Projector(hidden_width=12, hidden_layers=hidden_layers, output_width=5)
  projector = Projector(settings, 7, rngs=nnx.Rngs(0))
  assert projector(jnp.ones((4, 7)), train=True).shape == (4, 5)
  widths = [7] + [12] * hidden_layers
  hidden = sum((i + 1) * o + 2 * o for i, o in zip(widths[:-1], widths[1:], strict=True))
  assert sum(p.size for p in jax.tree.leaves(nnx.state(projector, nnx.Param))) == hidden + widths[-1] * 5


def test_it_is_linear_then_batch_normalisation_then_relu_then_linear():
  projector = Projector(config.Projector(hidden_width=12, output_width=5), 7, rngs=nnx.Rngs(0))
  x = np.random.default_rng(0).standard_normal((16, 7)).astype(np.float32)
  hidden = x @ np.asarray(projector.hidden[0].kernel[...])
  hidden = np.maximum((hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5), 0)
  expected = hidden @ np.asarray(projector.output.kernel[...])
  np.testing.assert_allclose(projector(jnp.asarray(x), train=True), expected, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_its_embeddings_statistics_and_parameters_are_float32():
  settings = config.Projector(hidden_width=64, output_width=32)
  x = jnp.asarray(np.random.default_rng(0).standard_normal((16, 7)), jnp.float32)
  full = Projector(settings, 7, rngs=nnx.Rngs(0))(x, train=True)
  projector = Projector(settings, 7, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
  half = projector(x.astype(jnp.bfloat16), train=True)
  assert half.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(projector))} == {jnp.dtype(jnp.float32)}
  assert (half != half.astype(jnp.bfloat16)).mean() > 0.9  # Summed in float32 and not rounded after.
  np.testing.assert_allclose(half, full, atol=0.03 * float(jnp.abs(full).max()))
