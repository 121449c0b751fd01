"""What a run tells: metrics.jsonl, TensorBoard, the terminal, a collapse alarm and a NaN guard."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from selfie_jax.config import Config
from selfie_jax.errors import UserError
from selfie_jax.files import write_atomically
from selfie_jax.objective.off_diagonal import covariance_route
from selfie_jax.terminal import console
from selfie_jax.training.mirror import Mirror
from selfie_jax.training.step import Metrics

_LINES = 'metrics.jsonl'


class NotFiniteError(UserError):
  """The loss, its gradient or the parameters are no longer finite numbers."""


class Monitor:
  """Collects each step's metrics without waiting for the device, and reports them every `log.every_steps`.

  Metrics stay on the device until they are reported. Step k-1 is reported once step k has been dispatched, so that the
  device has work while the host waits and writes.
  """

  def __init__(self, workdir: epath.Path, config: Config, first_step: int) -> None:
    self._config = config
    self._pending: list[tuple[int, Metrics]] = []
    self._collapse_reported = False
    self._since, self._steps, self._waited, self._damaged = time.perf_counter(), 0, 0.0, 0
    self._mirror = self._lines = self._tensorboard = None
    if jax.process_index() == 0:
      self._mirror = Mirror(workdir, resumed=(_LINES,))
      self._lines = _open_lines(self._mirror.folder / _LINES, first_step)
      self._tensorboard = _open_tensorboard(self._mirror.folder) if config.log.tensorboard else None
    n, d = config.batch_size, config.projector.output_width
    console.print(f'covariance of {n} x {d} embeddings: route {covariance_route(n, d)}')
    console.print(
      f'{jax.device_count()} {jax.devices()[0].platform} device(s) in '
      f'{jax.process_count()} process(es); batch {config.batch_size}; steps {first_step} to {config.steps}; '
      'compiling the first'
    )

  @contextlib.contextmanager
  def waiting_for_data(self) -> Iterator[None]:
    """Counts the time spent in this context as time that the loop waited for data."""
    start = time.perf_counter()
    yield
    self._waited += time.perf_counter() - start

  def add(self, step: int, metrics: Metrics, damaged: int) -> None:
    """Remembers the metrics of update `step` (1 is the first), and how many damaged clips this host replaced for it."""
    self._pending.append((step, metrics))
    self._steps += 1
    self._damaged += damaged

  def report_due(self, step: int) -> bool:
    """True where the metrics of update `step` are to be written."""
    return step % self._config.log.every_steps == 0 or step == self._config.steps

  def flush(self, *, before_save: bool = False) -> None:
    """Waits for all metrics added so far, checks that they are finite, and writes those that are due.

    Called before every save, so that no checkpoint is ever made of parameters that are not finite, and that what is in
    an object store tells of every step up to the checkpoint.

    Raises:
      NotFiniteError: naming the first step whose loss, gradient or new parameters are not finite.
    """
    fetched = jax.device_get(self._pending)
    self._pending = []
    for step, metrics in fetched:
      guarded = {name: float(metrics[name]) for name in ('loss', 'gradient_norm', 'parameter_norm')}
      if not all(map(math.isfinite, guarded.values())):
        raise NotFiniteError(
          f'step {step} is not finite: {", ".join(f"{name} {value:g}" for name, value in guarded.items())}. The last '
          'checkpoint is from before it; start another --workdir with a lower optimizer.learning_rate or with '
          'optimizer.clip_norm'
        )
      if self.report_due(step):
        self._write(step, {name: float(value) for name, value in metrics.items()})
    if self._mirror and (before_save or self._mirror.upload_due()):
      if self._tensorboard:
        self._tensorboard.flush()
      self._mirror.upload()

  def _write(self, step: int, metrics: Mapping[str, float]) -> None:
    seconds = time.perf_counter() - self._since
    rates = {
      'clips_per_second': self._steps * self._config.batch_size / seconds,
      'data_wait_fraction': self._waited / seconds,
    }
    if self._config.data.on_damage == 'skip':
      metrics = {**metrics, 'damaged_clips': _sum_over_hosts(self._damaged)}
    self._since, self._steps, self._waited, self._damaged = time.perf_counter(), 0, 0.0, 0
    self._check_collapse(step, metrics)
    if self._lines:
      self._lines.write(json.dumps({'step': step, **metrics, **rates}) + '\n')
      self._lines.flush()
    if self._tensorboard:
      self._tensorboard.write_scalars(step, {**metrics, **rates})
    left = (self._config.steps - step) * self._config.batch_size / rates['clips_per_second']
    console.print(
      f'step {step:>6}/{self._config.steps}  loss {metrics["loss"]:.3f}  invariance {metrics["invariance"]:.4f}  '
      f'diversity {metrics["diversity"]:.4f}  decorrelation {metrics["decorrelation"]:.4f}  '
      f'std {metrics["embedding_std"]:.3f}  rank {metrics["effective_rank"]:.1f}  '
      f'{rates["clips_per_second"]:.0f} clips/s  waiting {rates["data_wait_fraction"]:.1%}  {_clock(left)} left'
    )

  def _check_collapse(self, step: int, metrics: Mapping[str, float]) -> None:
    limits = self._config.log
    std, rank = metrics['embedding_std'], metrics['effective_rank']
    if self._collapse_reported or (std >= limits.collapse_std and rank >= limits.collapse_rank):
      return
    self._collapse_reported = True
    console.print(
      f'COLLAPSE at step {step}: embedding std {std:.4g} (alarm under {limits.collapse_std:g}), effective rank '
      f'{rank:.3g} (alarm under {limits.collapse_rank:g}). The embeddings carry next to nothing: stop, and raise '
      'objective.diversity or lower optimizer.learning_rate.',
      style='bold red',
    )

  def close(self) -> None:
    """Closes the files, and brings their copies in an object store up to date."""
    if self._lines:
      self._lines.close()
    if self._tensorboard:
      self._tensorboard.close()
    if self._mirror:
      self._mirror.close()


def _sum_over_hosts(count: int) -> int:
  """Returns the sum of the counts of all hosts, each of which must ask at the same step."""
  if jax.process_count() == 1:
    return count
  with jax.transfer_guard('allow'):
    return int(multihost_utils.process_allgather(np.int32(count)).sum())


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(math.ceil(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


def _open_lines(path: Path, first_step: int):  # noqa: ANN202
  """Opens metrics.jsonl for appending, without the lines of steps that a killed run took and this one takes again."""
  if path.exists():
    kept = []
    for line in path.read_text().splitlines():
      try:
        if json.loads(line)['step'] <= first_step:
          kept.append(line + '\n')
      except (ValueError, KeyError):
        continue  # The last line of a process killed while writing it.
    with write_atomically(path) as file:
      file.write(''.join(kept).encode())
  return path.open('a')


def _open_tensorboard(workdir: Path):  # noqa: ANN202
  """Returns clu's TensorBoard writer, or None where TensorFlow is not installed."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # TensorFlow greets everyone on stderr unless told not to,
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # and once more about the CPU kernels that are not used here.
  try:
    import tensorflow as tf
  except ImportError:
    console.print('TensorFlow is not installed: no TensorBoard events, metrics.jsonl only')
    return None
  tf.config.set_visible_devices([], 'GPU')  # Or TensorFlow takes the memory that JAX needs.
  from clu import metric_writers

  return metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(workdir)))
