"""Writes a labelled folder that holds all it needs: audio/*.flac, task.json, metadata.csv.

A job that was interrupted goes on when it is started again: each audio file has its name only when it is complete, and
is then not decoded again. metadata.csv, without which a folder is no task, comes last. Which input a folder is made of
stands in `.input`, from the beginning: another input needs another folder.
"""

import collections
import csv
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

from etils import epath

from selfie_jax import config
from selfie_jax.data import shard, workers
from selfie_jax.data.audio_files import SUFFIXES
from selfie_jax.data.clip import AudioFile, Clip, TfdsRecord
from selfie_jax.data.decode import DecodeError, EmptyError
from selfie_jax.data.sounds import read_sound
from selfie_jax.errors import UserError
from selfie_jax.evaluation.tasks.counts import differences, shorten
from selfie_jax.evaluation.tasks.folder import DESCRIPTION, METADATA, SEPARATOR, load_folder
from selfie_jax.evaluation.tasks.nine import Definition
from selfie_jax.evaluation.tasks.tree import Listing, Row, Tree
from selfie_jax.files import as_path, check_reachable, make_folder, write_atomically
from selfie_jax.terminal import console, progress_bar

SAMPLE_RATE = 16_000
LEFT_OUT = 'left_out.csv'
_INPUT = '.input'
_AUDIO = 'audio'
_BATCH = 16  # Clips that a worker is handed at a time.
_BAD = ('unreadable', 'empty', 'silent')


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
  """A clip to be written. `label_of`: the task whose label a worker is to read from the record, or ''."""

  target: str
  sound: AudioFile | TfdsRecord
  label_of: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Outcome:
  """What became of a clip: `status` is 'ok', one of `_BAD`, or 'missing'."""

  status: str
  reason: str = ''
  label: str | None = None


def convert(
  tree: Tree,
  listing: Listing,
  definition: Definition | None,
  output: str,
  *,
  command: str,
  unit_seconds: float,
  max_bad_fraction: float,
  num_workers: int,
) -> dict[str, Any]:
  """Decodes all clips to 16 kHz mono 16-bit FLAC and writes the labelled folder `output`.

  Args:
    tree: the input's files.
    listing: the clips.
    definition: what the task should be; None for a task of the user's own.
    output: a folder, here or in an object store.
    command: for task.json.
    unit_seconds: of a task of the user's own; 0 leaves it to the evaluation.
    max_bad_fraction: of the files that are there.
    num_workers: processes.

  Returns:
    What task.json says.

  Raises:
    UserError: the folder has another input's files or foreign ones, too many files cannot be used, or none can.
  """
  check_reachable(output)
  rows = sorted(listing.rows, key=lambda row: row.source)
  there = [row for row in rows if row.source in tree.files]
  if not there:
    raise UserError(f'none of the {len(rows)} files is there, such as {rows[0].source}' if rows else 'no clips')
  folder = as_path(output)
  _claim(folder, _fingerprint(rows, tree, listing, definition, unit_seconds))
  names = name_outputs([row.source for row in rows])
  name = definition.name if definition else ''
  jobs = [
    _Job(os.fspath(folder / names[row.source]), tree.files[row.source], name if row.labels is None else '')
    for row in there
  ]
  outcomes = dict(zip([row.source for row in there], _run(jobs, num_workers), strict=True))
  missing = _Outcome('missing', 'there is no such file')
  found = [(row, outcomes.get(row.source, missing)) for row in rows]
  left_out = [(row, outcome) for row, outcome in found if outcome.status != 'ok']
  _write_left_out(folder / LEFT_OUT, left_out)
  _check_bad(left_out, len(there), max_bad_fraction, folder)
  kept = [
    (row if row.labels is not None else dataclasses.replace(row, labels=(outcome.label,)))
    for row, outcome in found
    if outcome.status == 'ok'
  ]
  description = _describe(kept, left_out, listing, definition, folder.name, unit_seconds, command)
  for notice in (*description['notices'], *description['differences']):
    console.print(f'{description["name"]}: {notice}')
  _write_json(folder / DESCRIPTION, description)
  _write_metadata(folder / METADATA, kept, names, listing)
  try:
    load_folder(config.Task(description['name'], path=output))
  except UserError as error:
    console.print(f'{description["name"]}: all is written, but evaluate cannot use it as it is: {error}')
  return description


