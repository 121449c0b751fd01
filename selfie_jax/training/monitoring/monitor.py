"""What a run tells: metrics.jsonl, performance.jsonl, TensorBoard, the terminal, a collapse alarm and a NaN guard."""

import collections
import contextlib
import math
import time
import types
from collections.abc import Iterator, Mapping

import jax
from etils import epath

from selfie_jax import health
from selfie_jax.config import Config
from selfie_jax.errors import UserError
from selfie_jax.objective.off_diagonal import covariance_route
from selfie_jax.terminal import console
from selfie_jax.training.monitoring import performance
from selfie_jax.training.monitoring.lines import JsonLines
from selfie_jax.training.monitoring.mirror import Mirror
from selfie_jax.training.monitoring.profile import Profile
from selfie_jax.training.monitoring.tensorboard import TensorBoard, cut_events, open_tensorboard
from selfie_jax.training.processes import cluster
from selfie_jax.training.programs.compilation import CompiledStep
from selfie_jax.training.step import Metrics

_METRICS = 'metrics.jsonl'
_PERFORMANCE = 'performance.jsonl'
_STEPS_AHEAD = 2  # Of the device, that the host may be.


class NotFiniteError(UserError):
  """The loss, its gradient or the parameters are no longer finite numbers."""


class Monitor:
  """Collects each step's metrics without the device waiting for the host, and reports them every `log.every_steps`.

  Metrics stay on the device until they are reported. Step k-1 is reported once step k has been dispatched, so that the
  device has work while the host waits and writes. The host is two steps ahead of the device at most, so that the times
  at which it sees steps completed are those at which they are.

  What is told of the steps up to a checkpoint is on disk before that checkpoint is begun, and a process that goes on
  from it first removes what is told of later steps. So every step is told of once, whenever the run is killed.
  """

  def __init__(
    self, workdir: epath.Path, config: Config, first_step: int, program: CompiledStep, profile: bool
  ) -> None:
    """Goes on with the files of a run that has taken `first_step` steps; `profile` asks for a trace, too."""
    self._config = config
    self._program = program
    self._pending: list[tuple[int, Metrics]] = []
    self._representations: dict[int, jax.Array] = {}
    self._in_flight: collections.deque[jax.Array] = collections.deque()
    self._collapse_reported = False
    self._damaged = 0  # Clips, on this host, since the last step that was reported.
    self._mirror = self._metrics = self._performance = self._tensorboard = self._profile = None
    last = None
    if jax.process_index() == 0:
      cut_events(workdir, first_step)
      self._mirror = Mirror(workdir, resumed=(_METRICS, _PERFORMANCE))
      folder = self._mirror.folder
      self._metrics = JsonLines(folder / _METRICS, first_step)
      self._performance = JsonLines(folder / _PERFORMANCE, first_step)
      self._tensorboard = open_tensorboard(folder) if config.log.tensorboard else None
      self._profile = Profile(folder / 'profile', workdir / 'profile', first_step) if profile else None
      last = self._performance.last
      if last and last['step'] == first_step and not self.report_due(first_step):
        self._damaged = last.get('damaged_clips', 0)  # On all hosts: process 0 counts for them.
    n, d = config.batch_size, config.projector.output_width
    console.print(f'covariance of {n} x {d} embeddings: route {covariance_route(n, d)}')
    console.print(
      f'{jax.device_count()} {jax.devices()[0].platform} device(s) in '
      f'{jax.process_count()} process(es); batch {config.batch_size}; steps {first_step} to {config.steps}; '
      f'compiled in {program.seconds:.1f} s'
    )
    self._spent = performance.spent_before(last, program.seconds)
    self._stretch = performance.Stretch(time.perf_counter())
    if self._performance and last is None:  # Or a run that is killed before its first checkpoint had never begun.
      self._performance.append({'step': first_step, 'time': time.time(), **self._spent.as_line()})

  @contextlib.contextmanager
  def waiting_for_data(self) -> Iterator[None]:
    """Counts the time spent in this context as time that the loop waited for data."""
    start = time.perf_counter()
    yield
    self._stretch.waited += time.perf_counter() - start

  @contextlib.contextmanager
  def saving(self) -> Iterator[None]:
    """Counts the time spent in this context as time that a save held the loop up; follows `flush`."""
    start = time.perf_counter()
    yield
    self._stretch.saving(start, time.perf_counter())

  def add(self, step: int, metrics: Metrics, damaged: int) -> None:
    """Remembers the metrics of update `step` (1 is the first), and how many damaged clips this host replaced for it."""
    self._pending.append((step, metrics))
    self._in_flight.append(metrics['loss'])
    self._damaged += damaged
    self._wait_for_steps(but=_STEPS_AHEAD)
    if self._profile and self._profile.due(step):
      self._wait_for_steps(but=0)
      self._profile.switch()
      self._stretch.paused(time.perf_counter())

  def _wait_for_steps(self, *, but: int) -> None:
    """Waits for all steps but the newest ones, and notes when they are completed."""
    while len(self._in_flight) > but:
      jax.block_until_ready(self._in_flight.popleft())
      self._stretch.completed(time.perf_counter())

  def report_due(self, step: int) -> bool:
    """True where the metrics of update `step` are to be written."""
    return step % self._config.log.every_steps == 0 or step == self._config.steps

  def health_due(self, step: int) -> bool:
    """True where the health of the representations after update `step` is to be told with its metrics.

    That is at the first line that is written at or after each multiple of `log.health_every_steps`.
    """
    log = self._config.log
    return (
      0 < log.health_every_steps <= step and self.report_due(step) and step % log.health_every_steps < log.every_steps
    )

  def add_health(self, step: int, representations: jax.Array) -> None:
    """Remembers two views' representations (2, n, features) after update `step`; follows `add`."""
    self._representations[step] = representations

  def flush(self, *, before_save: bool = False) -> None:
    """Waits for all metrics added so far, checks that they are finite, and writes those that are due.

    Called before every save, so that no checkpoint is ever made of parameters that are not finite, and that what is on
    disk, or in an object store, tells of every step up to the checkpoint.

    Raises:
      NotFiniteError: naming the first step whose loss, gradient or new parameters are not finite.
      UserError: a file cannot be written.
    """
    self._wait_for_steps(but=0)
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
        self._report(step, {name: float(value) for name, value in metrics.items()} | self._health(step))
    if before_save:
      self._write_all(fetched[-1][0] if fetched else None)
    elif self._mirror:
      self._mirror.upload_if_due()

  def _health(self, step: int) -> dict[str, float]:
    """Returns the health of the representations after update `step`, where it is due."""
    if step not in self._representations:
      return {}
    views = jax.device_get(self._representations.pop(step))
    if self._tensorboard:
      self._tensorboard.write_health(step, views[0])
    # Process 0 alone writes, and an SVD for nothing takes time.
    return health.summarize(*views) if self._mirror else {}

  def _write_all(self, step: int | None) -> None:
    """Puts on disk, and into the object store, what is known up to the checkpoint of `step`."""
    if step is not None and not self.report_due(step):
      damaged = self._damaged_clips()  # Kept, because the next step that is reported tells of these, too.
      line = self._measure()
      if self._performance:
        self._performance.append({'step': step, **line, **damaged})
    if self._mirror:
      with self.saving():
        if self._tensorboard:
          self._tensorboard.flush()
        self._metrics.sync()
        self._performance.sync()
        self._mirror.upload()

  def _damaged_clips(self) -> dict[str, int]:
    """Returns the count over all hosts, each of which must ask at the same step, where there may be any."""
    return {'damaged_clips': _sum_over_hosts(self._damaged)} if self._config.data.on_damage == 'skip' else {}

  def _measure(self) -> dict[str, float]:
    """Ends a stretch of the loop; returns what a line of performance.jsonl says of it."""
    now, stretch = time.perf_counter(), self._stretch
    self._spent = self._spent.after_steps(stretch.seconds(now), stretch.waited, stretch.saved)
    self._stretch = stretch.next(now)
    return {
      'time': time.time(),
      **stretch.as_line(now, self._config.batch_size, self._program.flops, jax.devices()[0].device_kind),
      'compile_seconds': self._program.seconds,
      **performance.memory(),
      **self._spent.as_line(),
    }

  def _report(self, step: int, metrics: Mapping[str, float]) -> None:
    metrics = {**metrics, **self._damaged_clips()}
    self._damaged = 0
    line = self._measure()
    rates = {name: line[name] for name in ('clips_per_second', 'data_wait_fraction')}
    self._check_collapse(step, metrics)
    if self._mirror:
      self._metrics.append({'step': step, **metrics, **rates})
      self._performance.append({'step': step, **line})
    if self._tensorboard:
      costs = {f'performance/{name}': value for name, value in line.items() if name != 'time'}
      self._tensorboard.write(step, {**metrics, **rates, **costs})
    left = (self._config.steps - step) * self._config.batch_size / max(rates['clips_per_second'], 1e-9)
    parts = [
      f'step {step:>6}/{self._config.steps}',
      f'loss {metrics["loss"]:.3f}',
      f'invariance {metrics["invariance"]:.4f}',
      f'diversity {metrics["diversity"]:.4f}',
      f'decorrelation {metrics["decorrelation"]:.4f}',
      f'std {metrics["embedding_std"]:.3f}',
      f'rank {metrics["effective_rank"]:.1f}',
      f'{rates["clips_per_second"]:.0f} clips/s',
      f'waiting {rates["data_wait_fraction"]:.1%}',
      f'{line["step_seconds_median"]:.3g} s/step (p95 {line["step_seconds_p95"]:.3g})',
      *([f'MFU {line["mfu"]:.1%}'] if 'mfu' in line else []),
      f'goodput {line["goodput"]:.1%}',
      f'{_clock(left)} left',
    ]
    console.print('  '.join(parts))

  def _check_collapse(self, step: int, metrics: Mapping[str, float]) -> None:
    limits = self._config.log
    std, rank = metrics['embedding_std'], metrics['effective_rank']
    if self._collapse_reported or (std >= limits.collapse_std and rank >= limits.collapse_rank):
      return
    self._collapse_reported = True
    diversity = 'raise objective.diversity or ' if self._config.objective.diversity else ''  # Not every objective's.
    console.print(
      f'COLLAPSE at step {step}: embedding std {std:.4g} (alarm under {limits.collapse_std:g}), effective rank '
      f'{rank:.3g} (alarm under {limits.collapse_rank:g}). The embeddings carry next to nothing: stop, and '
      f'{diversity}lower optimizer.learning_rate.',
      style='bold red',
    )

  def __enter__(self) -> 'Monitor':
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
  ) -> None:
    """Closes the files, and brings their copies in an object store up to date."""
    with contextlib.ExitStack() as stack:
      for part in (self._mirror, self._tensorboard, self._profile):  # In the opposite order, and each in any case.
        if part:
          stack.callback(_close, part, error)


def _close(part: Mirror | TensorBoard | Profile, error: BaseException | None) -> None:
  """Closes a part; where the run ends with an error, what goes wrong now is told, and does not take its place."""
  try:
    part.close()
  except Exception as second:
    if error is None:
      raise
    console.print(f'and then: {second}')


def _sum_over_hosts(count: int) -> int:
  """Returns the sum of the counts of all hosts, each of which must ask at the same step."""
  # Most hosts have seen none, and leave nothing for the others to read.
  return sum(map(int, cluster.gather(str(count) if count else '').values()))


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(math.ceil(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
