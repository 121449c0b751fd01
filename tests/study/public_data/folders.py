"""Writing a folder of clips: FLAC files, and a metadata.csv that says what they are."""

import collections
import csv
import dataclasses
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

from selfie_jax.files import naming, write_atomically
from tests.study.public_data.sounds import SAMPLE_RATE

METADATA = 'metadata.csv'
Row = dict[str, str | int | float]  # Of metadata.csv: column -> value.

_SILENCE = 3e-4  # Root mean square.
_PEAK = 0.9


@dataclasses.dataclass(frozen=True)
class Clip:
  """A sound and what is known of it."""

  name: str  # Of its file, without the ending; folders are allowed.
  sound: np.ndarray  # (samples,) float32 at 16 kHz; none where a file could not be read.
  columns: Mapping[str, str | int]  # Of its row, in the order of the table's columns.
  shortest: float = 0.05  # Seconds. What is shorter is left out,
  longest: float = 10.0  # and what is longer is cut there.
  normalize: bool = False  # To one peak level.


def write_folder(
  folder: Path, clips: Iterable[Clip], assign_splits: Callable[[list[Row]], list[Row]] | None = None
) -> str:
  """Writes the clips' files, and last of all metadata.csv: a folder that has one is complete.

  Left out are clips that are too short or silent, and those whose samples an earlier clip has.

  Args:
    folder: where they go.
    clips: what to write; they are taken one by one, and need not be in memory together.
    assign_splits: takes the rows of the clips that were written, and returns them with their splits.

  Returns:
    A summary for the user.

  Raises:
    OSError: there is no space.
  """
  rows = list(_write_clips(folder, clips))
  rows = assign_splits(rows) if assign_splits else rows
  write_table(folder / METADATA, rows)
  minutes = sum(float(row['seconds']) for row in rows) / 60
  splits = collections.Counter(str(row['split']) for row in rows)
  shares = ', '.join(f'{split} {count:,}' for split, count in splits.items())
  return f'{len(rows):,} clips ({shares}), {minutes:.1f} minutes'


def _write_clips(folder: Path, clips: Iterable[Clip]) -> Iterator[Row]:
  names: set[str] = set()
  digests: set[str] = set()
  for clip in clips:
    sound = _cut(clip)
    if sound is None:
      continue
    # Of samples cut to 16 bits, where the file's are rounded: a pair that differs by less than that stays. In all the
    # data that is one, pitch/fluid_000_063 (test) and fluid_001_063 (train); the study's records have it.
    digest = hashlib.sha256((sound * 32_767).astype(np.int16).tobytes()).hexdigest()
    if digest in digests:
      continue
    name = _free_name(clip.name, names)
    names.add(name)
    digests.add(digest)
    file_name = f'audio/{name}.flac'
    _write_flac(folder / file_name, sound)
    yield {'file_name': file_name, **clip.columns, 'seconds': round(len(sound) / SAMPLE_RATE, 3)}


def _cut(clip: Clip) -> np.ndarray | None:
  """Returns the samples to write, None for a clip to leave out."""
  sound = clip.sound
  if len(sound) < clip.shortest * SAMPLE_RATE or np.sqrt(np.mean(sound**2)) < _SILENCE:
    return None
  sound = sound[: int(clip.longest * SAMPLE_RATE)]
  return _PEAK * sound / np.abs(sound).max() if clip.normalize else sound


def _free_name(name: str, taken: set[str]) -> str:
  """Returns `name`, with as many underscores behind it as it takes."""
  while name in taken:
    name += '_'
  return name


def _write_flac(path: Path, sound: np.ndarray) -> None:
  data = io.BytesIO()  # libsndfile says nothing of a full disk; the system does.
  soundfile.write(data, sound, SAMPLE_RATE, 'PCM_16', format='FLAC')
  path.parent.mkdir(parents=True, exist_ok=True)
  with naming(path):
    path.write_bytes(data.getvalue())


def write_table(path: Path, rows: Sequence[Row]) -> None:
  """Writes a CSV in one stroke; its columns are those of the first row."""
  text = io.StringIO()
  table = csv.DictWriter(text, list(rows[0]))
  table.writeheader()
  table.writerows(rows)
  with write_atomically(path) as file:
    file.write(text.getvalue().encode())


def clean(text: str) -> str:
  """Returns `text` as a file may be called anywhere: what is unusual becomes an underscore."""
  return re.sub(r'[^A-Za-z0-9._+-]+', '_', text).strip('_')
