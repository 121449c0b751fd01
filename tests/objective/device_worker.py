"""Prints, as JSON, the objective and its gradients on meshes of 1, 2, 4 and 8 devices (started by a test)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from selfie_jax.config import Objective
from selfie_jax.objective.objective import objective


def main():
  rng = np.random.default_rng(0)
  results = []
  for n, d in ((48, 20), (16, 40)):
    z1 = rng.standard_normal((n, d)).astype(np.float32)
    z2 = (0.5 * z1 + rng.standard_normal((n, d))).astype(np.float32)
    for devices in (1, 2, 4, 8):
      mesh = jax.make_mesh((devices,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
      rows = NamedSharding(mesh, PartitionSpec('data'))
      for groups in sorted({1, devices}):
        function = jax.jit(
          jax.value_and_grad(lambda a, b, groups=groups: objective(a, b, Objective(), groups)[0], argnums=(0, 1)),
          in_shardings=(rows, rows),
        )
        loss, gradients = function(jax.device_put(z1, rows), jax.device_put(z2, rows))
        results.append(
          {
            'devices': devices,
            'groups': groups,
            'views': [z1.tolist(), z2.tolist()],
            'loss': float(loss),
            'gradients': [jnp.asarray(g).tolist() for g in gradients],
          }
        )
  print(json.dumps(results))


if __name__ == '__main__':
  main()
