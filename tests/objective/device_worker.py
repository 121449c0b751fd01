"""Writes what the objective gives on several meshes, and the programs' collectives (started by a test).

Usage: device_worker.py OUTPUT [PORT COUNT INDEX]. OUTPUT.npz gets losses, metrics and gradients, OUTPUT.json the
collectives. With the last three it is one of COUNT processes and takes the few cases for those; process 0 writes.
"""

import json
import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from selfie_jax.objective import off_diagonal
from selfie_jax.objective.objective import objective
from tests.objective import cases, hlo


def evaluate(case, mesh):
  """Returns the loss, the metrics and the gradients of `case` on `mesh`, and a summary of the compiled program."""
  off_diagonal.MAX_REPLICATED_WIDTH = case.max_replicated_width
  rows, replicated = NamedSharding(mesh, PartitionSpec(('data', 'fsdp'))), NamedSharding(mesh, PartitionSpec())

  def loss(z1, z2):
    return objective(z1, z2, case.objective, case.groups_on(mesh.size), mesh)

  function = jax.jit(
    jax.value_and_grad(loss, argnums=(0, 1), has_aux=True),
    in_shardings=(rows, rows),
    # Several processes can only read what all of them have.
    out_shardings=(replicated, rows if jax.process_count() == 1 else replicated),
  )
  views = [jax.make_array_from_callback(z.shape, rows, lambda index, z=z: z[index]) for z in case.views()]
  compiled = function.lower(*views).compile()
  (value, metrics), gradients = jax.device_get(compiled(*views))
  return {'loss': value, 'gradients': np.stack(gradients), **metrics}, hlo.summary(
    compiled.as_text(), jax.process_count() > 1
  )


def main(output, *process):
  plan = [((4, 2), cases.PRESET_CASES + cases.OTHER_CASES)]
  plan += [((num_devices, 1), cases.COUNTED_CASES) for num_devices in (1, 2, 4)]
  plan += [((8, 1), cases.COUNTED_CASES[:2])]
  if process:
    port, count, index = map(int, process)
    jax.distributed.initialize(f'127.0.0.1:{port}', count, index)
    plan = [((jax.device_count(), 1), cases.PROCESS_CASES)]
  arrays, programs = {}, {}
  for shape, mesh_cases in plan:
    devices = jax.devices()[: shape[0] * shape[1]]
    mesh = jax.make_mesh(shape, ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2, devices=devices)
    for case in mesh_cases:
      name = f'{shape[0]}x{shape[1]}/{case.name}'
      values, programs[name] = evaluate(case, mesh)
      arrays |= {f'{name}/{key}': value for key, value in values.items()}
  if jax.process_index() == 0:
    np.savez(f'{output}.npz', **arrays)
    with open(f'{output}.json', 'w') as file:
      json.dump(programs, file)


if __name__ == '__main__':
  main(*sys.argv[1:])
