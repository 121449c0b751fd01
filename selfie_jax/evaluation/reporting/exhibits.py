"""What the report shows of a task's clips: where they lie, what was taken for what, and how some of them sound."""

import dataclasses
import io
from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath

from selfie_jax.embedding.clips import decode_clips
from selfie_jax.evaluation.protocol import TRAINED, TaskResult
from selfie_jax.evaluation.reporting.plane import chosen_rows, to_plane

_CLIP_SECONDS = 3.0
_MOST_CLIPS = 12  # Of a task.
_MOST_CLIPS_IN_ALL = 36  # Three seconds take up to 130 kB.


@dataclasses.dataclass(frozen=True)
class Clip:
  """A test clip to listen to, or its first 3 seconds."""

  row: int  # Into the exhibit's clips.
  flac: bytes


@dataclasses.dataclass(frozen=True)
class Exhibit:
  """Some test clips of a task's first split, as the headline readout's first seed takes them."""

  files: tuple[str, ...]  # Relative to the folder that they have in common.
  labels: tuple[str, ...]  # Of a multi-label task, its labels with commas between them.
  kinds: tuple[str, ...]  # What the map tells apart: the label; of a multi-label task how many labels there are.
  predicted: tuple[str, ...] | None  # None of a multi-label task: it has scores, not predictions.
  points: np.ndarray  # (clips, 2) where the trained encoder's embeddings lie; (clips, 0) of too few clips.
  clips: tuple[Clip, ...]

  def is_wrong(self, row: int) -> bool:
    """Whether a clip was taken for another class."""
    return self.predicted is not None and self.predicted[row] != self.labels[row]


def make_exhibit(result: TaskResult, sample_rate: int, num_tasks: int) -> Exhibit:
  """Lays out the test clips of the first split, at most 2,000, and reads a few of them to be listened to.

  Args:
    result: of the task.
    sample_rate: that clips are played at.
    num_tasks: in the whole report, which share the room for clips.

  Raises:
    UserError: a clip cannot be read.
  """
  folder, split = result.folder, result.folder.splits[0]
  drawn = chosen_rows(len(split.test))
  drawable = len(drawn) > 0
  drawn = drawn if drawable else np.arange(len(split.test))
  rows = split.test[drawn]
  readout = next(iter(result.predictions.values()))
  predicted = None if folder.multi_label else readout[TRAINED][0].predictions[0][drawn]
  most = max(1, min(_MOST_CLIPS, _MOST_CLIPS_IN_ALL // num_tasks))
  playable = choose_clips(folder.labels[rows], predicted, most)
  names = _relative([folder.files[row] for row in rows])
  sounds = decode_clips([folder.files[rows[row]] for row in playable], sample_rate, round(_CLIP_SECONDS * sample_rate))
  return Exhibit(
    files=tuple(names),
    labels=tuple(_label_text(label, folder.classes) for label in folder.labels[rows]),
    kinds=tuple(_kind(label, folder.classes) for label in folder.labels[rows]),
    predicted=None if predicted is None else tuple(folder.classes[label] for label in predicted),
    points=to_plane(result.embeddings[rows]) if drawable else np.zeros((len(rows), 0)),
    clips=tuple(Clip(row, _flac(sound, sample_rate)) for row, sound in zip(playable, sounds, strict=True)),
  )


def choose_clips(labels: np.ndarray, predicted: np.ndarray | None, most: int) -> list[int]:
  """Returns which clips to listen to: of evenly spaced classes one each, in turn one that was read right and one wrong.

  Where a class has none of the kind, one of the other kind. The same input gives the same clips.

  Args:
    labels: (n,) class numbers, or (n, classes) bool: the first label decides.
    predicted: (n,) class numbers; None: whichever clip comes first.
    most: so many clips, or one a class if there are fewer.
  """
  firsts = labels.argmax(1) if labels.ndim == 2 else labels
  classes = np.unique(firsts)
  chosen = []
  for turn, label in enumerate(classes[np.linspace(0, len(classes) - 1, min(most, len(classes))).round().astype(int)]):
    rows = np.flatnonzero(firsts == label)
    if predicted is not None:
      wanted = rows[(predicted[rows] == label) == (turn % 2 == 0)]
      rows = wanted if len(wanted) else rows
    chosen.append(int(rows[0]))
  return chosen


def _label_text(label: np.ndarray, classes: Sequence[str]) -> str:
  return ', '.join(classes[i] for i in np.flatnonzero(label)) if np.ndim(label) else classes[label]


def _kind(label: np.ndarray, classes: Sequence[str]) -> str:
  if not np.ndim(label):
    return classes[label]
  count = int(label.sum())
  return '3 labels or more' if count > 2 else f'{count} label{"" if count == 1 else "s"}'


def _relative(files: Iterable[epath.Path]) -> list[str]:
  """Returns the paths without the folders that they all share."""
  parts = [file.parts for file in files]
  shared = 0
  while parts and all(len(path) > shared + 1 and path[shared] == parts[0][shared] for path in parts):
    shared += 1
  return ['/'.join(path[shared:]) for path in parts]


def _flac(sound: np.ndarray, sample_rate: int) -> bytes:
  import soundfile  # Slow to import.

  stream = io.BytesIO()
  soundfile.write(stream, sound, sample_rate, format='FLAC', subtype='PCM_16')
  return stream.getvalue()
