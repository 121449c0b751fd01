"""What `prepare task` reads: the files of a download, and what is said of each clip."""

import dataclasses
import os
from collections.abc import Iterable, Mapping

from selfie_jax.data import audio_files
from selfie_jax.data.clip import AudioFile, TfdsRecord
from selfie_jax.errors import UserError
from selfie_jax.files import as_path, check_reachable


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
  """A clip of a task, whether or not its file is there."""

  source: str  # Its file, relative to the input.
  labels: tuple[str, ...] | None  # None: the worker that reads the clip finds its label (TFDS).
  part: str  # Its split or its fold.
  group: str = ''  # What should not be torn apart: a speaker, a recording. For those who look at the table.


@dataclasses.dataclass(frozen=True)
class Listing:
  """The clips of a task, and what its user should know of how they were found, one line each."""

  rows: tuple[Row, ...]
  folds: bool  # Of the rows' parts: folds, or splits.
  multi_label: bool = False
  notices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Tree:
  """The files of an input, by their names relative to it, with forward slashes."""

  root: str
  files: Mapping[str, AudioFile | TfdsRecord]
  versions: Mapping[str, str]  # What changes when a file is written again.

  def locate(self, name: str, what: str) -> str:
    """Returns where `name` lies: the folder it is relative to, '' or with a slash at its end.

    People give the folder that an archive unpacks to, or the one they unpacked it in.

    Raises:
      UserError: it is not there, or several times; `what` says what the input should have been.
    """
    found = sorted(file.removesuffix(name) for file in self.files if file == name or file.endswith(f'/{name}'))
    if not found:
      raise UserError(f'no {name} in {self.root} or below: is this {what}?')
    if len(found) > 1:
      raise UserError(
        f'{name} is {len(found)} times in {self.root}, in "{found[0]}" and "{found[1]}": give one of them'
      )
    return found[0]

  def below(self, prefix: str, suffixes: Iterable[str]) -> list[str]:
    """Returns the files below `prefix` with one of these endings (in lower case), sorted."""
    suffixes = tuple(suffixes)
    return sorted(name for name in self.files if name.startswith(prefix) and name.lower().endswith(suffixes))

  def read(self, name: str) -> bytes:
    """Returns what is in a file."""
    return (as_path(self.root) / name).read_bytes()


def list_tree(root: str) -> Tree:
  """Lists a folder, here or in an object store. Hidden files (.DS_Store, ._*) are none of it.

  Raises:
    UserError: there is no such folder.
  """
  check_reachable(root)
  root = audio_files.absolute(os.path.expanduser(root)).rstrip('/')
  if not as_path(root).is_dir():
    raise UserError(f'--input is {root}, and there is no such folder (downloads must be unpacked)')
  found = list(audio_files.find(root))
  return Tree(
    root,
    files={each.name: audio_files.as_audio_file(root, each) for each in found},
    versions={each.name: each.version for each in found},
  )
