"""The folder that a model is given away in: new, with all of its files or with none."""

from collections.abc import Mapping

from etils import epath

from selfie_jax.errors import UserError
from selfie_jax.files import PathLike, as_path, check_reachable, is_remote, make_folder, write_atomically

MODEL_CARD = 'README.md'


def open_output(path: PathLike) -> epath.Path:
  """Returns the folder's path, having checked that nothing is in it.

  Raises:
    UserError: something is in it already, be it a folder, or its bucket cannot be reached.
  """
  check_reachable(path)
  folder = as_path(path)
  if not is_remote(path) and folder.exists() and not folder.is_dir():
    raise UserError(f'--output {path} is a file: give the name of a new folder')
  # A model card is there to be edited, and the files of two models would be mistaken for each other's.
  found = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
  if found:
    raise UserError(f'--output {path} is not empty, it has {found[0]}: give the name of a new folder, or empty it')
  return folder


def write_folder(folder: epath.Path, files: Mapping[str, bytes]) -> None:
  """Writes files by name. If one cannot be written, none is left.

  Raises:
    UserError: there is no room, or no permission.
  """
  written = []
  try:
    make_folder(folder)
    for name, content in files.items():
      with write_atomically(folder / name) as file:
        file.write(content)
      written.append(folder / name)
  except BaseException:
    for path in written:
      path.unlink(missing_ok=True)
    raise
