"""A clip of the input: what is known of it before its sound is read."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence

SPLIT = re.compile(r'[A-Za-z][A-Za-z0-9_]*')  # What can be the name of a split.


@dataclasses.dataclass(frozen=True, slots=True)
class AudioFile:
  """A file of audio, or a member of an uncompressed tar: its `size` bytes that start at `tar_offset`."""

  path: str  # Local, gs:// or s3://.
  size: int
  tar_offset: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class TfdsRecord:
  """An example of a prepared TFDS dataset: record `number` of `file`, which starts at byte `offset` in a TFRecord."""

  folder: str  # Of the version: it holds features.json.
  file: str
  number: int
  offset: int = 0
  length: int = 0
  sample_rate: int = 0  # Of its audio, in Hz.


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
  """One clip of the input. `name` is its record's `id`, and unique in its dataset."""

  name: str
  sound: AudioFile | TfdsRecord | None  # None: its audio is missing.
  split: str = 'train'
  labels: tuple[int, ...] = ()  # Numbers of the dataset's classes.
  # What is asked for, in seconds of the recording. A file that is no longer than the segment (and a second, for what
  # encoders add) holds the segment alone; one that is longer holds the whole recording, unless `start` is None.
  start: float | None = None
  seconds: float | None = None  # None: the whole file.


@dataclasses.dataclass(frozen=True)
class Listing:
  """What a dataset is to be made of."""

  kind: str  # As in `dataset.Source`.
  clips: Sequence[Clip]  # Sorted by split, then name.
  fingerprint: str
  classes: tuple[str, ...] = ()  # The names behind the labels.
  class_mids: tuple[str, ...] = ()  # Their machine ids, as long as `classes`, or none.
  notes: tuple[str, ...] = ()  # What its user should know, one line each: files that were left out, and the like.


def fingerprint(clips: Sequence[Clip], versions: Iterable[str | int | None], classes: Sequence[str] = ()) -> str:
  """SHA-256 that tells whether the input is still the same.

  Where the files lie is not in it: a folder may be moved while its preparation is interrupted.

  Args:
    clips: the input, in order.
    versions: for each clip what changes when its file is written again, such as its time of change; None without one.
    classes: the names, or machine ids, behind the labels.
  """
  digest = hashlib.sha256(json.dumps(classes).encode())
  for clip, version in zip(clips, versions, strict=True):
    size = clip.sound.size if isinstance(clip.sound, AudioFile) else None
    facts = (clip.name, clip.split, clip.labels, clip.start, clip.seconds, size, version)
    digest.update(json.dumps(facts).encode() + b'\n')
  return digest.hexdigest()


def split_rank(split: str) -> tuple[int, str]:
  """The order in which splits keep what is in several of them: tests, then validation, then training; then by name.

  Audio that a model is tested on must not be trained on, so it is the training split that gives way.
  """
  if 'train' in split:
    return 2, split
  return (1, split) if split.startswith(('val', 'dev')) else (0, split)
