"""Each of the nine downloads, in small: laid out as the official one, with real recordings."""

import collections
import csv
import json

import pytest
import soundfile

from selfie_jax.config import Task
from selfie_jax.errors import UserError
from selfie_jax.evaluation.tasks.converters import list_input
from selfie_jax.evaluation.tasks.folder import load_folder
from selfie_jax.evaluation.tasks.nine import NINE
from selfie_jax.prepare import main
from tests.evaluation.tasks import trees


def prepare(task, root, output, lists=(), **options):
  arguments = ['--task', task, '--input', root, '--output', output, '--workers', 1]
  arguments += ['--lists', *lists] if lists else []
  for name, value in options.items():
    arguments += [f'--{name}', value]
  main(['task', *map(str, arguments)])


def table_of(folder):
  with (folder / 'metadata.csv').open() as stream:
    return list(csv.DictReader(stream))


def counts(task, root, lists=()):
  """Clips of each part and class that an input has, without reading any sound."""
  tree, listing, _ = list_input(task, str(root), lists)
  rows = [row for row in listing.rows if row.source in tree.files]
  return collections.Counter((row.part, *row.labels) for row in rows), listing


# What should be in metadata.csv: clips of each part, classes, one file's row.
EXPECTED = {
  'esc50': ({str(fold): 4 for fold in range(1, 6)}, 2, ('audio/1-10000-A-0.flac', '1', 'dog')),
  'us8k': ({str(fold): 2 for fold in range(1, 11)}, 2, ('audio/fold10/100010-3-0-0.flac', '10', 'dog_bark')),
  'spcv2': ({'train': 6, 'valid': 3, 'test': 3}, 3, ('audio/no/c50f55b8_nohash_0.flac', 'test', 'no')),
  'vc1': ({'train': 4, 'valid': 2, 'test': 2}, 2, ('audio/test/wav/id10270/-9Uq7xYW3a8/00004.flac', 'test', 'id10270')),
  'voxforge': ({'train': 32, 'valid': 8, 'test': 8}, 6, None),
  'cremad': ({'train': 63, 'valid': 9, 'test': 19}, 2, None),
  'gtzan': ({'train': 4, 'valid': 2, 'test': 2}, 2, ('audio/jazz/jazz.00054.flac', 'test', 'jazz')),
  'nsynth': (
    {'train': 4, 'valid': 4, 'test': 2},
    2,
    ('audio/nsynth-test/audio/bass_synthetic_test-040-100.flac', 'test', 'bass'),
  ),
  'surge': ({'train': 32, 'valid': 4, 'test': 4}, 2, None),
}


@pytest.mark.parametrize('task', NINE)
def test_a_download_becomes_a_folder_that_evaluate_reads(task, tmp_path, capsys):
  root, lists = getattr(trees, task)(tmp_path / 'download')
  output = tmp_path / task
  prepare(task, root, output, lists)
  parts, classes, one = EXPECTED[task]
  rows, part = table_of(output), 'fold' if NINE[task].folds else 'split'
  assert collections.Counter(row[part] for row in rows) == parts
  assert one is None or one in [(row['file_name'], row[part], row['label']) for row in rows]
  folder = load_folder(Task(task), str(tmp_path))
  assert (folder.title, folder.unit_seconds) == (NINE[task].title, NINE[task].unit_seconds)
  assert (folder.evar_learning_rate, len(folder.classes)) == (NINE[task].evar_learning_rate, classes)
  for file in folder.files[:3]:
    info = soundfile.info(file)
    assert (info.samplerate, info.channels, info.subtype, info.format) == (16_000, 1, 'PCM_16', 'FLAC')
  # Each count that is not the published one is told by name, on the screen and in task.json.
  told, description = capsys.readouterr().err, json.loads((output / 'task.json').read_text())
  name, published = next(iter(NINE[task].parts.items()))
  line = f'{part} {name}: found {parts[name]:,} clips, published {published:,}'
  assert line in told
  assert any(line in difference for difference in description['differences'])
  assert ('not verified' in told) == ('not verified' in NINE[task].remark)
  assert description['clips'] == {'found': parts, 'published': dict(NINE[task].parts)}


def test_definitions_add_up():
  for definition in NINE.values():
    assert len(definition.classes) in (0, definition.num_classes)
    assert list(definition.classes) == sorted(definition.classes)
    if definition.clips_of_class:
      assert sum(definition.clips_of_class.values()) == definition.clips
  assert {name: definition.clips for name, definition in NINE.items()} == {
    **{'esc50': 2_000, 'us8k': 8_732, 'spcv2': 105_829, 'vc1': 153_516, 'voxforge': 176_428},
    **{'cremad': 7_438, 'gtzan': 930, 'nsynth': 305_979, 'surge': 183_392},
  }


def test_the_folder_above_the_download_will_do_as_well(tmp_path):
  root, _ = trees.esc50(tmp_path)
  assert counts('esc50', root)[0] == counts('esc50', root.parent)[0]


