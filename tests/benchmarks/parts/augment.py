"""Two views of z-scored log-mel spectrograms (64 x 96): mixup, random resize crop and linear fader; batches of 64.

ours: `selfie_jax.audio.augment.two_views`, compiled; glibc keeps its memory, as `selfie_jax.train` tells it to.
PyTorch: BYOL-A v2's published recipe for one example after the other, as a Dataset in a loader's worker process makes
  them; see torch_views.py. As it comes, and with glibc told to keep its memory.
One core: ours and the latter once more, because threads that wait for each other take CPU-seconds.
"""

from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.rounds import MALLOC_TUNED, ONE_CORE, Way

NAME = 'augment'
UNIT = 'pairs'
TARGETS = {'PyTorch': 5.0, 'PyTorch, glibc tuned': 5.0, 'PyTorch, glibc tuned, one core': 5.0}


def ways(folder: Path) -> dict[str, Way]:
  """Ours, and the peer's two."""
  del folder  # There is nothing to read.
  peer, shape = 'tests.benchmarks.parts.torch_views:start', {'batch_size': 64, 'n_mels': 64, 'frames': 96}
  this = 'tests.benchmarks.parts.augment:ours'
  return {
    'ours': Way(this, shape),
    'PyTorch': Way(peer, shape),
    'PyTorch, glibc tuned': Way(peer, shape, MALLOC_TUNED),
    'ours, one core': Way(this, shape, {}, ONE_CORE, cores=1),
    'PyTorch, glibc tuned, one core': Way(peer, shape, MALLOC_TUNED, ONE_CORE, cores=1),
  }


def ours(batch_size: int, n_mels: int, frames: int) -> Callable[[], int]:
  """The compiled augmentations; each batch has a random key of its own."""
  import jax
  import jax.numpy as jnp

  from selfie_jax.audio.augment import two_views
  from selfie_jax.config import Augment
  from selfie_jax.training.programs.host_memory import keep_freed_memory

  keep_freed_memory()

  @jax.jit
  def views(step: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return step + 1, *two_views(jax.random.fold_in(jax.random.key(0), step), x, x, Augment())

  x = jax.random.normal(jax.random.key(1), (batch_size, n_mels, frames))
  step = jnp.zeros((), jnp.int32)

  def work() -> int:
    nonlocal step
    for _ in range(16):  # A batch takes milliseconds: too short for a call.
      step, first, second = views(step, x)
      jax.block_until_ready((first, second))
    return 16 * batch_size

  return work
