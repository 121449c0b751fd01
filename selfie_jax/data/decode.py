"""Any audio file as mono int16 at one sample rate.

soundfile (libsndfile) reads what it knows well: WAV in all its widths, FLAC, Ogg Vorbis and Opus, AIFF and more. PyAV
(FFmpeg) reads the rest: MP3, M4A, WebM, G.722, GSM, WMA, the sound of videos and more.
"""

from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

from selfie_jax.errors import UserError

_BLOCK_FRAMES = 1 << 16
_UNKNOWN_LENGTH = 2**63 - 1  # libsndfile's SF_COUNT_MAX, such as for a FLAC that was streamed to disk.


class DecodeError(UserError):
  """A file that cannot be read as audio. `reason` says why, without the file's name."""

  def __init__(self, path: str | Path, reason: str) -> None:
    super().__init__(path, reason)  # Both in `args`, or the error could not travel back from a worker process.
    self.reason = reason

  def __str__(self) -> str:
    return f'cannot read {self.args[0]}: {self.reason}'


class EmptyError(DecodeError):
  """A file of zero bytes, or an audio file of zero samples."""


def decode(path: str | Path, sample_rate: int = 16_000) -> np.ndarray:
  """Reads a file as the mean of its channels, resampled (soxr, HQ) and rounded to int16.

  A 16-bit mono file at `sample_rate` comes out bit for bit. Values beyond full scale are clipped, never wrapped.

  Args:
    path: an audio file, or a video with sound (its first audio stream is taken).
    sample_rate: samples per second of the result.

  Returns:
    (samples,) int16.

  Raises:
    EmptyError: the file holds no samples.
    DecodeError: it cannot be read, or breaks off early. (What a format cannot tell is not noticed: a WAV or an MP3 that
      was cut short passes for a short one, and so may an Ogg that lost a page.)
  """
  path = Path(path)
  try:
    if path.stat().st_size == 0:
      raise EmptyError(path, 'empty file (0 bytes)')
    audio, rate = _read_with_soundfile(path) or _read_with_ffmpeg(path)
  except OSError as error:
    raise DecodeError(path, error.strerror or type(error).__name__) from error
  if not audio.size:
    raise EmptyError(path, 'no samples')
  if not np.isfinite(audio).all():
    raise DecodeError(path, 'samples that are not finite numbers')
  if rate != sample_rate:
    audio = soxr.resample(audio, rate, sample_rate, quality='HQ')
  return np.clip(np.rint(audio * 32_768.0), -32_768, 32_767).astype(np.int16)


def _read_with_soundfile(path: Path) -> tuple[np.ndarray, int] | None:
  """Returns the mean of the channels, (frames,) float32, and the sample rate; None if it is a file for FFmpeg.

  Only a file that does not open goes on to FFmpeg. One that opens and then fails is damaged, and FFmpeg would read it
  without a word: it checks no CRC of a FLAC.
  """
  # Opened by descriptor: from a name, soundfile takes some endings for headerless formats.
  with open(path, 'rb') as stream:
    try:
      file = soundfile.SoundFile(stream.fileno(), closefd=False)
    except soundfile.LibsndfileError:
      return None
    with file:
      # libsndfile guesses the length of an MP3 that does not say it, and stops at anything between its frames.
      if file.format == 'MP3' or file.frames == _UNKNOWN_LENGTH:
        return None
      blocks = []
      try:
        while len(block := file.read(_BLOCK_FRAMES, dtype='float32', always_2d=True)):
          blocks.append(block.mean(axis=1))
      except soundfile.LibsndfileError as error:
        raise DecodeError(path, error.error_string.rstrip('.')) from error
      audio = _concatenate(blocks)
      if len(audio) < file.frames:
        raise DecodeError(path, f'breaks off after {len(audio)} of {file.frames} frames')
      return audio, file.samplerate


def _read_with_ffmpeg(path: Path) -> tuple[np.ndarray, int]:
  """Returns the mean of the channels, (frames,) float32, and the sample rate."""
  blocks = []
  rate = 0
  try:
    # 'file:' because FFmpeg takes what stands before a colon in a name for a protocol. Tags are often not UTF-8.
    with av.open(f'file:{path}', metadata_errors='ignore') as container:
      if not container.streams.audio:
        raise DecodeError(path, 'no audio in it')
      to_float = av.AudioResampler(format='fltp')
      for frame in container.decode(audio=0):
        rate = frame.sample_rate
        blocks += [block.to_ndarray().mean(axis=0) for block in to_float.resample(frame)]
  except (av.FFmpegError, ValueError) as error:  # ValueError: the channels or the rate change on the way.
    raise DecodeError(path, getattr(error, 'strerror', None) or str(error)) from error
  return _concatenate(blocks), rate


def _concatenate(blocks: list[np.ndarray]) -> np.ndarray:
  return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
