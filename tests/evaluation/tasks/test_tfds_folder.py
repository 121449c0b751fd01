"""The nine tasks from what TensorFlow Datasets has prepared."""

import collections

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from selfie_jax.errors import UserError
from selfie_jax.evaluation.tasks import tfds_folder
from selfie_jax.evaluation.tasks.converters import list_input
from selfie_jax.evaluation.tasks.nine import NINE
from tests.evaluation.tasks import trees
from tests.evaluation.tasks.test_official_layouts import prepare, table_of

FAMILIES = ['bass', 'brass', 'flute']


def write_tfds(folder, name, features, examples, file_format='tfrecord'):
  """What TFDS leaves in `folder`/name/1.2.3, of the examples of each split; returns that folder."""

  def split_generators(self, dl_manager):
    return {split: iter(enumerate(mine)) for split, mine in examples.items()}

  builder = type(
    name,
    (tfds.core.GeneratorBasedBuilder,),
    {
      **{'__module__': __name__, 'VERSION': tfds.core.Version('1.2.3'), 'url_infos': {}},
      '_info': lambda self: tfds.core.DatasetInfo(builder=self, features=features),
      '_split_generators': split_generators,
      '_generate_examples': lambda self: None,
    },
    skip_registration=True,
  )
  builder(data_dir=folder, file_format=file_format).download_and_prepare()
  (info,) = folder.rglob('dataset_info.json')
  return info.parent


def sound(number):
  return np.rint(32_767 * trees.recording('qw7'[number % 3])[: 2_000 + number]).astype(np.int16)


def test_nsynth_of_tfds_becomes_the_task_of_families(tmp_path):
  features = tfds.features.FeaturesDict(
    {
      'audio': tfds.features.Audio(shape=(None,), dtype=np.float32, sample_rate=16_000),
      'pitch': tfds.features.ClassLabel(num_classes=128),
      'instrument': {
        'label': tfds.features.ClassLabel(num_classes=9),
        'family': tfds.features.ClassLabel(names=FAMILIES),
      },
    }
  )
  numbers = {'train': range(4), 'valid': range(4, 6), 'test': range(6, 8)}
  example = lambda i: {'audio': sound(i) / 32_768, 'pitch': i, 'instrument': {'label': 8, 'family': i % 2}}  # noqa: E731
  examples = {split: [example(i) for i in mine] for split, mine in numbers.items()}
  folder = write_tfds(tmp_path / 'data', 'Nsynth', features, examples)
  prepare('nsynth', folder, tmp_path / 'nsynth')
  rows = table_of(tmp_path / 'nsynth')
  assert collections.Counter((row['split'], row['label']) for row in rows) == {
    (split, family): len(mine) // 2 for split, mine in numbers.items() for family in ('bass', 'brass')
  }
  sounds = {soundfile.read(tmp_path / 'nsynth' / row['file_name'], dtype='int16')[0].tobytes(): row for row in rows}
  for i in range(8):
    assert sounds[sound(i).tobytes()]['label'] == FAMILIES[i % 2]
  with pytest.raises(UserError, match='is the dataset "nsynth" of .*; task "gtzan" takes its "gtzan"'):
    list_input('gtzan', str(folder))


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_gtzan_of_tfds_is_split_by_the_users_lists(tmp_path, file_format):
  features = tfds.features.FeaturesDict(
    {
      'audio': tfds.features.Audio(dtype=np.int16, sample_rate=22_050),
      'label': tfds.features.ClassLabel(names=['blues', 'jazz']),
      'audio/filename': tfds.features.Text(),
    }
  )
  examples = [{'audio': sound(i), 'label': 'jazz', 'audio/filename': f'jazz.{i:05d}.wav'} for i in range(5)]
  folder = write_tfds(tmp_path / 'data', 'Gtzan', features, {'train': examples}, file_format)
  lists = []
  for split, numbers in (('train', (0, 1)), ('valid', (2,)), ('test', (3, 9))):
    lists.append(str(tmp_path / f'{split}_filtered.txt'))
    (tmp_path / f'{split}_filtered.txt').write_text(''.join(f'jazz/jazz.{i:05d}.wav\n' for i in numbers))
  tree, listing, _ = list_input('gtzan', str(folder.parent), lists)
  there = collections.Counter(row.part for row in listing.rows if row.source in tree.files)
  assert there == {'train': 2, 'valid': 1, 'test': 1}
  assert {row.source for row in listing.rows} - tree.files.keys() == {'jazz.00009.wav'}
  with pytest.raises(UserError, match='fault-filtered split is in no download'):
    list_input('gtzan', str(folder))


def test_what_tfds_has_under_another_task_is_refused(tmp_path):
  folder = tmp_path / 'speech_commands' / '0.0.3'
  folder.mkdir(parents=True)
  (folder / 'dataset_info.json').write_text('{"name": "speech_commands", "version": "0.0.3"}')
  for task, message in (
    ('spcv2', 'is the dataset "speech_commands" .*; task "spcv2" takes none: .* has 12 classes'),
    ('esc50', 'task "esc50" takes none: give the download'),
  ):
    with pytest.raises(UserError, match=message):
      list_input(task, str(folder))


def test_speakers_of_voxceleb_have_the_names_of_the_download(tmp_path):
  features = tfds.features.FeaturesDict(
    {
      'audio': tfds.features.Audio(dtype=np.int16, sample_rate=16_000),
      'label': tfds.features.ClassLabel(num_classes=1_252),
    }
  )
  examples = {split: [{'audio': sound(i), 'label': i} for i in (7, 1_251)] for split in ('train', 'validation', 'test')}
  folder = write_tfds(tmp_path / 'data', 'Voxceleb', features, examples)
  tree, listing, _ = list_input('vc1', str(folder))
  found = {(row.part, tfds_folder.read_label(tree.files[row.source], 'vc1')) for row in listing.rows}
  assert found == {(split, name) for split in ('train', 'valid', 'test') for name in ('id10007', 'id11251')}
  assert listing.notices == (NINE['vc1'].tfds_remark,)
