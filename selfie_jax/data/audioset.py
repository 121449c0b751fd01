"""AudioSet as people have it: the official CSVs, and audio files under any of the usual names.

The CSVs are those of https://research.google.com/audioset/download.html: a segment is `YTID, start_seconds,
end_seconds, "mid,mid,..."`.
"""

import bisect
import collections
import csv
import difflib
import functools
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import fsspec

from selfie_jax.data import audio_files
from selfie_jax.data.audio_files import Found
from selfie_jax.data.clip import SPLIT, Clip, Listing, fingerprint, split_rank
from selfie_jax.data.table import read_table, require
from selfie_jax.errors import UserError
from selfie_jax.files import PathLike, as_path

_COLUMNS = ['ytid', 'start_seconds', 'end_seconds']
_ID = re.compile(r'[A-Za-z0-9_-]+')
_SECONDS = re.compile(r'[0-9]{1,7}(?:\.[0-9]*)?')  # A limit on the digits, for a number that is far off is a mistake.
_TIME = re.compile(r'[0-9]{1,10}(?:\.[0-9]+)?')  # In a file's name, where it may be milliseconds.
# Of several files for one segment, that with the ending that comes first is taken: lossless ones before the others.
_ENDINGS = ('.wav', '.flac', '.wv', '.aiff', '.aif', '.m4a', '.opus', '.webm', '.ogg', '.mp3')


class Segment(NamedTuple):
  """A row of a segment CSV. `name` is `<YTID>_<start in milliseconds>`, the same whatever else is in the CSV."""

  name: str
  start: float  # Seconds.
  end: float
  mids: tuple[str, ...]

  @property
  def video(self) -> str:
    """The YTID."""
    return self.name.rpartition('_')[0]


class Labels(NamedTuple):
  """The classes, in the order of their numbers."""

  names: tuple[str, ...]
  mids: tuple[str, ...]


def list_clips(
  segment_csvs: Sequence[PathLike], labels_csv: PathLike, audio: Sequence[str], ontology: PathLike | None = None
) -> Listing:
  """Lists the segments of the CSVs, each with its file if it has one.

  The split of a segment is the name of its CSV without `_segments`: `balanced_train`, `unbalanced_train`, `eval`. One
  that is in two CSVs belongs to the split that comes first in the order of `split_rank`: that which is not for
  training, so that nothing leaks. The files' names may be

    <YTID>.ext                  the whole video's audio, or the segment; see `decode.decode`
    <YTID>_<start>_<end>.ext    the segment; in seconds or milliseconds
    <YTID>_<start>.ext          the same

  or these with a `Y` in front, in any folder below, with any ending of `audio_files.SUFFIXES`. Of several files for a
  segment, one that is not empty is taken, then one whose name has the start, then by ending (see `_ENDINGS`), then by
  the order of `audio`, then by name.

  Args:
    segment_csvs: see `read_segments`.
    labels_csv: see `read_labels`.
    audio: folders or uncompressed tars, local, gs:// or s3://.
    ontology: AudioSet's `ontology.json`, to check the labels against.

  Raises:
    UserError: a CSV is not as it should be, an entry of `audio` cannot be listed, or no file belongs to any segment.
  """
  labels = read_labels(labels_csv)
  if ontology is not None:
    check_ontology(ontology, labels)
  numbers = {mid: number for number, mid in enumerate(labels.mids)}
  segments, notes = _merge(segment_csvs, numbers)
  audio = [audio_files.absolute(root) for root in audio]
  matches, notes_on_files = _match([segment for _, segment in segments], audio)
  labels_of = functools.cache(lambda mids: tuple(sorted({numbers[mid] for mid in mids})))
  clips, versions = [], []
  for i in sorted(range(len(segments)), key=lambda i: segments[i][0]):  # Stable: by name within a split.
    split, segment = segments[i]
    match = matches.get(i)
    clips.append(
      Clip(
        segment.name,
        match and audio_files.as_audio_file(audio[match.root], match.found),
        split,
        labels_of(segment.mids),
        None if match and match.is_cut else segment.start,
        round(segment.end - segment.start, 3),
      )
    )
    versions.append(match and match.found.version)
  return Listing(
    'audioset', clips, fingerprint(clips, versions, labels.mids), labels.names, labels.mids, (*notes, *notes_on_files)
  )


def _merge(segment_csvs: Sequence[PathLike], known_mids: Iterable[str]) -> tuple[list[tuple[str, Segment]], list[str]]:
  """Returns the (split, segment) of all segments, each once, sorted by name; and what there is to note."""
  paths: dict[str, PathLike] = {}
  for path in segment_csvs:
    split = split_of(path)
    if split in paths:
      raise UserError(f'{paths[split]} and {path} are both of the split {split}: rename one of them')
    paths[split] = path
  chosen: dict[str, tuple[str, Segment]] = {}
  notes = []
  for split in sorted(paths, key=split_rank):
    left_to: collections.Counter[str] = collections.Counter()
    for segment in read_segments(paths[split], known_mids):
      owner, _ = chosen.setdefault(segment.name, (split, segment))
      if owner != split:
        left_to[owner] += 1
    for owner, count in left_to.items():
      notes.append(f'segments of {split} that are in {owner} as well, and left to it: {count}')
  return [chosen[name] for name in sorted(chosen)], notes


