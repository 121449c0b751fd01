"""Sounds without labels, for pre-training alone: speech, music, and the sounds of programs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.study.public_data import speech
from tests.study.public_data.folders import Clip, clean
from tests.study.public_data.packages import Unpacked
from tests.study.public_data.sounds import SAMPLE_RATE, decode

PACKAGES = (
  *map(speech.prompts_package, ('en', 'es', 'fr', 'it', 'ru')),
  *('wesnoth-1.16-music', speech.KTUBERLING, 'lmms-common', 'gnome-audio', 'sound-theme-freedesktop', 'sound-icons'),
  speech.HEDGEWARS,
)

_PIECE = 10 * SAMPLE_RATE
_SPARE = 0.1  # Of a piece: what is left of a recording and no longer than this is no piece of its own.
_LONGEST_NAME = 80


def unlabelled_clips(packages: Unpacked) -> Iterator[Clip]:
  """Yields recordings in pieces of ten seconds, but none that a task has."""
  for package in PACKAGES:
    folder = packages[package]
    for path in _free_recordings(folder, package):
      place = path.relative_to(folder).as_posix().split('share/')[-1].rsplit('.', 1)[0]
      name = f'{package}/{clean(place)[-_LONGEST_NAME:]}'
      columns = {'split': 'train', 'label': '', 'source': package}
      for number, piece in enumerate(pieces(decode(path))):
        yield Clip(f'{name}_{number:02d}', piece, columns, shortest=0.3)


def pieces(sound: np.ndarray) -> list[np.ndarray]:
  """Returns a recording cut every ten seconds."""
  count = max(1, int(np.ceil(len(sound) / _PIECE - _SPARE)))
  return [sound[number * _PIECE : (number + 1) * _PIECE] for number in range(count)]


def _free_recordings(folder: Path, package: str) -> list[Path]:
  """Returns the recordings that are in none of the tasks of speech, and are not called silence."""
  held_out = set(speech.held_out_prompts(folder)) if package in speech.PROMPTS else set()
  return [
    path
    for path in speech.without_silence(folder)
    if path not in held_out
    and not speech.is_voice(path.relative_to(folder))
    and not (package == speech.KTUBERLING and path.parent.name in speech.LANGUAGES)
  ]
