"""How much host memory a save and a restore take, and how long, in multiples of the state's bytes.

  python -m tests.benchmarks.save_memory [--gigabytes 1.0] [--folder /tmp]

The state is a real one in its form: parameters and both of Adam's moments, float32, in arrays of `--array_megabytes`.
Each measurement has a process of its own, whose resident memory is looked at every 5 ms: growth is the peak less what
was there before. On a CPU the arrays themselves lie in host memory, so that a restore needs 1 x for
what it returns; what it needs above that is Orbax's. On an accelerator a restore's own arrays are not counted.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil


def main() -> None:
  """Prints one line for a save and one for a restore."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--gigabytes', type=float, default=1.0)
  parser.add_argument('--array_megabytes', type=float, default=32.0)
  parser.add_argument('--folder', type=Path, help='of the disk to save on')
  parser.add_argument('--measure', choices=('save', 'restore'), help='in this process (used by the command itself)')
  options = parser.parse_args()
  if options.measure:
    print(json.dumps(measure(options.measure, options.folder, options.gigabytes, options.array_megabytes)))
    return
  with tempfile.TemporaryDirectory(dir=options.folder) as folder:
    for what in ('save', 'restore'):
      command = [sys.executable, '-m', 'tests.benchmarks.save_memory', '--measure', what, '--folder', folder]
      command += ['--gigabytes', str(options.gigabytes), '--array_megabytes', str(options.array_megabytes)]
      found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
      print(
        f'{what}: state {found["bytes"] / 1e9:.2f} GB in {found["arrays"]} arrays, peak growth '
        f'{found["growth"] / 1e9:.2f} GB = {found["growth"] / found["bytes"]:.2f} x, {found["seconds"]:.1f} s '
        f'(of which the loop waits {found["blocking_seconds"]:.1f} s), {found["platform"]}'
      )


def measure(what: str, workdir: Path, gigabytes: float, array_megabytes: float) -> dict[str, float]:
  """Returns the growth of this process in bytes, and seconds, for one save or one restore."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from selfie_jax.config import Config
  from selfie_jax.training import mesh as mesh_lib
  from selfie_jax.training.checkpointing import checkpoints
  from selfie_jax.training.state import TrainState

  rows = round(array_megabytes * 2**20 / 4 / 1024)
  count = max(1, round(gigabytes * 1e9 / 3 / (rows * 1024 * 4)))
  replicated = mesh_lib.replicated(mesh_lib.make_mesh(1))
  data = checkpoints.DataState('fingerprint', -6.0, 4.0, variance_groups=1)
  shape = jax.ShapeDtypeStruct((rows, 1024), jnp.float32, sharding=replicated)
  tree = {'params': [shape] * count, 'mu': [shape] * count, 'nu': [shape] * count}
  template = TrainState(
    jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated), tree['params'], {}, (tree['mu'], tree['nu'])
  )
  if what == 'save':
    rng = np.random.default_rng(0)
    state = jax.tree.map(
      lambda leaf: jax.device_put(rng.normal(size=leaf.shape).astype(leaf.dtype), leaf.sharding), template
    )
    state = dataclasses.replace(state, step=jax.device_put(jnp.int32(1), replicated))
    jax.block_until_ready(state)
    checkpoints.make_record(1, state, {})  # Compiled once a run.
    with checkpoints.open_manager(workdir, Config()) as manager, Peak() as peak:
      begin = time.perf_counter()
      checkpoints.save(manager, 1, state, data, Config())
      blocking = time.perf_counter() - begin
      manager.wait_until_finished()
      seconds = time.perf_counter() - begin
  else:
    with Peak() as peak:
      begin = time.perf_counter()
      state, _ = checkpoints.restore(workdir, template, data)
      jax.block_until_ready(state)
      seconds = blocking = time.perf_counter() - begin
  leaves = jax.tree.leaves(state)
  return {
    'bytes': sum(leaf.nbytes for leaf in leaves),
    'arrays': len(leaves),
    'growth': peak.growth,
    'seconds': seconds,
    'blocking_seconds': blocking,
    'platform': jax.devices()[0].platform,
  }


class Peak:
  """Watches this process's resident memory."""

  def __enter__(self) -> 'Peak':
    self._process = psutil.Process()
    self._before = self._highest = self._process.memory_info().rss
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._watch)
    self._thread.start()
    return self

  def _watch(self) -> None:
    while not self._ended.wait(0.005):
      self._highest = max(self._highest, self._process.memory_info().rss)

  def __exit__(self, *_: object) -> None:
    self._ended.set()
    self._thread.join()

  @property
  def growth(self) -> int:
    """Bytes that the peak was above the beginning."""
    return self._highest - self._before


if __name__ == '__main__':
  main()
