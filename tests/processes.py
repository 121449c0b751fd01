"""Runs commands of the project in processes of their own, as a user would."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPILATION_CACHE = 'SELFIE_TESTS_COMPILATION_CACHE'  # The environment variable that conftest.py sets.
# LLVM's optimisations would double the time that programs take to compile, and small ones hardly gain. The tests' own
# processes have them, as users' have; of those that tests start, the ones that ask for `OPTIMIZED`.
FAST_TO_COMPILE = '--xla_backend_optimization_level=0'
OPTIMIZED = '--xla_backend_optimization_level=3'  # XLA's own choice.


def environment(devices=1, compiler=FAST_TO_COMPILE, **extra):
  """The environment of a process with `devices` virtual CPU devices."""
  # The same program is compiled once, not by each of the processes that the tests start.
  cache = {}
  if COMPILATION_CACHE in os.environ:
    cache['JAX_COMPILATION_CACHE_DIR'] = os.environ[COMPILATION_CACHE]
    cache['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'{compiler} --xla_force_host_platform_device_count={devices}',
    'PYTHONPATH': str(ROOT),
    'TF_CPP_MIN_LOG_LEVEL': '3',
    **cache,
    **extra,
  }


def run_python(*arguments, devices=1, check=True, timeout=900, input=None, compiler=FAST_TO_COMPILE, **extra):
  """Runs `python *arguments` from the repository's root and returns the finished process with its output as text."""
  result = subprocess.run(
    [sys.executable, *map(str, arguments)],
    cwd=ROOT,
    env=environment(devices, compiler, **extra),
    capture_output=True,
    text=True,
    timeout=timeout,
    input=input,
  )
  if check and result.returncode:
    raise AssertionError(f'{arguments} ended with {result.returncode}:\n{result.stderr[-4000:]}')
  return result
