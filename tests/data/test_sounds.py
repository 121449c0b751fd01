import os
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
import scipy.signal

from selfie_jax.data import audioset, sounds
from selfie_jax.data.clip import AudioFile, Clip
from selfie_jax.data.decode import DecodeError, EmptyError
from selfie_jax.errors import UserError
from tests.data.audioset_tree import SECONDS, make_tree
from tests.data.sounds import RATE
from tests.object_stores import _gcs_settings, _s3_settings, gcs, s3  # noqa: F401

ERRORS = {'unreadable': DecodeError, 'empty': EmptyError}


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
  return make_tree(tmp_path_factory.mktemp('audioset') / 'tree')


def list_tree(tree, audio=None):
  return audioset.list_clips(tree.segments, tree.labels, [str(path) for path in audio or tree.audio]).clips


def read_all(clips):
  """The sounds of clips by name, and the kinds of the errors of those that have none."""
  found = {}
  for clip in clips:
    if clip.sound:
      try:
        found[clip.name] = sounds.read_sound(clip, RATE)
      except DecodeError as error:
        found[clip.name] = type(error)
  return found


def test_every_clip_of_a_tree_is_the_segment_asked_for_or_says_why_not(tree):
  found = read_all(list_tree(tree))
  for name, outcome in tree.expected.items():
    if outcome in ERRORS:
      assert found.pop(name) is ERRORS[outcome]
  assert found.keys() == {name for name in tree.parts if tree.expected[name] not in ERRORS}
  for name, samples in found.items():
    assert samples.dtype == np.int16
    assert len(samples) <= SECONDS * RATE
    part = tree.parts[name]
    if tree.expected[name] == 'ok':
      assert len(samples) == SECONDS * RATE
      part = scipy.signal.resample(part, len(samples))
      # At the right place, to a few milliseconds: codecs delay.
      correlation = scipy.signal.correlate(samples / np.linalg.norm(samples), part / np.linalg.norm(part), mode='same')
      assert correlation.max() > 0.8
      assert abs(int(correlation.argmax()) - len(samples) // 2) < 0.1 * RATE
    elif len(part) == len(samples):
      np.testing.assert_allclose(samples / 32_768, part, atol=1e-4)


def test_a_big_member_of_a_tar_goes_by_way_of_a_file(tree, monkeypatch):
  clips = [clip for clip in list_tree(tree) if clip.sound and clip.sound.tar_offset is not None]
  expected = read_all(clips)
  monkeypatch.setattr(sounds, '_IN_MEMORY_BYTES', 1_000)
  monkeypatch.setattr(sounds, '_COPY_BYTES', 3_000)
  found = read_all(clips)
  assert len(found) == 2
  for name, samples in found.items():
    np.testing.assert_array_equal(samples, expected[name])


def test_files_that_went_or_shrank_since_they_were_listed_are_named(tmp_path, tree):
  shutil.copytree(tree.audio[0].parent, tmp_path / 'tree')
  archive = tmp_path / 'tree/more.tar'
  whole, in_tar = tmp_path / 'tree/audio/Yc5ABC-efGHi.wav', AudioFile(str(archive), 30_000, 4_608)
  whole.unlink()
  with pytest.raises(DecodeError, match=r'cannot read .*/audio/Yc5ABC-efGHi\.wav: No such file'):
    sounds.read_sound(Clip('a', AudioFile(str(whole), 1_000)), RATE)
  os.truncate(archive, 10_000)
  with pytest.raises(DecodeError, match=r'more\.tar at byte 4608: had 30000 bytes when it was listed and has 5392 now'):
    sounds.read_sound(Clip('a', in_tar), RATE)
  archive.unlink()
  with pytest.raises(DecodeError, match=r'more\.tar at byte 4608: No such file'):
    sounds.read_sound(Clip('a', in_tar), RATE)


@pytest.mark.parametrize('store', ['gcs', 's3'])
def test_a_tree_in_an_object_store_is_listed_and_read_as_if_it_were_here(store, tree, request):
  bucket = request.getfixturevalue(store)
  filesystem, _ = fsspec.core.url_to_fs(bucket)
  filesystem.put(str(tree.audio[0]), f'{bucket}/tree/audio', recursive=True)
  filesystem.put_file(str(tree.audio[1]), f'{bucket}/tree/more.tar')
  # The emulator of GCS drops a carriage return at the end of an upload.
  here = [clip for clip in list_tree(tree) if not clip.sound or Path(clip.sound.path).read_bytes()[-1:] != b'\r']
  known = {clip.name for clip in here}
  there = list_tree(tree, [f'{bucket}/tree/audio', f'{bucket}/tree/more.tar'])
  there = [clip for clip in there if clip.name in known]
  for ours, remote in zip(here, there, strict=True):
    assert (ours.name, ours.split, ours.labels, ours.start) == (remote.name, remote.split, remote.labels, remote.start)
    if ours.sound:
      assert (ours.sound.size, ours.sound.tar_offset) == (remote.sound.size, remote.sound.tar_offset)
      assert remote.sound.path.startswith(f'{bucket}/tree/')
  expected, found = read_all(here), read_all(there)
  assert found.keys() == expected.keys()
  for name, samples in found.items():
    np.testing.assert_array_equal(samples, expected[name])
  with pytest.raises(UserError, match='there is no folder or tar'):
    list_tree(tree, [f'{bucket}/nothing'])
  filesystem.rm(f'{bucket}/tree/audio/Yc5ABC-efGHi.wav')
  (gone,) = (clip for clip in there if clip.name == 'c5ABC-efGHi_5000')
  with pytest.raises(DecodeError, match=r'Yc5ABC-efGHi\.wav'):
    sounds.read_sound(gone, RATE)
