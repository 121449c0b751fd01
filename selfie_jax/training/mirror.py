"""Files that grow, such as logs, in a workdir that may be in an object store, where nothing can be appended to."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from selfie_jax.files import is_remote, write_atomically

_SECONDS_BETWEEN_UPLOADS = 30.0


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
    self._uploaded: dict[str, int] = {}  # File -> its size then. They only grow.
    self._last_upload = time.monotonic()
    for name in resumed if self._temporary else ():
      if (workdir / name).exists():
        (self.folder / name).write_bytes((workdir / name).read_bytes())

  def upload_due(self) -> bool:
    """True where there is something remote that has not been brought up to date for a while."""
    return self._temporary is not None and time.monotonic() - self._last_upload >= _SECONDS_BETWEEN_UPLOADS

  def upload(self) -> None:
    """Brings the copies up to date. What is written must have been flushed."""
    if self._temporary is None:
      return
    for file in sorted(self.folder.iterdir()):
      data = file.read_bytes()
      if self._uploaded.get(file.name) != len(data):
        with write_atomically(self._workdir / file.name) as copy:
          copy.write(data)
        self._uploaded[file.name] = len(data)
    self._last_upload = time.monotonic()

  def close(self) -> None:
    """Brings the copies up to date and removes the local files."""
    try:
      self.upload()
    finally:
      if self._temporary:
        self._temporary.cleanup()
