import jax
import jax.numpy as jnp
import numpy as np

from selfie_jax.config import AudioNTT, Config, Projector
from selfie_jax.training.state import build_model, random_keys


def test_the_projector_can_be_kept_from_the_convolutions_features():
  encoder = AudioNTT(conv_channels=8, width=32, dropout=0.0, concat_conv=True)
  model = build_model(Config(encoder=encoder, projector=Projector(dense_only=True, hidden_width=16, output_width=8)))
  x = jax.random.normal(jax.random.key(0), (4, 64, 96))
  representation = model.encoder.pool(model.encoder(x, train=True))
  assert representation.shape == (4, 8 * 8 + 32)
  keys = jax.random.split(jax.random.key(1), 4)
  np.testing.assert_array_equal(model(x, keys), model.projector(representation[:, -32:], train=True))


def test_weights_and_steps_draw_from_different_keys_and_seeds_from_different_ones():
  keys = jnp.stack([jax.random.key_data(key) for seed in (0, 1) for key in random_keys(seed)])
  assert len(np.unique(keys, axis=0)) == 4
