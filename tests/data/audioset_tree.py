"""A small AudioSet, laid out as people's folders are, with every fault that they have.

Segments are 2 s long instead of 10; all else is as in the official CSVs. Run `make_tree` and see `Tree`.
"""

import dataclasses
import json
import tarfile
from pathlib import Path

import av
import numpy as np
import soundfile

from tests.data.sounds import RATE, voice

SECONDS = 2.0
START = 5.0  # Where most segments start in their video.
CLASSES = {
  '/m/09x0r': 'Speech',
  '/m/05zppz': 'Male speech, man speaking',
  '/m/04rlf': 'Music',
  '/t/dd00126': 'Outside, "urban" or manmade',
}


@dataclasses.dataclass(frozen=True)
class Tree:
  """What `make_tree` wrote. `audio` is a folder of folders and a tar.

  `expected` tells what a clip, by its name in the dataset, is to come out as: a status of the audit, or 'short' or
  'clipped' for one that is kept all the same. `parts` are the clips that are 'ok', with the sound they hold.
  """

  segments: tuple[Path, ...]
  labels: Path
  ontology: Path
  audio: tuple[Path, ...]
  expected: dict[str, str]
  parts: dict[str, np.ndarray]


def make_tree(root: Path) -> Tree:
  """Writes the tree into the folder `root`, which it makes."""
  tree = _Maker(root)

  # Good ones, under each of the usual names. All have an `_` or a `-` somewhere, as every second YTID has.
  tree.add('-0ABCdefGHi', 'Y{id}_5000_7000.wav')  # Milliseconds; a YTID that looks like an option.
  tree.add('_1ABCdefGHi', '{id}_5_7.FLAC')
  tree.add('Y2ABC_efGHi', '{id}_5.000_7.000.mp3', rate=44_100)  # A YTID that starts with a Y.
  tree.add('a3ABCdefGH_', 'Y{id}_5.ogg')
  tree.add('b4ABC_ef_30', '{id}.opus', rate=48_000)  # Cut already, as its length tells; a YTID that ends like a time.
  tree.add('c5ABC-efGHi', 'Y{id}.wav', whole=9.0, channels=2)
  tree.add('d6ABC-efGHi', 'whole videos/{id}.m4a', whole=9.0, rate=44_100)
  tree.add('e7ABC-efGHi', 'whole videos/{id}.webm', whole=9.0, rate=48_000)
  tree.add('f8ABC-efGHi', 'whole videos/{id}.Ogg', whole=9.0, rate=44_100)
  tree.add('g9ABC-efGHi', '{id}.flac', tarred=True)
  tree.add('h0ABC-efGHi', 'audio/Y{id}_5.000_7.000.m4a', rate=44_100, tarred=True)
  tree.add('i1ABC-efGHi', '{id}.wav', whole=9.0, start=0.0)
  tree.add('j2ABC-efGHi', '{id}.wav', split='unbalanced_train')
  tree.add('k3ABC-efGHi', 'eval_segments/{id}_30.4_32.4.wav', split='eval', start=30.4)

  # Faults.
  tree.add('l4ABC-missi', None, 'missing')
  tree.add('m5ABC-missi', None, 'missing', split='eval')
  tree.write('n6ABC-textf', '{id}.wav', 'unreadable').write_text('<html>429 Too Many Requests</html>')
  broken = tree.add('o7ABC-broke', '{id}_5_7.flac', 'unreadable')
  broken.write_bytes(broken.read_bytes()[:-4_000])
  tree.add('p8ABC-early', '{id}.wav', 'unreadable', whole=4.5)  # The video ends before the segment starts.
  tree.write('q9ABC-zerob', '{id}.m4a', 'empty').touch()
  tree.add('r0ABC-zeros', '{id}_5_7.wav', 'empty', sound=np.zeros(0))
  tree.add('s1ABC-silen', '{id}_5_7.wav', 'silent', sound=np.zeros(round(SECONDS * RATE)))
  hiss = np.random.default_rng(0).normal(0, 10 ** (-80 / 20), round(SECONDS * RATE))
  tree.add('t2ABC-hissi', '{id}_5_7.flac', 'silent', sound=hiss)
  tree.add('u3ABC-click', '{id}_5_7.wav', 'too_short', sound=voice(0.05, 90))
  tree.add('v4ABC-short', '{id}_5_7.wav', 'short', sound=voice(1.2, 91))
  tree.add('w5ABC-videoe', '{id}.wav', 'short', whole=6.0)  # The video ends within the segment.
  tree.add('x6ABC-clipp', '{id}_5_7.wav', 'clipped', sound=np.clip(6 * voice(SECONDS, 92), -1, 1))
  twin = voice(SECONDS, 93)
  tree.add('y7ABC-twin0', '{id}_5_7.wav', 'ok', sound=twin)
  tree.add('z8ABC-twin1', '{id}.flac', 'duplicate', sound=twin)  # Under another YTID and in another format.
  tree.add('00ABC-leaks', '{id}_5_7.wav', 'duplicate', sound=voice(SECONDS, 94))  # Is in eval as well.
  tree.add('11ABC-leaks', '{id}_5_7.wav', 'ok', split='eval', sound=voice(SECONDS, 94))

  # What else is lying about.
  soundfile.write(tree.audio / 'Y22ABC-stray_5000_7000.wav', voice(SECONDS, 95), RATE)
  (tree.audio / '-0ABCdefGHi_5_7.mp3').touch()  # A second file of the first segment: a download that failed.
  (tree.audio / '._Y-0ABCdefGHi_5000_7000.wav').write_text('a companion file of another system')
  (tree.audio / '-0ABCdefGHi.m4a.part').touch()
  (tree.audio / 'README.txt').write_text('From the official lists.')
  return tree.finish()