@pytest.mark.parametrize('task', NINE)
def test_another_layout_is_one_line_that_says_what_was_looked_for(task, tmp_path):
  (tmp_path / 'iden_split.txt').write_text('1 id10001/a/00001.wav\n')
  trees.write_clip(tmp_path / 'music' / 'song.wav', 0)
  wanted = {
    **{'esc50': 'no meta/esc50.csv in .*ESC-50-master', 'us8k': 'no metadata/UrbanSound8K.csv in'},
    **{'spcv2': 'no testing_list.txt in', 'vc1': r'none of the 1 clips of iden_split.txt.*wav/idXXXXX/VIDEO/NNNNN.wav'},
    **{'voxforge': 'no LANGUAGE/.*SPEAKER-DATE-ID/wav', 'cremad': 'a name like 1001_DFA_ANG_XX.wav'},
    **{'gtzan': 'a name like blues/blues.00000.wav', 'nsynth': 'no nsynth-train/examples.json in'},
    'surge': 'no PRESET/NOTE.ogg',
  }
  with pytest.raises(UserError, match=wanted[task]) as error:
    list_input(task, str(tmp_path))
  assert '\n' not in str(error.value)


def test_background_noise_is_no_word_and_a_listed_file_that_is_not_there_is_named(tmp_path, capsys):
  root, _ = trees.spcv2(tmp_path / 'download')
  (root / 'yes' / 'c50f55b8_nohash_0.wav').unlink()
  prepare('spcv2', root, tmp_path / 'spcv2')
  assert {row['label'] for row in table_of(tmp_path / 'spcv2')} == {'yes', 'no', 'zero'}
  told = capsys.readouterr().err
  assert '1 files are missing, and left out: yes/c50f55b8_nohash_0.wav' in told
  assert 'split test: found 2 clips, published 11,005' in told


def test_gtzan_without_its_lists_says_where_they_are(tmp_path):
  root, _ = trees.gtzan(tmp_path)
  with pytest.raises(UserError, match='fault-filtered split is in no download: give --lists train_filtered.txt'):
    list_input('gtzan', str(root))


def test_broken_jazz_00054_is_left_out_by_name(tmp_path, capsys):
  root, lists = trees.gtzan(tmp_path / 'download')
  (root / 'genres_original' / 'jazz' / 'jazz.00054.wav').write_bytes(b'RIFFnothing')
  with pytest.raises(UserError, match=r'1 of 8 files .*--max_bad_fraction is 0.01; .*jazz.00054.wav \(unreadable'):
    prepare('gtzan', root, tmp_path / 'gtzan', lists)
  assert not (tmp_path / 'gtzan' / 'metadata.csv').exists()
  prepare('gtzan', root, tmp_path / 'gtzan', lists, max_bad_fraction=0.2)
  told = capsys.readouterr().err
  assert 'are unreadable, and left out: genres_original/jazz/jazz.00054.wav' in told
  assert '2 tracks are in no list, and left out (the filter)' in told
  assert 'unreadable' in (tmp_path / 'gtzan' / 'left_out.csv').read_text()


def test_voxceleb_takes_iden_split_from_the_user_when_the_input_has_none(tmp_path):
  root, _ = trees.vc1(tmp_path / 'download')
  path = (root / 'iden_split.txt').rename(tmp_path / 'iden_split.txt')
  with pytest.raises(UserError, match='no iden_split.txt in .* get it from https://.* give it with --lists'):
    list_input('vc1', str(root))
  found, _ = counts('vc1', root, [str(path)])
  assert found['train', 'id10001'] == 2


def test_crema_d_is_split_by_speaker_as_tfds_does_or_by_the_users_list(tmp_path):
  root, _ = trees.cremad(tmp_path)
  _, listing = counts('cremad', root)
  of_speaker = collections.defaultdict(set)
  for row in listing.rows:
    of_speaker[row.group].add(row.part)
  assert collections.Counter(part for (part,) in of_speaker.values()) == {'train': 63, 'valid': 9, 'test': 19}
  path = tmp_path / 'cremad.csv'
  rows = [('1001_DFA_ANG_XX.wav', 'ANG', 1001, 'test'), ('1040_ITH_SAD_XX.wav', 'SAD', 1040, 'train')]
  trees.write_rows(path, ('file_name', 'label', 'speaker_id', 'split'), rows)
  found, listing = counts('cremad', root, [str(path)])
  assert found == {('test', 'ANG'): 1}
  assert [row.source for row in listing.rows if row.labels == ('SAD',)] == ['AudioWAV/1040_ITH_SAD_XX.wav']


def test_voxforge_without_languages_folders_takes_them_from_the_users_list(tmp_path):
  trees.write_clip(tmp_path / 'flat' / 'anonymous-20080425-ejb' / 'wav' / 'de1-01.wav', 0)
  with pytest.raises(UserError, match='no LANGUAGE'):
    list_input('voxforge', str(tmp_path / 'flat'))
  rows = [('anonymous-20080425-ejb/wav/de1-01.wav', 'de', 'valid'), ('b-2-c/wav/x.wav', 'en', 'train')]
  trees.write_rows(tmp_path / 'voxforge.csv', ('file_name', 'label', 'split'), rows)
  found, listing = counts('voxforge', tmp_path / 'flat', [str(tmp_path / 'voxforge.csv')])
  assert found == {('valid', 'de'): 1}
  assert len(listing.rows) == 2


def test_surge_presets_stay_in_one_split_and_a_list_must_have_them_all(tmp_path):
  root, _ = trees.surge(tmp_path)
  _, listing = counts('surge', root)
  assert len({(row.group, row.part) for row in listing.rows}) == 20
  assert 'Bass 1 (dry)/preview.ogg' in listing.notices[1]
  path = tmp_path / 'tones.csv'
  trees.write_rows(path, ('tone', 'split'), [(f'Bass {i} (dry)', 'train') for i in range(19)])
  with pytest.raises(UserError, match=r'lacks 1 of the presets, the first is "Bass 19 \(dry\)"'):
    list_input('surge', str(root), [str(path)])
