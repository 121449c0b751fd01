"""Finding and decoding the recordings of an unpacked package.

The samples are those that the study's records rest on: soundfile's, the mean of the channels, resampled by scipy.
`selfie_jax.data.decode` resamples by soxr and rounds, which gives others; it reads only what soundfile cannot.
"""

import io
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from selfie_jax.data import decode as project_decode

SAMPLE_RATE = 16_000

_SUFFIXES = ('.aif', '.aiff', '.au', '.flac', '.g722', '.mp3', '.oga', '.ogg', '.opus', '.wav')
_G722 = '.g722'  # Recorded at 16 kHz.


def find_recordings(folder: Path, suffixes: Collection[str] = _SUFFIXES) -> list[Path]:
  """Returns the files in `folder` and below with these endings, of any case, by their folder and then by their name.

  Links are left out: they lead to recordings that are found anyway.
  """
  found = [path for path in folder.rglob('*') if path.suffix.lower() in suffixes]
  return sorted(
    (path for path in found if path.is_file() and not path.is_symlink()),
    key=lambda path: (str(path.parent), path.name),
  )


def decode(source: Path | bytes) -> np.ndarray:
  """Returns a recording as (samples,) float32 at 16 kHz, its peak at 1 where it would be above.

  What cannot be read has no samples: packages ship some broken files, and clips that are too short are left out.

  Args:
    source: an audio file, or the bytes of one.
  """
  try:
    if isinstance(source, Path) and source.suffix.lower() == _G722:
      return project_decode.decode(source, SAMPLE_RATE).astype(np.float32) / 32_768
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    channels, rate = soundfile.read(file, dtype='float32', always_2d=True)
  except (soundfile.SoundFileError, project_decode.DecodeError):
    return np.zeros(0, np.float32)
  return _limit(resample(channels.mean(axis=1), rate))


def resample(sound: np.ndarray, rate: int) -> np.ndarray:
  """Returns `sound`, (samples,) at `rate` per second, as float32 at 16 kHz."""
  if rate == SAMPLE_RATE or not sound.size:
    return sound.astype(np.float32)
  divisor = math.gcd(rate, SAMPLE_RATE)
  return resample_poly(sound, SAMPLE_RATE // divisor, rate // divisor).astype(np.float32)


def _limit(sound: np.ndarray) -> np.ndarray:
  peak = np.abs(sound).max(initial=0)
  return sound / peak if peak > 1 else sound
