import dataclasses
import io
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from selfie_jax.data import dataset, shard, tfds_metadata, tfds_source
from selfie_jax.data.decode import DecodeError
from selfie_jax.errors import UserError
from selfie_jax.files import as_path
from selfie_jax.prepare import main
from tests.data.sounds import RATE, voice_int16, write_dataset
from tests.object_stores import _gcs_settings, gcs  # noqa: F401

CLIPS = [voice_int16(0.1 + 0.02 * i, i) for i in range(5)]


def describe(folder, **changes):
  manifest = dataclasses.replace(dataset.load_manifest(folder), **changes)
  tfds_metadata.write(folder, manifest)
  return folder


def test_tfds_load_reads_what_was_prepared(tmp_path):
  splits = {'balanced_train': 3, 'eval': 2}
  describe(write_dataset(tmp_path / 'audioset' / '1.0.0', CLIPS, clips_per_shard=2, splits=splits))
  found, info = tfds.load('audioset', data_dir=tmp_path, with_info=True)
  assert {name: split.num_examples for name, split in info.splits.items()} == splits
  assert info.features['audio'].sample_rate == RATE
  examples = [*found['balanced_train'].as_numpy_iterator(), *found['eval'].as_numpy_iterator()]
  for i, (example, clip) in enumerate(zip(examples, CLIPS, strict=True)):
    np.testing.assert_array_equal(example['audio'], clip)
    assert example['audio'].dtype == np.int16
    assert (example['id'], example['sample_rate']) == (f'{i}.wav'.encode(), RATE)
    assert [info.features['labels'].feature.int2str(label) for label in example['labels']] == [['even', 'odd'][i % 2]]


def test_flac_records_are_read_as_the_bytes_of_flac_files(tmp_path):
  folder = describe(write_dataset(tmp_path / 'flac', CLIPS, audio_format='flac'))
  examples = tfds.builder_from_directory(folder).as_dataset('train').as_numpy_iterator()
  for example, clip in zip(examples, CLIPS, strict=True):
    np.testing.assert_array_equal(soundfile.read(io.BytesIO(example['audio']), dtype='int16')[0], clip)


def test_clips_without_labels_and_shards_without_clips_are_read(tmp_path):
  folder = tmp_path / 'no labels'
  folder.mkdir()
  names = [f'train-{i:05d}-of-00003.tfrecord' for i in range(3)]
  groups = [[('a', CLIPS[0], RATE, [])], [], [('b', CLIPS[1], RATE, [])]]
  shards = tuple(shard.write_shard(folder / n, 'train', group, 'int16') for n, group in zip(names, groups))
  other = dataset.load_manifest(write_dataset(tmp_path / 'other', CLIPS))
  for classes in ((), ('one', 'with, a comma')):
    splits = (dataset.Split('train', 2, 0.1), dataset.Split('eval', 0, 0.0))
    tfds_metadata.write(folder, dataclasses.replace(other, classes=classes, splits=splits, shards=shards))
    found = list(tfds.builder_from_directory(folder).as_dataset('train').as_numpy_iterator())
    assert [(example['id'], example['labels'].tolist()) for example in found] == [(b'a', []), (b'b', [])]


def test_it_is_written_to_an_object_store_as_it_is_to_a_disk(tmp_path, gcs):  # noqa: F811
  folder = describe(write_dataset(tmp_path / 'sounds', CLIPS))
  tfds_metadata.write(f'{gcs}/sounds', dataset.load_manifest(folder))
  for name in tfds_metadata.FILES:
    assert (as_path(gcs) / 'sounds' / name).read_bytes() == (folder / name).read_bytes()