def name_outputs(sources: Sequence[str]) -> dict[str, str]:
  """Returns the audio file's name in the labelled folder for each source: no two alike, and none outside of it.

  The folders that all sources share are left out.
  """
  parts = {source: [_plain(part) for part in PurePosixPath(source).parts if part != '/'] for source in sources}
  shared = len(os.path.commonprefix([each[:-1] for each in parts.values()]))
  names: dict[str, str] = {}
  taken: set[str] = set()
  for source in sorted(sources):
    path = '/'.join((_AUDIO, *parts[source][shared:]))
    stem, suffix = os.path.splitext(path)
    # Of a.wav beside a.mp3, the second one keeps its ending.
    candidates = [f'{stem}.flac'] * (suffix.lower() in SUFFIXES) + [f'{path}.flac']
    number = 2
    while candidates[0] in taken:
      candidates = candidates[1:] or [f'{path}_{number}.flac']
      number += 1
    taken.add(candidates[0])
    names[source] = candidates[0]
  return names


def _plain(part: str) -> str:
  return 'up' if part == '..' else part


def _fingerprint(
  rows: Sequence[Row], tree: Tree, listing: Listing, definition: Definition | None, unit_seconds: float
) -> str:
  """Returns what tells whether an output is still made of the same input: names, labels, parts, sizes and times."""
  settings = (1, definition.name if definition else '', listing.folds, listing.multi_label, unit_seconds)
  digest = hashlib.sha256(json.dumps(settings).encode())
  for row in rows:
    sound = tree.files.get(row.source)
    size = sound.size if isinstance(sound, AudioFile) else None
    facts = (*dataclasses.astuple(row), size, tree.versions.get(row.source))
    digest.update(json.dumps(facts).encode() + b'\n')
  return digest.hexdigest()


def _claim(folder: epath.Path, fingerprint: str) -> None:
  """Marks the output as made of this input, or finds that it is."""
  mark = folder / _INPUT
  if mark.exists():
    if mark.read_text() != fingerprint:
      raise UserError(
        f'{folder} was begun with another input or other settings: give another --output, or delete that one'
      )
    return
  # Not the mark itself: a kill may have left half of it.
  if folder.exists() and any(not path.name.startswith(_INPUT) for path in folder.iterdir()):
    raise UserError(f'{folder} has files that prepare task did not write: give another --output')
  make_folder(folder)
  with write_atomically(mark) as file:
    file.write(fingerprint.encode())


def _run(jobs: Sequence[_Job], num_workers: int) -> list[_Outcome]:
  batches = [tuple(jobs[start : start + _BATCH]) for start in range(0, len(jobs), _BATCH)]
  outcomes: list[_Outcome] = []
  with progress_bar(f'writing FLAC at {SAMPLE_RATE // 1_000} kHz', len(jobs), 'clips') as show:
    for of_batch in workers.run(_write_batch, batches, num_workers):
      outcomes += of_batch
      show(len(outcomes))
  return outcomes


def _write_batch(jobs: Sequence[_Job]) -> list[_Outcome]:
  return [_write_clip(job) for job in jobs]


def _write_clip(job: _Job) -> _Outcome:
  """Writes a clip, unless that was done already."""
  target = as_path(job.target)
  try:
    if not target.exists():
      audio = read_sound(Clip(target.name, job.sound), SAMPLE_RATE)
      if audio.std() < 1:
        return _Outcome('silent', f'its RMS around the mean is {audio.std():.2f} steps of 16 bits')
      make_folder(target.parent)
      with write_atomically(target) as file:
        file.write(shard.encode_flac(audio, SAMPLE_RATE))
    if not job.label_of:
      return _Outcome('ok')
    from selfie_jax.evaluation.tasks import tfds_folder  # Not at the top: it imports TensorFlow Datasets.

    return _Outcome('ok', label=tfds_folder.read_label(job.sound, job.label_of))
  except EmptyError as error:
    return _Outcome('empty', error.reason)
  except DecodeError as error:
    return _Outcome('unreadable', error.reason)


