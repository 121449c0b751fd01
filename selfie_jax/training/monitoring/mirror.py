"""Files that grow, such as logs, in a workdir that may be in an object store, where nothing can be appended to."""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from selfie_jax.errors import ClusterError, UserError
from selfie_jax.files import is_remote, write_atomically
from selfie_jax.terminal import console

_SECONDS_BETWEEN_UPLOADS = 30.0
_SECONDS_BETWEEN_ATTEMPTS = 5.0
_PATIENCE_SECONDS = 300.0  # With a store that does not answer, before a checkpoint.


class Mirror:
  """A local folder whose files are copied, whole, into the workdir; for a local workdir, the workdir itself.

  Attributes:
    folder: where to write.
  """

  def __init__(self, workdir: epath.Path, resumed: Sequence[str]) -> None:
    """`resumed` names the files that a run before this one may have left, and that are to be gone on with."""
    self._workdir = workdir
    self._temporary = tempfile.TemporaryDirectory(prefix='selfie_jax_') if is_remote(workdir) else None
    self.folder = Path(self._temporary.name if self._temporary else workdir)
    self._uploaded: dict[Path, int] = {}  # File -> its size then. They only grow.
    self._last_upload = time.monotonic()
    for name in resumed if self._temporary else ():
      if (workdir / name).exists():
        (self.folder / name).write_bytes((workdir / name).read_bytes())

  def upload_if_due(self) -> None:
    """Brings the copies up to date from time to time. A store that does not answer is asked again the next time."""
    if self._temporary is None or time.monotonic() - self._last_upload < _SECONDS_BETWEEN_UPLOADS:
      return
    try:
      self._upload()
    except UserError as error:
      console.print(f'{error}: training goes on, trying again later')
      self._last_upload = time.monotonic()

  def upload(self) -> None:
    """Brings the copies up to date. What is written must have been flushed.

    Raises:
      ClusterError: the store has been away for minutes.
      UserError: it refuses them.
    """
    if self._temporary is None:
      return
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
      try:
        self._upload()
        return
      except ClusterError as error:
        if time.monotonic() > end:
          raise ClusterError(f'{error}: gave it up after {_PATIENCE_SECONDS / 60:g} min') from error
        console.print(f'{error}: trying again')
        time.sleep(_SECONDS_BETWEEN_ATTEMPTS)

  def _upload(self) -> None:
    for folder, _, names in os.walk(self.folder):
      for file in sorted(Path(folder) / name for name in names):
        if self._uploaded.get(file) != file.stat().st_size:
          data = file.read_bytes()
          with write_atomically(self._workdir / file.relative_to(self.folder)) as copy:
            copy.write(data)
          self._uploaded[file] = len(data)
    self._last_upload = time.monotonic()

  def close(self) -> None:
    """Brings the copies up to date, if the store takes them at once, and removes the local files."""
    if self._temporary is None:
      return
    try:
      self._upload()
    finally:
      self._temporary.cleanup()
