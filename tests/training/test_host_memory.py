"""In processes of their own: what glibc was told once holds for all of a process."""

import platform
import types

import pytest

from selfie_jax.training.programs import host_memory
from tests.processes import run_python

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='there is no glibc to tell anything')

# A thread as XLA's takes memory for a step, and gives it back, twice.
PROGRAM = """
import ctypes, resource, threading
from selfie_jax.training.programs import host_memory
assert host_memory.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def take(size=200_000_000):
  block = libc.malloc(size)
  ctypes.memset(block, 1, size)
  libc.free(block)

for _ in range(2):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  thread = threading.Thread(target=take)
  thread.start()
  thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_that_a_step_has_freed_is_there_for_the_next_one():
  """Without a page fault for each of its pages, of which there are 49,000."""
  assert int(run_python('-c', PROGRAM, JAX_PLATFORMS='cpu', GLIBC_TUNABLES='').stdout) < 1_000


def test_hosts_of_accelerators_are_left_alone(monkeypatch, tmp_path):
  (tmp_path / 'nvidia0').touch()
  nothing_asked_for = types.SimpleNamespace(config=types.SimpleNamespace(jax_platforms=None))
  monkeypatch.setattr(host_memory, 'jax', nothing_asked_for)
  monkeypatch.setattr(host_memory, '_ACCELERATORS', (str(tmp_path / 'nvidia[0-9]*'),))
  assert not host_memory.keep_freed_memory()
