import dataclasses
import json

import numpy as np
import pytest
import soundfile

from selfie_jax import health as measures
from selfie_jax.config import Config
from selfie_jax.evaluation import health
from selfie_jax.evaluation.tasks.folder import LabelledFolder, Split
from selfie_jax.files import as_path
from tests.evaluation.conftest import CONFIG, SAMPLE_RATE

RANDOM = np.random.default_rng(0)


def correlated(n, d, rank):
  """Embeddings that fill `rank` directions, around a mean."""
  return (RANDOM.normal(size=(n, rank)) @ RANDOM.normal(size=(rank, d)) + 3).astype(np.float32)


def test_the_figures_are_of_all_tasks_clips_and_of_the_views():
  x, views = correlated(80, 12, 5), (correlated(80, 12, 5), correlated(80, 12, 5))
  found = health.measure([x[:30], x[30:]], views)
  values = measures.singular_values(x)
  assert found['rankme'] == pytest.approx(measures.rankme(values), rel=1e-3)
  assert found['alignment'] == pytest.approx(measures.alignment(*views), rel=1e-3)
  assert found['uniformity'] == pytest.approx(np.mean([measures.uniformity(view) for view in views]), rel=1e-3)
  assert found['mean_correlation'] == pytest.approx(measures.mean_correlation(np.corrcoef(x.T)), rel=1e-3)
  assert found['std']['quantiles']['50%'] == pytest.approx(np.median(x.std(0)), rel=1e-3)
  assert sum(found['std']['counts']) == 12
  assert found['spectrum']['value'] == pytest.approx(values / values[0], abs=1e-3)
  assert (found['clips'], found['crops'], found['dimensions']) == (80, 80, 12)


def test_the_heat_map_is_of_living_dimensions_with_similar_ones_side_by_side():
  base = RANDOM.normal(size=(500, 2))
  x = np.repeat(base[None], 3, 0).transpose(1, 0, 2).reshape(500, 6)  # a b a b a b
  x = np.concatenate([x + 0.01 * RANDOM.normal(size=x.shape), np.ones((500, 2))], axis=1)
  found = health.measure([x])
  assert found['dead_dimensions'] == 2
  matrix = np.array(found['correlation'])
  assert matrix.shape == (6, 6)
  assert np.abs(matrix[:3, :3]).min() > 0.9
  assert np.abs(matrix[:3, 3:]).max() < 0.2


def test_it_is_small_enough_for_a_file_that_people_open():
  found = health.measure([correlated(150, 300, 100)])
  assert len(found['correlation']) == 64
  assert len(json.dumps(found)) < 40_000


@pytest.mark.parametrize('x', [np.ones((20, 8)), np.zeros((20, 8)), np.eye(1, 8)])
def test_a_collapsed_encoder_has_figures_too(x):
  found = health.measure([x], (x, x) if len(x) > 1 else None)
  assert found['dead_dimensions'] == 8
  assert found['correlation'] == []
  assert found['rankme'] == pytest.approx(float(np.abs(x).max()), abs=1e-4)
  json.loads(json.dumps(found), parse_constant=pytest.fail)  # No NaN.


def test_every_task_has_its_share_of_the_embeddings():
  pooled = health.pool([np.zeros((300, 2)), np.ones((100, 2))], most=40)
  assert pooled.shape == (40, 2)
  assert pooled[:, 0].sum() == 10


def write_folder(path, sounds):
  files = []
  for i, sound in enumerate(sounds):
    soundfile.write(path / f'{i}.wav', sound, SAMPLE_RATE, subtype='PCM_16')
    files.append(as_path(path / f'{i}.wav'))
  rows = np.arange(len(files))
  return LabelledFolder('some', '', tuple(files), rows % 2, ('a', 'b'), (Split(rows, rows, rows),), 1.0, 1e-3, '')


def test_crops_are_as_in_training_and_the_same_each_time(tmp_path):
  ramp = np.arange(3 * SAMPLE_RATE, dtype=np.int16)
  folder = write_folder(tmp_path, [ramp, ramp[:100], ramp])
  crops = health.choose_crops([folder], Config(), most=2)
  assert crops.shape == (2, 15_200)
  assert np.array_equal(crops, health.choose_crops([folder], Config(), most=2))
  three = health.choose_crops([folder], Config())
  assert (np.diff(three[0].astype(int)) == 1).all()
  assert three[0, 0] + 15_200 <= SAMPLE_RATE  # Within the unit.
  assert np.array_equal(three[1], np.pad(ramp[:100], (0, 15_100)))


def test_views_are_two_distortions_of_each_crop(encoder):
  crops = RANDOM.integers(-9_000, 9_000, (37, 15_200)).astype(np.int16)
  views = health.embed_views(encoder, crops, CONFIG, -6.0, 4.0)
  assert [view.shape for view in views] == [(32, encoder.features)] * 2  # Two whole groups of mixup partners.
  assert not np.allclose(*views)
  still = dataclasses.replace(
    CONFIG.augment, mixup_ratio=0.0, resize_frequency=(1.0, 1.0), resize_time=(1.0, 1.0), canvas_time=1.0, fader=0.0
  )
  same = health.embed_views(encoder, crops, dataclasses.replace(CONFIG, augment=still), -6.0, 4.0)
  np.testing.assert_allclose(*same, rtol=1e-4, atol=1e-5)


def test_one_crop_has_no_other_to_be_far_from(encoder):
  assert health.embed_views(encoder, np.zeros((1, 15_200), np.int16), CONFIG, -6.0, 4.0) is None
