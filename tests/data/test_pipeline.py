import dataclasses
import hashlib
import itertools
import math
import time

import numpy as np
import pytest

from selfie_jax.config import Data, LogMel, Part
from selfie_jax.data import pipeline, plan, shard
from selfie_jax.data.dataset import load_manifest, open_dataset
from selfie_jax.data.source import mix_statistics, open_data
from selfie_jax.errors import UserError
from tests.data.sounds import edit_manifest, voice_int16, write_dataset

CROP = 15_200
KEYS = ('audio', 'dataset', 'index')


@pytest.fixture(scope='module')
def clips():
  """37 clips, half of them shorter than the crop; 37 is prime, so that no batch fits an epoch."""
  return [voice_int16(0.4 + 0.03 * i, i) for i in range(37)]


@pytest.fixture(scope='module')
def dataset(clips, tmp_path_factory):
  return write_dataset(tmp_path_factory.mktemp('dataset') / 'clips', clips)


def take(path, count, read='record', read_threads=2, prefetch_batches=3, crops=1, **changes):
  """Takes batches of a dataset, or of a mixture where `path` is a list of `Part`s."""
  where = {'mixture': tuple(path)} if isinstance(path, list) else {'path': str(path)}
  data = Data(**where, read=read, read_threads=read_threads, prefetch_batches=prefetch_batches, crops=crops)
  settings = {'batch_size': 8, 'seed': 0, 'start_step': 0} | changes
  return list(itertools.islice(pipeline.batches(open_data(data, LogMel()), crop_samples=CROP, **settings), count))


def assert_same(batches, others):
  for batch, other in zip(batches, others, strict=True):
    np.testing.assert_array_equal(batch['index'], other['index'])
    np.testing.assert_array_equal(batch['audio'], other['audio'])
    np.testing.assert_array_equal(batch['dataset'], other['dataset'])


def test_a_batch_has_the_shape_and_types_it_promises(dataset):
  (batch,) = take(dataset, 1)
  assert batch['audio'].shape == (8, CROP)
  assert batch['audio'].dtype == np.int16
  assert batch['index'].shape == (8,)
  assert batch['index'].dtype == batch['dataset'].dtype == np.int64
  assert batch['dataset'].tolist() == [0] * 8
  assert batch['damaged'] == 0


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
  joined = [{key: np.concatenate([part[key] for part in step]) for key in KEYS} for step in zip(*parts)]
  assert_same(joined, reference)


@pytest.mark.parametrize('threads', [0, 1, 4])
def test_threads_and_prefetching_change_nothing(dataset, clips, tmp_path, threads):
  flac = write_dataset(tmp_path, clips, audio_format='flac')
  for path in (dataset, flac):
    assert_same(take(path, 10, read_threads=threads, prefetch_batches=max(threads, 1)), take(dataset, 10))


def test_another_seed_is_another_order_and_other_crops(dataset):
  (batch,), (other,) = take(dataset, 1, batch_size=37), take(dataset, 1, batch_size=37, seed=2)
  assert batch['index'].tolist() != other['index'].tolist()
  audio = batch['audio'][np.argsort(batch['index'])]
  other_audio = other['audio'][np.argsort(other['index'])]
  long = slice(25, None)
  assert (audio[long] != other_audio[long]).any(axis=1).all()


def test_the_order_is_pinned(dataset):
  """A run that resumes under a newer NumPy must go on with the same data: this fails if its words change."""
  (batch,) = take(dataset, 1, batch_size=12, seed=42)
  assert batch['index'].tolist() == [4, 20, 17, 18, 13, 2, 0, 30, 16, 10, 3, 29]


def test_the_crops_are_pinned(dataset, tmp_path):
  """Whatever the release of NumPy, and whatever becomes of the program."""
  digest = hashlib.sha256()
  for batch in take(dataset, 7, batch_size=12, seed=42):
    digest.update(batch['index'].tobytes() + batch['audio'].tobytes())
  assert digest.hexdigest() == 'dedf20885dc4a31d19693729e471921add65b11dd23b9ddcd257606d04964299'
  ramps = write_dataset(tmp_path, [np.arange(20_000 + i, dtype=np.int16) for i in range(37)])
  (batch,) = take(ramps, 1, batch_size=12, seed=42, start_step=3)
  assert batch['index'].tolist() == [24, 16, 29, 12, 19, 3, 27, 31, 33, 18, 11, 34]
  starts = [3157, 1914, 4154, 1055, 1690, 3170, 1028, 2878, 3517, 3922, 1032, 1000]
  assert batch['audio'][:, 0].tolist() == starts


