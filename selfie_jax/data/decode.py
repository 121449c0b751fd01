"""Any audio file, or a segment of one, as mono int16 at one sample rate.

soundfile (libsndfile) reads what it knows well: WAV in all its widths, FLAC, Ogg Vorbis and Opus, AIFF and more. PyAV
(FFmpeg) reads the rest: MP3, M4A, WebM, G.722, GSM, WMA, the sound of videos and more.
"""

import contextlib
import functools
import io
import itertools
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import soundfile

from selfie_jax.audio.waveforms import to_int16
from selfie_jax.errors import UserError

# A file that is longer than the segment by no more than this holds the segment alone: encoders and cutting tools add
# some milliseconds, and people cut at whole seconds.
SPARE_SECONDS = 1.0

_BLOCK_FRAMES = 1 << 16
_UNKNOWN_LENGTH = 2**63 - 1  # libsndfile's SF_COUNT_MAX, such as for a FLAC that was streamed to disk.
# A chunk's name and size, by a file's first four bytes and those behind its size.
_CHUNKS = {
  (b'RIFF', b'WAVE'): '<4sI',
  (b'RIFX', b'WAVE'): '>4sI',
  (b'FORM', b'AIFF'): '>4sI',
  (b'FORM', b'AIFC'): '>4sI',
}
# What goes through a pipe is written before its size is known: FFmpeg writes the largest number, SoX about half of it.
_STREAMED = 0x7FFFF000
_HEADER = 44  # Bytes, of a WAV.
# Where each sample is stored by itself, or each block of them (FLAC), a seek gives the samples that reading up to there
# gives. Codecs that carry over something from block to block do not: Opus and Vorbis are other samples after a seek.
_SEEKABLE = ('PCM_', 'FLOAT', 'DOUBLE', 'ULAW', 'ALAW')


class DecodeError(UserError):
  """A file that cannot be read as audio. `reason` says why, without the file's name."""

  def __init__(self, path: str | Path, reason: str) -> None:
    super().__init__(path, reason)  # Both in `args`, or the error could not travel back from a worker process.
    self.reason = reason

  def __str__(self) -> str:
    return f'cannot read {self.args[0]}: {self.reason}'


class EmptyError(DecodeError):
  """A file of zero bytes, or an audio file of zero samples."""


def decode(
  source: str | Path | bytes, sample_rate: int = 16_000, start: float | None = None, seconds: float | None = None
) -> np.ndarray:
  """Reads a file, or a segment of it, as the mean of its channels, resampled (soxr, HQ) and rounded to int16.

  A 16-bit mono file at `sample_rate` comes out bit for bit. Values beyond full scale are clipped, never wrapped. Of a
  recording of any length no more than the segment and a second is held, and nothing behind the segment is decoded.

  Args:
    source: the path of an audio file, or of a video with sound (its first audio stream is taken); or such a file's
      bytes.
    sample_rate: samples per second of the result.
    start: where the segment starts, in seconds, if the file is longer than `seconds` and `SPARE_SECONDS`; one that is
      no longer holds the segment alone, from its first sample on. None: every file does.
    seconds: the length of the segment; None: the whole file, and then `start` must be None.

  Returns:
    (samples,) int16, of `seconds` or less where the file ends.

  Raises:
    EmptyError: the file holds no samples.
    DecodeError: it cannot be read, breaks off early, or ends before the segment starts. (What a format cannot tell is
      not noticed: an MP3 that was cut short passes for a short one, and so may an Ogg that lost a page.)
  """
  name = f'{len(source)} bytes' if isinstance(source, bytes) else Path(source)
  try:
    if not (len(source) if isinstance(source, bytes) else name.stat().st_size):
      raise EmptyError(name, 'empty file (0 bytes)')
    audio, rate = _read_with_soundfile(source, start, seconds) or _read_with_ffmpeg(source, start, seconds)
    if not audio.size:
      raise EmptyError(name, 'no samples')
    if not np.isfinite(audio).all():
      raise DecodeError(name, 'samples that are not finite numbers')
  except _ReadError as error:
    raise DecodeError(name, str(error)) from error
  except OSError as error:
    raise DecodeError(name, error.strerror or type(error).__name__) from error
  samples = to_int16(audio, rate, sample_rate)
  if seconds is not None:
    samples = samples[: round(seconds * sample_rate)]  # Resampling rounds up.
  if not samples.size:
    raise EmptyError(name, f'less than a sample at {sample_rate} Hz')
  return samples


class _ReadError(Exception):
  """What is wrong with a file."""


def _read_with_soundfile(
  source: str | Path | bytes, start: float | None, seconds: float | None
) -> tuple[np.ndarray, int] | None:
  """Returns the mean of the channels, (frames,) float32, and the sample rate; None if it is a file for FFmpeg.

  Only a file that does not open goes on to FFmpeg. One that opens and then fails is damaged, and FFmpeg would read it
  without a word: it checks no CRC of a FLAC.
  """
  with contextlib.ExitStack() as stack:
    # Unbuffered: libsndfile begins to read where the descriptor stands.
    stream = _Bytes(source) if isinstance(source, bytes) else stack.enter_context(open(source, 'rb', buffering=0))
    _check_whole(stream)
    # libsndfile guesses the length of an MP3 that does not say it, stops at anything between its frames, and prints
    # warnings.
    if _is_mp3(stream):
      return None
    try:
      # By descriptor: from a name, soundfile takes some endings for headerless formats.
      opened = stream if isinstance(source, bytes) else stream.fileno()
      file = stack.enter_context(soundfile.SoundFile(opened, closefd=False))
    except soundfile.LibsndfileError:
      return None
    if file.format == 'MP3' or file.frames == _UNKNOWN_LENGTH:
      return None
    try:
      if seconds is not None and start is not None and file.subtype.startswith(_SEEKABLE):
        begin = 0 if _alone(file.frames, file.samplerate, seconds) else round(start * file.samplerate)
        if begin >= file.frames:
          raise _too_late(file.frames / file.samplerate, start)
        file.seek(begin)
        start = None
      return _cut(_blocks_of(file), file.samplerate, start, seconds), file.samplerate
    except soundfile.LibsndfileError as error:
      raise _ReadError(error.error_string.rstrip('.')) from error


