"""A dataset: a folder of shards that explains itself in `manifest.json`."""

import dataclasses
import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence

from selfie_jax.config import LogMel
from selfie_jax.data.index_cache import read_indexes
from selfie_jax.data.ranges import Range, read_ranges
from selfie_jax.data.reader import ClipReader
from selfie_jax.data.shard import Shard
from selfie_jax.errors import UserError
from selfie_jax.files import FileState, PathLike, as_path, check_reachable, list_files, write_atomically
from selfie_jax.from_mapping import from_mapping

FORMAT_VERSION = 2
MANIFEST = 'manifest.json'
PARTIAL = '.partial'  # Where an unfinished preparation keeps what it has.


@dataclasses.dataclass(frozen=True)
class Audit:
  """What became of the clips that were asked for. `ok` are in the shards, the others are not (see `audit.csv`)."""

  clips: int
  ok: int
  missing: int  # No file.
  unreadable: int
  empty: int
  too_short: int  # Under `--min_seconds`.
  silent: int
  duplicate: int  # The same decoded audio as another clip's, which is kept.
  # Of those that are ok:
  short: int  # Shorter than asked for.
  clipped: int  # Distorted: too many samples at full scale.


@dataclasses.dataclass(frozen=True)
class Source:
  """What the shards are a function of, besides the log-mel settings."""

  kind: str  # The job that made them: 'folder', 'audioset' or 'tfds'.
  fingerprint: str  # SHA-256 over names, labels, sizes and times of change of the input's files.
  clips_per_shard: int
  min_seconds: float
  silence_dbfs: float
  audio_format: str  # Of the records: 'int16' or 'flac'.


@dataclasses.dataclass(frozen=True)
class Split:
  """A part of the dataset, such as train or eval, with shards of its own."""

  name: str
  clips: int
  hours: float


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a dataset holds. `mean` and `std` are scalars, over all values of the log-mel spectrograms of its clips."""

  format_version: int
  command: str
  num_clips: int
  hours: float
  sample_rate: int
  log_mel: LogMel
  mean: float
  std: float
  classes: tuple[str, ...]  # The names behind the labels.
  class_mids: tuple[str, ...]  # Their machine ids, as long as `classes`: AudioSet has them; else there are none.
  splits: tuple[Split, ...]  # In the order of their shards.
  audit: Audit
  source: Source
  shards: tuple[Shard, ...]


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A dataset that was opened: the shards of the chosen splits, and random access to their clips."""

  path: str
  manifest: Manifest
  splits: tuple[str, ...]  # Those chosen.
  shards: tuple[Shard, ...]  # Of those.
  clips: ClipReader
  lost: int  # Clips in shards that are missing or of another size.

  @property
  def fingerprint(self) -> str:
    """SHA-256 over the checksums of the shards, wherever they lie."""
    shards = json.dumps([dataclasses.asdict(shard) for shard in self.shards])
    return hashlib.sha256(shards.encode()).hexdigest()


def load_manifest(path: PathLike) -> Manifest:
  """Reads `manifest.json` of the dataset folder `path`.

  Raises:
    UserError: no such folder, no manifest in it, or one that is damaged.
  """
  return _load_manifest(path, list_files(path))


def _load_manifest(path: PathLike, files: Mapping[str, FileState]) -> Manifest:
  """Reads the manifest, given the files of its folder."""
  file = as_path(path) / MANIFEST
  if MANIFEST not in files:
    if (as_path(path) / PARTIAL).is_dir():
      raise UserError(f'{path} is unfinished: its preparation was interrupted; run the same command again to go on')
    if not as_path(path).is_dir():
      raise UserError(f'no dataset at {path}: there is no such folder; make one with python -m selfie_jax.prepare')
    raise UserError(f'{path} is no dataset: it has no {MANIFEST}; make one with python -m selfie_jax.prepare')
  (data,) = read_ranges([Range(str(file), 0, files[MANIFEST].size)])
  if isinstance(data, OSError):
    raise UserError(f'cannot read {file}: {data.strerror or data}')
  try:
    values = json.loads(data)
    version = values['format_version']
  except (LookupError, ValueError, TypeError, RecursionError) as error:
    raise UserError(f'{file} is damaged: {type(error).__name__}: {error}') from error
  if version != FORMAT_VERSION:  # Before the keys: those of another version are others.
    raise UserError(f'{file} has format_version {version}, this program reads {FORMAT_VERSION}; prepare it again')
  try:
    manifest = from_mapping(Manifest, values)
  except (ValueError, TypeError, AttributeError, UserError) as error:
    raise UserError(f'{file} is damaged: {error}') from error
  clips = sum(shard.clips for shard in manifest.shards)
  if clips != manifest.num_clips:
    raise UserError(f'{file} says {manifest.num_clips} clips, its shards have {clips}; prepare the dataset again')
  rate = manifest.log_mel.sample_rate
  if rate != manifest.sample_rate:
    raise UserError(f'{file} says {manifest.sample_rate} Hz, its log_mel {rate} Hz; prepare the dataset again')
  return manifest