def _check_bad(
  left_out: Sequence[tuple[Row, _Outcome]], there: int, max_bad_fraction: float, folder: epath.Path
) -> None:
  bad = [(row, outcome) for row, outcome in left_out if outcome.status in _BAD]
  if len(bad) > max_bad_fraction * there or len(bad) == there:
    row, outcome = bad[0]
    remedy = 'mend them, or raise the limit' if len(bad) < there else 'none is left'
    raise UserError(
      f'{len(bad)} of {there} files cannot be used, a fraction of {len(bad) / there:.3f}, and --max_bad_fraction is '
      f'{max_bad_fraction:g}; the first is {row.source} ({outcome.status}: {outcome.reason}), {folder / LEFT_OUT} '
      f'names all: {remedy}'
    )


def _describe(
  kept: Sequence[Row],
  left_out: Sequence[tuple[Row, _Outcome]],
  listing: Listing,
  definition: Definition | None,
  name: str,
  unit_seconds: float,
  command: str,
) -> dict[str, Any]:
  """Returns what task.json says."""
  notices = list(listing.notices)
  for status in ('missing', *_BAD):
    sources = [row.source for row, outcome in left_out if outcome.status == status]
    if sources:
      notices.append(f'{len(sources):,} files are {status}, and left out: {shorten(sources)}')
  parts = [row.part for row in kept]
  found = dict(sorted(collections.Counter(parts).items(), key=lambda item: (len(item[0]), item[0])))
  classes = {label for row in kept for label in row.labels}
  description: dict[str, Any] = {
    'name': definition.name if definition else name,
    'title': definition.title if definition else name,
    'metric': 'mean_average_precision' if listing.multi_label else 'accuracy',
    'unit_seconds': definition.unit_seconds if definition else unit_seconds,
    'evar_learning_rate': definition.evar_learning_rate if definition else None,
    'clips': {'found': found},
    'classes': {'found': len(classes)},
    'differences': [],
    'notices': notices,
    'command': command,
  }
  if definition:
    description['clips']['published'] = dict(definition.parts)
    description['classes']['published'] = definition.num_classes
    description['differences'] = differences(definition, parts, [row.labels[0] for row in kept])
    description['source'] = {
      'url': definition.url,
      'licence': definition.licence,
      'split': definition.split_rule,
    }
  return {key: value for key, value in description.items() if value not in (None, 0)}


def _write_metadata(path: epath.Path, kept: Sequence[Row], names: dict[str, str], listing: Listing) -> None:
  with_groups = any(row.group for row in kept)
  label, part = 'labels' if listing.multi_label else 'label', 'fold' if listing.folds else 'split'
  columns = ('file_name', part, label, 'source', *(['group'] if with_groups else []))
  lines = (
    (names[row.source], row.part, SEPARATOR.join(row.labels), row.source, *([row.group] if with_groups else []))
    for row in kept
  )
  _write_csv(path, columns, sorted(lines))


def _write_left_out(path: epath.Path, left_out: Sequence[tuple[Row, _Outcome]]) -> None:
  lines = ((row.source, row.part, outcome.status, outcome.reason) for row, outcome in left_out)
  _write_csv(path, ('source', 'part', 'status', 'reason'), lines)


def _write_csv(path: epath.Path, columns: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
  text = io.StringIO(newline='')
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(columns)
  writer.writerows(lines)
  with write_atomically(path) as file:
    file.write(text.getvalue().encode())


def _write_json(path: epath.Path, value: dict[str, Any]) -> None:
  with write_atomically(path) as file:
    file.write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b'\n')
