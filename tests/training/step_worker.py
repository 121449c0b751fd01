"""Takes real training steps on meshes of virtual devices and prints what came of them (started by tests).

Reads a JSON list of cases from standard input: `run`'s arguments, `config` in the nesting of a config file.
"""

import json
import sys

import jax
import numpy as np

from selfie_jax import config as config_lib
from selfie_jax import health
from selfie_jax.from_mapping import from_mapping
from selfie_jax.models import vit
from selfie_jax.training import mesh as mesh_lib
from selfie_jax.training.checkpointing.checkpoints import DataState
from selfie_jax.training.health import make_health_step
from selfie_jax.training.optimizer import make_optimizer
from selfie_jax.training.programs import hlo
from selfie_jax.training.state import Weights, abstract_state, init_state
from selfie_jax.training.step import make_train_step

vit.SIZES['of two blocks'] = (96, 2, 3)  # Twelve would be compiled for half a minute.


def run(devices, steps, groups, config, measure_health, optimize):
  config = from_mapping(config_lib.Config, config)
  optimizer = make_optimizer(config)
  mesh = mesh_lib.make_mesh(config.mesh.fsdp, jax.devices()[:devices])
  mesh_lib.check_batch(config, mesh.size)
  template = abstract_state(config, optimizer, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
  state = jax.jit(lambda: init_state(config, optimizer), out_shardings=shardings)() if steps else template
  rows = mesh_lib.batch_sharding(mesh)
  clips = jax.ShapeDtypeStruct((config.batch_size, config.crop_samples), np.int16, sharding=rows)
  data = DataState('', -5.0, 4.0, groups)
  options = {'xla_backend_optimization_level': 3 if optimize else 0}
  step = make_train_step(config, optimizer, mesh, data).lower(template, clips).compile(compiler_options=options)
  rng = np.random.default_rng(0)
  lines, representations = [], None
  for _ in range(steps):
    pitch = rng.uniform(0.01, 1.0, (config.batch_size, 1))
    audio = np.sin(pitch * np.arange(config.crop_samples)) * rng.uniform(100, 10_000, (config.batch_size, 1))
    audio = mesh_lib.to_devices(audio.astype(np.int16), rows)
    # Of the first state: Adam's first step makes 0.1 % of what is rounding alone (of the biases before normalisations).
    if measure_health and not lines:
      representations = np.asarray(make_health_step(config, mesh, data)(state, audio))
    average = jax.device_get(state.average)
    state, metrics = step(state, audio)
    if average is not None:
      metrics = metrics | averaging(average, state, config.average.decay)
    lines.append({name: float(value) for name, value in metrics.items()})
  memory = step.memory_analysis()
  return {
    'metrics': lines,
    'health': health.summarize(*representations) if measure_health else {},
    'cut': sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state)),
    'argument_bytes': memory.argument_size_in_bytes,
    'temporary_bytes': memory.temp_size_in_bytes,
    'computes_in_bfloat16': 'bf16' in step.as_text(),
    'collectives': [
      [collective.kind, part.shape, part.op_name, collective.runs]
      for collective in hlo.Program(step.as_text()).collectives(devices)
      for part in collective.parts
    ],
  }


def averaging(before, state, decay):
  """By how much a moving average moved, at most, and how far it is from where it should be, in float64 NumPy."""
  trees = jax.device_get((before, Weights(state.params, state.batch_stats), state.average))
  leaves = [list(map(np.float64, jax.tree.leaves(tree))) for tree in trees]
  old_new_ours = list(zip(*leaves, strict=True))
  return {
    'moved': max(np.abs(ours - old).max() for old, _, ours in old_new_ours),
    'misplaced': max(np.abs(ours - (decay * old + (1 - decay) * new)).max() for old, new, ours in old_new_ours),
  }


if __name__ == '__main__':
  print(json.dumps([run(**case) for case in json.load(sys.stdin)]))
