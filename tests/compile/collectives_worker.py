"""Compiles one program with every kind of collective, one of them in a loop, and prints how it was parsed.

Usage: collectives_worker.py cpu|TOPOLOGY NUM_SLICES OUTPUT. Writes {text, collectives} as JSON.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from selfie_jax.training import mesh as mesh_lib
from selfie_jax.training.programs import hlo, topology

ROUNDS = 5
AXES = mesh_lib.AXES


def exchange(x):
  """Each kind once a round in five rounds; the scope tells it from what stands outside the loop."""
  x = jax.lax.ppermute(x, 'fsdp', [(i, (i + 1) % 4) for i in range(4)])
  x = jax.lax.all_to_all(x, 'fsdp', split_axis=1, concat_axis=0, tiled=True).reshape(x.shape) * x
  gathered = jnp.tanh(jax.lax.all_gather(x, 'fsdp', tiled=True))
  x = jax.lax.psum_scatter(gathered, 'fsdp', scatter_dimension=0, tiled=True)
  return jnp.tanh(x) * jax.lax.psum(jnp.sin(x), AXES)


def program(x):
  with jax.named_scope('inside'):
    x, _ = jax.lax.scan(lambda carry, _: (exchange(carry), None), x, None, length=ROUNDS)
  # Two that XLA joins in one: they need not wait for each other.
  with jax.named_scope('first'):
    first = jax.lax.psum(jnp.cos(x), AXES)
  with jax.named_scope('second'):
    second = jax.lax.psum(jnp.sin(x).sum(0), AXES)
  # Nobody knows how often this one runs.
  with jax.named_scope('unknown'):
    x = jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x + jax.lax.pmax(x, AXES), x)
  return jax.lax.psum(x.sum(), AXES) + first.sum() + second.sum()


def main():
  name, num_slices, output = sys.argv[1:]
  if name == 'cpu':
    devices = jax.devices()
  else:
    topology.prepare_process()
    devices = topology.devices(topology.parse(name, int(num_slices)))
  mesh = mesh_lib.make_mesh(4, devices)
  rows = PartitionSpec(AXES)
  mapped = jax.shard_map(program, mesh=mesh, in_specs=rows, out_specs=PartitionSpec())
  x = jax.ShapeDtypeStruct((len(devices) * 16, 256), jnp.float32, sharding=NamedSharding(mesh, rows))
  text = jax.jit(mapped).lower(x).compile().as_text()
  collectives = [dataclasses.asdict(c) | {'bytes': c.bytes} for c in hlo.Program(text).collectives(len(devices))]
  Path(output).write_text(json.dumps({'text': text, 'collectives': collectives}))


if __name__ == '__main__':
  main()
