"""TensorBoard's event files: written by clu, and cut when a run goes on from an earlier step."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from etils import epath
from tensorboard.compat.proto.event_pb2 import Event

from selfie_jax import health
from selfie_jax.data.tfrecord import DamagedRecordError, frame, scan
from selfie_jax.errors import UserError
from selfie_jax.files import list_files, write_atomically
from selfie_jax.terminal import console

_PREFIX = 'events.out.tfevents.'


class TensorBoard:
  """clu's writer, whose errors are a user's to mend.

  Not clu's `AsyncWriter`: it logs the traceback of an error before it raises it.
  """

  def __init__(self, folder: Path) -> None:
    """Raises ImportError where TensorFlow is not installed."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # TensorFlow greets everyone on stderr unless told not to,
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # and once more about the CPU kernels that are not used here.
    import tensorflow as tf

    tf.config.set_visible_devices([], 'GPU')  # Or TensorFlow takes the memory that JAX needs.
    from clu import metric_writers

    self._folder = folder
    self._writer = metric_writers.SummaryWriter(str(folder))

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes scalars. They are in the file after `flush`."""
    self._do(self._writer.write_scalars, step, scalars)

  def write_health(self, step: int, representations: np.ndarray) -> None:
    """Writes a picture of the correlations between dimensions (blue -1, white 0, red 1), and their standard deviations.

    Args:
      step: of the run.
      representations: (n, features); 128 evenly spaced features are in the picture.
    """
    matrix = np.kron(health.thinned(health.correlation(representations)), np.ones((3, 3)))
    red_green_blue = np.stack([1 + np.minimum(matrix, 0), 1 - np.abs(matrix), 1 - np.maximum(matrix, 0)], axis=-1)
    self._do(self._writer.write_images, step, {'correlation': np.clip(red_green_blue, 0, 1)})
    self._do(self._writer.write_histograms, step, {'representation_std': representations.std(axis=0)})

  def flush(self) -> None:
    """Waits until all that was written is in the file."""
    self._do(self._writer.flush)

  def close(self) -> None:
    """Flushes and closes the file."""
    self._do(self._writer.close)

  def _do(self, action, *arguments) -> None:  # noqa: ANN001, ANN002
    try:
      action(*arguments)
    except Exception as error:  # TensorFlow's, which begin with a part of its program in braces.
      reason = re.sub(r'^{{.*}} ', '', str(error).partition('\n')[0])
      raise UserError(
        f"cannot write TensorBoard's events in {self._folder} ({reason}): make room and start the run again, or "
        'switch them off with --config.log.tensorboard=False'
      ) from error


def open_tensorboard(folder: Path) -> TensorBoard | None:
  """Returns a writer into the folder, or None where TensorFlow is not installed."""
  try:
    return TensorBoard(folder)
  except ImportError:
    console.print('TensorFlow is not installed: no TensorBoard events, metrics.jsonl only')
    return None


def cut_events(workdir: epath.Path, last_step: int) -> None:
  """Removes from the event files of a workdir what is told of steps after `last_step`, which are taken again.

  Without it TensorBoard would show these steps twice. Wall times stay as they are, and so do files that have none of
  them. What a killed process left of a record goes, and a file with nothing left in it.

  Raises:
    UserError: an object store does not answer.
  """
  for name, state in sorted(list_files(workdir).items()):
    if not name.startswith(_PREFIX) or name.endswith('.tmp'):
      continue
    path = workdir / name
    events = list(_read(path))
    kept = [(data, event) for data, event in events if not event.HasField('summary') or event.step <= last_step]
    if not any(event.HasField('summary') for _, event in kept):
      path.unlink(missing_ok=True)
      continue
    data = b''.join(frame(data) for data, _ in kept)
    if len(data) < state.size:
      with write_atomically(path) as file:
        file.write(data)


def _read(path: epath.Path) -> Iterator[tuple[bytes, Event]]:
  """Yields an event file's records up to the first damaged one: only a killed process damages them, at the end."""
  try:
    for _, data in scan(path):
      yield data, Event.FromString(data)
  except DamagedRecordError:
    return
