import jax
import numpy as np

from selfie_jax.config import Augment, Config, Data
from selfie_jax.training.checkpointing.checkpoints import DataState
from selfie_jax.training.views import make_views

CONFIG = Config(data=Data(crop_seconds=0.25, crops=2), augment=Augment(mixup_group=2))
DATA = DataState('', -5.0, 4.0, 1)


def test_of_two_crops_the_first_view_is_made_of_the_one_and_the_second_of_the_other():
  views = jax.jit(lambda *crops: make_views(jax.random.key(0), jax.numpy.concatenate(crops, axis=1), CONFIG, DATA))
  one, other = np.random.default_rng(0).integers(-9_000, 9_000, (2, 4, 4_000)).astype(np.int16)
  first, second = views(one, other)
  np.testing.assert_array_equal(first, views(one, one)[0])
  np.testing.assert_array_equal(second, views(other, other)[1])
  assert (first != views(other, other)[0]).all(axis=0).any()
  assert (second != views(one, one)[1]).all(axis=0).any()
