"""Compiling the train step: once for all starts of a run, and before the loop, so that it can be timed."""

import contextlib
import dataclasses
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax._src import compilation_cache as jax_cache  # Where JAX asks for its cache: there is no public way to give one.
from jax._src.compilation_cache_interface import CacheInterface

from selfie_jax.config import Config
from selfie_jax.files import as_path, is_remote, write_atomically
from selfie_jax.terminal import console
from selfie_jax.training import mesh as mesh_lib
from selfie_jax.training.monitoring.performance import PEAK_FLOPS
from selfie_jax.training.programs import hlo
from selfie_jax.training.state import TrainState

_MOST_BYTES = 10 * 2**30  # Of a local cache: beyond them, what has not been used for longest goes.
_LEAST_SECONDS = 0.2  # To compile a program that is worth a file.
_TEMPORARY_SECONDS = 3_600.0  # After which a file that is not finished is taken for a killed process's.
_ENDING = '.program'


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """The train step of these shapes: call it with (state, clips)."""

  call: Callable
  seconds: float  # To compile it, or to read it from the cache.
  flops: float | None  # Of a step, on one device; None where they, or the device's peak, are not known.

  def __call__(self, state: TrainState, clips: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes a step."""
    return self.call(state, clips)


def compile_step(train_step: Callable, template: TrainState, config: Config, mesh: jax.sharding.Mesh) -> CompiledStep:
  """Compiles the train step, or reads it from the cache.

  Args:
    train_step: from `make_train_step`.
    template: shapes and shardings of the state.
    config: the run's configuration.
    mesh: the devices.
  """
  clips = jax.ShapeDtypeStruct(config.batch_shape, 'int16', sharding=mesh_lib.batch_sharding(mesh))
  start = time.perf_counter()
  compiled = train_step.lower(template, clips).compile()
  seconds = time.perf_counter() - start
  known = mesh.devices.flat[0].device_kind in PEAK_FLOPS  # Counting takes seconds, and else nobody asks.
  return CompiledStep(compiled, seconds, flops_of(compiled) if known else None)


def flops_of(compiled: jax.stages.Compiled) -> float | None:
  """Returns the floating-point operations of one call on one device, or None where the compiler does not say.

  A loop's body counts as often as it runs: the compiler itself counts it once. GPUs have no figure: there, matrix
  products are calls of libraries, which the compiler does not look into.
  """
  if jax.default_backend() == 'gpu':
    return None
  try:
    costs = compiled.cost_analysis()
    if isinstance(costs, list):  # One a partition, as some backends give them.
      costs = costs[0]
    once = float(costs['flops'])
    return once + hlo.Program(compiled.as_text()).loop_flops() if once > 0 else None
  except Exception:  # Each backend says in its own way that it does not know, and only a report hangs on it.
    return None


def use_cache(workdir: epath.Path) -> None:
  """Keeps compiled programs in `compilation_cache` beside the workdir, so that a restart does not compile again.

  A folder that JAX was told of (JAX_COMPILATION_CACHE_DIR, `jax.config`) is taken in its place. In an object store
  nothing is ever removed: let a rule of the bucket do it.
  """
  folder = jax.config.jax_compilation_cache_dir or os.fspath(_absolute(workdir).parent / 'compilation_cache')
  try:
    CheckedCache(folder)
  except Exception as error:  # Each store has its own.
    console.print(f'no compilation cache, a restart compiles again: cannot make {folder} ({error})')
    jax.config.update('jax_enable_compilation_cache', False)
    return
  jax.config.update('jax_compilation_cache_dir', folder)
  if is_remote(folder):  # XLA itself would keep the GPU kernels' tuning there, and knows local folders only.
    jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')
  if jax.config.jax_persistent_cache_min_compile_time_secs == 1.0:  # JAX's own choice, not the user's.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', _LEAST_SECONDS)
  # On several devices the Fourier transform's partitioning is a call back into JAX, whose address, another one in each
  # process, would be part of the key. What JAX does there depends on its version alone, which is in the key, too.
  jax.config.update('jax_remove_custom_partitioning_ptr_from_cache_key', True)
  jax_cache.get_file_cache = lambda path: (CheckedCache(path), path)
  jax_cache.reset_cache()  # What has been compiled before this line may have opened JAX's own.


def _absolute(workdir: epath.Path) -> epath.Path:
  return workdir if is_remote(workdir) else as_path(Path(workdir).resolve())


class CheckedCache(CacheInterface):
  """A folder of compiled programs that several processes and runs may share, each with a checksum.

  JAX's own cache writes a file in place and never over one that is there: what a killed process left of one stays for
  ever, and it has no checksum by which a byte that flipped would be noticed.
  """

  def __init__(self, folder: str) -> None:
    self._path = as_path(folder)  # JAX prints it.
    self._path.mkdir(parents=True, exist_ok=True)
    self._salt = _processor().encode() if jax.default_backend() == 'cpu' else b''

  def get(self, key: str) -> bytes | None:
    """Returns the program of this key, or None: there is none, or it is damaged."""
    path = self._file(key)
    try:
      data = path.read_bytes()
    except FileNotFoundError:
      return None
    size = hashlib.sha256().digest_size
    digest, program = data[:size], data[size:]
    if digest != self._digest(key, program):
      console.print(f'the compiled program {path} is damaged: compiling it again')
      path.unlink(missing_ok=True)
      return None
    if not is_remote(path):
      with contextlib.suppress(OSError):  # Another process may just have removed it, or own it.
        os.utime(path)
    return program

  def put(self, key: str, value: bytes) -> None:
    """Adds a program, and makes room for it. JAX turns an error into a warning: training needs no cache."""
    with write_atomically(self._file(key)) as file:
      file.write(self._digest(key, value) + value)
    if not is_remote(self._path):
      remove_oldest(Path(self._path), _MOST_BYTES)

  def _file(self, key: str) -> epath.Path:
    return self._path / f'{key}-{hashlib.sha256(self._salt).hexdigest()[:8]}{_ENDING}'

  def _digest(self, key: str, program: bytes) -> bytes:
    return hashlib.sha256(key.encode() + self._salt + program).digest()


def _processor() -> str:
  """Returns what the processor can do.

  A program compiled for one may end with SIGILL on another, and the key of JAX's cache says nothing of it.
  """
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return ' '.join(os.uname())
  return next((line for line in lines if line.startswith(('flags', 'Features'))), '')


def remove_oldest(folder: Path, most_bytes: int) -> None:
  """Removes the programs that have not been used for longest until the rest has at most so many bytes.

  Other processes may do so, and write, at the same time.
  """
  found: list[tuple[float, int, str]] = []
  with os.scandir(folder) as entries:
    for entry in entries:
      with contextlib.suppress(FileNotFoundError):
        facts: Any = entry.stat()
        if entry.name.endswith(_ENDING):
          found.append((facts.st_mtime, facts.st_size, entry.path))
        elif f'{_ENDING}.' in entry.name and time.time() - facts.st_mtime > _TEMPORARY_SECONDS:
          os.unlink(entry.path)  # What a killed process was writing.
  total = sum(size for _, size, _ in found)
  for _, size, path in sorted(found):
    if total <= most_bytes:
      break
    Path(path).unlink(missing_ok=True)
    total -= size
