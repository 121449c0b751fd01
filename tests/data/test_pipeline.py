import itertools
import time

import numpy as np
import pytest

from selfie_jax.data import pipeline, shard
from selfie_jax.data.dataset import load_manifest, open_clips
from selfie_jax.errors import UserError
from tests.data.sounds import edit_manifest, flip_byte, voice_int16, write_dataset

CROP = 15_200


@pytest.fixture(scope='module')
def clips():
  """37 clips, half of them shorter than the crop; 37 is prime, so that no batch fits an epoch."""
  return [voice_int16(0.4 + 0.03 * i, i) for i in range(37)]


@pytest.fixture(scope='module')
def dataset(clips, tmp_path_factory):
  return write_dataset(tmp_path_factory.mktemp('dataset') / 'clips', clips)


def take(path, count, **changes):
  settings = {'batch_size': 8, 'seed': 0, 'start_step': 0, 'read_threads': 2, 'prefetch_batches': 3}
  return list(itertools.islice(pipeline.batches(path, crop_samples=CROP, **settings | changes), count))


def assert_same(batches, others):
  for batch, other in zip(batches, others, strict=True):
    np.testing.assert_array_equal(batch['index'], other['index'])
    np.testing.assert_array_equal(batch['audio'], other['audio'])


def test_a_batch_has_the_shape_and_types_it_promises(dataset):
  (batch,) = take(dataset, 1)
  assert batch['audio'].shape == (8, CROP)
  assert batch['audio'].dtype == np.int16
  assert batch['index'].shape == (8,)
  assert batch['index'].dtype == np.int64


def test_an_epoch_covers_every_clip_once_and_the_next_in_another_order(dataset, clips):
  order = np.concatenate([batch['index'] for batch in take(dataset, 3 * 37, batch_size=1)]).reshape(3, 37)
  for epoch in order:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(len(clips)))
  assert len({tuple(epoch) for epoch in order}) == 3


def test_batches_straddle_epochs_and_are_always_whole(dataset):
  batches = take(dataset, 37)  # 37 batches of 8 are 8 epochs of 37.
  assert {len(batch['index']) for batch in batches} == {8}
  assert np.bincount(np.concatenate([batch['index'] for batch in batches])).tolist() == [8] * 37


def test_a_dataset_may_be_smaller_than_a_batch(tmp_path):
  path = write_dataset(tmp_path, [voice_int16(2, i) for i in range(3)])
  batches = take(path, 3, batch_size=10)
  assert np.bincount(np.concatenate([batch['index'] for batch in batches])).tolist() == [10] * 3


def test_a_dataset_may_be_a_single_clip(tmp_path):
  path = write_dataset(tmp_path, [voice_int16(2, 0)])
  (batch,) = take(path, 1, batch_size=4)
  assert len(np.unique(batch['audio'], axis=0)) == 4  # Four epochs, four crops.


@pytest.mark.parametrize('hosts', [1, 2, 4])
@pytest.mark.parametrize('start', [0, 11])
def test_batch_k_is_the_same_at_any_host_count_and_from_any_start(dataset, hosts, start):
  reference = take(dataset, 15)[start:]
  parts = [take(dataset, 15 - start, start_step=start, process_index=i, process_count=hosts) for i in range(hosts)]
  joined = [{key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in zip(*parts)]
  assert_same(joined, reference)


@pytest.mark.parametrize('threads', [1, 4])
def test_threads_and_prefetching_change_nothing(dataset, threads):
  assert_same(take(dataset, 10, read_threads=threads, prefetch_batches=threads), take(dataset, 10))


def test_another_seed_is_another_order_and_other_crops(dataset):
  (batch,), (other,) = take(dataset, 1, batch_size=37), take(dataset, 1, batch_size=37, seed=1)
  assert batch['index'].tolist() != other['index'].tolist()
  audio = batch['audio'][np.argsort(batch['index'])]
  other_audio = other['audio'][np.argsort(other['index'])]
  long = slice(25, None)
  assert (audio[long] != other_audio[long]).any(axis=1).all()


def test_the_order_is_pinned(dataset):
  """A run that resumes under a newer Grain must go on with the same data: this fails if Grain's shuffle changes."""
  (batch,) = take(dataset, 1, batch_size=12, seed=42)
  assert batch['index'].tolist() == [28, 9, 2, 17, 33, 11, 24, 22, 36, 35, 23, 0]


def test_a_crop_is_a_piece_of_its_clip_and_padding_is_at_the_end(dataset, clips):
  for batch in take(dataset, 10):
    for audio, index in zip(batch['audio'], batch['index']):
      clip = clips[index]
      if len(clip) <= CROP:
        np.testing.assert_array_equal(audio, np.pad(clip, (0, CROP - len(clip))))
      else:
        windows = np.lib.stride_tricks.sliding_window_view(clip, 64)
        starts = np.flatnonzero((windows == audio[:64]).all(axis=1))
        assert any(np.array_equal(clip[start : start + CROP], audio) for start in starts)


def test_crops_start_uniformly_over_all_places():
  rng = np.random.default_rng(0)
  ramp = np.arange(14, dtype=np.int16)
  starts = np.bincount([pipeline.crop(ramp, 10, rng)[0] for _ in range(5_000)], minlength=6)
  assert starts[5] == 0
  chi_square = np.square(starts[:5] - 1_000).sum() / 1_000
  assert chi_square < 18.5  # The 99.9 % quantile at 4 degrees of freedom.


def test_resuming_far_into_a_run_costs_what_starting_costs(dataset):
  take(dataset, 1)
  begin = time.perf_counter()
  (late,) = take(dataset, 1, start_step=10**12)
  assert time.perf_counter() - begin < 2
  assert late['audio'].shape == (8, CROP)


def test_hosts_must_divide_the_batch(dataset):
  with pytest.raises(UserError, match='batch_size 8 is not a multiple of the number of hosts, 3'):
    take(dataset, 1, process_count=3)


def test_a_damaged_record_stops_training_and_is_named(tmp_path, clips):
  path = write_dataset(tmp_path, clips, clips_per_shard=10)
  index = open_clips(path, load_manifest(path).shards)._index
  flip_byte(path / 'shard-00002-of-00004.tfrecord', int(index[23]['audio_offset']) + 100)
  with pytest.raises(UserError, match=r'^record 3 of .*shard-00002-of-00004.tfrecord is damaged: the CRC of its data'):
    take(path, 5)


def test_a_shard_that_vanishes_while_training_is_named(tmp_path, clips):
  path = write_dataset(tmp_path, clips)
  stream = pipeline.batches(
    path, batch_size=4, crop_samples=CROP, seed=0, start_step=0, read_threads=1, prefetch_batches=1
  )
  next(stream)
  for file in path.glob('*.tfrecord'):
    file.unlink()
  with pytest.raises(UserError, match=r'cannot read record \d of .*tfrecord: No such file'):
    list(itertools.islice(stream, 3))


def test_empty_shards_do_no_harm(tmp_path):
  """A chunk of files that are all bad becomes a shard without records."""
  path = write_dataset(tmp_path, [voice_int16(1, i) for i in range(4)], clips_per_shard=2)
  manifest = load_manifest(path)
  empty = shard.write_shard(path / 'empty.tfrecord', [])
  edit_manifest(path, shards=(empty, manifest.shards[0], empty, empty, manifest.shards[1], empty))
  clips = open_clips(path, load_manifest(path).shards)
  for i in range(4):
    np.testing.assert_array_equal(clips[i]['audio'], voice_int16(1, i))
