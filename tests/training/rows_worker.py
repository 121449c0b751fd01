"""Checks that device i holds the i-th block of a batch's rows on every mesh of 8 devices (started by a test)."""

import jax
import numpy as np

from selfie_jax.training import mesh as mesh_lib


def main():
  rows = np.arange(16)
  for fsdp in (1, 2, 4, 8):
    # Devices given in any order end up in that of their processes.
    mesh = mesh_lib.make_mesh(fsdp, jax.devices()[::-1])
    assert dict(mesh.shape) == {'data': 8 // fsdp, 'fsdp': fsdp}
    batch = mesh_lib.to_devices(rows, mesh_lib.batch_sharding(mesh))
    for shard in batch.addressable_shards:
      assert np.asarray(shard.data).tolist() == [2 * shard.device.id, 2 * shard.device.id + 1]


if __name__ == '__main__':
  main()
