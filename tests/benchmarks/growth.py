"""How the cost of a train step grows: with the batch, the embedding's width, virtual devices, and chips.

  python -m tests.benchmarks.growth [--chips CONFIG ...] [--plot growth.svg] [--rounds 3]

Measured on this machine is the quick start's step: CPU-seconds (of all threads), seconds, and the temporary bytes of
its program on each device. What says something of another machine are the exponents: the slope of a least-squares line
through the logarithms and, in parentheses, the smallest and the largest slope between neighbouring sizes. Virtual
devices share the cores and the batch: the work should not grow with them, and a device's memory shrink to its share.

With `--chips`, and libtpu, also what the TPU compiler says of these configs' step on slices of 16 to 256 v5e chips
with 16 clips on each: nothing is executed. It is told to spend less effort than in a real run: programs are a little
worse than those of `selfie_jax.compile`, and finished in a third of the time.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import rich.table

from selfie_jax.from_mapping import from_mapping
from selfie_jax.terminal import results
from tests.benchmarks.growth_plot import write_plot
from tests.processes import OPTIMIZED, ROOT, environment

SMALL = 'configs/quickstart.py'
BATCHES, WIDTHS, DEVICES = (16, 64, 256), (64, 512, 4_096), (1, 2, 4, 8)
TOPOLOGIES, CLIPS = ('v5e:4x4', 'v5e:8x8', 'v5e:16x16'), 16
STEP_COSTS = {'cpu_seconds': 'CPU-seconds', 'seconds': 'seconds', 'temporary_bytes': 'temporary bytes'}
CHIP_COSTS = {
  'flops': 'FLOPs a chip',
  'bytes': 'bytes accessed a chip',
  'temporary_bytes': 'temporary bytes a chip',
  'sent_bytes': 'bytes that a chip sends',
  'objective_sent_bytes': "of these the objective's",
}


@dataclasses.dataclass(frozen=True)
class Curve:
  """What a step costs at each size of one thing."""

  name: str
  sizes: tuple[int, ...]
  costs: dict[str, list[float]]  # By what they are called.


def main() -> None:
  """Measures, and prints a row for each cost."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--chips', nargs='+', default=(), metavar='CONFIG', help='such as configs/audioset_audiontt.py')
  parser.add_argument('--plot', type=Path, help='draw the curves here (.svg, .png)')
  parser.add_argument('--rounds', type=int, default=3, help='in which each size takes one step (default 3)')
  parser.add_argument('--measure', help='in this process (used by the command itself)')
  options = parser.parse_args()
  if options.measure:
    request = json.loads(options.measure)
    print(json.dumps(compile_for_chips(**request) if 'config' in request else measure(**request)))
    return
  curves = []
  for curve in itertools.chain(measured_curves(options.rounds), map(chip_curve, options.chips)):
    results.print(table(curve))
    curves.append(curve)
  if options.plot:
    write_plot(curves, options.plot)
    results.print(f'wrote {options.plot}')


def measured_curves(rounds: int) -> Iterable[Curve]:
  """Yields the curves of this machine, each point of those over devices from a process of its own."""
  by_batch = in_a_process(1, settings=[{'batch_size': size} for size in BATCHES], rounds=rounds)
  yield _curve('batch', BATCHES, by_batch, STEP_COSTS)
  widths = [{'projector': {'output_width': size}} for size in WIDTHS]
  yield _curve('embedding width', WIDTHS, in_a_process(1, settings=widths, rounds=rounds), STEP_COSTS)
  by_devices = [in_a_process(count, settings=[{'batch_size': 128}], rounds=rounds)[0] for count in DEVICES]
  yield _curve('virtual devices, 128 clips in all', DEVICES, by_devices, STEP_COSTS)


def chip_curve(config: str) -> Curve:
  """Returns the curve of a config's step over v5e chips."""
  points = [in_a_process(1, config=config, topology=name) for name in TOPOLOGIES]
  chips = tuple(point['devices'] for point in points)
  return _curve(f'chips, {CLIPS} clips each, {Path(config).stem}', chips, points, CHIP_COSTS)


def _curve(name: str, sizes: Sequence[int], points: Sequence[dict[str, float]], labels: dict[str, str]) -> Curve:
  return Curve(name, tuple(sizes), {label: [point[key] for point in points] for key, label in labels.items()})


def in_a_process(devices: int, **request: object) -> object:
  """Returns what `measure` or `compile_for_chips` of the request returns in a process with so many devices."""
  command = [sys.executable, '-m', 'tests.benchmarks.growth', '--measure', json.dumps(request)]
  as_users = environment(devices, OPTIMIZED)
  finished = subprocess.run(command, cwd=ROOT, env=as_users, check=True, stdout=subprocess.PIPE, text=True)
  return json.loads(finished.stdout.splitlines()[-1])


