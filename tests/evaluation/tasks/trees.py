"""Small copies of the nine downloads: their own layouts, names and tables, with real recordings in them."""

import csv
import functools
import json

import numpy as np
import soundfile
import soxr

from tests.processes import ROOT

_CLIPS = ROOT / 'tests' / 'audio' / 'clips'
SPEECH_COMMANDS_LISTS = ('validation_list.txt', 'testing_list.txt')
_SPEAKERS = ('0a7c2a8d', '0b40aa8e', '1a6eca98', 'c50f55b8')
_VIDEOS = ((1, '1zcIwhmdeo4'), (1, '5r0dWxy17C8'), (2, '7gWzIy6yIIk'), (3, '-9Uq7xYW3a8'))
GTZAN_LISTS = ('train_filtered.txt', 'valid_filtered.txt', 'test_filtered.txt')


@functools.cache
def recording(letter):
  """A spoken letter or digit, (samples,) float64 at 8 kHz."""
  return soundfile.read(_CLIPS / f'spoken_{letter}.wav')[0]


def write_clip(path, number, rate=16_000, channels=1, **form):
  """Writes a recording that no other number has: a spoken sign, from another sample on and of another level."""
  sound = recording('qw7'[number % 3])[10 * (number % 50) :] * (0.9 - 0.005 * (number % 100))
  sound = soxr.resample(sound, 8_000, rate)
  path.parent.mkdir(parents=True, exist_ok=True)
  soundfile.write(path, np.stack([sound] * channels, axis=1), rate, **form)