def split_of(path: PathLike) -> str:
  """Returns the split that a segment CSV is named after.

  Raises:
    UserError: the name cannot be that of a split.
  """
  split = os.path.basename(path).removesuffix('.csv').removesuffix('_segments')
  if not SPLIT.fullmatch(split):
    raise UserError(f'{path} would make a split named {split!r}: rename it, with letters, digits and _ alone')
  return split


class _Match(NamedTuple):
  """A file of a segment. `is_cut`: its name has the segment's start, so that it holds the segment alone."""

  found: Found
  is_cut: bool
  root: int  # Number of the folder or tar.

  def order(self) -> tuple[object, ...]:
    """The file that comes first is taken."""
    ending = os.path.splitext(self.found.name)[1].lower()
    place = _ENDINGS.index(ending) if ending in _ENDINGS else len(_ENDINGS)
    return not self.found.size, not self.is_cut, place, self.root, self.found.name


def _match(segments: Sequence[Segment], audio: Sequence[str]) -> tuple[dict[int, _Match], list[str]]:
  """Finds the files of the segments, which are sorted by name; returns them by the segment's number, and the notes."""
  names = [segment.name for segment in segments]
  chosen: dict[int, _Match] = {}
  several: set[int] = set()
  num_strays, stray = 0, ''
  others: collections.Counter[str] = collections.Counter()
  for root, found in ((root, found) for root, place in enumerate(audio) for found in audio_files.find(place)):
    stem, ending = os.path.splitext(os.path.basename(found.name))
    if ending.lower() not in audio_files.SUFFIXES:
      others[ending.lower() or 'no ending'] += 1
      continue
    numbers, is_cut = _segments_of(stem, segments, names)
    if not numbers:
      num_strays += 1
      stray = min(stray or found.name, found.name)
    match = _Match(found, is_cut, root)
    for number in numbers:
      if (other := chosen.setdefault(number, match)) is not match:
        several.add(number)
        chosen[number] = min(match, other, key=_Match.order)
  if not chosen:
    there = f'none of {num_strays} audio files is of a segment, such as {stray}' if stray else 'no audio files'
    raise UserError(
      f'{", ".join(audio)}: {there}; expected are names such as {segments[0].video}.wav or {segments[0].video}_'
      f'{segments[0].start:g}_{segments[0].end:g}.wav'
    )
  notes = []
  if several:
    notes.append(f'segments with more than one file, of which the likeliest is taken: {len(several)}')
  if num_strays:
    notes.append(f'audio files of no segment: {num_strays}, such as {stray}')
  if others:
    kinds = ', '.join(f'{count} {ending}' for ending, count in sorted(others.items()))
    notes.append(f'files left out, for their endings are not of audio: {kinds}')
  return chosen, notes


def _segments_of(stem: str, segments: Sequence[Segment], names: Sequence[str]) -> tuple[list[int], bool]:
  """Returns the numbers of the segments that a file without its ending is of, and whether its name has the start."""
  for video, start, end in _readings(stem):
    numbers = []
    i = bisect.bisect_left(names, f'{video}_')
    while i < len(names) and names[i].startswith(f'{video}_'):
      if segments[i].video == video:  # Not another one that goes on with _.
        numbers.append(i)
      i += 1
    if start is None and numbers:
      return numbers, False
    fits = []
    for number, unit in itertools.product(numbers, (1, 1_000)):
      segment = segments[number]
      if _is_near(start, segment.start * unit):
        is_other_end = end is not None and not _is_near(end, segment.end * unit)
        fits.append((is_other_end, unit, abs(start - segment.start * unit), number))
    if fits:
      return [min(fits)[-1]], True
  return [], False


def _readings(stem: str) -> Iterator[tuple[str, float | None, float | None]]:
  """Yields what a name can mean: (YTID, start, end). No two of them fit YTIDs of 11 characters, as all are."""
  for name in (stem, stem[1:]) if stem.startswith('Y') else (stem,):
    yield name, None, None
    parts = name.rsplit('_', 2)
    if len(parts) == 3 and _TIME.fullmatch(parts[1]) and _TIME.fullmatch(parts[2]):
      yield parts[0], float(parts[1]), float(parts[2])
    video, _, start = name.rpartition('_')
    if _TIME.fullmatch(start):
      yield video, float(start), None


def _is_near(time: float, exact: float) -> bool:
  """True of a time in a name: people round, or leave out what comes after the point."""
  return abs(time - exact) < 1e-3 or time in (math.floor(exact), round(exact))


