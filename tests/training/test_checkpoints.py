import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from selfie_jax.config import Config
from selfie_jax.errors import UserError
from selfie_jax.training import checkpoints
from selfie_jax.training.state import build_encoder


def _weights(encoder):
  return jax.tree.leaves(nnx.to_pure_dict(nnx.state(encoder)))


def test_the_encoder_is_loaded_without_projector_and_optimizer(finished_run):
  loaded = checkpoints.load_encoder(finished_run)
  with ocp.CheckpointManager(finished_run / 'checkpoints') as manager:
    saved = manager.restore(12, args=ocp.args.Composite(state=ocp.args.StandardRestore()))['state']
  expected = jax.tree.leaves(saved['params']['encoder']) + jax.tree.leaves(saved['batch_stats']['encoder'])
  assert loaded.step == 12
  assert loaded.config.encoder.width == 32
  assert sorted(map(np.sum, _weights(loaded.encoder))) == sorted(map(np.sum, expected))
  assert loaded.std > 0


def test_an_earlier_checkpoint_can_be_had_and_both_differ_from_the_untrained_encoder(finished_run):
  earlier = checkpoints.load_encoder(finished_run, step=4)
  untrained = build_encoder(earlier.config)
  assert earlier.step == 4
  for encoder in (earlier.encoder, checkpoints.load_encoder(finished_run).encoder):
    assert any((a != b).any() for a, b in zip(_weights(encoder), _weights(untrained), strict=True))


def test_what_is_not_there_is_named(finished_run, tmp_path):
  with pytest.raises(UserError, match='has no checkpoints/'):
    checkpoints.load_encoder(tmp_path)
  with pytest.raises(UserError, match='has no checkpoint 5; it has 4, 8, 12'):
    checkpoints.load_encoder(finished_run, step=5)
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(UserError, match='no finished checkpoint yet'):
    checkpoints.load_encoder(tmp_path)


def test_a_workdir_is_claimed_once_and_names_the_setting_that_differs(tmp_path):
  checkpoints.claim_workdir(tmp_path, Config(seed=1))
  checkpoints.claim_workdir(tmp_path, Config(seed=1))
  with pytest.raises(UserError, match='seed=1, and this config has 2'):
    checkpoints.claim_workdir(tmp_path, Config(seed=2))
