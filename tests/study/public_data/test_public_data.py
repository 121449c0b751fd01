import csv
import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from tests.study.public_data import __main__ as command
from tests.study.public_data import notes, pretraining, speech, splits, unlabelled
from tests.study.public_data.folders import Clip, write_folder
from tests.study.public_data.made_sounds import noise, write_g722, write_sound
from tests.study.public_data.sounds import SAMPLE_RATE, decode, find_recordings
from tests.study.public_data.tasks import TASKS, Task


def read_rows(path):
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


def clip(name, sound, split='train', **options):
  return Clip(name, sound, {'split': split, 'label': 'a', 'source': 'here'}, **options)


def test_recordings_are_found_by_folder_and_name_and_links_are_left_out(tmp_path):
  for name in ('b/2.wav', 'b/1.WAV', 'a.ogg', 'b/c/0.wav', 'b/text.txt'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  (tmp_path / 'b/0.wav').symlink_to(tmp_path / 'b/2.wav')
  found = [path.relative_to(tmp_path).as_posix() for path in find_recordings(tmp_path)]
  assert found == ['a.ogg', 'b/1.WAV', 'b/2.wav', 'b/c/0.wav']


def test_samples_are_the_mean_of_the_channels_resampled_by_scipy_and_limited(tmp_path):
  stereo = np.stack([noise(0, 1, 0.8), noise(1, 1, 0.8)], axis=1)
  soundfile.write(tmp_path / 'a.wav', stereo, 44_100, 'FLOAT')
  expected = resample_poly(stereo.mean(axis=1), 160, 441).astype(np.float32)
  assert np.abs(expected).max() > 1
  for source in (tmp_path / 'a.wav', (tmp_path / 'a.wav').read_bytes()):
    np.testing.assert_array_equal(decode(source), expected / np.abs(expected).max())


def test_g722_is_read_and_what_cannot_be_read_has_no_samples(tmp_path):
  write_g722(tmp_path / 'a.g722', 0)
  assert abs(len(decode(tmp_path / 'a.g722')) - 0.5 * SAMPLE_RATE) < 100
  (tmp_path / 'b.g722').touch()
  (tmp_path / 'b.wav').write_bytes(b'no sound')
  assert [decode(source).size for source in (tmp_path / 'b.g722', tmp_path / 'b.wav', b'')] == [0, 0, 0]


def test_a_folder_leaves_out_what_is_short_silent_or_a_repeat_and_cuts_the_rest(tmp_path):
  clips = [
    clip('loud', noise(0), normalize=True),
    clip('short', noise(1, 0.1), shortest=0.2),
    clip('unreadable', np.zeros(0, np.float32)),
    clip('silent', np.zeros(SAMPLE_RATE, np.float32)),
    clip('long', noise(2, 2), 'test', longest=1),
    clip('repeat', noise(2, 2), longest=1),
    clip('long', noise(3)),
  ]
  summary = write_folder(tmp_path / 'task', clips)
  rows = read_rows(tmp_path / 'task/metadata.csv')
  assert [tuple(row.values()) for row in rows] == [
    ('audio/loud.flac', 'train', 'a', 'here', '0.5'),
    ('audio/long.flac', 'test', 'a', 'here', '1.0'),
    ('audio/long_.flac', 'train', 'a', 'here', '0.5'),
  ]
  assert list(rows[0]) == ['file_name', 'split', 'label', 'source', 'seconds']
  assert summary == '3 clips (train 2, test 1), 0.0 minutes'
  assert len(list((tmp_path / 'task/audio').iterdir())) == 3
  loud, rate = soundfile.read(tmp_path / 'task/audio/loud.flac')
  assert rate == SAMPLE_RATE
  assert np.abs(loud).max() == pytest.approx(0.9, abs=1e-4)


def test_a_group_has_the_split_it_always_had():
  assert splits.split_of('animals/amphibians/frog-') == 'test'
  assert [splits.split_of(syllable, salt='t1') for syllable in ('ㄅ', 'ㄅㄚ', 'ㄅㄞ')] == ['test', 'train', 'valid']
  assert [splits.split_of(note, salt='i', test=0) for note in ('000_049', '000_044')] == ['valid', 'train']
  many = [splits.split_of(str(i)) for i in range(2_000)]
  assert many.count('test') / 2_000 == pytest.approx(0.25, abs=0.03)
  assert many.count('valid') / 2_000 == pytest.approx(0.15, abs=0.03)
  assert 'test' not in {splits.split_of(str(i), test=0) for i in range(200)}


def test_every_label_has_its_share_of_each_split_by_whole_groups():
  rows = [
    {'label': label, 'group': f'{label}{i // 3}'} for label, count in (('a', 300), ('b', 60)) for i in range(count)
  ]
  found = splits.split_labels(rows, 'group', 's')
  assert len({(row['group'], row['split']) for row in found}) == len({row['group'] for row in rows})
  for label, count in (('a', 300), ('b', 60)):
    of_label = [row['split'] for row in found if row['label'] == label]
    assert abs(of_label.count('test') - 0.25 * count) <= 3
    assert abs(of_label.count('valid') - 0.15 * count) <= 3


def test_of_each_family_two_programs_are_for_test_and_one_for_valid():
  found = notes.program_splits()
  for family in range(14):
    of_family = sorted(found[8 * family + i] for i in range(8))
    assert of_family == ['test'] * 2 + ['train'] * 5 + ['valid']


def test_no_clip_that_a_task_tests_on_is_pre_trained_on(tmp_path):
  names = ('language', 'voice', 'mandarin_tone', 'mandarin_initial', 'unlabelled')
  tasks = [task for task in TASKS if task.name in names]
  unpacked = {name: tmp_path / name for task in tasks for name in task.packages}
  for folder in unpacked.values():
    folder.mkdir()
  for i, package in enumerate(name for name in unpacked if name.startswith('asterisk')):
    for j in range(9):
      write_g722(unpacked[package] / f'usr/share/sounds/{j}.g722', 10 * i + j)
  for i, language in enumerate(('fr', 'ru', 'de')):
    write_sound(unpacked['ktuberling-data'] / f'share/{language}/hat.ogg', 100 + i)
    write_sound(unpacked['tuxpaint-stamps-default'] / f'stamps/animals/cat_desc_{language}.ogg', 110 + i)
  for i in range(20):
    write_sound(unpacked['hedgewars-data'] / f'Sounds/voices/British/Word{i}.ogg', 200 + i)
    write_sound(unpacked['gcin-voice'] / f'ogg/{chr(ord("ㄅ") + i)}4/5.ogg', 300 + i)
  write_sound(unpacked['hedgewars-data'] / 'Music/long.ogg', 400, 25)
  for task in tasks:
    write_folder(tmp_path / 'out' / task.name, task.clips(unpacked), task.assign_splits)
  pretraining.write_list(tmp_path / 'out', names)
  listed = [row['file_name'] for row in read_rows(tmp_path / 'out/pretrain.csv')]
  free = {digest_of(tmp_path / 'out' / name) for name in listed}
  assert len(free) == len(listed)  # Each once, though both tasks of Mandarin have it.
  held_out = {
    digest_of(tmp_path / 'out' / name / row['file_name'])
    for name in names
    for row in read_rows(tmp_path / 'out' / name / 'metadata.csv')
    if row['split'] != 'train'
  }
  assert len(held_out) > 3 * 3 + 2  # Of `language` alone.
  assert not free & held_out
  # What is left: six of nine prompts of the three languages that are tested on, all of the two that are not, the one
  # potato that speaks another language, the pieces of the music, and what the tasks train on.
  rows = read_rows(tmp_path / 'out/unlabelled/metadata.csv')
  assert len(rows) == 3 * 6 + 2 * 9 + 1 + 3
  assert sum('ktuberling' in row['source'] for row in rows) == 1


def digest_of(path):
  return hashlib.sha1(soundfile.read(path, dtype='int16')[0].tobytes()).hexdigest()


def test_a_clip_that_one_task_trains_on_and_another_holds_out_is_not_free():
  def row(name, split):
    return {'file_name': f'audio/{name}.flac', 'split': split, 'seconds': '2.0', 'source': 'bank'}

  tables = {
    'drum': [row('a', 'train')],
    'instrument': [row('a', 'train'), row('b', 'train'), row('c', 'test')],
    'pitch': [row('a', 'valid'), row('b', 'train'), row('c', 'train')],
  }
  assert [free['file_name'] for free in pretraining.free_clips(tables)] == [
    'drum/audio/a.flac',
    'instrument/audio/b.flac',
  ]


def test_a_recording_is_cut_every_ten_seconds_and_a_short_rest_is_no_piece():
  lengths = [[len(piece) for piece in unlabelled.pieces(np.zeros(n))] for n in (0, 160_000, 174_400, 192_000, 400_000)]
  assert lengths == [[0], [160_000], [160_000], [160_000, 32_000], [160_000, 160_000, 80_000]]


def test_a_stopped_build_goes_on_and_ends_with_the_same(tmp_path, monkeypatch):
  built = []

  def make(name, seed):
    def clips(unpacked):
      built.append(name)
      for i in range(4):
        if i == state.stop_after.get(name):
          raise KeyboardInterrupt
        yield clip(f'{i}', noise(seed + i), 'test' if i else 'train')

    return Task(name, (), clips)

  state = SimpleNamespace(stop_after={'second': 2})
  monkeypatch.setattr(command, 'TASKS', (make('first', 0), make('second', 10)))
  output = tmp_path / 'stopped'
  with pytest.raises(KeyboardInterrupt):
    command.main(['--output', str(output)])
  assert not (output / 'second/metadata.csv').exists()
  assert not (output / 'pretrain.csv').exists()
  state.stop_after = {}
  command.main(['--output', str(output)])
  assert built == ['first', 'second', 'second']
  command.main(['--output', str(tmp_path / 'undisturbed')])
  assert contents(output) == contents(tmp_path / 'undisturbed')
  assert [row['file_name'] for row in read_rows(output / 'pretrain.csv')] == [
    'first/audio/0.flac',
    'second/audio/0.flac',
  ]


def contents(folder):
  return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_recordings_that_are_called_silence_are_left_out_whatever_the_folder_is_called(tmp_path):
  folder = tmp_path / 'silence'
  for name in ('a.g722', 'silence/1.g722'):
    write_g722(folder / name, 0)
  assert [path.name for path in speech.without_silence(folder)] == ['a.g722']
