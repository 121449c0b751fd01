"""Compiles train steps for virtual devices and prints what they cost (started by a test); nothing is executed.

Reads a JSON list of `costs`' arguments from standard input, `config` in the nesting of a config file.
"""

import json
import re
import sys

import jax
import numpy as np

from selfie_jax import config as config_lib
from selfie_jax.from_mapping import from_mapping
from selfie_jax.training import mesh as mesh_lib
from selfie_jax.training.checkpointing.checkpoints import DataState
from selfie_jax.training.optimizer import make_optimizer
from selfie_jax.training.programs import hlo
from selfie_jax.training.state import abstract_state
from selfie_jax.training.step import make_train_step

TO_THE_HOST = ('infeed', 'outfeed', 'send', 'recv')


def costs(devices, config, is_compiled):
  """Counts a step's products in the program that is compiled or, in a second, in what the compiler is given."""
  config = from_mapping(config_lib.Config, config)
  optimizer = make_optimizer(config)
  mesh = mesh_lib.make_mesh(config.mesh.fsdp, jax.devices()[:devices])
  state = abstract_state(config, optimizer, mesh)
  rows = mesh_lib.batch_sharding(mesh)
  clips = jax.ShapeDtypeStruct((config.batch_size, config.crop_samples), np.int16, sharding=rows)
  data = DataState('', -5.0, 4.0, config.objective.variance_groups(devices))
  lowered = make_train_step(config, optimizer, mesh, data).lower(state, clips)
  if not is_compiled:
    return {'products': products(hlo.Program(lowered.as_text(dialect='hlo', debug_info=True)))}
  compiled = lowered.compile()
  text = compiled.as_text()
  program = hlo.Program(text)
  instructions = [instruction for computation in program.computations.values() for instruction in computation]
  memory = compiled.memory_analysis()
  return {
    'products': products(program),
    'flops': compiled.cost_analysis()['flops'] + program.loop_flops(),
    'bytes': compiled.cost_analysis()['bytes accessed'],
    'temporary_bytes': memory.temp_size_in_bytes,
    'donated_bytes': memory.alias_size_in_bytes,
    'state_bytes': sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    'host_transfers': [i.name for i in instructions if i.opcode.removesuffix('-done') in TO_THE_HOST],
    'calls_out': re.findall(r'custom_call_target="([^"]*)"', text),
    'float64_shapes': sorted(set(re.findall(r'\b(?:f64|c128)\[([\d,]*)\]', text))),
    'collectives': [
      [collective.kind, part.bytes // 4, part.op_name, collective.runs]
      for collective in program.collectives(devices)
      for part in collective.parts
    ],
  }


def products(program):
  return [[product.op_name, product.types, product.flops * product.runs] for product in program.products()]


if __name__ == '__main__':
  print(json.dumps([costs(**case) for case in json.load(sys.stdin)]))