class _Bytes(io.BytesIO):
  """Refuses what cannot be, as a file does: an exception within libsndfile would be printed, and then ignored."""

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    try:
      return super().seek(offset, whence)
    except (ValueError, OverflowError):  # Before the start; damaged headers lead there.
      return -1


def _check_whole(stream: BinaryIO) -> None:
  """Checks that a WAV or AIFF has the sound its header announces: libsndfile takes one that breaks off for shorter.

  Leaves the stream at its start.
  """
  size = stream.seek(0, os.SEEK_END)
  stream.seek(0)
  container, _, form = struct.unpack('4s4s4s', stream.read(12).ljust(12))
  known = (container, form) in _CHUNKS
  while known and len(head := stream.read(8)) == 8:
    name, announced = struct.unpack(_CHUNKS[container, form], head)
    if name in (b'data', b'SSND'):
      found = size - stream.tell()
      # Programs forget the byte that fills an odd number up, some count it, and some count the header.
      if found + _HEADER < announced < _STREAMED:
        raise _ReadError(f'breaks off after {found:,} of the {announced:,} bytes of sound that its header announces')
      break
    stream.seek(announced + announced % 2, os.SEEK_CUR)
  stream.seek(0)


def _is_mp3(stream: BinaryIO) -> bool:
  """True of MPEG audio, by the mark of its first frame behind any ID3 tags. Leaves the stream at its start."""
  start = stream.read(10)
  while start.startswith(b'ID3') and len(start) == 10:
    size = functools.reduce(lambda size, byte: size << 7 | byte & 0x7F, start[6:], 0)
    stream.seek(size, os.SEEK_CUR)
    start = stream.read(10)
  stream.seek(0)
  return len(start) > 1 and start[0] == 0xFF and start[1] >= 0xE0


def _blocks_of(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
  """Yields the mean of the channels, (frames,) float32, from the current position on."""
  position = file.tell() if file.seekable() else 0  # GSM and G.72x are not.
  while len(block := file.read(_BLOCK_FRAMES, dtype='float32', always_2d=True)):
    position += len(block)
    yield block.mean(axis=1)
  if position < file.frames:
    raise _ReadError(f'breaks off after {position} of {file.frames} frames')


def _read_with_ffmpeg(source: str | Path | bytes, start: float | None, seconds: float | None) -> tuple[np.ndarray, int]:
  """Returns the mean of the channels, (frames,) float32, and the sample rate.

  Decodes from the start and never seeks: a seek is as exact as the file's own index, or a guess where it has none.
  """
  # 'file:' because FFmpeg takes what stands before a colon in a name for a protocol. Tags are often not UTF-8.
  opened = io.BytesIO(source) if isinstance(source, bytes) else f'file:{source}'
  try:
    with av.open(opened, metadata_errors='ignore') as container:
      if not container.streams.audio:
        raise _ReadError('no audio in it')
      frames = container.decode(audio=0)
      first = next(frames, None)
      if first is None:
        return np.zeros(0, np.float32), 0
      # Interleaved: of more than 8 channels in planes, which a damaged header may well claim, PyAV reads stray memory.
      to_float = av.AudioResampler(format='flt')
      blocks = (
        block.to_ndarray().reshape(-1, block.layout.nb_channels).mean(axis=1)
        for frame in itertools.chain([first], frames)
        for block in to_float.resample(frame)
      )
      return _cut(blocks, first.sample_rate, start, seconds), first.sample_rate
  except (av.FFmpegError, ValueError) as error:  # ValueError: the channels or the rate change on the way.
    raise _ReadError(getattr(error, 'strerror', None) or str(error)) from error


def _cut(blocks: Iterable[np.ndarray], rate: int, start: float | None, seconds: float | None) -> np.ndarray:
  """Returns the segment of a file that is read from its start; see `decode`. Takes no more blocks than it needs.

  How long the file is tells the end of the blocks alone: headers lie, and some say nothing.
  """
  if seconds is None:
    return _concatenate(list(blocks))
  begin, length = round((start or 0) * rate), round(seconds * rate)
  head: list[np.ndarray] = []  # What the file holds as long as it may be the segment alone.
  segment: list[np.ndarray] = []
  position = 0
  for block in blocks:
    if _alone(position, rate, seconds):
      head.append(block)
    if position + len(block) > begin:
      segment.append(block[max(begin - position, 0) : max(begin + length - position, 0)])
    position += len(block)
    if position >= begin + length and (start is None or not _alone(position, rate, seconds)):
      break
  if start is None or not _alone(position, rate, seconds):
    if begin >= position > 0:
      raise _too_late(position / rate, start)
    return _concatenate(segment)
  return _concatenate(head)[:length]


def _alone(frames: int, rate: int, seconds: float) -> bool:
  """True of a file that, by its length, holds the segment alone."""
  return frames <= (seconds + SPARE_SECONDS) * rate


def _too_late(file_seconds: float, start: float) -> _ReadError:
  return _ReadError(f'ends after {file_seconds:.3f} s, before the segment starts at {start:g} s')


def _concatenate(blocks: list[np.ndarray]) -> np.ndarray:
  return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
