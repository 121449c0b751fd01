"""Arrays that are dear to compute, kept in a folder (local or gs://), each file whole or not at all.

A file is named after what its values are a function of: nothing in the folder can be out of date, and deleting any of
it costs time only. It is an .npy file with a checksum behind it: one that was cut off, or whose bits have flipped, is
not used. Several processes may read and write it at the same time.
"""

import hashlib
import io
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from selfie_jax.files import is_remote, list_files, make_folder, write_atomically
from selfie_jax.terminal import console

_ENDING = '.npy'
_DIGEST_BYTES = hashlib.sha256().digest_size
_TEMPORARY_SECONDS = 3600.0  # What is being written has had its last change within them.


class ArrayCache:
  """The arrays in a folder, by what they are a function of."""

  def __init__(self, folder: epath.Path) -> None:
    make_folder(folder)
    self._folder = folder
    self._used: set[str] = set()

  def read(self, facts: Mapping[str, Any]) -> np.ndarray | None:
    """Returns the array of these facts (what JSON can tell), None if it is not there, or damaged."""
    path = self._file(facts)
    try:
      data = path.read_bytes()
    except FileNotFoundError:
      return None
    if data[-_DIGEST_BYTES:] == _digest(path.name, data[:-_DIGEST_BYTES]):
      return np.load(io.BytesIO(data), allow_pickle=False)
    console.print(f'{path} is damaged: computing it again')
    return None

  def write(self, facts: Mapping[str, Any], array: np.ndarray) -> None:
    """Keeps an array; raises as `files.write_atomically` does."""
    path = self._file(facts)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    data = buffer.getvalue()
    with write_atomically(path) as file:
      file.write(data + _digest(path.name, data))

  def remove_unused(self) -> None:
    """Deletes the files that were neither read nor written since the last time, and what killed processes left."""
    for name in list_files(self._folder):
      path = self._folder / name
      if name.endswith('.tmp') and not is_remote(path):
        try:
          stale = time.time() - path.stat().mtime > _TEMPORARY_SECONDS
        except FileNotFoundError:  # Finished just now.
          continue
      else:
        stale = name.endswith(_ENDING) and name not in self._used
      if stale:
        path.unlink(missing_ok=True)
    self._used.clear()

  def _file(self, facts: Mapping[str, Any]) -> epath.Path:
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest() + _ENDING
    self._used.add(name)
    return self._folder / name


def _digest(name: str, data: bytes) -> bytes:
  return hashlib.sha256(name.encode() + data).digest()