def test_crops_read_alone_are_those_of_whole_records(dataset):
  assert_same(take(dataset, 10, read='crop'), take(dataset, 10))


def test_flac_records_give_the_same_crops_bit_for_bit(dataset, clips, tmp_path):
  flac = write_dataset(tmp_path, clips, audio_format='flac')
  assert_same(take(flac, 10), take(dataset, 10))
  with pytest.raises(UserError, match='holds flac, and data.read="crop" needs int16'):
    take(flac, 1, read='crop')


@pytest.mark.parametrize('read', ['record', 'crop'])
def test_two_crops_of_a_clip_are_the_one_and_another(dataset, clips, tmp_path, read):
  ones, twos = take(dataset, 10), take(dataset, 10, read, crops=2)
  assert_same([batch | {'audio': batch['audio'][:, :CROP]} for batch in twos], ones)
  for batch in twos:
    for audio, index in zip(batch['audio'][:, CROP:], batch['index']):
      assert is_piece(audio, clips[index])
  ramps = write_dataset(tmp_path, [np.arange(20_000 + i, dtype=np.int16) for i in range(37)])
  (batch,) = take(ramps, 1, read, crops=2, batch_size=12, seed=42, start_step=3)
  assert batch['index'].tolist() == [24, 16, 29, 12, 19, 3, 27, 31, 33, 18, 11, 34]
  assert batch['audio'][:, 0].tolist() == [3157, 1914, 4154, 1055, 1690, 3170, 1028, 2878, 3517, 3922, 1032, 1000]
  assert batch['audio'][:, CROP].tolist() == [1432, 423, 1901, 563, 3139, 472, 784, 4553, 1252, 467, 451, 1550]


@pytest.mark.parametrize('hosts', [1, 2])
def test_two_crops_of_a_mixture_resume_in_the_middle_at_any_host_count(dataset, small, tmp_path, clips, hosts):
  mixture = parts(dataset, small, 1, 2.5)
  reference = take(mixture, 6, crops=2)[3:]
  takes = [take(mixture, 3, 'crop', crops=2, start_step=3, process_index=i, process_count=hosts) for i in range(hosts)]
  assert_same([{key: np.concatenate([part[key] for part in step]) for key in KEYS} for step in zip(*takes)], reference)
  if hosts == 1:
    flac = write_dataset(tmp_path, clips, audio_format='flac')
    assert_same(take(flac, 5, crops=2), take(dataset, 5, crops=2))


def test_the_two_crops_of_a_clip_start_independently(tmp_path):
  path = write_dataset(tmp_path, [np.zeros(CROP + 4, np.int16)])
  source = open_data(Data(path=str(path), crops=2), LogMel())
  positions = range(7, 5_007)
  starts = plan.Plan(source, CROP, seed=0).starts(positions, np.zeros(5_000, np.int64))
  counts = np.bincount(starts[:, 0] * 5 + starts[:, 1], minlength=25)
  assert np.square(counts - 200).sum() / 200 < 51.2  # The 99.9 % quantile at 24 degrees of freedom.


def is_piece(audio, clip):
  if len(clip) <= CROP:
    return np.array_equal(audio, np.pad(clip, (0, CROP - len(clip))))
  windows = np.lib.stride_tricks.sliding_window_view(clip, 64)
  starts = np.flatnonzero((windows == audio[:64]).all(axis=1))
  return any(np.array_equal(clip[start : start + CROP], audio) for start in starts)


def test_a_crop_is_a_piece_of_its_clip_and_padding_is_at_the_end(dataset, clips):
  for batch in take(dataset, 10):
    for audio, index in zip(batch['audio'], batch['index']):
      assert is_piece(audio, clips[index])


def test_crops_start_uniformly_over_all_places():
  words = plan.stream(seed=0, first=0, count=5_000)
  starts = np.bincount(plan.choose_starts(words, np.full(5_000, 14), 10), minlength=6)
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


def test_empty_shards_do_no_harm(tmp_path):
  """A chunk of files that are all bad becomes a shard without records."""
  path = write_dataset(tmp_path, [voice_int16(1, i) for i in range(4)], clips_per_shard=2)
  manifest = load_manifest(path)
  empty = shard.write_shard(path / 'empty.tfrecord', 'train', [], 'int16')
  edit_manifest(path, shards=(empty, manifest.shards[0], empty, empty, manifest.shards[1], empty))
  clips = open_dataset(path).clips
  for i in range(4):
    np.testing.assert_array_equal(clips[i]['audio'], voice_int16(1, i))


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  """A dataset of two splits beside `dataset`: 5 clips to train on, and 3 others."""
  clips = [voice_int16(1.5, 100 + i) for i in range(8)]
  return write_dataset(tmp_path_factory.mktemp('small') / 'clips', clips, 2, {'train': 5, 'eval': 3})


