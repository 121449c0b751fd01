"""Which files a dataset is made of."""

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from selfie_jax.data.table import read_table, require
from selfie_jax.errors import UserError
from selfie_jax.terminal import console

# What a walk through a folder takes for audio. A CSV may name files of any ending.
_AUDIO_SUFFIXES = (
  '.3gp .aac .ac3 .aif .aifc .aiff .amr .ape .au .avi .awb .caf .flac .g722 .gsm .m4a .m4b .mka .mkv .mov .mp2 .mp3 '
  '.mp4 .mpga .oga .ogg .opus .rf64 .snd .sph .tta .voc .w64 .wav .wave .weba .webm .wma .wv'
)


@dataclasses.dataclass(frozen=True)
class Clip:
  """A file of the input. `name`, with forward slashes, is relative to the folder or to the CSV."""

  name: str
  labels: tuple[str, ...] = ()


def list_clips(path: Path) -> list[Clip]:
  """Lists the input, sorted by name.

  Args:
    path: a folder: all audio files in it and below, but not hidden ones. Or a CSV: the files of its column `file_name`;
      a column `label`, if there is one, is their label.

  Raises:
    UserError: there is no such input, it names no files, or one twice.
  """
  if path.is_dir():
    clips = _list_folder(path)
  elif path.is_file():
    clips = _list_csv(path)
  else:
    raise UserError(f'no input at {path}: neither a folder nor a CSV')
  if not clips:
    raise UserError(f'no audio files in {path}')
  return sorted(clips, key=lambda clip: clip.name)


def fingerprint(root: Path, clips: Sequence[Clip]) -> str:
  """SHA-256 over the files' names, labels, sizes and times of change: tells whether the input is still the same."""
  digest = hashlib.sha256()
  for clip in clips:
    try:
      facts = (root / clip.name).stat()
      state = (facts.st_size, facts.st_mtime_ns)
    except OSError:
      state = None  # Not there: it will be listed as unreadable.
    digest.update(json.dumps((clip.name, clip.labels, state)).encode() + b'\n')
  return digest.hexdigest()


def _list_folder(path: Path) -> list[Clip]:
  audio_suffixes = frozenset(_AUDIO_SUFFIXES.split())
  clips = []
  others: collections.Counter[str] = collections.Counter()
  for folder, folders, files in os.walk(path, onerror=_raise_unlistable, followlinks=True):
    folders[:] = [name for name in folders if not name.startswith('.')]
    for file in (Path(folder, name) for name in files if not name.startswith('.')):
      if file.suffix.lower() in audio_suffixes:
        clips.append(Clip(_checked_name(file.relative_to(path).as_posix())))
      else:
        others[file.suffix.lower() or 'no ending'] += 1
  if others:
    kinds = ', '.join(f'{count} {suffix}' for suffix, count in others.most_common())
    console.print(f'left out by their endings, which are not of audio: {kinds} (a CSV can name them)')
  return clips


def _list_csv(path: Path) -> list[Clip]:
  rows = read_table(path)
  require(rows, ('file_name',), path)
  clips = {}
  for row in rows:
    name = row['file_name']
    if name in clips:
      raise UserError(f'{path} lists {name} twice')
    clips[name] = Clip(name, (row['label'],) if row.get('label') else ())
  return list(clips.values())


def _checked_name(name: str) -> str:
  try:
    name.encode()
  except UnicodeEncodeError as error:  # Bytes that are no UTF-8 come from the file system as lone surrogates.
    raise UserError(f'the name of the file {name!r} is not UTF-8: rename it') from error
  return name


def _raise_unlistable(error: OSError) -> NoReturn:
  raise UserError(f'cannot list {error.filename}: {error.strerror}') from error