def write_rows(path, columns, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('w', newline='') as stream:
    writer = csv.writer(stream)
    writer.writerow(columns)
    writer.writerows(rows)


def litter(folder):
  """What lies about in people's folders."""
  for name in ('.DS_Store', '._README.md', 'README.md', 'LICENSE'):
    (folder / name).write_bytes(b'\x00\x05\x16\x07')


def esc50(root):
  rows = []
  for fold in range(1, 6):
    for take in 'AB':
      for label, target in (('dog', 0), ('rooster', 1)):
        name = f'{fold}-{10_000 + target}-{take}-{target}.wav'
        rows.append((name, fold, target, label, 'True', 10_000 + target, take))
        write_clip(root / 'ESC-50-master' / 'audio' / name, len(rows), 44_100)
  columns = ('filename', 'fold', 'target', 'category', 'esc10', 'src_file', 'take')
  write_rows(root / 'ESC-50-master' / 'meta' / 'esc50.csv', columns, rows)
  (root / 'ESC-50-master' / 'meta' / 'esc50-human.xlsx').touch()
  litter(root / 'ESC-50-master')
  litter(root / 'ESC-50-master' / 'audio')
  return root / 'ESC-50-master', ()


def us8k(root):
  rows = []
  for fold in range(1, 11):
    for i, (number, label) in enumerate(((3, 'dog_bark'), (8, 'siren'))):
      name = f'{100_000 + fold}-{number}-0-{i}.wav'
      rows.append((name, 100_000 + fold, 0.0, 0.7, 1, fold, number, label))
      form = {'subtype': 'PCM_24'} if fold % 2 else {'subtype': 'FLOAT'}
      write_clip(root / 'UrbanSound8K' / 'audio' / f'fold{fold}' / name, len(rows), 48_000, 2, **form)
      litter(root / 'UrbanSound8K' / 'audio' / f'fold{fold}')
  columns = ('slice_file_name', 'fsID', 'start', 'end', 'salience', 'fold', 'classID', 'class')
  write_rows(root / 'UrbanSound8K' / 'metadata' / 'UrbanSound8K.csv', columns, rows)
  (root / 'UrbanSound8K' / 'FREESOUNDCREDITS.txt').touch()
  return root / 'UrbanSound8K', ()


def spcv2(root):
  folder, lists = root / 'speech_commands_v0.02', {name: [] for name in ('', *SPEECH_COMMANDS_LISTS)}
  for i, (word, (speaker, name)) in enumerate(
    (word, pair)
    for word in ('yes', 'no', 'zero')
    for pair in zip(_SPEAKERS, ('', '', *SPEECH_COMMANDS_LISTS), strict=True)
  ):
    file = f'{word}/{speaker}_nohash_0.wav'
    write_clip(folder / file, i)
    lists[name].append(file)
  for name in SPEECH_COMMANDS_LISTS:
    (folder / name).write_text(''.join(f'{line}\n' for line in lists[name]))
  write_clip(folder / '_background_noise_' / 'running_tap.wav', 99)
  litter(folder)
  litter(folder / '_background_noise_')
  return folder, ()


def vc1(root):
  lines = []
  for speaker, zipped in (('id10001', 'dev'), ('id10270', 'test')):
    for number, (split, video) in enumerate(_VIDEOS):
      file = f'{speaker}/{video}/{number + 1:05d}.wav'
      lines.append(f'{split} {file}\n')
      write_clip(root / zipped / 'wav' / file, len(lines))
  (root / 'iden_split.txt').write_text(''.join(lines))
  (root / 'vox1_meta.csv').write_text('VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n')
  litter(root)
  return root, ()


def voxforge(root):
  count = 0
  for language in ('de', 'en', 'es', 'fr', 'it', 'ru'):
    middle = 'Trunk/Audio/Main/16kHz_16bit'
    for submission in ('anonymous-20080425-ejb', 'ralfherzog-20070814-de1', 'guenter-20120603-oxv', 'a_b-20100101-xyz'):
      folder = root / language / middle / f'{submission}{language}'
      for name in ('de1-01', 'de1-02'):
        count += 1
        write_clip(folder / 'wav' / f'{name}.wav', count, 16_000)
      (folder / 'etc').mkdir()
      (folder / 'etc' / 'PROMPTS').touch()
      litter(folder)
  return root, ()


def cremad(root):
  names = [f'{1_001 + i}_{("DFA_ANG_XX", "IEO_HAP_HI")[i % 2]}' for i in range(91)]
  for number, name in enumerate(names):
    write_clip(root / 'CREMA-D' / 'AudioWAV' / f'{name}.wav', number)
  (root / 'CREMA-D' / 'AudioMP3').mkdir()
  (root / 'CREMA-D' / 'AudioMP3' / f'{names[0]}.mp3').touch()
  litter(root / 'CREMA-D')
  return root / 'CREMA-D', ()


def gtzan(root):
  genres = root / 'Data' / 'genres_original'
  lists = {'train': [], 'valid': [], 'test': []}
  for g, genre in enumerate(('blues', 'jazz')):
    for number, split in enumerate(('train', 'train', 'valid', 'test', None), start=51):
      file = f'{genre}/{genre}.{number:05d}.wav'
      write_clip(genres / file, 5 * g + number, 22_050)
      if split:
        lists[split].append(file)
  litter(genres)
  litter(genres / 'jazz')
  for split, files in lists.items():
    (root / f'{split}_filtered.txt').write_text('\r\n'.join(files) + '\r\n')
  return root / 'Data', tuple(str(root / name) for name in GTZAN_LISTS)


def nsynth(root):
  number = 0
  for split, families in (('train', ('bass', 'synth_lead')), ('valid', ('bass', 'synth_lead')), ('test', ('bass',))):
    examples = {}
    for family in families:
      for pitch in (40, 41):
        name = f'{family}_synthetic_{split}-0{pitch}-100'
        examples[name] = {
          **{'note': number, 'pitch': pitch, 'velocity': 100, 'sample_rate': 16_000},
          **{'instrument_str': f'{family}_synthetic_{split}', 'instrument_family_str': family},
        }
        number += 1
        write_clip(root / f'nsynth-{split}' / 'audio' / f'{name}.wav', number)
    (root / f'nsynth-{split}' / 'examples.json').write_text(json.dumps(examples))
    litter(root / f'nsynth-{split}')
  return root, ()


def surge(root):
  for preset in range(20):
    for note in (60, 61):
      path = root / 'surge' / f'Bass {preset} (dry)' / f'{note}.ogg'
      write_clip(path, preset + 20 * (note - 60), 44_100, 2, format='OGG', subtype='VORBIS')
  write_clip(root / 'surge' / 'Bass 1 (dry)' / 'preview.ogg', 45, 44_100, format='OGG', subtype='VORBIS')
  litter(root / 'surge')
  return root / 'surge', ()
