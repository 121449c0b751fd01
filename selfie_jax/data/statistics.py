"""Mean and standard deviation of a dataset's log-mel spectrograms, on the host."""

import concurrent.futures
import math
import warnings

import numpy as np
import threadpoolctl

from selfie_jax.config import LogMel
from selfie_jax.data.reader import ClipReader
from selfie_jax.terminal import progress

MAX_CLIPS = 10_000
_BLOCK_SECONDS = 30  # A long recording is taken in blocks: the spectrogram of an hour needs gigabytes.
_EPSILON = np.finfo(np.float32).eps


def log_mel_mean_and_std(clips: ClipReader, log_mel: LogMel, num_threads: int) -> tuple[float, float]:
  """Returns the mean and the standard deviation over all values of log(mel power + eps).

  At most `MAX_CLIPS` clips are taken, evenly spaced. Sums are float64, and those of the clips are added up exactly
  (`math.fsum`): the number of threads changes no bit. Threads will do, since NumPy lets go of the interpreter, and
  processes would each pay for importing librosa.
  """
  chosen = np.linspace(0, len(clips) - 1, min(len(clips), MAX_CLIPS), dtype=np.int64).tolist()
  # BLAS threads that wait for work by spinning would make all of this five times slower.
  one_blas_thread = threadpoolctl.threadpool_limits(1, user_api='blas')
  with one_blas_thread, warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
    warnings.filterwarnings('ignore', message='n_fft=')  # A clip shorter than the window is padded, and that is all.
    futures = [pool.submit(lambda i: sums_of_clip(clips[i]['audio'], log_mel), i) for i in chosen]
    try:
      sums = [future.result() for future in progress(futures, 'log-mel statistics', len(futures))]
    finally:
      pool.shutdown(cancel_futures=True)  # Or a Ctrl-C would wait for all of them.
  count, total, squares = map(math.fsum, zip(*sums))
  mean = total / count
  return mean, math.sqrt(max(squares / count - mean**2, 0.0))


def sums_of_clip(audio: np.ndarray, log_mel: LogMel) -> tuple[int, float, float]:
  """Returns the number of log-mel values of a clip, (samples,) int16, their sum and the sum of their squares."""
  block = _BLOCK_SECONDS * log_mel.sample_rate
  values = [log_mel_spectrogram(audio[i : i + block], log_mel) for i in range(0, len(audio), block)]
  return (
    sum(part.size for part in values),
    math.fsum(part.sum() for part in values),
    math.fsum(np.square(part).sum() for part in values),
  )


def log_mel_spectrogram(audio: np.ndarray, log_mel: LogMel) -> np.ndarray:
  """log(mel power + eps), (n_mels, frames) float64, of (samples,) int16: what `audio.log_mel` does on the device."""
  import librosa  # Slow to import, and needed only here.

  mel = librosa.feature.melspectrogram(
    y=audio.astype(np.float32) / 32_768,
    sr=log_mel.sample_rate,
    n_fft=log_mel.n_fft,
    hop_length=log_mel.hop_length,
    n_mels=log_mel.n_mels,
    fmin=log_mel.f_min,
    fmax=log_mel.f_max,
  )
  return np.log(mel.astype(np.float64) + _EPSILON)
