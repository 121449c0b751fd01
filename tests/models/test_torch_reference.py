"""Our networks and loss against an independent PyTorch implementation.

`torch_reference_step.npz` was written by a PyTorch program made from the papers alone: an AudioNTT2020 of width 96
without dropout, a projector 64 -> 32, VICReg's loss with weights 25 / 25 / 1, Adam at 3e-4, each view encoded in a call
of its own. It has the views `a` and `b` (16, 1, 64, 96), the initial weights `init.*` in PyTorch's layouts, the first
step's gradients `grad.*`, the `losses` of five steps, and two random embeddings `z1`, `z2` with their loss `loss_z`.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from selfie_jax import config
from selfie_jax.models.audiontt import AudioNTT
from selfie_jax.models.projector import Projector
from selfie_jax.objective.objective import objective

RELATIVE = 1e-4
KINK_CHANNEL = 41
OBJECTIVE = config.Objective(invariance=25.0, diversity=25.0, decorrelation=1.0)


@pytest.fixture(scope='module')
def reference():
  with np.load(Path(__file__).with_name('torch_reference_step.npz')) as arrays:
    return dict(arrays)


class Model(nnx.Module):
  def __init__(self, dtype):
    options = {'rngs': nnx.Rngs(0), 'dtype': dtype}
    self.encoder = AudioNTT(config.AudioNTT(width=96, dropout=0.0), 64, **options)
    self.projector = Projector(config.Projector(hidden_width=64, output_width=32), 96, **options)

  def __call__(self, x):
    return self.projector(self.encoder.pool(self.encoder(x, train=True)), train=True)


def from_torch(reference, prefix):
  """The parameters of `Model`, as a pure dict, from PyTorch's names and layouts."""

  def linear(name):
    layer = {'kernel': reference[f'{prefix}.{name}.weight'].T}
    bias = reference.get(f'{prefix}.{name}.bias')
    return layer if bias is None else layer | {'bias': bias}

  def norm(name):
    return {'scale': reference[f'{prefix}.{name}.weight'], 'bias': reference[f'{prefix}.{name}.bias']}

  def conv(name):
    kernel = reference[f'{prefix}.{name}.weight'].transpose(2, 3, 1, 0)
    return {'kernel': kernel, 'bias': reference[f'{prefix}.{name}.bias']}

  blocks = {i: {'conv': conv(f'enc.blocks.{i}.conv'), 'norm': norm(f'enc.blocks.{i}.bn')} for i in range(3)}
  return {
    'encoder': {'blocks': blocks, 'dense1': linear('enc.l1'), 'dense2': linear('enc.l2')},
    'projector': {'hidden': {0: linear('proj.0')}, 'norms': {0: norm('proj.1')}, 'output': linear('proj.3')},
  }


@pytest.fixture(scope='module')
def training(reference):
  return make_training(reference, jnp.float32)


@pytest.fixture(scope='module')
def training_in_float64(reference):
  with jax.enable_x64(True):
    return make_training(reference, jnp.float64)


def make_training(reference, dtype):
  """The loss and its gradient as a function of the parameters, and the reference's initial parameters."""
  graphdef, params, stats = nnx.split(Model(dtype), nnx.Param, ...)
  nnx.replace_by_pure_dict(params, jax.tree.map(lambda x: jnp.asarray(x, dtype), from_torch(reference, 'init')))
  views = [jnp.asarray(reference[name][:, 0], dtype) for name in 'ab']

  def loss(params):
    model = nnx.merge(graphdef, params, stats, copy=True)
    return objective(model(views[0]), model(views[1]), OBJECTIVE, 1)[0]

  return jax.jit(jax.value_and_grad(loss)), params


def test_loss_of_two_embeddings(reference):
  loss, _ = objective(jnp.asarray(reference['z1']), jnp.asarray(reference['z2']), OBJECTIVE, 1)
  np.testing.assert_allclose(loss, reference['loss_z'], rtol=1e-6)


def test_loss_of_the_first_step(reference, training):
  value_and_grad, params = training
  loss, _ = value_and_grad(params)
  np.testing.assert_allclose(loss, reference['losses'][0], rtol=1e-6)


def on_pytorchs_side(params):
  """The parameters, with PyTorch's rounding at the one kink of the first step.

  One ReLU of the second block has an input of -3e-8 (in float64), which PyTorch's float32 rounded to a positive number,
  and that alone moves gradients by 0.7 %. A bias of 1e-6 puts our rounding on its side, and nothing else across a kink.
  """
  nudged = jax.tree.map(lambda leaf: leaf, params)
  bias = nudged['encoder']['blocks'][1]['norm']['bias']
  nudged['encoder']['blocks'][1]['norm']['bias'] = bias.replace(bias[...].at[KINK_CHANNEL].add(1e-6))
  return nudged


def errors_of_gradients(reference, training):
  """The greatest error in each gradient of the first step, over the greatest of its numbers."""
  value_and_grad, params = training
  _, gradients = value_and_grad(on_pytorchs_side(params))
  ours = jax.tree.leaves_with_path(nnx.to_pure_dict(gradients))
  theirs = dict(jax.tree.leaves_with_path(from_torch(reference, 'grad')))
  assert dict(ours).keys() == theirs.keys()
  errors = {}
  for path, gradient in ours:
    # A bias in front of a batch normalisation has no gradient but rounding errors: they count against its kernel's.
    in_front = path[-1].key == 'bias' and (path[-2].key == 'conv' or 'hidden' in (key.key for key in path))
    scale = np.abs(theirs[(*path[:-1], jax.tree_util.DictKey('kernel'))] if in_front else theirs[path]).max()
    errors[jax.tree_util.keystr(path, simple=True, separator='/')] = np.abs(gradient - theirs[path]).max() / scale
  return errors


def test_every_gradient_of_the_first_step(reference, training_in_float64):
  with jax.enable_x64(True):
    errors = errors_of_gradients(reference, training_in_float64)
  assert max(errors.values()) <= RELATIVE, errors


def test_gradients_of_the_first_step_in_float32(reference, training):
  errors = errors_of_gradients(reference, training)
  # In one window of the second block's max-pool two pixels are within 3e-7. Which of them float32 makes the greater
  # one gets the gradient: that moves this kernel's by 2e-4, and others hardly.
  del errors['encoder/blocks/1/conv/kernel']
  assert max(errors.values()) <= RELATIVE, errors


def losses_of_adam(reference, training):
  value_and_grad, params = training
  params = on_pytorchs_side(params)
  adam = optax.adam(3e-4)
  state = adam.init(params)
  losses = []
  for _ in reference['losses']:
    loss, gradients = value_and_grad(params)
    losses.append(float(loss))
    updates, state = adam.update(gradients, state)
    params = optax.apply_updates(params, updates)
  return losses


def test_losses_of_five_steps_of_adam(reference, training_in_float64):
  with jax.enable_x64(True):
    losses = losses_of_adam(reference, training_in_float64)
  np.testing.assert_allclose(losses, reference['losses'], rtol=RELATIVE / 5)


def test_losses_of_five_steps_of_adam_in_float32(reference, training):
  # By the fifth step another ReLU is at its kink. JAX 0.10 rounds it as PyTorch does (all five losses are within
  # 6e-5); JAX 0.12 does not, and is off by 2.6e-4 there and nowhere before.
  steps = 5 if jax.__version_info__ < (0, 12) else 4
  losses = losses_of_adam(reference, training)
  np.testing.assert_allclose(losses[:steps], reference['losses'][:steps], rtol=RELATIVE)
