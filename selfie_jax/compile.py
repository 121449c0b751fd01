"""Compiles the train step of a config for TPUs or GPUs that are not there, and reports what the compiler says of it.

  python -m selfie_jax.compile --config configs/X.py --topology v5e:16x16 [v5p:4x4x4 ...]
      [--num_slices N] [--clips_per_device N] [--output report.json] [--hlo DIR] [--config.key=value ...]

It is the program that `selfie_jax.train` would run on that many devices, from their own compiler, so that what does not
fit, or communicates more than it should, is seen before a slice is rented. It needs no accelerator, but the compiler:
`pip install -r launch/requirements-tpu.txt`, or for GPUs (`--topology h100:64`) launch/requirements-gpu-compiler.txt.
Nothing is executed, so the only time in the report is the compiler's own.
"""

import dataclasses
import gc
import importlib.metadata
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from selfie_jax import config as config_lib
from selfie_jax import validation
from selfie_jax.config import Config
from selfie_jax.errors import EXIT_USER_ERROR, ArgumentParser, UserError, run_command
from selfie_jax.files import write_atomically
from selfie_jax.terminal import console
from selfie_jax.training import mesh as mesh_lib
from selfie_jax.training.checkpointing.checkpoints import DataState
from selfie_jax.training.optimizer import make_optimizer
from selfie_jax.training.programs import compiled_report, hlo
from selfie_jax.training.programs import topology as topology_lib
from selfie_jax.training.programs.topology import Topology
from selfie_jax.training.state import abstract_state
from selfie_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Compilation:
  """What to compile, and what for."""

  config_file: str
  overrides: tuple[str, ...]
  config: Config
  topologies: tuple[Topology, ...]
  clips_per_device: int | None  # None: `config.batch_size` over all devices.
  output: Path | None
  hlo: Path | None


def parse_compilation(arguments: Sequence[str]) -> Compilation:
  """Parses `--config FILE --topology NAME ... [options] [--config.key=value ...]`.

  Raises:
    UserError: an unknown topology, or a mistake in the config.
  """
  parser = ArgumentParser(
    prog='python -m selfie_jax.compile', description='Compiles the train step for TPUs or GPUs that are not there.'
  )
  parser.add_argument('--config', required=True, help='a Python file with get_config(), such as configs/quickstart.py')
  parser.add_argument('--topology', required=True, nargs='+', help='such as v5e:16x16 v5p:4x4x4 h100:64')
  parser.add_argument('--num_slices', type=int, default=1, help='TPU slices of that topology, in one mesh (default 1)')
  parser.add_argument('--clips_per_device', type=int, help='sets batch_size to this, times the devices')
  parser.add_argument('--output', type=Path, help='write the report here, as JSON')
  parser.add_argument('--hlo', type=Path, help='write the compiled programs as text into this folder')
  known, overrides = parser.parse_known_args(arguments)
  config = config_lib.load(known.config, overrides, Config)
  validation.validate(config)
  if known.clips_per_device is not None and known.clips_per_device < 1:
    raise UserError(f'--clips_per_device is {known.clips_per_device}; it must be at least 1')
  return Compilation(
    config_file=known.config,
    overrides=tuple(overrides),
    config=config,
    topologies=tuple(topology_lib.parse(name, known.num_slices) for name in known.topology),
    clips_per_device=known.clips_per_device,
    output=known.output,
    hlo=known.hlo,
  )


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  # ------------------------------------------------- all that a user can get wrong, before a compiler runs for minutes
  compilation = parse_compilation(arguments)
  topology_lib.prepare_process()
  jobs = []
  for topology in compilation.topologies:
    mesh = mesh_lib.make_mesh(compilation.config.mesh.fsdp, topology_lib.devices(topology))
    config = compilation.config
    if compilation.clips_per_device:
      config = dataclasses.replace(config, batch_size=compilation.clips_per_device * mesh.size)
    mesh_lib.check_batch(config, mesh.size)
    jobs.append((topology, mesh, config))
  for folder in (compilation.hlo, compilation.output and compilation.output.parent):
    if folder:
      folder.mkdir(parents=True, exist_ok=True)

  # ------------------------------------------------- compile, one after the other
  programs = []
  for topology, mesh, config in jobs:
    with console.status(f'compiling for {topology.label} ({mesh.size} devices)'):
      program, text = compile_train_step(config, mesh, topology)
    programs.append(program)
    if program['error']:
      console.print(f'error: {program["error"]}')
    else:
      compiled_report.print_program(program)
    if compilation.hlo and text:
      (compilation.hlo / f'{re.sub("[: ]", "_", topology.label)}.txt').write_text(text)
    gc.collect()  # A compiled program holds gigabytes for 4,096 devices.

  # ------------------------------------------------- report
  if len(programs) > 1:
    compiled_report.print_summary(programs)
  if compilation.output:
    report = {
      'config': compilation.config_file,
      'overrides': list(compilation.overrides),
      'versions': {package.name: package.version for package in compilers()},
      'programs': programs,
    }
    with write_atomically(compilation.output) as file:
      file.write(json.dumps(report, indent=2).encode() + b'\n')
    console.print(f'wrote {compilation.output}')
  return EXIT_USER_ERROR if any(program['error'] for program in programs) else 0


