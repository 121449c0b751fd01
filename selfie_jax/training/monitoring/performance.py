"""What a run costs: how long its steps take, where the rest of its time went, memory, and how busy the chips are."""

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil

# Dense bfloat16 FLOP/s of one JAX device, by its `device_kind`. A float32 program on a TPU is counted against it, too:
# the matrix units multiply bfloat16 only, and float32 takes them several passes. GPUs are missing: their compiler does
# not say how many FLOPs a step has.
PEAK_FLOPS = {
  'TPU v4': 275e12,  # https://cloud.google.com/tpu/docs/v4
  'TPU v5 lite': 197e12,  # https://cloud.google.com/tpu/docs/v5e
  'TPU v5': 459e12,  # https://cloud.google.com/tpu/docs/v5p
  'TPU v6 lite': 918e12,  # https://cloud.google.com/tpu/docs/v6e
  'TPU7x': 2_307e12 / 2,  # https://cloud.google.com/tpu/docs/tpu7x; a chip is two devices.
}


@dataclasses.dataclass(frozen=True)
class Spent:
  """Seconds since the run's first start, over all of its processes, by what they went into."""

  steps: float = 0.0  # Steps that were kept.
  data_wait: float = 0.0  # Of the loop for data. The device may still have been busy, so it lost at most so much.
  save: float = 0.0  # Of the loop for saves.
  compile: float = 0.0
  restart: float = 0.0  # Down, starting up, and on steps that had to be taken again.

  @property
  def total(self) -> float:
    """All of it."""
    return sum(dataclasses.astuple(self))

  @property
  def goodput(self) -> float:
    """The share that went into steps that were kept."""
    return self.steps / self.total if self.total else 0.0

  def after_start(self, seconds: float, compile_seconds: float) -> 'Spent':
    """Returns what is spent once a process has started and compiled.

    Args:
      seconds: since the last step that this process goes on from or, in a run that begins, since the process began; by
        the wall clock, which may have been set back since.
      compile_seconds: part of them.
    """
    lost = max(0.0, seconds - compile_seconds)
    return dataclasses.replace(self, compile=self.compile + compile_seconds, restart=self.restart + lost)

  def after_steps(self, seconds: float, data_wait: float, save: float) -> 'Spent':
    """Returns what is spent after another stretch of the loop, of which some went into data and saves."""
    return dataclasses.replace(
      self,
      steps=self.steps + max(0.0, seconds - data_wait - save),
      data_wait=self.data_wait + data_wait,
      save=self.save + save,
    )

  def as_line(self) -> dict[str, float]:
    """Returns the entries of a line in performance.jsonl, from which `read` makes it again."""
    parts = {f'run_{name}_seconds': seconds for name, seconds in dataclasses.asdict(self).items()}
    return {'goodput': self.goodput, 'run_seconds': self.total} | parts

  @classmethod
  def read(cls, line: Mapping[str, Any]) -> 'Spent':
    """Reads it from a line in performance.jsonl."""
    return cls(**{field.name: line.get(f'run_{field.name}_seconds', 0.0) for field in dataclasses.fields(cls)})


def spent_before(last: Mapping[str, Any] | None, compile_seconds: float) -> Spent:
  """Returns what was spent up to now, as the loop of this process begins.

  Args:
    last: the line of performance.jsonl that it goes on from, None in a run that begins.
    compile_seconds: what this process took to compile.
  """
  if last is None:
    return Spent().after_start(time.time() - psutil.Process().create_time(), compile_seconds)
  return Spent.read(last).after_start(time.time() - last['time'], compile_seconds)


class Stretch:
  """The loop between two lines, in times of `time.perf_counter`, which the caller gives."""

  def __init__(self, begin: float, since: float | None = None) -> None:
    """`since` is when the last step before it was completed; a process's first step is timed from the beginning."""
    self._begin = begin
    self._since = begin if since is None else since
    self.step_seconds: list[float] = []
    self.waited = self.saved = 0.0

  def completed(self, now: float) -> None:
    """Counts a step that was completed just now."""
    self.step_seconds.append(now - self._since)
    self._since = now

  def saving(self, begin: float, end: float) -> None:
    """Counts a save, for which the loop had waited until no step was left to complete."""
    self.saved += end - begin
    self.paused(end)

  def paused(self, end: float) -> None:
    """Leaves out of the next step's time that the loop stood still until now, and no step with it."""
    self._since = end

  def seconds(self, now: float) -> float:
    """Returns its length so far."""
    return now - self._begin

  def next(self, now: float) -> 'Stretch':
    """Returns the one that begins now."""
    return Stretch(now, self._since)

  def as_line(self, now: float, batch_size: int, flops: float | None, device_kind: str) -> dict[str, float]:
    """Returns the entries of a line in performance.jsonl on the stretch that ends now.

    Args:
      now: when it ends.
      batch_size: clips in a step.
      flops: of a step on one device, if they are known.
      device_kind: what the devices are.
    """
    seconds, steps = max(self.seconds(now), 1e-9), len(self.step_seconds)
    median, p95 = np.percentile(self.step_seconds, (50, 95)) if steps else (math.nan, math.nan)
    line = {
      'step_seconds_median': float(median),
      'step_seconds_p95': float(p95),
      'clips_per_second': steps * batch_size / seconds,
      'data_wait_fraction': self.waited / seconds,
      'save_seconds': self.saved,
    }
    if flops and steps and device_kind in PEAK_FLOPS:
      line['mfu'] = flops * steps / sum(self.step_seconds) / PEAK_FLOPS[device_kind]
    return line


def memory() -> dict[str, int]:
  """Returns the bytes in use, and the most so far, of this process on its host, and of its fullest device.

  CPU devices have none of their own.
  """
  found = {'host_memory_bytes': psutil.Process().memory_info().rss, 'host_memory_peak_bytes': _peak_of_host()}
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  for key, name in (('bytes_in_use', 'device_memory_bytes'), ('peak_bytes_in_use', 'device_memory_peak_bytes')):
    known = [device[key] for device in stats if key in device]
    if known:
      found[name] = max(known)
  return found


def _peak_of_host() -> int:
  try:  # `getrusage` would tell of the program that started this one, too.
    for line in Path('/proc/self/status').read_text().splitlines():
      if line.startswith('VmHWM:'):
        return int(line.split()[1]) * 1024
  except OSError:
    pass  # Not Linux.
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
