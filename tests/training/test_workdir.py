"""A run's folder belongs to its config."""

import json

import pytest

from selfie_jax.config import Config
from selfie_jax.errors import UserError
from selfie_jax.training.checkpointing import checkpoints


def test_a_workdir_is_claimed_once_and_names_the_setting_that_differs(tmp_path):
  checkpoints.claim_workdir(tmp_path, Config(seed=1))
  checkpoints.claim_workdir(tmp_path, Config(seed=1))
  with pytest.raises(UserError, match='seed=1, and this config has 2'):
    checkpoints.claim_workdir(tmp_path, Config(seed=2))


def test_a_workdir_of_a_version_with_fewer_settings_is_claimed_and_one_with_others_is_not(tmp_path):
  checkpoints.claim_workdir(tmp_path, Config())
  path = tmp_path / 'config.json'
  saved = json.loads(path.read_text())
  del saved['average'], saved['data']['crops']
  path.write_text(json.dumps(saved))
  checkpoints.claim_workdir(tmp_path, Config())
  path.write_text(json.dumps(saved | {'later': 1}))
  with pytest.raises(UserError, match='of another version of selfie_jax .unknown config key "later"'):
    checkpoints.claim_workdir(tmp_path, Config())
