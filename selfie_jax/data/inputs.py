"""A folder of audio files, or a CSV that names some, as the input of a dataset."""

import collections
import os
import stat
from pathlib import Path

from selfie_jax.data import audio_files
from selfie_jax.data.clip import SPLIT, AudioFile, Clip, Listing, fingerprint
from selfie_jax.data.table import read_table, require
from selfie_jax.errors import UserError
from selfie_jax.files import PathLike, is_remote

_TARS = ('.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.tar.zst')  # Compressed ones are refused, by name.


def list_folder(path: PathLike) -> Listing:
  """Lists the input.

  Args:
    path: a folder or an uncompressed tar, local, gs:// or s3://: all audio files in it and below, but not hidden ones.
      Or a CSV: the files of its column `file_name`, relative to the CSV; columns `label` and `split`, if there are, say
      their label and their split. Where nothing says it, that is train.

  Returns:
    The clips, sorted by split and name (with forward slashes, relative to the input); those of a CSV that are not there
    have no sound. The classes are the labels, sorted.

  Raises:
    UserError: there is no such input, it names no files, or one twice, or a split that cannot be one's name.
  """
  path = os.fspath(path)
  if not is_remote(path):
    path = os.path.abspath(path)  # Workers may start elsewhere.
    if not os.path.exists(path):
      raise UserError(f'no input at {path}: neither a folder nor a CSV')
  is_csv = os.path.isfile(path) and not path.lower().endswith(_TARS)
  listing = _list_csv(Path(path)) if is_csv else _list_files(path)
  if not listing.clips:
    raise UserError(f'no audio files in {path}')
  return listing


def _list_files(path: str) -> Listing:
  clips, versions = [], []
  others: collections.Counter[str] = collections.Counter()
  by_name = {found.name: found for found in audio_files.find(path)}  # A tar may hold a name twice: the last one counts.
  for _, found in sorted(by_name.items()):
    suffix = os.path.splitext(found.name)[1].lower()
    if suffix in audio_files.SUFFIXES:
      clips.append(Clip(_checked_name(found.name), audio_files.as_audio_file(path, found)))
      versions.append(found.version)
    else:
      others[suffix or 'no ending'] += 1
  kinds = ', '.join(f'{count} {suffix}' for suffix, count in others.most_common())
  notes = (f'left out by their endings, which are not of audio: {kinds} (a CSV can name them)',) if kinds else ()
  return Listing('folder', clips, fingerprint(clips, versions), notes=notes)


def _list_csv(path: Path) -> Listing:
  rows = read_table(path)
  require(rows, ('file_name',), path)
  counts = collections.Counter(row['file_name'] for row in rows)
  if (twice := counts.most_common(1)[0])[1] > 1:
    raise UserError(f'{path} lists {twice[0]} twice')
  classes = tuple(sorted({row.get('label', '') for row in rows} - {''}))
  numbers = {name: number for number, name in enumerate(classes)}
  clips, versions = [], []
  for split, name, label in sorted(
    (row.get('split') or 'train', row['file_name'], row.get('label', '')) for row in rows
  ):
    if not SPLIT.fullmatch(split):
      raise UserError(f'{path} has the split {split!r} of {name}: rename it, with letters, digits and _ alone')
    file = str(path.parent / name)
    try:
      facts = os.stat(file)
    except OSError:
      facts = None
    if facts is None or stat.S_ISDIR(facts.st_mode):
      sound, version = None, None
    else:
      sound, version = AudioFile(file, facts.st_size), facts.st_mtime_ns
    clips.append(Clip(name, sound, split, (numbers[label],) if label else ()))
    versions.append(version)
  return Listing('folder', clips, fingerprint(clips, versions, classes), classes=classes)


def _checked_name(name: str) -> str:
  try:
    name.encode()
  except UnicodeEncodeError as error:  # Bytes that are no UTF-8 come from the file system as lone surrogates.
    raise UserError(f'the name of the file {name!r} is not UTF-8: rename it') from error
  return name
