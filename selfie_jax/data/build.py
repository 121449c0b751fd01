"""A listing of clips becomes a dataset.

The listing is cut into chunks, and each becomes one shard, whichever worker makes it: a process here, or one on
another machine. A shard is written to its place at once, whole; a note in OUTPUT/.partial says that it is finished, so
that a run that was interrupted is taken up again. Unfinished work of another input or other settings is dropped. When
all chunks are done, the shards that hold duplicates are written again without them; `manifest.json` comes last, and a
folder that has one is never written to again.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from etils import epath

from selfie_jax.config import LogMel
from selfie_jax.data import audit, chunk, dataset, estimate, statistics, tfds_metadata
from selfie_jax.data import shard as shards
from selfie_jax.data.audit import Finding, Summary
from selfie_jax.data.chunk import Chunk, Removal
from selfie_jax.data.clip import Clip, Listing, split_rank
from selfie_jax.data.dataset import Manifest, Source, Split
from selfie_jax.data.shard import Shard
from selfie_jax.errors import UserError
from selfie_jax.files import PathLike, as_path, filesystem, list_files, write_atomically
from selfie_jax.terminal import console, progress_bar, results

AUDIT = 'audit.csv'
_SETTINGS = 'settings.json'  # In .partial: which input and settings the folder is claimed for.
_SHARD = re.compile(r'.+-\d{5,}-of-\d{5,}\.tfrecord(\.index)?')
_TEMPORARY = re.compile(r'\.[0-9a-f]{8}\.tmp')  # The ending of what a killed worker was writing.
_SECONDS_BETWEEN_LISTINGS = 1.0  # Of the notes, for progress.
_READERS = 16  # Notes that are read at a time: one takes an object store tens of milliseconds.

_Task = TypeVar('_Task', Chunk, Removal)
# Calls the function on every task, in whatever order and on whatever machine. Yields now and then while it does, which
# is when progress is looked up, and ends when all are done.
Runner = Callable[[Callable[[_Task], None], Sequence[_Task]], Iterable[object]]


def build(
  listing: Listing,
  output: PathLike,
  source: Source,
  *,
  log_mel: LogMel,
  max_bad_fraction: float,
  max_missing_fraction: float,
  run: Runner,
  num_threads: int,
  command: str,
) -> Manifest:
  """Writes a dataset.

  The same input and settings give the same shards, indexes and audit.csv, byte for byte, whatever the runner. They give
  the same manifest only for the same files (it has a fingerprint of their times of change) named by the same path (it
  has the command).

  Args:
    listing: the clips.
    output: the dataset's folder, local, gs:// or s3://. What an interrupted run left there is continued, or dropped if
      it belongs to another input or other settings; what is finished is left alone.
    source: the settings of the shards, and what `listing` is.
    log_mel: the sample rate, and the settings of the mean and the standard deviation in the manifest.
    max_bad_fraction: the share of the clips that were found that may be unreadable, empty, too short or silent.
    max_missing_fraction: the share of the clips that may be missing.
    run: see `Runner`.
    num_threads: for the statistics, which are not shared out.
    command: what the manifest says made the dataset.

  Raises:
    UserError: more clips bad or missing than allowed, or an output that holds other things or a finished dataset of
      another input or other settings.
  """
  output = as_path(output)
  if (output / dataset.MANIFEST).exists():
    manifest = _check_finished(output, source, log_mel, max_bad_fraction)
  else:
    for note in listing.notes:
      console.print(note)
    _start_or_continue(output, source, log_mel)
    _check_missing(output, listing.clips, max_missing_fraction)
    clips = [clip for clip in listing.clips if clip.sound is not None]
    chunks = _write_clips(output, clips, log_mel.sample_rate, source)
    console.print(
      estimate.describe(clips, len(listing.clips), len(chunks), output, log_mel.sample_rate, source.audio_format)
    )
    _make(output, chunks, run)
    first = _first_of_each(chunks)
    summary = audit.write_csv(output / AUDIT, _findings(listing.clips, clips, chunks, first), log_mel.sample_rate)
    results.print(summary.table(log_mel.sample_rate))
    counts = summary.audit()
    audit.check(counts, max_bad_fraction, output / AUDIT)
    entries = _remove_duplicates(output, clips, chunks, first, run)
    if (in_shards := sum(entry.clips for entry in entries)) != counts.ok:
      raise UserError(f'{output} has {in_shards} clips in its shards, and {counts.ok} are ok: take another --output')
    _remove_files(output, (name for name in list_files(output) if _TEMPORARY.search(name)))
    clips_in_dataset = dataset.open_clips(output, entries, source.audio_format)
    mean, std = statistics.log_mel_mean_and_std(clips_in_dataset, log_mel, num_threads)
    manifest = Manifest(
      format_version=dataset.FORMAT_VERSION,
      command=command,
      num_clips=counts.ok,
      hours=summary.samples.total() / log_mel.sample_rate / 3_600,
      sample_rate=log_mel.sample_rate,
      log_mel=log_mel,
      mean=mean,
      std=std,
      classes=listing.classes,
      class_mids=listing.class_mids,
      splits=_splits(entries, summary, log_mel.sample_rate),
      audit=counts,
      source=source,
      shards=tuple(entries),
    )
    tfds_metadata.write(output, manifest)
    dataset.write_manifest(output, manifest)
  with contextlib.suppress(FileNotFoundError):
    filesystem(output).rm(os.fspath(output / dataset.PARTIAL), recursive=True)
  return manifest


def _check_finished(output: epath.Path, source: Source, log_mel: LogMel, max_bad_fraction: float) -> Manifest:
  manifest = dataset.load_manifest(output)
  if difference := _difference(_settings(manifest.source, manifest.log_mel), _settings(source, log_mel)):
    raise UserError(
      f'{output} was made of another input or with other settings ({difference}): choose another --output'
    )
  audit.check(manifest.audit, max_bad_fraction, output / AUDIT)
  dataset.open_clips(output, manifest.shards, source.audio_format)
  console.print(f'{output} is finished, with the same input and settings: left as it is')
  return manifest


def _settings(source: Source, log_mel: LogMel) -> dict[str, Any]:
  """What shards and manifest are a function of."""
  return dataclasses.asdict(source) | dataclasses.asdict(log_mel)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
  """Names the first setting that differs, or returns None."""
  for key, value in now.items():
    if before.get(key) != value:
      return 'its files have changed' if key == 'fingerprint' else f'{key} was {before.get(key)} and is {value} now'
  return None


# Claiming a folder.


def _start_or_continue(output: epath.Path, source: Source, log_mel: LogMel) -> None:
  """Claims an empty folder for this input and these settings, or one that was claimed before and never finished."""
  claim, settings = output / dataset.PARTIAL / _SETTINGS, _settings(source, log_mel)
  if claim.exists():
    difference = _difference(json.loads(claim.read_bytes()), settings)
    if difference is None:
      console.print(f'{output} was begun before: going on')
      return
    console.print(f'{output} was begun with another input or other settings ({difference}): starting anew')
    _drop_work(output)
  elif _names_in(output) - {dataset.PARTIAL}:
    raise UserError(f'{output} is there already and is no dataset: choose another --output')
  claim.parent.mkdir(parents=True, exist_ok=True)
  with write_atomically(claim) as file:
    file.write(json.dumps(settings).encode())


def _names_in(folder: epath.Path) -> set[str]:
  """Returns the names of files and folders in a folder; of a file, its own."""
  try:
    paths = filesystem(folder).ls(os.fspath(folder), detail=False)
  except FileNotFoundError:
    return set()
  return {path.rstrip('/').rpartition('/')[2] for path in paths}


def _drop_work(output: epath.Path) -> None:
  """Deletes what an unfinished preparation wrote. Its claim stays, to be replaced: unclaimed work would be anyone's."""
  partial = output / dataset.PARTIAL
  _remove_files(partial, (name for name in list_files(partial) if name != _SETTINGS))  # First: notes tell of shards.
  ours = {AUDIT, *tfds_metadata.FILES}
  names = list_files(output)
  _remove_files(output, (name for name in names if _SHARD.match(name) or _TEMPORARY.sub('', name) in ours))


