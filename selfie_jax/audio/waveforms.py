"""Waveforms that people hand over, in memory: checked, and brought to what a decoded file is."""

import math
from collections.abc import Sequence

import numpy as np
import soxr

from selfie_jax.errors import UserError

Waveforms = np.ndarray | Sequence[np.ndarray]

_INT16_SCALE = 32_768.0
_SAMPLE_RATES = (1_000, 1_000_000)  # Hz. What is outside is in kHz, or no sample rate.
# Decoders of lossy formats overshoot full scale a little; integers that somebody made floats of are far beyond.
_MOST_FULL_SCALES = 16.0
_MOST_CHANNELS = 8


def as_clips(waveforms: Waveforms, sample_rate: float, wanted_rate: int) -> list[np.ndarray]:
  """Checks mono waveforms, resamples them, and rounds them to int16, as a file is when it is decoded.

  Args:
    waveforms: a clip (samples,), clips of one length (n, samples), or a sequence of clips (samples,) of any lengths;
      int16, or floats in [-1, 1]: as of a file, values beyond are clipped.
    sample_rate: of all of them, in Hz.
    wanted_rate: of the result, in Hz.

  Returns:
    A clip (samples,) int16 for each.

  Raises:
    UserError: there are none, one is empty, is not one-dimensional, is of another type, has values that are not finite
      or far beyond full scale; or a sample rate that is none.
  """
  _check_rate(sample_rate)
  clips = [np.asarray(clip) for clip in waveforms] if are_listed(waveforms) else _rows(np.asarray(waveforms))
  if not clips:
    raise UserError('there are no waveforms: give at least one')
  return [_as_clip(clip, f'waveform {i}', sample_rate, wanted_rate) for i, clip in enumerate(clips)]


def are_listed(waveforms: Waveforms) -> bool:
  """True of a list of clips, and not of an array: what comes of each clip may then have a length of its own."""
  return isinstance(waveforms, Sequence) and all(map(np.ndim, waveforms))


def to_int16(audio: np.ndarray, sample_rate: float, wanted_rate: int) -> np.ndarray:
  """Resamples (soxr, HQ) floats (samples,) and rounds them to int16; values beyond [-1, 1] are clipped."""
  if sample_rate != wanted_rate:
    audio = soxr.resample(audio, sample_rate, wanted_rate, quality='HQ')
  return np.clip(np.rint(audio * _INT16_SCALE), -32_768, 32_767).astype(np.int16)


def _check_rate(sample_rate: float) -> None:
  least, most = _SAMPLE_RATES
  is_number = isinstance(sample_rate, (int, float, np.integer, np.floating)) and not isinstance(sample_rate, bool)
  if not is_number or not math.isfinite(sample_rate) or not least <= sample_rate <= most:
    raise UserError(f'sample_rate is {sample_rate!r}: give it in Hz, from {least:,} to {most:,}, such as 16000')


def _rows(waveforms: np.ndarray) -> list[np.ndarray]:
  """Returns the clips of an array."""
  if waveforms.ndim not in (1, 2):
    raise UserError(
      f'waveforms are an array of shape {waveforms.shape}: give a clip (samples,), clips of one length (n, samples), '
      'or a list of clips'
    )
  if waveforms.ndim == 1:
    return [waveforms]
  n, samples = waveforms.shape
  if samples <= _MOST_CHANNELS < n:
    raise UserError(
      f'waveforms are {n} clips of {samples} samples each: if they are one clip of {samples} channels, give its mono, '
      'waveforms.mean(1)'
    )
  return list(waveforms)


def _as_clip(clip: np.ndarray, name: str, sample_rate: float, wanted_rate: int) -> np.ndarray:
  if clip.ndim != 1:
    raise UserError(f'{name} has the shape {clip.shape}: give (samples,), the mean of its channels')
  if not len(clip):
    raise UserError(f'{name} has no samples')
  if clip.dtype == np.int16:
    if sample_rate == wanted_rate:
      return clip
    clip = clip.astype(np.float32) / np.float32(_INT16_SCALE)
  elif not np.issubdtype(clip.dtype, np.floating):
    raise UserError(f'{name} is of type {clip.dtype}: give int16, or floats in [-1, 1]')
  peak = np.abs(clip).max()
  if not np.isfinite(peak):
    raise UserError(f'{name} has samples that are not finite numbers')
  if peak > _MOST_FULL_SCALES:
    raise UserError(f'{name} has samples up to {peak:,.0f}, and full scale is 1: divide them, 16-bit ones by 32768')
  clip = to_int16(clip.astype(np.float32), sample_rate, wanted_rate)
  if not len(clip):
    raise UserError(f'{name} is less than a sample at {wanted_rate} Hz')
  return clip
