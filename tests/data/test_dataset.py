import dataclasses
import os
import re

import numpy as np
import pytest

from selfie_jax.config import LogMel
from selfie_jax.data import dataset
from selfie_jax.errors import UserError
from selfie_jax.prepare import main
from tests.data.sounds import RATE, edit_manifest, flip_byte, voice_int16, write_dataset

SHARD = 'train-00001-of-00003.tfrecord'


@pytest.fixture
def folder(tmp_path):
  return write_dataset(tmp_path / 'clips', [voice_int16(0.5, i) for i in range(9)], clips_per_shard=3)


def verify(folder, capsys):
  """Returns what `prepare verify` prints and its error, if any."""
  error = ''
  try:
    main(['verify', str(folder), '--workers', '1'])
  except UserError as caught:
    error = str(caught)
  return capsys.readouterr().out, error


def flip_in_record(folder, number):
  """Flips a bit in the audio of a record of the whole dataset."""
  clips = dataset.open_dataset(folder).clips
  where = clips.crop_range(clips.find(number), 3, 1)
  flip_byte(folder / f'train-{number // 3:05d}-of-00003.tfrecord', where.start)


def test_a_whole_dataset_passes(folder, capsys):
  assert len(dataset.open_dataset(folder).clips) == 9
  out, error = verify(folder, capsys)
  assert '9 clips in 3 shards, every checksum and count is right' in out
  assert not error


def test_a_flipped_byte_is_found_and_named_and_so_is_every_other(folder, capsys):
  flip_in_record(folder, 3)
  flip_in_record(folder, 5)
  out, error = verify(folder, capsys)
  assert f'record 0 of {folder / SHARD} is damaged' in out
  assert f'record 2 of {folder / SHARD} is damaged' in out
  assert 'record 1 of' not in out
  assert f'{folder} is damaged, problems found: 3, the first: the shard {folder / SHARD} is damaged' in error


def test_a_truncated_shard_is_found_by_training_and_by_verify(folder, capsys):
  os.truncate(folder / SHARD, (folder / SHARD).stat().st_size - 10)
  with pytest.raises(UserError, match=f'{SHARD} has [0-9]+ bytes, manifest.json says [0-9]+'):
    dataset.open_dataset(folder)
  out, error = verify(folder, capsys)
  assert f'record 2 of {folder / SHARD} is damaged: the file ends in its data' in out
  assert error


def test_a_missing_shard_is_found_by_training_and_by_verify(folder, capsys):
  (folder / SHARD).unlink()
  with pytest.raises(UserError, match=f'lacks the shard {SHARD}'):
    dataset.open_dataset(folder)
  out, error = verify(folder, capsys)
  assert f'the shard {folder / SHARD} is missing' in out
  assert error


def test_a_shard_that_the_manifest_does_not_list_is_found(folder, capsys):
  (folder / 'train-00003-of-00004.tfrecord').write_bytes(b'')
  with pytest.raises(UserError, match='shards that manifest.json does not list: 1'):
    dataset.open_dataset(folder)
  _, error = verify(folder, capsys)
  assert 'train-00003-of-00004.tfrecord is not in manifest.json' in error


def test_a_damaged_index_is_found_and_the_records_are_checked_without_it(folder, capsys):
  flip_byte(folder / f'{SHARD}.index', -5)
  with pytest.raises(UserError, match=f'{SHARD}.index is damaged'):
    dataset.open_dataset(folder)
  flip_byte(folder / SHARD, -20)
  out, _ = verify(folder, capsys)
  assert f'the index {folder / SHARD}.index is damaged' in out
  assert f'record 2 of {folder / SHARD} is damaged' in out


def test_counts_that_do_not_add_up_are_found(folder):
  manifest = dataset.load_manifest(folder)
  dataset.write_manifest(folder, dataclasses.replace(manifest, num_clips=10))
  with pytest.raises(UserError, match='says 10 clips, its shards have 9'):
    dataset.open_dataset(folder)
  wrong = dataclasses.replace(manifest.shards[0], clips=4)
  dataset.write_manifest(folder, dataclasses.replace(manifest, num_clips=10, shards=(wrong, *manifest.shards[1:])))
  with pytest.raises(UserError, match='has 3 records, the manifest says 4'):
    dataset.open_dataset(folder)


def test_a_wrong_sample_rate_is_found(folder, capsys):
  edit_manifest(folder, sample_rate=44_100)
  with pytest.raises(UserError, match='says 44100 Hz, its log_mel 16000 Hz'):
    dataset.open_dataset(folder)
  values = (folder / 'manifest.json').read_text().replace('"sample_rate": 16000', '"sample_rate": 44100')
  (folder / 'manifest.json').write_text(values)
  with pytest.raises(UserError, match='log_mel.sample_rate is 16000 in the config and 44100 in the dataset'):
    dataset.check_log_mel(dataset.open_dataset(folder), LogMel())
  out, _ = verify(folder, capsys)
  assert out.count('sample_rate [16000], the manifest says 44100') == 9