def compile_train_step(
  config: Config, mesh: jax.sharding.Mesh, topology: Topology, compiler_options: dict[str, Any] | None = None
) -> tuple[dict[str, Any], str | None]:
  """Compiles the train step of a run that begins on `mesh`.

  Args:
    config: with the batch size over all devices.
    mesh: over the topology's devices.
    topology: what the mesh is made of.
    compiler_options: XLA's, by name.

  Returns:
    The report, as described in `compiled_report`, and the compiled program's text. In a report of a program that does
    not fit, `error` is one line that says so, and there is no text.
  """
  optimizer = make_optimizer(config)
  groups = config.objective.variance_groups(mesh.size)
  train_step = make_train_step(config, optimizer, mesh, DataState('', 0.0, 1.0, groups))
  state = abstract_state(config, optimizer, mesh)
  clips = jax.ShapeDtypeStruct(config.batch_shape, jnp.int16, sharding=mesh_lib.batch_sharding(mesh))
  report = compiled_report.describe(config, mesh, topology, state)
  start = time.perf_counter()
  try:
    compiled = train_step.lower(state, clips).compile(compiler_options=compiler_options)
  except jax.errors.JaxRuntimeError as error:
    needed = memory_needed(str(error))
    if needed is None:
      raise
    return report | out_of_memory(config, mesh, topology, needed), None
  seconds = time.perf_counter() - start
  memory = compiled_report.memory(compiled.memory_analysis(), topology)
  # The GPU compiler compiles what does not fit, too.
  if topology.is_gpu and memory['peak'] > memory['available']:
    return report | out_of_memory(config, mesh, topology, memory['peak']), None
  text = compiled.as_text()
  program = hlo.Program(text)
  costs = compiled.cost_analysis()  # None for GPUs, whose matrix products are calls of libraries.
  return report | {
    'flops_per_device': int(costs['flops']) + program.loop_flops() if costs else None,
    # As if a loop ran once.
    'bytes_accessed_per_device': int(costs['bytes accessed']) if costs else None,
    'memory': memory,
    'compile_seconds': round(seconds, 1),
    **compiled_report.communication(program.collectives(mesh.size)),
    'error': None,
  }, text


def memory_needed(message: str) -> int | None:
  """Returns the bytes that an out-of-memory error of the TPU compiler asks for, or None for another error."""
  if 'RESOURCE_EXHAUSTED' not in message:
    return None
  # "Used 19.66G of 15.75G hbm", or "... required for HLO temporaries (2.93T) exceeds available HBM (15.75G)".
  found = re.search(r'Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm|\(([\d.]+)([KMGT]?)\) exceeds available HBM', message)
  if not found:
    return None
  number, unit = found[1] or found[3], found[2] or found[4]
  return int(float(number) * 1024 ** ' KMGT'.index(unit or ' '))


def out_of_memory(config: Config, mesh: jax.sharding.Mesh, topology: Topology, needed: int) -> dict[str, Any]:
  """Returns the report's entries on a program that does not fit: both numbers, and what can be done."""
  remedies = [f'microbatches (now {config.microbatches})']
  if not config.remat:
    remedies.append('remat=True')
  remedies += [f'mesh.fsdp (now {config.mesh.fsdp})', f'fewer clips a device (now {config.batch_size // mesh.size})']
  return {
    'memory': {'peak': needed, 'available': topology.memory},
    'error': (
      f'{topology.label}: the train step needs {needed / 2**30:.2f} GiB on each device, and one has '
      f'{topology.memory / 2**30:.2f} GiB: try {", ".join(remedies)}'
    ),
  }


def compilers() -> list[importlib.metadata.Distribution]:
  """Returns the installed packages that have a part in the compiled program."""
  names = ('jax', 'jaxlib', 'libtpu', 'jax-cuda13-plugin')
  return [package for name in names for package in importlib.metadata.distributions(name=name)]


if __name__ == '__main__':
  run_command(main)
