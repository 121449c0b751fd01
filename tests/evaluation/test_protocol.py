import dataclasses

import numpy as np
import pytest

from selfie_jax.audio.log_mel import log_mel
from selfie_jax.config import Evaluation, FineTuning, Task
from selfie_jax.data.decode import decode
from selfie_jax.embedding.clips import decode_clips
from selfie_jax.evaluation import protocol
from selfie_jax.evaluation.features.cache import ArrayCache
from selfie_jax.evaluation.readouts import fine_tuning
from selfie_jax.evaluation.tasks.folder import load_folder
from selfie_jax.files import as_path
from selfie_jax.models.vit import ViT
from selfie_jax.training.checkpointing.checkpoints import load_encoder

QUICK = Evaluation(seeds=(1,), learning_rates=(1e-2,), epochs=2)


@pytest.fixture
def folder(tones):
  return load_folder(Task('tones', str(tones), unit_seconds=0.8))


@pytest.fixture
def cache(tmp_path):
  return ArrayCache(as_path(tmp_path / 'cache'))


def test_running_statistics_are_the_published_ones_which_drop_the_first_batch():
  values = np.random.default_rng(0).normal(-5, 4, (10, 7))  # Ten clips.

  def running_mean(batches):
    mean = batches[0].mean()
    for n, batch in enumerate(batches[1:], 1):  # Its counter is one behind: the second takes the place of the first.
      mean += (batch.mean() - mean) / n
    return mean

  for batch in (4, 5, 10, 32):
    batches = [values[start : start + batch] for start in range(0, 10, batch)]
    mean = running_mean(batches)
    std = running_mean([(batch - mean) ** 2 for batch in batches]) ** 0.5
    moments = np.stack([np.full(10, 7), values.sum(1), (values**2).sum(1)], axis=1)
    assert protocol.running_statistics(moments, batch) == pytest.approx((mean, std))


def test_evar_embeds_the_whole_zero_padded_unit_and_corrected_the_clip_alone(workdir, folder, cache):
  run = load_encoder(workdir)
  row = int(folder.splits[0].test[0])
  clip = decode(folder.files[row])[:12_800]  # 0.8 s, which is less than the crop of 0.95 s.
  for name, length in (('evar', 12_800), ('corrected', 15_200)):
    result = protocol.evaluate_task(folder, run, None, dataclasses.replace(QUICK, protocol=name), cache)
    x = log_mel(np.pad(clip, (0, length - len(clip)))[None], run.config.log_mel)
    features = run.encoder((x - result.mean) / result.std, train=False)
    np.testing.assert_allclose(result.embeddings[row], run.encoder.pool(features)[0], rtol=1e-4, atol=1e-5)


def test_evar_cuts_test_clips_at_their_head_and_the_others_anywhere(workdir, folder):
  units = protocol._units(folder, load_encoder(workdir), evar=True)
  for row, clip in enumerate(units.decode(np.arange(len(folder.files)))):
    whole = decode(folder.files[row])
    assert len(clip) == 12_800
    if row in folder.splits[0].test:
      assert units.places[row] == 0
    else:
      assert units.places[row] > 0
    spare = max(0, len(whole) - len(clip))
    start = int(units.places[row] * (spare + 1))
    np.testing.assert_array_equal(clip[: len(whole)], whole[start : start + 12_800])


def test_a_cut_may_be_anywhere_in_a_clip(tones):
  file = tones / 'low_9.wav'
  whole = decode(file)
  [head], [tail] = ([*decode_clips([file], 16_000, 1_000, [place])] for place in (0.0, 1 - 1e-9))
  np.testing.assert_array_equal(head, whole[:1_000])
  np.testing.assert_array_equal(tail, whole[-1_000:])


def test_fine_tuning_sees_no_more_than_a_unit_also_where_the_crop_is_longer(workdir, folder):
  clips = [decode(file) for file in folder.files]
  training = fine_tuning._Training(clips, folder, load_encoder(workdir), QUICK, unit_samples=12_800)
  rows = np.array([int(np.argmax([len(clip) for clip in clips]))])  # 1.2 s, of which 0.8 s are a unit.
  audio, counts = training._batch(rows, 1)
  assert audio.shape == (1, 15_200)  # The crop's.
  assert counts == [12_800]
  np.testing.assert_array_equal(audio[0], np.pad(clips[rows[0]][:12_800], (0, 2_400)))


def test_fine_tuning_learns_a_task_and_its_results_are_a_function_of_the_seed(workdir, folder, cache, any_encoder):
  run = dataclasses.replace(load_encoder(workdir), encoder=any_encoder)
  multi_label = isinstance(any_encoder, ViT)  # Each with one of the two.
  if multi_label:
    folder = dataclasses.replace(folder, labels=np.eye(3, dtype=bool)[folder.labels])
  # A mean average precision, of ranks, may be 1 after hardly any step: only an accuracy tells the rates apart.
  rates = (1e-2,) if multi_label else (1e-6, 1e-2)

  def fine_tune(learning_rates):
    settings = FineTuning(learning_rates=learning_rates, batch_size=5, epochs=20, patience=20)
    evaluation = dataclasses.replace(QUICK, readouts=('fine_tuning',), fine_tuning=settings)
    [result] = protocol.evaluate_task(folder, run, None, evaluation, cache).predictions['fine_tuning']['trained']
    return result

  result = fine_tune(rates)
  assert result.details['learning_rate'] == 1e-2
  if len(rates) > 1:  # The rates that were not taken make no difference.
    np.testing.assert_array_equal(fine_tune((1e-2,)).predictions, result.predictions)
  truth = folder.labels[folder.splits[0].test]
  found, truth = (x.argmax(-1) if multi_label else x for x in (result.predictions[0], truth))
  assert (found == truth).mean() >= 0.8
