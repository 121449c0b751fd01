"""Prints, as JSON, two views of a batch on meshes of 1, 2 and 8 devices (started by a test)."""

import json
import re

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from selfie_jax.audio.augment import group_partners, two_views
from selfie_jax.audio.log_mel import log_mel
from selfie_jax.config import Augment, LogMel

AUGMENT = Augment(mixup_group=4, equalizer=0.5, noise=0.2)


def views(key, audio):
  x = log_mel(audio, LogMel())
  return two_views(key, (x + 6) / 5, (x + 6) / 5, AUGMENT)


def partners(key, numbers):
  return group_partners(numbers, jax.random.uniform(key, (len(numbers),)), AUGMENT.mixup_group)


def main():
  audio = np.random.default_rng(0).integers(-8_000, 8_000, (32, 1_600)).astype(np.int16)
  numbers = np.arange(32.0, dtype=np.float32).reshape(-1, 1, 1)
  key = jax.random.key(0)
  results = []
  for devices in (1, 2, 8):
    mesh = jax.make_mesh((devices,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    rows, replicated = NamedSharding(mesh, PartitionSpec('data')), NamedSharding(mesh, PartitionSpec())
    function = jax.jit(views, in_shardings=(replicated, rows), out_shardings=rows)
    compiled = function.lower(key, audio).compile()
    collectives = re.findall(r'all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter', compiled.as_text())
    random = jax.jit(partners, in_shardings=(replicated, rows), out_shardings=rows)(key, numbers)
    results.append(
      {
        'devices': devices,
        'collectives': sorted(set(collectives)),
        'random': np.asarray(random).ravel().tolist(),
        'views': np.stack(function(key, audio)).tolist(),
      }
    )
  print(json.dumps(results))


if __name__ == '__main__':
  main()