def test_it_is_written_without_tensorflow():
  code = 'import sys, selfie_jax.data.tfds_metadata; sys.exit("tensorflow" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def prepare_with_tfds(folder, features, examples, file_format='tfrecord'):
  """What a TFDS builder leaves in `folder`/voices/1.2.3, of the examples of each split."""

  class Voices(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.2.3')
    url_infos = {}  # Nothing is downloaded; TFDS would look for their checksums with a package it does not install.

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {split: iter(enumerate(mine)) for split, mine in examples.items()}

    def _generate_examples(self):
      raise NotImplementedError

  Voices(data_dir=folder, file_format=file_format).download_and_prepare()


def read_all(listing, rate=RATE):
  return {
    clip.name: (tfds_source.read_record(clip.sound, rate), *tfds_source.read_labels(clip.sound))
    for clip in listing.clips
  }


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_a_dataset_like_nsynth_is_read_in_both_file_formats(tmp_path, file_format):
  features = tfds.features.FeaturesDict(
    {
      'audio': tfds.features.Audio(shape=(1_600,), dtype=np.float32, sample_rate=RATE),
      'id': tfds.features.Text(),
      'pitch': tfds.features.ClassLabel(num_classes=128),
      'instrument': {
        'label': tfds.features.ClassLabel(names=['bass', 'flute']),
        'family': tfds.features.ClassLabel(num_classes=3),
      },
    }
  )
  wanted = [clip[:1_600] for clip in CLIPS]
  examples = [
    {
      'audio': (clip / 32_768).astype(np.float32),
      'id': f'n{i}',
      'pitch': i,
      'instrument': {'label': i % 2, 'family': 2},
    }
    for i, clip in enumerate(wanted)
  ]
  prepare_with_tfds(tmp_path, features, {'train': examples[:3], 'test': examples[3:]}, file_format)
  listing = tfds_source.list_clips('voices', tmp_path)
  assert [clip.split for clip in listing.clips] == ['test'] * 2 + ['train'] * 3
  assert listing.clips[0].name == f'voices-test.{file_format}-00000-of-00001__0'
  assert (listing.kind, listing.classes) == ('tfds', ('bass', 'flute'))
  found = {audio.tobytes(): label for audio, label in read_all(listing).values()}
  assert found == {clip.tobytes(): i % 2 for i, clip in enumerate(wanted)}


def test_prepare_tfds_makes_a_dataset_that_tfds_reads_too(tmp_path):
  features = tfds.features.FeaturesDict(
    {
      'audio': tfds.features.Audio(shape=(None,), dtype=np.int16, sample_rate=RATE),
      'label': tfds.features.ClassLabel(names=['bass', 'flute']),
    }
  )
  sounds = [voice_int16(0.3, i) for i in range(6)]
  examples = [{'audio': sound, 'label': i % 2} for i, sound in enumerate(sounds)]
  prepare_with_tfds(tmp_path / 'theirs', features, {'train': [*examples[:4], examples[5]], 'test': examples[4:]})
  output = tmp_path / 'ours' / 'voices' / '1.0.0'
  arguments = ['--name', 'voices', '--data_dir', tmp_path / 'theirs', '--output', output, '--workers', 1]
  main(['tfds', *map(str, arguments)])
  found, info = tfds.load('voices', data_dir=tmp_path / 'ours', with_info=True)
  assert info.features['labels'].feature.names == ['bass', 'flute']
  for split, wanted in {'train': examples[:4], 'test': examples[4:]}.items():  # A train clip that is in test goes.
    ours = {example['audio'].tobytes(): example['labels'].tolist() for example in found[split].as_numpy_iterator()}
    assert ours == {example['audio'].tobytes(): [example['label']] for example in wanted}


def test_lists_of_labels_and_old_int64_stereo_at_another_rate(tmp_path):
  features = tfds.features.FeaturesDict(
    {
      'sound': tfds.features.Audio(shape=(None, 2)),
      'tags': tfds.features.Sequence(tfds.features.ClassLabel(names=['a', 'b', 'c'])),
    }
  )
  stereo = np.stack([CLIPS[0], -CLIPS[0] // 2], axis=1).astype(np.int64)
  examples = [{'sound': stereo, 'tags': [2, 0]}, {'sound': stereo[:800], 'tags': []}]
  prepare_with_tfds(tmp_path, features, {'train': examples})
  with pytest.raises(UserError, match='do not say the sample rate .* give --sample_rate'):
    tfds_source.list_clips('voices', tmp_path)
  listing = tfds_source.list_clips('voices', tmp_path, RATE)
  assert listing.classes == ('a', 'b', 'c')
  found = sorted(read_all(listing).values(), key=len)
  assert [labels for _, *labels in found] == [[], [0, 2]]
  np.testing.assert_array_equal(found[1][0], np.rint(stereo.mean(axis=1)).astype(np.int16))
  halves = tfds_source.list_clips('voices', tmp_path, 2 * RATE)
  assert sorted(len(audio) for audio, *_ in read_all(halves).values()) == [400, len(CLIPS[0]) // 2]


def test_audio_that_tfds_stored_undecoded_is_decoded(tmp_path):
  features = {'audio': tfds.features.Audio(file_format='flac', dtype=np.int16, sample_rate=RATE, lazy_decode=True)}
  files = [io.BytesIO(shard.encode_flac(clip, RATE)) for clip in CLIPS[:2]]
  prepare_with_tfds(tmp_path, tfds.features.FeaturesDict(features), {'train': [{'audio': file} for file in files]})
  found = read_all(tfds_source.list_clips('voices', tmp_path))
  assert {audio.tobytes() for (audio,) in found.values()} == {clip.tobytes() for clip in CLIPS[:2]}


def test_what_cannot_be_read_is_said_in_one_line(tmp_path):
  with pytest.raises(UserError, match='no prepared dataset "voices" in'):
    tfds_source.list_clips('voices', tmp_path)
  text = {'id': tfds.features.Text()}
  prepare_with_tfds(tmp_path / 'text', tfds.features.FeaturesDict(text), {'train': [{'id': 'a'}]})
  with pytest.raises(UserError, match='has 0 audio features; it takes exactly one'):
    tfds_source.list_clips('voices', tmp_path / 'text')
  audio = {'audio': tfds.features.Audio(dtype=np.float32, sample_rate=RATE)}
  loud = {'train': [{'audio': np.float32([0, 20_000])}]}
  prepare_with_tfds(tmp_path / 'loud', tfds.features.FeaturesDict(audio), loud)
  (clip,) = tfds_source.list_clips('voices', tmp_path / 'loud').clips
  with pytest.raises(DecodeError, match='float32 samples up to 20000; of this type they can be up to 2'):
    tfds_source.read_record(clip.sound, RATE)
  (file,) = (tmp_path / 'loud').rglob('*.tfrecord-*')
  file.write_bytes(file.read_bytes()[:-3])
  tfds_source._read.cache_clear()
  with pytest.raises(DecodeError, match='the file ends'):
    tfds_source.read_record(clip.sound, RATE)
