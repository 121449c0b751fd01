"""From the command to the first step: the quick start's training, compiled anew and with the compilation cache.

  python -m tests.benchmarks.startup [--rounds 3]

The first step is taken to be done when its line is in metrics.jsonl. CPU-seconds are those of all threads until then.
Then what the imports alone take, and the packages whose own modules take most of it (`python -X importtime`).
"""

import argparse
import collections
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.benchmarks.machine import load, machine, versions
from tests.benchmarks.rounds import ROOT, spread
from tests.data.sounds import voice_int16, write_dataset

HEAVY = ('tensorflow', 'torch', 'sklearn', 'apache_beam', 'librosa', 'pandas')
IMPORT = 'import selfie_jax.train, sys'


class Start(NamedTuple):
  """What a start took."""

  seconds: float
  cpu_seconds: float


def start(dataset: Path, workdir: Path, cache: Path) -> Start:
  """Starts training and measures until the first step is written down.

  Raises:
    RuntimeError: training ended before.
  """
  metrics, errors = workdir / 'metrics.jsonl', workdir.with_suffix('.stderr')
  command = [sys.executable, '-m', 'selfie_jax.train', '--config', 'configs/quickstart.py', '--workdir', str(workdir)]
  command += [f'--config.data.path={dataset}', '--config.steps=1', '--config.log.every_steps=1']
  command += ['--config.optimizer.warmup_steps=0']
  begin = time.perf_counter()
  with errors.open('w') as file:
    environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': str(cache)}
    process = psutil.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
  try:
    while not (metrics.exists() and metrics.stat().st_size):
      if process.poll() is not None:
        raise RuntimeError(f'training ended with {process.returncode}: {errors.read_text()[-1_000:]}')
      time.sleep(0.02)
    return Start(time.perf_counter() - begin, sum(process.cpu_times()[:4]))
  finally:
    process.terminate()
    process.wait()


def import_cpu_seconds() -> float:
  """CPU time of a process that imports the training command, and nothing else."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  program = f'{IMPORT}\nheavy = [name for name in {HEAVY} if name in sys.modules]\nassert not heavy, heavy'
  subprocess.run([sys.executable, '-c', program], cwd=ROOT, check=True)
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def slowest_imports(count: int) -> list[tuple[str, float]]:
  """The packages whose modules, those they import left aside, take most seconds to import."""
  ended = subprocess.run(
    [sys.executable, '-X', 'importtime', '-c', IMPORT], cwd=ROOT, check=True, stderr=subprocess.PIPE, text=True
  )
  seconds: collections.Counter[str] = collections.Counter()
  for microseconds, name in re.findall(r'^import time: +(\d+) \| +\d+ \| +(\w+)', ended.stderr, re.MULTILINE):
    seconds[name] += int(microseconds) / 1e6
  return seconds.most_common(count)


def main() -> None:
  """Prints the report."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--rounds', type=int, default=3)
  options = parser.parse_args()
  print(machine(), versions(), f'load before: {load()}', sep='\n')
  starts: dict[str, list[Start]] = {'compiled anew': [], 'with the cache': []}
  with tempfile.TemporaryDirectory(prefix='selfie_benchmark_') as name:
    folder = Path(name)
    write_dataset(folder / 'dataset', [voice_int16(2, i) for i in range(64)])
    for number in range(options.rounds):
      for way in starts:
        workdir = folder / f'{number}_{way.replace(" ", "_")}'
        starts[way].append(start(folder / 'dataset', workdir, folder / f'cache_{number}'))
  print(f'\nfrom the command to the first step, {options.rounds} rounds: median (smallest to largest)')
  for way, found in starts.items():
    seconds, cpu_seconds = (spread(list(values)) for values in zip(*found))
    print(f'  {way}: {cpu_seconds.text(1)} CPU-s, {seconds.text(1)} s')
  ratios = [cold.cpu_seconds / warm.cpu_seconds for cold, warm in zip(*starts.values())]
  print(f'  ratio: {spread(ratios).text(2)} per CPU-second')
  imports = spread([import_cpu_seconds() for _ in range(options.rounds)])
  print(f'\nimport of selfie_jax.train: {imports.text(1)} CPU-s; none of {", ".join(HEAVY)} is imported')
  print('  most of it: ' + ', '.join(f'{package} {seconds:.2f} s' for package, seconds in slowest_imports(5)))


if __name__ == '__main__':
  main()
