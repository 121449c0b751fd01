import jax.numpy as jnp
import numpy as np
import pytest

from selfie_jax.config import Config, Optimizer
from selfie_jax.errors import UserError
from selfie_jax.training.optimizer import learning_rate_schedule, make_optimizer

PARAMS = {'kernel': jnp.ones((4, 3)), 'bias': jnp.ones(3)}


def _update(settings, gradient):
  optimizer = make_optimizer(Config(steps=100, optimizer=settings))
  updates, _ = optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)
  return updates


def test_the_rate_warms_up_and_follows_a_cosine_to_zero():
  schedule = learning_rate_schedule(Config(steps=110, optimizer=Optimizer(learning_rate=0.5, warmup_steps=10)))
  rates = [float(schedule(step)) for step in (0, 5, 10, 60, 110)]
  assert rates == pytest.approx([0, 0.25, 0.5, 0.25, 0], abs=1e-6)


def test_a_constant_rate_stays_and_scales_with_the_batch():
  settings = Optimizer(learning_rate=0.1, schedule='constant', base_batch_size=256)
  schedule = learning_rate_schedule(Config(steps=100, batch_size=1024, optimizer=settings))
  assert [float(schedule(step)) for step in (0, 99)] == pytest.approx([0.4, 0.4])


def test_weight_decay_spares_biases_and_normalisation():
  zero = {'kernel': jnp.zeros((4, 3)), 'bias': jnp.zeros(3)}
  for name in ('adamw', 'lars'):
    updates = _update(Optimizer(name=name, learning_rate=0.1, weight_decay=0.5), zero)
    assert np.all(updates['kernel'] < 0)
    assert np.all(updates['bias'] == 0)


def test_adam_refuses_a_weight_decay_it_would_not_decouple():
  with pytest.raises(UserError, match='use "adamw"'):
    make_optimizer(Config(optimizer=Optimizer(weight_decay=0.1)))


def test_lars_moves_a_kernel_by_its_own_size_whatever_the_gradients():
  norms = []
  for scale in (1e-3, 1e3):
    gradient = {'kernel': scale * jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
    norms.append(np.linalg.norm(_update(Optimizer(name='lars', learning_rate=1.0), gradient)['kernel']))
  assert norms[0] == pytest.approx(norms[1], rel=1e-4)
  assert norms[0] == pytest.approx(0.001 * np.linalg.norm(PARAMS['kernel']), rel=1e-4)  # optax's trust coefficient.


def test_clipping_bounds_the_gradients_global_norm():
  gradient = {'kernel': 100 * jnp.ones((4, 3)), 'bias': 100 * jnp.ones(3)}
  updates = _update(Optimizer(name='lars', learning_rate=1.0, clip_norm=1.0), gradient)
  assert np.linalg.norm(updates['bias']) == pytest.approx(np.sqrt(3 / 15), rel=1e-4)
