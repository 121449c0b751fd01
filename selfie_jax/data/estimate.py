"""What a preparation is going to write, before anything is decoded."""

import os
import shutil
from collections.abc import Sequence

import av
import numpy as np
import soundfile

from selfie_jax.data.clip import Clip, TfdsRecord
from selfie_jax.data.sounds import read_sound
from selfie_jax.errors import UserError
from selfie_jax.files import PathLike, is_remote

_MAX_TRIED = 100  # Clips that are looked at where no list says how long they are.
_RECORD_BYTES = 100  # Of a record, beside its audio: framing, names of features, the clip's own name.


def describe(
  clips: Sequence[Clip], asked: int, num_shards: int, output: PathLike, sample_rate: int, audio_format: str
) -> str:
  """Returns, in words: clips, hours, bytes, shards and bytes a shard; and a warning where they will not fit.

  Args:
    clips: those that were found.
    asked: how many were asked for.
    num_shards: what they will make.
    output: the folder of the shards.
    sample_rate: of the records.
    audio_format: of the records.
  """
  found = f'{len(clips):,} of {asked:,} clips found'
  seconds = total_seconds(clips, sample_rate)
  if seconds is None:
    return f'{found}, for {num_shards:,} shards; how long they are is not known before they are decoded'
  size = round(2 * sample_rate * seconds) + _RECORD_BYTES * len(clips)
  hours = f'about {seconds / 3_600:,.2f} h'
  per_shard = _in_words(size / max(num_shards, 1))
  told = f'{found}, {hours}: {_in_words(size)} in {num_shards:,} shards of {per_shard}'
  if audio_format == 'flac':
    told += ', less what FLAC saves (often half)'
  free = _free_bytes(output)
  if free is not None and free < size:
    told += f'; {output} has room for {_in_words(free)}'
  return told


def total_seconds(clips: Sequence[Clip], sample_rate: int) -> float | None:
  """Returns how long all clips are, or None if nothing tells.

  A clip of a list of segments is as long as its segment. Others are taken to be as long, on average, as those of them
  whose header says it, of `_MAX_TRIED`.
  """
  asked = sum(clip.seconds for clip in clips if clip.seconds is not None)
  unknown = [clip for clip in clips if clip.seconds is None]
  if not unknown:
    return asked
  tried = np.linspace(0, len(unknown) - 1, min(len(unknown), _MAX_TRIED), dtype=np.int64)
  known = [seconds for i in tried if (seconds := _seconds_of(unknown[i], sample_rate)) is not None]
  return asked + len(unknown) * float(np.mean(known)) if known else None


def _free_bytes(folder: PathLike) -> int | None:
  """Returns how much fits where `folder` is, or is to be; None of an object store."""
  if is_remote(folder):
    return None
  folder = os.path.abspath(folder)
  while not os.path.isdir(folder):
    folder = os.path.dirname(folder)
  return shutil.disk_usage(folder).free


def _seconds_of(clip: Clip, sample_rate: int) -> float | None:
  """Returns how long a clip is, if that is quickly known."""
  sound = clip.sound
  try:
    if isinstance(sound, TfdsRecord):
      return len(read_sound(clip, sample_rate)) / sample_rate
    if sound.tar_offset is not None or is_remote(sound.path):
      return None
    try:
      return soundfile.info(sound.path).duration
    except soundfile.SoundFileError:
      with av.open(f'file:{sound.path}', metadata_errors='ignore') as container:
        return container.duration / av.time_base if container.duration else None
  except (OSError, ValueError, UserError):  # The audit will say so, if it cannot be read.
    return None


def _in_words(size: float) -> str:
  for unit in ('B', 'kB', 'MB', 'GB'):
    if size < 1_000:
      return f'{size:.3g} {unit}'
    size /= 1_000
  return f'{size:.3g} TB'
