"""Log-mel spectrograms of 64 clips of 0.95 s and of 10 s, from int16.

ours: `selfie_jax.audio.log_mel`, whose FFT is in float64, as librosa's is; glibc keeps its memory, as
  `selfie_jax.train` tells it to.
PyTorch: the steps of torchaudio's MelSpectrogram and a logarithm, in float32; see torch_log_mel.py.
torchaudio: that class itself, where it can be imported.
One core: ours, and PyTorch with glibc told to keep its memory, because threads that wait for each other take
  CPU-seconds.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.benchmarks.rounds import MALLOC_TUNED, ONE_CORE, Way

NAME = 'log_mel'
UNIT = 'clips'
BATCH = 64
RATE = 16_000
SECONDS = (0.95, 10)
PEERS = ('PyTorch', 'torchaudio', 'PyTorch, glibc tuned, one core')
TARGETS = {f'{peer}, {seconds} s': 1.0 for peer in PEERS for seconds in SECONDS}


def ways(folder: Path) -> dict[str, Way]:
  """Ours and the peers, for each length."""
  del folder  # There is nothing to read.
  found = {}
  for seconds in SECONDS:
    peer, arguments = 'tests.benchmarks.parts.torch_log_mel', {'samples': round(RATE * seconds)}
    this, flops = 'tests.benchmarks.parts.log_mel:ours', flops_of(arguments['samples'])
    one_core = f'{ONE_CORE}, {seconds} s'
    found |= {
      f'ours, {seconds} s': Way(this, arguments, {}, f'{seconds} s', flops),
      f'PyTorch, {seconds} s': Way(f'{peer}:start', arguments, {}, f'{seconds} s', flops),
      f'torchaudio, {seconds} s': Way(f'{peer}:start_torchaudio', arguments, {}, f'{seconds} s', flops),
      f'ours, {one_core}': Way(this, arguments, {}, one_core, flops, cores=1),
      f'PyTorch, glibc tuned, {one_core}': Way(f'{peer}:start', arguments, MALLOC_TUNED, one_core, flops, cores=1),
    }
  return found


def flops_of(samples: int, n_fft: int = 1_024, hop: int = 160, filter_taps: int = 992) -> float:
  """Operations of a clip: window, a real FFT (5/2 n log2 n), squares, filters that overlap by half on 496 bins."""
  frame = n_fft + 2.5 * n_fft * np.log2(n_fft) + 3 * (n_fft // 2 + 1) + 2 * filter_taps
  return float((1 + samples // hop) * frame)


def clips(samples: int) -> np.ndarray:
  """Noise, int16."""
  return np.random.default_rng(0).integers(-8_000, 8_000, (BATCH, samples)).astype(np.int16)


def ours(samples: int) -> Callable[[], int]:
  """The compiled front-end."""
  import jax

  from selfie_jax.audio.log_mel import log_mel
  from selfie_jax.config import LogMel
  from selfie_jax.training.programs.host_memory import keep_freed_memory

  keep_freed_memory()
  function, audio = jax.jit(log_mel, static_argnums=1), jax.device_put(clips(samples))

  def work() -> int:
    function(audio, LogMel()).block_until_ready()
    return BATCH

  return work