def read_segments(path: PathLike, known_mids: Iterable[str] | None = None) -> list[Segment]:
  """Reads a segment CSV, with or without its three header lines, in the order of its rows.

  Args:
    path: the CSV.
    known_mids: the mids of the classes; None: any will do.

  Raises:
    UserError: no such file, no segments in it, or the first row that is wrong, by its number.
  """
  segments = []
  names: set[str] = set()
  known = None if known_mids is None else frozenset(known_mids)
  mids_of = functools.cache(lambda text: _mids(text, known))  # Most segments share their labels with others.
  row = 0
  try:
    with fsspec.open(os.fspath(path), 'rt', encoding='utf-8-sig', newline='') as file:
      lines = ('' if line.startswith('#') else line.rstrip() for line in file)
      reader = csv.reader(lines, skipinitialspace=True, strict=True)
      for fields in reader:
        row = reader.line_num
        if not fields or (not segments and [field.strip().lower() for field in fields[:3]] == _COLUMNS):
          continue
        segment = _segment(fields, mids_of)
        if segment.name in names:
          raise _RowError(f'the segment of {segment.video} that starts at {segment.start:g} s is there twice')
        names.add(segment.name)
        segments.append(segment)
  except FileNotFoundError as error:
    raise UserError(f'{path} does not exist') from error
  except OSError as error:
    raise UserError(f'{path} cannot be read as a CSV of segments: {error.strerror or error}') from error
  except UnicodeDecodeError as error:
    raise UserError(f'{path} cannot be read as a UTF-8 CSV file: {error}') from error
  except csv.Error as error:
    raise UserError(f'{path}, row {row + 1}: {error}') from error
  except _RowError as error:
    raise UserError(f'{path}, row {row}: {error}') from error
  if not segments:
    raise UserError(f'{path} has no segments')
  return segments


class _RowError(Exception):
  """What is wrong with a row."""


def _segment(fields: list[str], mids_of: Callable[[str], tuple[str, ...]]) -> Segment:
  if len(fields) != 4:
    raise _RowError(f'{len(fields)} fields instead of 4: YTID, start_seconds, end_seconds, "mid,mid"')
  video = fields[0].strip()
  if not _ID.fullmatch(video):
    raise _RowError(f'{video!r} is no YTID: letters, digits, - and _')
  start, end = _seconds(fields[1]), _seconds(fields[2])
  if end <= start:
    raise _RowError(f'the segment of {video} ends at {end:g} s, and starts at {start:g} s')
  return Segment(f'{video}_{round(start * 1_000)}', start, end, mids_of(fields[3]))


@functools.lru_cache(4_096)
def _seconds(text: str) -> float:
  if not _SECONDS.fullmatch(text := text.strip()):
    raise _RowError(f'{text!r} is no time in seconds')
  return float(text)


def _mids(text: str, known: frozenset[str] | None) -> tuple[str, ...]:
  mids = tuple(mid for mid in map(str.strip, text.split(',')) if mid)
  for mid in mids if known is not None else ():
    if mid not in known:
      nearest = difflib.get_close_matches(mid, sorted(known), n=1)
      hint = f'; is {nearest[0]} meant?' if nearest else ''
      raise _RowError(f'the label {mid!r} is not among the {len(known)} classes{hint}')
  return mids


def read_labels(path: PathLike) -> Labels:
  """Reads `class_labels_indices.csv`: columns index, mid, display_name.

  Raises:
    UserError: no such file, a column is missing, an index or a mid is there twice, or an index is left out.
  """
  rows = read_table(Path(path))
  require(rows, ('index', 'mid', 'display_name'), Path(path))
  for column in ('index', 'mid'):
    value, count = collections.Counter(row[column] for row in rows).most_common(1)[0]
    if count > 1:
      raise UserError(f'{path} has the {column} {value} {count} times')
  by_index = {row['index']: row for row in rows}
  try:
    ordered = [by_index[str(number)] for number in range(len(rows))]
  except KeyError as error:
    raise UserError(f'{path} has {len(rows)} rows, and none has the index {error.args[0]}') from error
  return Labels(tuple(row['display_name'] for row in ordered), tuple(row['mid'] for row in ordered))


def check_ontology(path: PathLike, labels: Labels) -> None:
  """Checks that all classes are in AudioSet's `ontology.json`.

  Raises:
    UserError: it cannot be read, or lacks one of them.
  """
  try:
    known = {entry['id'] for entry in json.loads(as_path(path).read_bytes())}
  except FileNotFoundError as error:
    raise UserError(f'{path} does not exist') from error
  except (ValueError, TypeError, KeyError) as error:
    raise UserError(f"{path} is not AudioSet's ontology: a JSON list of objects with an id") from error
  if unknown := [f'{mid} ({name})' for name, mid in zip(*labels) if mid not in known]:
    raise UserError(
      f'{path} lacks {len(unknown)} of the {len(labels.mids)} classes, the first is {unknown[0]}: the ontology and the '
      'labels do not belong together'
    )