def _remove_files(folder: epath.Path, names: Iterable[str]) -> None:
  if paths := [os.fspath(folder / name) for name in names]:
    filesystem(folder).rm(paths)


# Making the shards.


def _check_missing(output: epath.Path, clips: Sequence[Clip], max_missing_fraction: float) -> None:
  """Refuses, before hours of decoding, an input of which too much is missing, and lists what is."""
  missing = [clip for clip in clips if clip.sound is None]
  try:
    audit.check_missing(len(missing), len(clips), max_missing_fraction, output / AUDIT)
  except UserError:
    audit.write_csv(output / AUDIT, ((clip, audit.missing(clip)) for clip in missing), 1)
    raise


def _write_clips(output: epath.Path, clips: Sequence[Clip], sample_rate: int, source: Source) -> list[Chunk]:
  """Cuts the clips into chunks and writes them to where workers find them."""
  size = source.clips_per_shard
  chunks = []
  offset = 0
  with write_atomically(output / dataset.PARTIAL / chunk.CLIPS) as file:
    for split, members in itertools.groupby(clips, key=lambda clip: clip.split):
      members = list(members)
      count = -(-len(members) // size)
      for i in range(count):
        part = members[i * size : (i + 1) * size]
        length = file.write(b''.join(map(chunk.encode_clip, part)))
        name = f'{split}-{i:05d}-of-{count:05d}.tfrecord'
        chunks.append(Chunk(os.fspath(output), name, split, len(part), offset, length, sample_rate, source))
        offset += length
  return chunks


def _make(output: epath.Path, chunks: Sequence[Chunk], run: Runner) -> None:
  """Makes the shards that are not finished."""
  unfinished = _unfinished(output, chunks)
  total = sum(each.clips for each in chunks)
  before = total - sum(each.clips for each in unfinished)
  if before:
    console.print(f'{before:,} of {total:,} clips were done before')
  tasks = {chunk.note_name(each.shard): each for each in unfinished}
  with progress_bar('decoding', total, 'clips', before) as show:
    for done in _run(output, chunk.make, tasks, run):
      show(before + sum(each.clips for each in done))


def _run(
  output: epath.Path, function: Callable[[_Task], None], tasks: Mapping[str, _Task], run: Runner
) -> Iterator[list[_Task]]:
  """Yields, now and then, the tasks that are done: those whose notes, the keys of `tasks`, are there."""
  if not tasks:
    return
  partial = output / dataset.PARTIAL
  listed = 0.0
  for _ in run(function, list(tasks.values())):
    if time.monotonic() - listed >= _SECONDS_BETWEEN_LISTINGS:
      notes = list_files(partial)
      listed = time.monotonic()
      yield [task for name, task in tasks.items() if name in notes]
  notes = list_files(partial)
  yield [task for name, task in tasks.items() if name in notes]
  if undone := [name for name in tasks if name not in notes]:
    raise UserError(
      f'the runner has ended, and {len(undone)} of {len(tasks)} shards are not done, the first is '
      f'{undone[0].partition(".json")[0]}: can its workers reach {output}?'
    )


def _unfinished(output: epath.Path, chunks: Sequence[Chunk]) -> list[Chunk]:
  """Returns the chunks to make: those without a note, or whose shard is not the one that their note speaks of."""
  files, notes = list_files(output), list_files(output / dataset.PARTIAL)
  noted = [each for each in chunks if chunk.note_name(each.shard) in notes]
  spoilt = []
  for each, (made, _) in zip(noted, _read_notes(noted), strict=True):
    if chunk.removal_name(each.shard) in notes:
      made = chunk.read_removal(each)
    sizes = {made.name: made.bytes, shards.index_path(made.name): made.clips * shards.INDEX_DTYPE.itemsize}
    if any(name not in files or files[name].size != size for name, size in sizes.items()):
      spoilt.append(each)
  for name in (chunk.removal_name, chunk.note_name):  # In this order: a shard that is made anew has all its clips.
    _remove_files(output / dataset.PARTIAL, {name(each.shard) for each in spoilt} & notes.keys())
  finished = set(noted) - set(spoilt)
  return [each for each in chunks if each not in finished]


def _read_notes(chunks: Sequence[Chunk]) -> Iterator[tuple[Shard, list[Finding]]]:
  """Yields what `chunk.read_note` says of each chunk, in order and without having all of it in memory."""
  with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
    for i in range(0, len(chunks), _READERS):
      yield from pool.map(chunk.read_note, chunks[i : i + _READERS])


# Finishing. Each step may be repeated, so a run may be killed in the middle of any.


def _first_of_each(chunks: Sequence[Chunk]) -> np.ndarray:
  """See `audit.first_of_each`."""
  digests = [audit.digests_of(findings) for _, findings in _read_notes(chunks)]
  splits = sorted({each.split for each in chunks}, key=split_rank)
  ranks = [np.full(each.clips, splits.index(each.split)) for each in chunks]
  return audit.first_of_each(
    np.concatenate([np.zeros((0, 2), np.uint64), *digests]), np.concatenate([np.zeros(0, np.int64), *ranks])
  )


def _findings(
  asked: Sequence[Clip], clips: Sequence[Clip], chunks: Sequence[Chunk], first: np.ndarray
) -> Iterator[tuple[Clip, Finding]]:
  """Yields what became of each clip that was asked for, in order; `clips` are those that were found."""
  found = enumerate(finding for _, findings in _read_notes(chunks) for finding in findings)
  for clip in asked:
    if clip.sound is None:
      yield clip, audit.missing(clip)
    else:
      number, finding = next(found)
      is_first = first[number] == number
      yield clip, finding if is_first else audit.as_duplicate(finding, clips[first[number]])


def _remove_duplicates(
  output: epath.Path, clips: Sequence[Clip], chunks: Sequence[Chunk], first: np.ndarray, run: Runner
) -> list[Shard]:
  """Takes the duplicates out of their shards, and returns what the shards are then."""
  starts = np.cumsum([0, *(each.clips for each in chunks)])
  names = collections.defaultdict(list)
  for number in np.flatnonzero(first != np.arange(len(first))):
    names[int(np.searchsorted(starts, number, side='right')) - 1].append(clips[number].name)
  removals = {chunk.removal_name(chunks[i].shard): Removal(chunks[i], tuple(dropped)) for i, dropped in names.items()}
  with progress_bar('removing duplicates', len(removals), 'shards') if removals else contextlib.nullcontext() as show:
    for done in _run(output, chunk.remove, removals, run):
      show(len(done))
  made = [shard for shard, _ in _read_notes(chunks)]
  return [chunk.read_removal(chunks[i]) if i in names else shard for i, shard in enumerate(made)]


def _splits(entries: Sequence[Shard], summary: Summary, sample_rate: int) -> tuple[Split, ...]:
  """Returns the splits that have clips, in the order of their shards."""
  clips: collections.Counter[str] = collections.Counter()
  for entry in entries:
    clips[entry.split] += entry.clips
  return tuple(Split(name, count, summary.samples[name] / sample_rate / 3_600) for name, count in clips.items())
