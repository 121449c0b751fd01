"""Finding audio files in folders, here or in an object store, and in tars."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple

import fsspec

from selfie_jax import files
from selfie_jax.data.clip import AudioFile
from selfie_jax.errors import UserError

_SUFFIXES = (
  '.3gp .aac .ac3 .aif .aifc .aiff .amr .ape .au .avi .awb .caf .flac .g722 .gsm .m4a .m4b .mka .mkv .mov .mp2 .mp3 '
  '.mp4 .mpga .oga .ogg .opus .rf64 .snd .sph .tta .voc .w64 .wav .wave .weba .webm .wma .wv'
)
SUFFIXES = frozenset(_SUFFIXES.split())  # What is taken for audio, in lower case.
# How a compressed tar starts, and what unpacks it.
_COMPRESSIONS = {b'\x1f\x8b': 'gzip -d', b'BZh': 'bzip2 -d', b'\xfd7zXZ': 'xz -d', b'\x28\xb5\x2f\xfd': 'zstd -d'}
_TAR_BLOCK = 512


class Found(NamedTuple):
  """A file. `version` changes when it is written again: its time of change, or the object store's own mark."""

  name: str  # Relative to the folder or in the tar, with forward slashes.
  size: int
  version: str
  tar_offset: int | None = None


def find(root: str) -> Iterator[Found]:
  """Yields all files, of any ending, in a folder and below, or in a tar; but none that is hidden or in a hidden folder.

  Sizes and versions come with the listing: a local file costs one `stat`, an object nothing. But a tar in an object
  store is read from its start to its end, for its members' headers lie between their data.

  Args:
    root: a folder or an uncompressed tar, local, gs:// or s3://.

  Raises:
    UserError: there is no such folder or tar, it cannot be listed, or the tar is compressed or damaged.
  """
  try:
    if not files.is_remote(root):
      found = _in_folder(root) if os.path.isdir(root) else _in_tar(root)
    else:
      found = _in_tar(root) if files.filesystem(root).isfile(root) else _in_bucket(root)
    yield from found
  except FileNotFoundError as error:
    raise UserError(f'there is no folder or tar {error.filename or root}') from error
  except OSError as error:
    raise UserError(f'cannot list {error.filename or root}: {error.strerror or error}') from error
  except Exception as error:
    if isinstance(error, UserError) or not files.is_remote(root):
      raise
    # Each store has its own errors, and its libraries' below it.
    raise UserError(f'cannot list {root}: {type(error).__name__}: {error}') from error


def absolute(root: str) -> str:
  """Returns the folder or tar by a name that holds in worker processes too: they may have another current folder."""
  return root if files.is_remote(root) else os.path.abspath(root)


def as_audio_file(root: str, found: Found) -> AudioFile:
  """Returns where a file is that was found in `root`."""
  path = root if found.tar_offset is not None else f'{root.rstrip("/")}/{found.name}'
  return AudioFile(path, found.size, found.tar_offset)


def _in_folder(root: str) -> Iterator[Found]:
  """Follows links, as people's folders are often made of; a folder that several lead to is listed once."""
  folders, seen = [root], set()
  while folders:
    folder = folders.pop()
    facts = os.stat(folder)
    if (facts.st_dev, facts.st_ino) in seen:
      continue
    seen.add((facts.st_dev, facts.st_ino))
    below = []
    with os.scandir(folder) as entries:
      for entry in entries:
        if entry.name.startswith('.'):
          continue
        if entry.is_dir():
          below.append(entry.path)
        elif entry.is_file():
          facts = entry.stat()
          name = entry.path[len(root) :].replace(os.sep, '/').lstrip('/')
          yield Found(name, facts.st_size, str(facts.st_mtime_ns))
    folders += sorted(below, reverse=True)  # Or what has two names would have now the one and now the other.


def _in_bucket(root: str) -> Iterator[Found]:
  filesystem, prefix = fsspec.core.url_to_fs(root)
  listing = filesystem.find(prefix, detail=True)
  if not listing:
    raise FileNotFoundError(root)
  for path, facts in listing.items():
    name = path.removeprefix(prefix).lstrip('/')
    if facts['type'] == 'file' and not _is_hidden(name):
      version = facts.get('generation') or facts.get('ETag') or facts.get('mtime')
      yield Found(name, facts['size'], str(version))


def _in_tar(path: str) -> Iterator[Found]:
  filesystem = files.filesystem(path)
  version = str(filesystem.modified(path).timestamp())
  with filesystem.open(path, 'rb') as stream:
    start = stream.read(_TAR_BLOCK)
    for magic, command in _COMPRESSIONS.items():
      if start.startswith(magic):
        raise UserError(f'{path} is compressed, and cannot be read at any place: unpack it with {command} first')
    stream.seek(0)
    try:
      yield from _members(stream, version)
    except tarfile.TarError as error:
      raise UserError(f'{path} cannot be read as a tar: {error}') from error


def _members(stream: BinaryIO, version: str) -> Iterator[Found]:
  with tarfile.open(fileobj=stream, mode='r:') as archive:
    while (member := archive.next()) is not None:
      archive.members.clear()  # Or all of them stay in memory.
      # The parts of a sparse file are not in one piece.
      if member.isreg() and not member.issparse() and not _is_hidden(member.name):
        yield Found(member.name.removeprefix('./'), member.size, version, member.offset_data)
    # tarfile takes a damaged header for the end. The real end is a block of zeros, or that of the file.
    stream.seek(archive.offset)
    if any(stream.read(_TAR_BLOCK)):
      raise tarfile.ReadError(f'a damaged header at byte {archive.offset}')


def _is_hidden(name: str) -> bool:
  return any(part.startswith('.') for part in PurePosixPath(name).parts if part not in ('.', '..'))
