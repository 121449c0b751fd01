import numpy as np
import pytest

from selfie_jax import export
from selfie_jax.errors import UserError
from selfie_jax.sharing.loading import load_encoder
from tests.object_stores import _gcs_settings, _s3_settings, gcs, s3  # noqa: F401
from tests.sharing.conftest import STEP, embed


def test_a_run_and_its_exported_folder_and_file_are_the_same_encoder(trained, exported, clips):
  first, *others = (load_encoder(path) for path in (trained, exported, exported / 'model.safetensors'))
  expected = embed(first, clips)
  for other in others:
    np.testing.assert_array_equal(embed(other, clips), expected)
    assert (other.mean, other.std, other.step) == (first.mean, first.std, first.step)


def test_a_model_has_one_step(exported):
  assert load_encoder(exported, STEP).step == STEP
  with pytest.raises(UserError, match=f'holds step {STEP}, and no other: step 3 is not there'):
    load_encoder(exported, 3)


@pytest.mark.parametrize('name', ['nothing', 'nothing.safetensors', ''])
def test_a_path_that_is_neither_is_one_clear_line(tmp_path, name):
  with pytest.raises(UserError, match='has neither checkpoints/ nor model.safetensors') as caught:
    load_encoder(tmp_path / name)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('store', ['gcs', 's3'])
def test_a_model_may_lie_in_a_bucket(exported, clips, store, request):
  bucket = request.getfixturevalue(store)
  output = f'{bucket}/models/mine'
  export.main(['--workdir', str(exported), '--output', output])
  expected = embed(load_encoder(exported), clips)
  for path in (output, f'{output}/model.safetensors'):
    np.testing.assert_array_equal(embed(load_encoder(path), clips), expected)
  with pytest.raises(UserError, match='is not empty, it has README.md'):
    export.main(['--workdir', output, '--output', output])
  with pytest.raises(UserError, match='has neither checkpoints/ nor model.safetensors'):
    load_encoder(f'{bucket}/models')
