import dataclasses
import os
import re

import numpy as np
import pytest

from selfie_jax.config import LogMel
from selfie_jax.data import dataset, pipeline
from selfie_jax.errors import UserError
from selfie_jax.prepare import main
from tests.data.sounds import RATE, edit_manifest, flip_byte, voice_int16, write_dataset

SHARD = 'shard-00001-of-00003.tfrecord'


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
  row = dataset.open_clips(folder, dataset.load_manifest(folder).shards)._index[number]
  flip_byte(folder / f'shard-{number // 3:05d}-of-00003.tfrecord', int(row['audio_offset']) + 7)


def test_a_whole_dataset_passes(folder, capsys):
  assert dataset.check_dataset(folder, LogMel()).num_clips == 9
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
    dataset.check_dataset(folder, LogMel())
  out, error = verify(folder, capsys)
  assert f'record 2 of {folder / SHARD} is damaged: the file ends in its data' in out
  assert error


def test_a_missing_shard_is_found_by_training_and_by_verify(folder, capsys):
  (folder / SHARD).unlink()
  with pytest.raises(UserError, match=f'lacks the shard {SHARD}'):
    dataset.check_dataset(folder, LogMel())
  with pytest.raises(UserError, match=f'lacks the shard {SHARD}'):
    pipeline.batches(folder, batch_size=4, crop_samples=100, seed=0, start_step=0, read_threads=1, prefetch_batches=1)
  out, error = verify(folder, capsys)
  assert f'the shard {folder / SHARD} is missing' in out
  assert error


def test_a_shard_that_the_manifest_does_not_list_is_found(folder, capsys):
  (folder / 'shard-00003-of-00004.tfrecord').write_bytes(b'')
  with pytest.raises(UserError, match='shards that manifest.json does not list: 1'):
    dataset.check_dataset(folder, LogMel())
  _, error = verify(folder, capsys)
  assert 'shard-00003-of-00004.tfrecord is not in manifest.json' in error


def test_a_damaged_index_is_found_and_the_records_are_checked_without_it(folder, capsys):
  flip_byte(folder / f'{SHARD}.index', -5)
  with pytest.raises(UserError, match=f'{SHARD}.index is damaged'):
    dataset.check_dataset(folder, LogMel())
  flip_byte(folder / SHARD, -20)
  out, _ = verify(folder, capsys)
  assert f'the index {folder / SHARD}.index is damaged' in out
  assert f'record 2 of {folder / SHARD} is damaged' in out


def test_counts_that_do_not_add_up_are_found(folder):
  manifest = dataset.load_manifest(folder)
  dataset.write_manifest(folder, dataclasses.replace(manifest, num_clips=10))
  with pytest.raises(UserError, match='says 10 clips, its shards have 9'):
    dataset.check_dataset(folder, LogMel())
  wrong = dataclasses.replace(manifest.shards[0], clips=4)
  dataset.write_manifest(folder, dataclasses.replace(manifest, num_clips=10, shards=(wrong, *manifest.shards[1:])))
  with pytest.raises(UserError, match='has 3 records, the manifest says 4'):
    dataset.check_dataset(folder, LogMel())


def test_a_wrong_sample_rate_is_found(folder, capsys):
  edit_manifest(folder, sample_rate=44_100)
  with pytest.raises(UserError, match='says 44100 Hz, its log_mel 16000 Hz'):
    dataset.check_dataset(folder, LogMel())
  values = (folder / 'manifest.json').read_text().replace('"sample_rate": 16000', '"sample_rate": 44100')
  (folder / 'manifest.json').write_text(values)
  with pytest.raises(UserError, match='log_mel.sample_rate is 16000 in the config and 44100 in the dataset'):
    dataset.check_dataset(folder, LogMel())
  out, _ = verify(folder, capsys)
  assert out.count('sample_rate [16000], the manifest says 44100') == 9


def test_other_log_mel_settings_are_refused_with_both_values_and_the_remedy(folder):
  with pytest.raises(UserError, match='n_mels is 80 in the config and 64 in the dataset.*prepare folder --config'):
    dataset.check_dataset(folder, LogMel(n_mels=80))


@pytest.mark.parametrize(
  ('content', 'complaint'),
  [
    ('', 'Expecting value'),
    ('{"format_version": 1', 'Expecting'),
    ('{"format_version": 1}', 'key "command" is not given'),
    ('{"shard": 1}', 'unknown config key "shard". Did you mean "shards"?'),
    ('[]', ''),
  ],
)
def test_a_damaged_manifest_is_one_clear_line(folder, content, complaint):
  (folder / 'manifest.json').write_text(content)
  with pytest.raises(UserError, match=f'manifest.json is damaged, or of another version.*{re.escape(complaint)}'):
    dataset.load_manifest(folder)


def test_a_manifest_of_another_format_is_refused(folder):
  edit_manifest(folder, format_version=9)
  with pytest.raises(UserError, match='format_version 9, this program reads 1'):
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