def write_manifest(path: PathLike, manifest: Manifest) -> None:
  """Writes `manifest.json` into the folder `path`, whole or not at all."""
  with write_atomically(as_path(path) / MANIFEST) as file:
    file.write(json.dumps(dataclasses.asdict(manifest), indent=2).encode() + b'\n')


def open_dataset(path: PathLike, splits: Sequence[str] = (), *, max_lost: int = 0) -> Dataset:
  """Opens the chosen splits of a dataset, having checked that its folder holds its shards and no others.

  Checked is what costs no reading of audio: the shards' names and sizes, by one listing, and the checksums of their
  indexes. The audio has its CRCs, checked at every read.

  Args:
    path: the dataset's folder: local, gs:// or s3://.
    splits: some of its splits; none will do where it has only one.
    max_lost: the clips that may be in shards that are missing or of another size. Those are never read.

  Raises:
    UserError: there is no finished dataset; a split that it has not, or none of several chosen; a shard that is
      superfluous, missing, of another size, or with another index.
  """
  check_reachable(path)
  files = list_files(path)
  manifest = _load_manifest(path, files)
  chosen = _choose_splits(path, manifest, splits)
  if extra := unknown_shards(files, manifest.shards):
    raise UserError(f'{path} has shards that {MANIFEST} does not list: {len(extra)}, the first is {extra[0]}')
  entries = tuple(shard for shard in manifest.shards if shard.split in chosen)
  problems = _find_lost(path, entries, files, max_lost)
  lost = sum(entry.clips for entry in entries if entry.name in problems)
  audio_format = manifest.source.audio_format
  clips = ClipReader(path, entries, read_indexes(path, entries, audio_format), audio_format, files, problems)
  if not len(clips):
    raise UserError(f'{path} has no clips in the splits {", ".join(chosen)}')
  return Dataset(os.fspath(path), manifest, chosen, entries, clips, lost)


def open_clips(path: PathLike, entries: Sequence[Shard], audio_format: str) -> ClipReader:
  """Opens the clips of shards in the dataset folder `path`, which may be unfinished.

  Raises:
    UserError: naming the first shard that is missing, of another size, or with another index.
  """
  files = list_files(path)
  _find_lost(path, entries, files, 0)
  return ClipReader(path, entries, read_indexes(path, entries, audio_format), audio_format, files, {})


def _find_lost(
  path: PathLike, entries: Sequence[Shard], files: Mapping[str, FileState], max_lost: int
) -> dict[str, str]:
  """Returns the shards that are missing or of another size, by name, and what is wrong with them.

  Raises:
    UserError: they hold more clips than `max_lost`.
  """
  problems, lost = {}, 0
  for entry in entries:
    found = files.get(entry.name)
    if found and found.size == entry.bytes:
      continue
    problems[entry.name] = f'{found.size} bytes, {MANIFEST} says {entry.bytes}' if found else 'the shard is missing'
    lost += entry.clips
    if lost > max_lost:
      bound = f'; data.max_damaged={max_lost}, and {lost} clips are lost with it' if max_lost else ''
      if found:
        raise UserError(
          f'the shard {as_path(path) / entry.name} has {found.size} bytes, {MANIFEST} says {entry.bytes}{bound}'
        )
      raise UserError(f'{path} lacks the shard {entry.name}, which {MANIFEST} lists{bound}')
  return problems


def _choose_splits(path: PathLike, manifest: Manifest, splits: Sequence[str]) -> tuple[str, ...]:
  """Returns the splits to read, in the manifest's order."""
  known = [split.name for split in manifest.splits]
  for split in splits:
    if split not in known:
      near = difflib.get_close_matches(split, known, n=1, cutoff=0.5)
      hint = f'Did you mean "{near[0]}"?' if near else f'It has {", ".join(known)}.'
      raise UserError(f'{path} has no split "{split}". {hint}')
  if not splits and len(known) > 1:  # Never silently: one of them may well be for evaluation.
    sizes = ', '.join(f'{split.name} ({split.clips} clips)' for split in manifest.splits)
    raise UserError(f'{path} has the splits {sizes}: choose some, as in --config.data.splits="(\'{known[0]}\',)"')
  return tuple(name for name in known if name in splits or not splits)


def unknown_shards(names: Iterable[str], entries: Sequence[Shard]) -> list[str]:
  """Returns those of a folder's file names that are shards and not among these, sorted."""
  known = {entry.name for entry in entries}
  return sorted(name for name in names if name.endswith('.tfrecord') and name not in known)


def check_log_mel(dataset: Dataset, log_mel: LogMel) -> None:
  """Checks that a dataset was prepared with the configured log-mel settings.

  Raises:
    UserError: it was not; the message has both values and the remedy.
  """
  wanted = dataclasses.asdict(log_mel)
  found = dataclasses.asdict(dataset.manifest.log_mel)
  if differing := [
    f'log_mel.{key} is {value} in the config and {found[key]} in the dataset'
    for key, value in wanted.items()
    if value != found[key]
  ]:
    raise UserError(
      f"{dataset.path}: {'; '.join(differing)}. Take the dataset's values, or prepare it again, into another folder, "
      f'with python -m selfie_jax.prepare {dataset.manifest.source.kind} --config CONFIG'
    )
