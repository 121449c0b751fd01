"""What this machine can do at best, measured as ways in the same rounds as what is compared with it.

A product of two large float32 matrices comes closest to a processor's peak; JAX and NumPy have libraries of their own
for it, and the better one of a round is that round's peak. Where a part's work is bound by memory, what counts is how
fast a large array is copied.
"""

from collections.abc import Callable

import numpy as np

from tests.benchmarks.rounds import Results, Way

SIZE = 2_048  # 48 MiB of matrices, 17 GFLOP a product.
COPIED_BYTES = 256 * 2**20  # Beyond all caches.
PRODUCTS = {
  'matrix product, JAX': Way('tests.benchmarks.peak:jax_product'),
  'matrix product, NumPy': Way('tests.benchmarks.peak:numpy_product'),
}
COPY = {'copy': Way('tests.benchmarks.peak:numpy_copy')}


def jax_product() -> Callable[[], int]:
  """Units are floating-point operations."""
  import jax

  a = jax.numpy.asarray(_matrix())
  product = jax.jit(lambda a: a @ a)

  def work() -> int:
    product(a).block_until_ready()
    return 2 * SIZE**3

  return work


def numpy_product() -> Callable[[], int]:
  """Units are floating-point operations."""
  a = _matrix()
  out = np.empty_like(a)

  def work() -> int:
    np.matmul(a, a, out=out)
    return 2 * SIZE**3

  return work


def numpy_copy() -> Callable[[], int]:
  """Units are bytes, read or written, of one thread."""
  source = np.ones(COPIED_BYTES, np.uint8)
  target = np.zeros_like(source)

  def work() -> int:
    np.copyto(target, source)
    return 2 * COPIED_BYTES

  return work


def of_rounds(results: Results) -> list[float]:
  """FLOP a CPU-second of the better matrix product, in each round; empty if there is none."""
  found = [results.per_cpu_second(name) for name in PRODUCTS if name in results.turns]
  return [max(values) for values in zip(*found, strict=True)]


def _matrix() -> np.ndarray:
  return np.random.default_rng(0).random((SIZE, SIZE), np.float32)