class _Maker:
  """Writes the files, and remembers what they are."""

  def __init__(self, root: Path) -> None:
    self.root, self.audio, self.unpacked = root, root / 'audio', root / 'unpacked'
    self.rows: dict[str, list[str]] = {'balanced_train': [], 'unbalanced_train': [], 'eval': []}
    self.expected: dict[str, str] = {}
    self.parts: dict[str, np.ndarray] = {}
    self.audio.mkdir(parents=True)

  def write(self, video, name, outcome, split='balanced_train', start=START, tarred=False):
    """Adds a row for a segment; returns where its file is to be, or None without a name."""
    count = sum(map(len, self.rows.values()))
    mids = ','.join(mid for i, mid in enumerate(CLASSES) if (count + 1) >> i & 1)
    self.rows[split].append(f'{video}, {start:.3f}, {start + SECONDS:.3f}, "{mids or "/m/09x0r"}"')
    self.expected[f'{video}_{round(1_000 * start)}'] = outcome
    if name is None:
      return None
    path = (self.unpacked if tarred else self.audio) / name.format(id=video)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path

  def add(
    self,
    video,
    name,
    outcome='ok',
    *,
    split='balanced_train',
    start=START,
    whole=None,
    sound=None,
    rate=RATE,
    channels=1,
    tarred=False,
  ):
    """Adds a segment and its file, which holds `sound`, or a voice of the segment's or the whole video's length."""
    path = self.write(video, name, outcome, split, start, tarred)
    if path is None:
      return None
    if sound is None:
      sound = voice(whole or SECONDS, len(self.expected), rate)
    begin = round(start * rate) if whole else 0
    self.parts[f'{video}_{round(1_000 * start)}'] = sound[begin : begin + round(SECONDS * rate)]
    write_sound(path, np.repeat(sound[:, None], channels, axis=1), rate)
    return path

  def finish(self) -> Tree:
    """Writes the tables and the tar."""
    segments = []
    for split, rows in self.rows.items():
      header = [
        '# Segments csv created Sun Mar  5 10:54:25 2017',
        f'# num_ytids={len(rows)}, num_segs={len(rows)}, num_unique_labels={len(CLASSES)}, num_positive_labels=0',
        '# YTID, start_seconds, end_seconds, positive_labels',
      ]
      segments.append(self.root / f'{split}_segments.csv')
      segments[-1].write_text('\n'.join([*header, *rows]) + '\n')
    labels, ontology = self.root / 'class_labels_indices.csv', self.root / 'ontology.json'
    quoted = [name.replace('"', '""') for name in CLASSES.values()]
    rows = [f'{i},{mid},"{name}"' for i, (mid, name) in enumerate(zip(CLASSES, quoted))]
    labels.write_text('\n'.join(['index,mid,display_name', *rows]) + '\n')
    ontology.write_text(json.dumps([{'id': mid, 'name': name, 'child_ids': []} for mid, name in CLASSES.items()]))
    with tarfile.open(self.root / 'more.tar', 'w') as archive:
      archive.add(self.unpacked, '.')
    return Tree(tuple(segments), labels, ontology, (self.audio, self.root / 'more.tar'), self.expected, self.parts)


def write_sound(path: Path, sound: np.ndarray, rate: int) -> None:
  """Writes (frames, channels) in the format of the path's ending, as strongly compressed as people have it."""
  ending = path.suffix.lower()
  if ending in ('.m4a', '.webm'):
    write_with_ffmpeg(path, sound[:, 0], rate, 'aac' if ending == '.m4a' else 'libopus')
  else:
    form, subtype = {'.opus': ('OGG', 'OPUS')}.get(ending, (ending[1:].upper(), None))
    samples = np.clip(np.rint(32_768 * sound), -32_768, 32_767).astype(np.int16)  # Or WAV and FLAC round differently.
    soundfile.write(path, samples, rate, format=form, subtype=subtype)


def write_with_ffmpeg(path: Path, audio: np.ndarray, rate: int, codec: str, **options: str) -> None:
  """Writes (frames,) floats; `options` are those of the container."""
  with av.open(str(path), 'w', options=options) as file:
    stream = file.add_stream(codec, rate=rate, layout='mono')
    samples = np.rint(32_767 * audio).astype(np.int16)[None]
    frame = av.AudioFrame.from_ndarray(samples, format='s16', layout='mono')
    frame.sample_rate = rate
    resampler = av.AudioResampler(stream.format, 'mono', rate, frame_size=stream.codec_context.frame_size)
    for part in resampler.resample(frame):
      file.mux(stream.encode(part))
    file.mux(stream.encode(None))