def parts(dataset, small, *weights):
  return [Part(str(dataset), weights[0]), Part(str(small), weights[1], ('train',))]


def test_one_part_is_the_dataset_by_itself(dataset):
  assert_same(take([Part(str(dataset), 0.3)], 6), take(dataset, 6))


@pytest.mark.parametrize(('weights', 'share'), [((1, 1), 1 / 2), ((3, 1), 3 / 4), ((0.1, 2.5), 1 / 26)])
def test_a_mixture_has_the_proportions_of_its_weights(dataset, small, weights, share):
  batches = take(parts(dataset, small, *weights), 13, batch_size=20)  # 260 clips.
  places = np.concatenate([batch['dataset'] for batch in batches])
  assert np.count_nonzero(places == 0) == round(260 * share)
  # They take turns: no stretch is far from the proportions.
  assert np.abs(np.cumsum((places == 0) - share)).max() <= 1


def test_each_dataset_of_a_mixture_goes_through_its_own_epochs_in_its_own_order(dataset, small):
  def order(mixture, which, seed=0):
    batches = take(mixture, 20, seed=seed)
    return np.concatenate([batch['index'][batch['dataset'] == which] for batch in batches])

  first, second = (order(parts(dataset, small, 1, 1), which) for which in (0, 1))
  alone = np.concatenate([batch['index'] for batch in take(dataset, 10)])
  np.testing.assert_array_equal(first, alone)  # The pinned order of the dataset by itself.
  for epoch in second.reshape(16, 5):
    assert sorted(epoch) == [0, 1, 2, 3, 4]
  other = order(parts(dataset, small, 3, 1), 1)  # Another weight: the same order, at another pace.
  np.testing.assert_array_equal(other, second[: len(other)])
  replaced = order([Part(str(small), 1, ('eval',)), Part(str(small), 1, ('train',))], 1)  # Another neighbour.
  np.testing.assert_array_equal(replaced, second)
  assert second.tolist() != order(parts(dataset, small, 1, 1), 1, seed=1).tolist()
  twice = [Part(str(dataset)), Part(str(dataset))]
  assert order(twice, 0)[:37].tolist() != order(twice, 1)[:37].tolist()


@pytest.mark.parametrize('read', ['record', 'crop'])
@pytest.mark.parametrize('hosts', [1, 2])
def test_a_mixture_resumes_in_the_middle_at_any_host_count(dataset, small, hosts, read):
  mixture = parts(dataset, small, 1, 2.5)
  reference = take(mixture, 12)[7:]
  takes = [take(mixture, 5, read, start_step=7, process_index=i, process_count=hosts) for i in range(hosts)]
  assert_same([{key: np.concatenate([part[key] for part in step]) for key in KEYS} for step in zip(*takes)], reference)
  (late,) = take(mixture, 1, start_step=10**12)
  assert set(late['dataset']) == {0, 1}


def test_a_mixture_gives_the_clips_of_each_dataset(dataset, clips, small):
  for batch in take(parts(dataset, small, 1, 1), 3):
    for audio, place, index in zip(batch['audio'], batch['dataset'], batch['index']):
      clip = voice_int16(1.5, 100 + index) if place else clips[index]
      windows = np.lib.stride_tricks.sliding_window_view(clip, 64)
      assert (windows == audio[:64]).all(axis=1).any()


def test_the_statistics_of_a_mixture_are_those_of_a_sample_of_it():
  rng = np.random.default_rng(0)
  samples = [rng.normal(-5, 3, 300_000), rng.normal(2, 1, 100_000)]
  mean, std = mix_statistics([3, 1], [s.mean() for s in samples], [s.std() for s in samples])
  together = np.concatenate(samples)
  assert math.isclose(mean, together.mean())
  assert math.isclose(std, together.std())
  assert mix_statistics([0.1], [-5.123], [3.456]) == (-5.123, 3.456)


def test_a_source_tells_what_it_reads(dataset, small):
  def source(*mixture):
    return open_data(Data(mixture=mixture), LogMel())

  one, two = Part(str(dataset)), Part(str(small), 2.0, ('train',))
  assert source(one, two).num_clips == 42
  assert (source(one, two).mean, source(one, two).std) == (-5.0, 3.0)
  assert source(one).fingerprint == open_dataset(dataset).fingerprint
  others = [source(one, two), source(two, one), source(one, dataclasses.replace(two, weight=3.0)), source(two)]
  others.append(source(one, dataclasses.replace(two, splits=('eval',))))
  assert len({other.fingerprint for other in (*others, source(one))}) == 6
