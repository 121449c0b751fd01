"""What memory the default configs take, and what rematerialisation and microbatches buy in bytes and cost in FLOPs.

  python -m tests.benchmarks.memory [--configs configs/audioset_audiontt.py ...] [--topology v5e:8x8] [--full_effort]

A row is a program, compiled by the TPU compiler (libtpu) at the config's own batch for each of the slice's chips and
never executed; the quick start's is compiled for this machine's CPU. The peak is arguments + outputs - those in the
place of arguments + temporaries + code. The compiler is told to spend less effort than in a real run, unless
`--full_effort` is given: then a row takes minutes.

Last, the quick start is trained for a few steps on noise: the largest resident memory of its process, which on a CPU
has the arrays in it.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rich.table

from selfie_jax.terminal import results
from tests.processes import OPTIMIZED, ROOT, environment

QUICKSTART = 'configs/quickstart.py'
CONFIGS = ('configs/audioset_audiontt.py', 'configs/audioset_vit.py')
SETTINGS = ({}, {'remat': True}, {'microbatches': 2}, {'microbatches': 4}, {'microbatches': 8})


def main() -> None:
  """Prints a table of each config, and the host's memory."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--configs', nargs='*', default=CONFIGS, help='to compile for the topology')
  parser.add_argument('--topology', default='v5e:8x8')
  parser.add_argument('--full_effort', action='store_true', help="the compiler's, as in a real run")
  parser.add_argument('--compile', help='in this process (used by the command itself)')
  options = parser.parse_args()
  if options.compile:
    print(json.dumps(program(**json.loads(options.compile))))
    return
  for config, topology in ((QUICKSTART, None), *((config, options.topology) for config in options.configs)):
    results.print(table(config, topology, list(programs(config, topology, options.full_effort))))
  with tempfile.TemporaryDirectory() as folder:
    imports, run = host_peaks(Path(folder))
  results.print(f'host: {run / 2**30:.2f} GiB at the most in {QUICKSTART}, of which imports {imports / 2**30:.2f}')


def programs(config: str, topology: str | None, full_effort: bool) -> Iterator[dict[str, object]]:
  """Yields what `program` returns with each of `SETTINGS`, each from a process of its own."""
  for settings in SETTINGS:
    request = {'config': config, 'topology': topology, 'settings': settings, 'full_effort': full_effort}
    command = [sys.executable, '-m', 'tests.benchmarks.memory', '--compile', json.dumps(request)]
    finished = subprocess.run(
      command, cwd=ROOT, env=environment(compiler=OPTIMIZED), check=True, stdout=subprocess.PIPE, text=True
    )
    yield json.loads(finished.stdout.splitlines()[-1])


def program(config: str, topology: str | None, settings: dict[str, int | bool], full_effort: bool) -> dict[str, object]:
  """Returns a device's bytes and FLOPs in a step of `config` with `settings`; without a topology, on one CPU device.

  Of a program that does not fit there is its peak alone.
  """
  import jax

  from selfie_jax import compile as compile_command
  from selfie_jax import config as config_lib
  from selfie_jax.training import mesh as mesh_lib
  from selfie_jax.training.programs import topology as topology_lib

  loaded = dataclasses.replace(config_lib.load(config, (), config_lib.Config), **settings)
  place = topology_lib.parse(topology or 'v5e:1x1')  # Of which, on a CPU, only the memory's size is read.
  if topology:
    topology_lib.prepare_process()
  mesh = mesh_lib.make_mesh(1, topology_lib.devices(place) if topology else jax.devices())
  less_effort = {'exec_time_optimization_effort': -1.0} if topology and not full_effort else None
  found, _ = compile_command.compile_train_step(loaded, mesh, place, less_effort)
  name = ', '.join(f'{key}={value}' for key, value in settings.items()) or 'as it is'
  return {
    'name': name,
    'clips': found['clips_per_device'],
    'memory': found['memory'],
    'flops': None if found['error'] else found['flops_per_device'],
  }


def table(config: str, topology: str | None, rows: list[dict[str, object]]) -> rich.table.Table:
  """Returns a row for each program, FLOPs over those of the first that has any."""
  title = f'{config}: {rows[0]["clips"]} clips on each device of {topology or "a CPU"} (GiB)'
  shown = rich.table.Table('', 'peak', 'arguments', 'temporaries', 'GFLOP', 'FLOPs', title=title, title_justify='left')
  for column in shown.columns[1:]:
    column.justify = 'right'
  least = next((row['flops'] for row in rows if row['flops']), None)
  for row in rows:
    memory, flops = row['memory'], row['flops']
    if flops is None:
      shown.add_row(row['name'], f'{gib(memory["peak"])}: does not fit')
      continue
    sizes = [gib(memory[key]) for key in ('peak', 'arguments', 'temporaries')]
    shown.add_row(row['name'], *sizes, f'{flops / 1e9:,.1f}', f'{flops / least:.2f} x')
  return shown


def gib(size: int) -> str:
  """Bytes in GiB."""
  return f'{size / 2**30:.2f}'


def host_peaks(folder: Path) -> tuple[int, int]:
  """Returns the largest resident memory, in bytes, of a process that imports what a run needs, and of a short run."""
  import soundfile

  noise = np.random.default_rng(0).normal(0, 0.1, (64, 32_000))
  (folder / 'sounds').mkdir()
  for i, sound in enumerate(noise):
    soundfile.write(folder / 'sounds' / f'{i}.wav', sound, 16_000)
  records = folder / 'records'
  resident_peak('-m', 'selfie_jax.prepare', 'folder', '--input', folder / 'sounds', '--output', records)
  run = ('--config', QUICKSTART, '--workdir', folder / 'run', f'--config.data.path={records}', '--config.steps=10')
  run += ('--config.optimizer.warmup_steps=0',)
  return resident_peak('-c', 'import selfie_jax.train'), resident_peak('-m', 'selfie_jax.train', *run)


def resident_peak(*arguments: object) -> int:
  """Returns the largest resident memory of `python *arguments`, in bytes.

  Raises:
    RuntimeError: it failed.
  """
  command = [sys.executable, *map(str, arguments)]
  process = subprocess.Popen(
    command, cwd=ROOT, env=environment(compiler=OPTIMIZED), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  )
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise RuntimeError(f'{command} ended with {os.waitstatus_to_exitcode(status)}')
  return usage.ru_maxrss * 1024  # Linux counts KiB.


if __name__ == '__main__':
  main()