def measure(settings: Sequence[dict[str, object]], rounds: int) -> list[dict[str, float]]:
  """Returns the costs of the small step with each of `settings`, which take turns; all of this process's devices work.

  The times are the medians of `rounds`, after one that does not count.
  """
  import jax

  from selfie_jax import config as config_lib
  from selfie_jax.training import mesh as mesh_lib
  from selfie_jax.training.checkpointing.checkpoints import DataState
  from selfie_jax.training.optimizer import make_optimizer
  from selfie_jax.training.state import abstract_state, init_state
  from selfie_jax.training.step import make_train_step

  mesh = mesh_lib.make_mesh(1)
  rows = mesh_lib.batch_sharding(mesh)
  base = dataclasses.asdict(config_lib.load(SMALL, (), config_lib.Config))
  steps, states, clips, found = [], [], [], []
  for setting in settings:
    nested = {key: base[key] | value if isinstance(value, dict) else value for key, value in setting.items()}
    config = from_mapping(config_lib.Config, base | nested)
    optimizer = make_optimizer(config)
    template = abstract_state(config, optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    shape = jax.ShapeDtypeStruct((config.batch_size, config.crop_samples), np.int16, sharding=rows)
    data = DataState('', -5.0, 4.0, config.objective.variance_groups(mesh.size))
    step = make_train_step(config, optimizer, mesh, data).lower(template, shape).compile()
    noise = np.random.default_rng(0).normal(0, 3_000, shape.shape).astype(np.int16)
    steps.append(step)
    states.append(jax.jit(lambda c=config, o=optimizer: init_state(c, o), out_shardings=shardings)())
    clips.append(mesh_lib.to_devices(noise, rows))
    found.append({'temporary_bytes': step.memory_analysis().temp_size_in_bytes, 'cpu_seconds': [], 'seconds': []})
  for _ in range(1 + rounds):
    for i, step in enumerate(steps):
      begin = time.perf_counter(), time.process_time()
      states[i], _ = jax.block_until_ready(step(states[i], clips[i]))
      found[i]['seconds'].append(time.perf_counter() - begin[0])
      found[i]['cpu_seconds'].append(time.process_time() - begin[1])
  medians = ('seconds', 'cpu_seconds')
  return [costs | {key: statistics.median(costs[key][1:]) for key in medians} for costs in found]


def compile_for_chips(config: str, topology: str) -> dict[str, float]:
  """Returns the costs of a config's step on a chip of the topology, from its compiled program."""
  from selfie_jax import compile as compile_command
  from selfie_jax import config as config_lib
  from selfie_jax.training import mesh as mesh_lib
  from selfie_jax.training.programs import topology as topology_lib

  topology_lib.prepare_process()
  slice_ = topology_lib.parse(topology)
  mesh = mesh_lib.make_mesh(1, topology_lib.devices(slice_))
  settings = dataclasses.replace(config_lib.load(config, (), config_lib.Config), batch_size=CLIPS * mesh.size)
  less_effort = {'exec_time_optimization_effort': -1.0}
  program, _ = compile_command.compile_train_step(settings, mesh, slice_, less_effort)
  if program['error']:
    sys.exit(program['error'])
  return {
    'devices': mesh.size,
    'flops': program['flops_per_device'],
    'bytes': program['bytes_accessed_per_device'],
    'temporary_bytes': program['memory']['temporaries'],
    'sent_bytes': program['traffic']['sent_bytes'],
    'objective_sent_bytes': program['traffic']['objective_sent_bytes'],
  }


def exponents(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float, float]:
  """Returns the exponent p of cost ~ size^p by least squares, and the least and greatest between neighbours."""
  x, y = np.log(sizes), np.log(costs)
  between = np.diff(y) / np.diff(x)
  return float(np.polyfit(x, y, 1)[0]), float(between.min()), float(between.max())


def table(curve: Curve) -> rich.table.Table:
  """Returns a row for each cost."""
  columns = ('cost of a step', *(f'{size:,}' for size in curve.sizes), 'exponent')
  rows = rich.table.Table(*columns, title=f'by {curve.name}', title_justify='left')
  for column in rows.columns[1:]:
    column.justify = 'right'
  for name, costs in curve.costs.items():
    slope, least, most = exponents(curve.sizes, costs)
    rows.add_row(name, *(f'{cost:.3g}' for cost in costs), f'{slope:+.2f} ({least:+.2f} to {most:+.2f})')
  return rows


if __name__ == '__main__':
  os.chdir(ROOT)
  main()
