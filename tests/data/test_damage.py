"""Whatever becomes of a shard: it is found, it is named, and nothing of it is trained on."""

import itertools
import os
import shutil

import numpy as np
import pytest

from selfie_jax.config import Data, LogMel, Part
from selfie_jax.data import pipeline
from selfie_jax.data.dataset import open_dataset
from selfie_jax.data.source import open_data
from selfie_jax.errors import UserError
from tests.data.sounds import edit_manifest, flip_byte, voice_int16, write_dataset

CLIPS = [voice_int16(1.2, i) for i in range(40)]
OTHERS = [voice_int16(1.2, 100 + i) for i in range(40)]  # As long as those, so that their shards have the same layout.
CROP = 15_200
SHARD = 'train-00001-of-00005.tfrecord'  # Clips 8 to 15.
READS = pytest.mark.parametrize('read', ['record', 'crop'])


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return write_dataset(tmp_path_factory.mktemp('whole') / 'clips', CLIPS)


@pytest.fixture
def folder(whole, tmp_path):
  return shutil.copytree(whole, tmp_path / 'clips')


def stream(
  path, read='record', on_damage='stop', max_damaged=100, read_threads=1, prefetch_batches=1, crops=1, **changes
):
  data = Data(
    path=str(path),
    read=read,
    on_damage=on_damage,
    max_damaged=max_damaged,
    read_threads=read_threads,
    prefetch_batches=prefetch_batches,
    crops=crops,
  )
  settings = {'batch_size': 8, 'seed': 0, 'start_step': 0} | changes
  return pipeline.batches(open_data(data, LogMel()), crop_samples=CROP, **settings)


def take(path, count, **changes):
  return list(itertools.islice(stream(path, **changes), count))


def flip_in_clip(folder, clip):
  """Flips a bit of the audio of a clip."""
  clips = open_dataset(folder).clips
  where = clips.crop_range(clips.find(clip), 9_000, 1)
  flip_byte(folder / f'train-{clip // 8:05d}-of-00005.tfrecord', where.start)


def is_from(clips, audio, index):
  windows = np.lib.stride_tricks.sliding_window_view(clips[index], 64)
  starts = np.flatnonzero((windows == audio[:64]).all(axis=1))
  return any(np.array_equal(clips[index][start : start + CROP], audio) for start in starts)


def assert_only_whole_clips(batches, lost=()):
  for batch in batches:
    for audio, index in zip(batch['audio'], batch['index']):
      assert index not in lost
      assert is_from(CLIPS, audio, index)


# ----------------------------------------------------------------------------------- on_damage='stop'


def test_a_flipped_byte_is_named_and_never_trained_on(folder):
  flip_in_clip(folder, 11)
  with pytest.raises(UserError, match=rf'^record 3 of .*{SHARD} is damaged: the CRC of its data does not match'):
    take(folder, 5)


@READS
def test_a_shard_that_vanishes_while_training_is_named(folder, read):
  batches = stream(folder, read)
  next(batches)
  for file in folder.glob('*.tfrecord'):
    file.unlink()
  with pytest.raises(UserError, match=r'cannot read record \d of .*tfrecord: No such file'):
    list(itertools.islice(batches, 3))


@READS
def test_a_shard_that_is_cut_off_while_training_is_named(folder, read):
  batches = stream(folder, read)
  next(batches)
  os.truncate(folder / SHARD, 1_000)
  with pytest.raises(UserError, match=rf'record \d of .*{SHARD}( is damaged: the file ends|: the file was replaced)'):
    list(itertools.islice(batches, 10))


@READS
def test_a_shard_replaced_by_one_of_the_same_layout_is_caught_at_once(folder, tmp_path, read):
  other = write_dataset(tmp_path / 'others', OTHERS)
  batches = stream(folder, read)
  first = list(itertools.islice(batches, 1))
  for file in folder.glob('*.tfrecord'):
    assert file.stat().st_size == (other / file.name).stat().st_size
    os.replace(other / file.name, file)
  reason = 'is not the one in the index: the shard was replaced' if read == 'record' else 'the file was replaced'
  with pytest.raises(UserError, match=rf'record \d of .*tfrecord.*{reason}'):
    first += itertools.islice(batches, 3)  # One or two of them were read before.
  assert_only_whole_clips(first)