def test_other_log_mel_settings_are_refused_with_both_values_and_the_remedy(folder):
  with pytest.raises(UserError, match='n_mels is 80 in the config and 64 in the dataset.*prepare folder --config'):
    dataset.check_log_mel(dataset.open_dataset(folder), LogMel(n_mels=80))


@pytest.mark.parametrize(
  ('content', 'complaint'),
  [
    ('', 'Expecting value'),
    ('{"format_version": 1', 'Expecting'),
    ('{"format_version": 2}', 'key "command" is not given'),
    ('{"format_version": 2, "shard": 1}', 'unknown config key "shard". Did you mean "shards"?'),
    ('{"shard": 1}', "KeyError: 'format_version'"),
    ('[]', 'TypeError'),
  ],
)
def test_a_damaged_manifest_is_one_clear_line(folder, content, complaint):
  (folder / 'manifest.json').write_text(content)
  with pytest.raises(UserError, match=f'manifest.json is damaged.*{re.escape(complaint)}'):
    dataset.load_manifest(folder)


def test_a_manifest_of_another_format_is_refused(folder):
  (folder / 'manifest.json').write_text('{"format_version": 1, "a key that is gone": 0}')
  with pytest.raises(UserError, match='format_version 1, this program reads 2; prepare it again'):
    dataset.load_manifest(folder)


def test_folders_that_are_no_dataset_say_why(tmp_path):
  with pytest.raises(UserError, match='there is no such folder'):
    dataset.load_manifest(tmp_path / 'nothing')
  with pytest.raises(UserError, match='it has no manifest.json'):
    dataset.load_manifest(tmp_path)
  (tmp_path / '.partial').mkdir()
  with pytest.raises(UserError, match='unfinished.*run the same command again'):
    dataset.load_manifest(tmp_path)


def test_a_manifest_comes_back_as_it_went(folder):
  manifest = dataset.load_manifest(folder)
  dataset.write_manifest(folder, manifest)
  assert dataset.load_manifest(folder) == manifest
  assert np.isclose(manifest.hours * 3_600 * RATE, sum(len(voice_int16(0.5, i)) for i in range(9)))


def test_splits_are_chosen_by_name_and_never_silently(tmp_path):
  clips = [voice_int16(0.3, i) for i in range(7)]
  folder = write_dataset(tmp_path / 'clips', clips, 2, {'balanced_train': 3, 'eval': 4})
  with pytest.raises(UserError, match=r'splits balanced_train \(3 clips\), eval \(4 clips\): choose some'):
    dataset.open_dataset(folder)
  with pytest.raises(UserError, match='has no split "evaluation". Did you mean "eval"?'):
    dataset.open_dataset(folder, ['evaluation'])
  with pytest.raises(UserError, match='has no split "x". It has balanced_train, eval.'):
    dataset.open_dataset(folder, ['x'])
  chosen = dataset.open_dataset(folder, ['eval'])
  assert chosen.splits == ('eval',)
  assert [len(chosen.clips[i]['audio']) for i in range(len(chosen.clips))] == [4_800] * 4
  np.testing.assert_array_equal(chosen.clips[0]['audio'], clips[3])
  both = dataset.open_dataset(folder, ['eval', 'balanced_train'])
  assert both.splits == ('balanced_train', 'eval')  # In the manifest's order, whatever the order of the words.
  assert len(both.clips) == 7
  assert len({chosen.fingerprint, both.fingerprint}) == 2


def test_verify_decodes_flac_in_all_splits(tmp_path, capsys):
  clips = [voice_int16(0.3, i) for i in range(7)]
  folder = write_dataset(tmp_path / 'clips', clips, 2, {'train': 3, 'eval': 4}, 'flac')
  out, error = verify(folder, capsys)
  assert '7 clips in 4 shards' in out
  assert not error
  eval_shard = folder / 'eval-00001-of-00002.tfrecord'
  flip_byte(eval_shard, -40)
  out, error = verify(folder, capsys)
  assert f'record 1 of {eval_shard} is damaged' in out
  # FLAC that is wrong from the start has the right checksums.
  write_wrong_flac(folder, clips)
  out, error = verify(folder, capsys)
  assert 'record 0 of' in out
  assert 'does not hold a clip: not a FLAC file' in out


def write_wrong_flac(folder, clips):
  write_dataset(folder, clips, 7, {'train': 7}, 'int16')
  manifest = dataset.load_manifest(folder)
  edit_manifest(folder, source=dataclasses.replace(manifest.source, audio_format='flac'))


def test_an_index_is_one_array_of_28_bytes_a_clip(folder):
  clips = dataset.open_dataset(folder).clips
  assert clips._index.nbytes == 28 * len(clips)
  assert clips._index.base is None
