"""The sound of a clip, wherever it lies."""

import tempfile

import numpy as np

from selfie_jax.data.clip import AudioFile, Clip, TfdsRecord
from selfie_jax.data.decode import DecodeError, decode
from selfie_jax.data.ranges import Range, read_ranges
from selfie_jax.files import is_remote

_IN_MEMORY_BYTES = 64 << 20  # What is larger is copied to a temporary file.
_COPY_BYTES = 16 << 20  # By blocks that an object store sends in time.


def read_sound(clip: Clip, sample_rate: int) -> np.ndarray:
  """Reads the segment that is asked for, (samples,) int16, at `sample_rate`; see `decode.decode`.

  Args:
    clip: one that is not missing its sound.
    sample_rate: samples per second of the result.

  Raises:
    EmptyError: its file holds no samples.
    DecodeError: its file cannot be read, has changed since it was listed, or ends before the segment starts.
    UserError: an object store does not answer. That says nothing about the file: the job must stop.
  """
  sound = clip.sound
  if isinstance(sound, TfdsRecord):
    from selfie_jax.data import tfds_source  # Not at the top: TFDS is there for those who read its datasets.

    return tfds_source.read_record(sound, sample_rate)
  if sound.tar_offset is None and not is_remote(sound.path):
    return decode(sound.path, sample_rate, clip.start, clip.seconds)
  try:
    if sound.size <= _IN_MEMORY_BYTES:
      return decode(_read(sound, 0, sound.size), sample_rate, clip.start, clip.seconds)
    with tempfile.NamedTemporaryFile() as file:
      for start in range(0, sound.size, _COPY_BYTES):
        file.write(_read(sound, start, min(_COPY_BYTES, sound.size - start)))
      file.flush()
      return decode(file.name, sample_rate, clip.start, clip.seconds)
  except DecodeError as error:  # Named after where it lies, not after the copy.
    raise type(error)(place_of(sound), error.reason) from error


def _read(sound: AudioFile, start: int, length: int) -> bytes:
  (data,) = read_ranges([Range(sound.path, (sound.tar_offset or 0) + start, length)])
  if isinstance(data, OSError):
    raise DecodeError(place_of(sound), data.strerror or type(data).__name__) from data
  if len(data) < length:
    raise DecodeError(place_of(sound), f'had {sound.size} bytes when it was listed and has {start + len(data)} now')
  return data


def place_of(sound: AudioFile) -> str:
  """Returns how a person is told where a sound lies."""
  return sound.path if sound.tar_offset is None else f'{sound.path} at byte {sound.tar_offset}'