@READS
def test_a_shard_written_over_in_place_is_caught(folder, tmp_path, read):
  other = write_dataset(tmp_path / 'others', OTHERS)
  batches = stream(folder, read)
  next(batches)
  for file in folder.glob('*.tfrecord'):
    file.write_bytes((other / file.name).read_bytes())  # The same file, by its inode.
  with pytest.raises(UserError, match=r'record \d of .*tfrecord.* was replaced'):
    list(itertools.islice(batches, 3))


@READS
@pytest.mark.parametrize('on_damage', ['stop', 'skip'])
def test_an_index_of_another_shard_never_passes(folder, read, on_damage):
  shutil.copy(folder / 'train-00002-of-00005.tfrecord.index', folder / f'{SHARD}.index')
  with pytest.raises(UserError, match=f"{SHARD}.index is damaged: its SHA-256 is not the manifest's"):
    take(folder, 1, read=read, on_damage=on_damage)


@READS
@pytest.mark.parametrize('on_damage', ['stop', 'skip'])
def test_a_shard_and_index_of_another_dataset_never_pass(folder, tmp_path, read, on_damage):
  other = write_dataset(tmp_path / 'others', OTHERS)
  for name in (SHARD, f'{SHARD}.index'):
    shutil.copy(other / name, folder / name)
  with pytest.raises(UserError, match=f"{SHARD}.index is damaged: its SHA-256 is not the manifest's"):
    take(folder, 1, read=read, on_damage=on_damage)


@READS
def test_a_shard_replaced_between_two_runs_is_caught_though_its_size_is_right(folder, tmp_path, read):
  other = write_dataset(tmp_path / 'others', OTHERS)
  shutil.copy(other / SHARD, folder / SHARD)
  reason = 'is not the one in the index' if read == 'record' else ': it is not the shard that its index was made for'
  with pytest.raises(UserError, match=f'{SHARD}.*{reason}'):
    take(folder, 5, read=read)
  batches = take(folder, 5, read=read, on_damage='skip')
  assert_only_whole_clips(batches, lost=range(8, 16))
  assert sum(batch['damaged'] for batch in batches) == 8


@READS
def test_a_missing_or_truncated_shard_is_found_before_training(folder, read):
  os.truncate(folder / SHARD, (folder / SHARD).stat().st_size - 10)
  with pytest.raises(UserError, match=f'{SHARD} has [0-9]+ bytes, manifest.json says [0-9]+$'):
    take(folder, 1, read=read)
  (folder / SHARD).unlink()
  with pytest.raises(UserError, match=f'lacks the shard {SHARD}, which manifest.json lists$'):
    take(folder, 1, read=read)


# ----------------------------------------------------------------------------------- on_damage='skip'


def test_a_damaged_clip_is_replaced_by_another_counted_and_printed_once(folder, whole, capfd):
  for clip in (3, 11, 30):
    flip_in_clip(folder, clip)
  batches, plan = take(folder, 15, on_damage='skip'), take(whole, 15)  # Three epochs.
  assert_only_whole_clips(batches, lost=(3, 11, 30))
  for batch, planned in zip(batches, plan):
    bad = np.isin(planned['index'], (3, 11, 30))
    assert batch['damaged'] == np.count_nonzero(bad)
    np.testing.assert_array_equal(batch['audio'][~bad], planned['audio'][~bad])  # All else is as planned.
    assert len(set(batch['index'])) == len(set(planned['index'].tolist()))  # None is there twice.
    assert not set(batch['index'][bad]) & set(planned['index'])
  assert sum(batch['damaged'] for batch in batches) == 9
  lines = capfd.readouterr().err.splitlines()
  assert sorted(line.split(': ', 1)[0] for line in lines) == [f'skipped, {i} of at most 100' for i in (1, 2, 3)]
  assert sum(f'record 3 of {folder / SHARD} is damaged' in line for line in lines) == 1


