"""The memory that a step on CPUs computes in."""

import ctypes
import glob
import platform

import jax

# Device files of NVIDIA's and AMD's GPUs and of TPUs.
_ACCELERATORS = ('/dev/nvidia[0-9]*', '/dev/kfd', '/dev/accel*', '/dev/vfio/[0-9]*')
# Parameters of glibc's mallopt (malloc.h), and what they are set to.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_KEEP = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_ARENA_MAX: 1}  # -1: as an unsigned number, the greatest.


def keep_freed_memory() -> bool:
  """Has glibc keep what is freed, where there are only CPUs to compute on; returns whether it does.

  XLA takes all temporaries of a step in one piece and frees them after it. glibc gives so large a piece back to the
  kernel, and gets it anew as pages that have to be cleared one by one: a seventh of a step of AudioNTT. It keeps what
  threads of XLA free only if all threads share one arena; so it has to be called before JAX has devices. On hosts of
  accelerators the many threads that read and save are better off with an arena each.
  """
  only_cpus = jax.config.jax_platforms == 'cpu' or not any(map(glob.glob, _ACCELERATORS))
  if not only_cpus or platform.libc_ver()[0] != 'glibc':
    return False
  libc = ctypes.CDLL(None)
  return all([libc.mallopt(parameter, value) for parameter, value in _KEEP.items()])
