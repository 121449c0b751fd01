"""What a benchmark's figures were taken on."""

import importlib.metadata
import os
import platform
from pathlib import Path

PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'torch', 'torchaudio', 'tensorflow', 'tensorflow-cpu', 'scikit-learn')


def machine() -> str:
  """One line: processor, cores, memory, system, Python."""
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
  return (
    f'{_processor()}, {_cores()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}, '
    f'Python {platform.python_version()}'
  )


def versions() -> str:
  """One line: the versions of this project's main packages and of its peers, as far as they are installed."""
  found = []
  for name in PACKAGES:
    try:
      found.append(f'{name} {importlib.metadata.version(name)}')
    except importlib.metadata.PackageNotFoundError:
      continue
  return ', '.join(found)


def load() -> str:
  """The load averages of the last 1, 5 and 15 minutes: above the number of cores, everything waits for a core."""
  return ' '.join(f'{value:.2f}' for value in os.getloadavg())


def _processor() -> str:
  information = Path('/proc/cpuinfo')
  lines = information.read_text().splitlines() if information.exists() else []
  models = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
  return next(iter(models), platform.processor() or platform.machine())


def _cores() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