@READS
def test_what_takes_a_damaged_clips_place_is_a_function_of_the_step(folder, read):
  (folder / SHARD).unlink()
  settings = {'read': read, 'on_damage': 'skip'}
  reference = take(folder, 12, **settings)
  assert_only_whole_clips(reference, lost=range(8, 16))
  resumed = take(folder, 5, start_step=7, read_threads=3, prefetch_batches=3, **settings)
  hosts = [take(folder, 5, start_step=7, process_index=i, process_count=2, **settings) for i in range(2)]
  for batch, again, first, second in zip(reference[7:], resumed, *hosts, strict=True):
    for key in ('audio', 'index', 'dataset'):
      np.testing.assert_array_equal(batch[key], again[key])
      np.testing.assert_array_equal(batch[key], np.concatenate([first[key], second[key]]))
    assert batch['damaged'] == first['damaged'] + second['damaged']
  assert sum(batch['damaged'] for batch in reference) > 8
  for batch, twice in zip(reference, take(folder, 12, crops=2, **settings), strict=True):
    first, second = np.split(twice['audio'], 2, axis=1)
    np.testing.assert_array_equal(first, batch['audio'])
    assert (first != second).any(axis=1).all()
    assert_only_whole_clips([batch | {'audio': second}], lost=range(8, 16))
  other = take(folder, 12, seed=1, **settings)
  assert [batch['index'].tolist() for batch in other] != [batch['index'].tolist() for batch in reference]


@READS
def test_more_damage_than_allowed_stops_the_run_and_names_the_first(folder, read):
  if read == 'record':
    for clip in (3, 11, 30):
      flip_in_clip(folder, clip)
    with pytest.raises(
      UserError, match=r'^3 damaged records, data.max_damaged=2: .* verify; the first ones: record \d of .*; record'
    ):
      take(folder, 5, on_damage='skip', max_damaged=2)
  (folder / SHARD).unlink()
  with pytest.raises(UserError, match=f'lacks the shard {SHARD}.*; data.max_damaged=7, and 8 clips are lost with it'):
    take(folder, 5, read=read, on_damage='skip', max_damaged=7)
  if read == 'crop':
    assert_only_whole_clips(take(folder, 5, read=read, on_damage='skip', max_damaged=8), lost=range(8, 16))


@READS
def test_a_shard_lost_while_training_is_skipped(folder, tmp_path, read):
  other = write_dataset(tmp_path / 'others', OTHERS)
  batches = stream(folder, read, on_damage='skip')
  found = list(itertools.islice(batches, 1))
  os.replace(other / SHARD, folder / SHARD)
  found += itertools.islice(batches, 10)
  assert_only_whole_clips(found)
  assert sum(batch['damaged'] for batch in found) >= 8


def test_a_mixture_replaces_clips_from_the_same_dataset_and_has_one_bound(folder, whole):
  (folder / SHARD).unlink()
  mixture = (Part(str(folder)), Part(str(whole)))
  data = Data(mixture=mixture, on_damage='skip', max_damaged=8, read_threads=1, prefetch_batches=1)
  batches = pipeline.batches(open_data(data, LogMel()), batch_size=8, crop_samples=CROP, seed=0, start_step=0)
  for batch in itertools.islice(batches, 10):
    assert batch['dataset'].tolist().count(0) == 4
    assert_only_whole_clips([{key: batch[key][batch['dataset'] == 0] for key in ('audio', 'index')}], range(8, 16))
  twice = Data(mixture=(Part(str(folder)), Part(str(folder))), on_damage='skip', max_damaged=15)
  with pytest.raises(UserError, match='data.max_damaged=7, and 8 clips are lost with it'):
    open_data(twice, LogMel())


def test_nothing_is_left_to_take_a_damaged_clips_place(tmp_path):
  path = write_dataset(tmp_path, CLIPS[:2], 1)
  os.truncate(path / 'train-00000-of-00002.tfrecord', 100)
  (batch,) = take(path, 1, on_damage='skip')
  assert set(batch['index']) == {1}  # All of this batch are copies, as they were planned to be.
  os.truncate(path / 'train-00001-of-00002.tfrecord', 100)
  with pytest.raises(UserError, match='no clip is left to take the place of a damaged one'):
    take(path, 1, on_damage='skip')


def test_a_wrong_manifest_always_stops(folder):
  edit_manifest(folder, num_clips=41)
  with pytest.raises(UserError, match='says 41 clips, its shards have 40'):
    take(folder, 1, on_damage='skip')
