"""Prints the GiB of each TPU generation's memory, as the compiler says when a program needs far more."""

import json
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from selfie_jax.training.programs import topology


def memory_gib(generation):
  sides = 'x'.join(['2', '2', '1'][: topology.GENERATIONS[generation].dimensions])
  devices = topology.devices(topology.parse(f'{generation}:{sides}'))
  mesh = jax.make_mesh((len(devices),), ('data',), axis_types=(AxisType.Auto,), devices=devices)
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  terabyte = jax.ShapeDtypeStruct((len(devices) * 1_024, 2**28), jnp.float32, sharding=sharding)
  try:
    jax.jit(jnp.sort).lower(terabyte).compile()
  except jax.errors.JaxRuntimeError as error:
    return float(re.search(r'available HBM \(([\d.]+)G\)', str(error))[1])


if __name__ == '__main__':
  topology.prepare_process()
  print(json.dumps({name: memory_gib(name) for name in topology.GENERATIONS}))
