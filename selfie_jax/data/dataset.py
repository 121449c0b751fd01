"""A dataset: a folder of shards that explains itself in `manifest.json`."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from selfie_jax.config import LogMel, from_mapping
from selfie_jax.data import shard as shards
from selfie_jax.data import tfrecord, workers
from selfie_jax.data.shard import Shard
from selfie_jax.errors import UserError
from selfie_jax.files import write_atomically

FORMAT_VERSION = 1
MANIFEST = 'manifest.json'
PARTIAL = '.partial'  # Where an unfinished preparation keeps what it has.


@dataclasses.dataclass(frozen=True)
class Audit:
  """How many files came in, and what became of them: `ok` is in the shards, the rest is not (see `audit.csv`)."""

  files: int
  ok: int
  unreadable: int
  empty: int
  too_short: int
  silent: int
  duplicate: int


@dataclasses.dataclass(frozen=True)
class Source:
  """What the shards are a function of, besides the log-mel settings."""

  fingerprint: str  # SHA-256 over names, labels, sizes and times of change of the input's files.
  clips_per_shard: int
  min_seconds: float
  silence_dbfs: float


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
  audit: Audit
  source: Source
  shards: tuple[Shard, ...]


def load_manifest(path: str | Path) -> Manifest:
  """Reads `manifest.json` of the dataset folder `path`.

  Raises:
    UserError: no such folder, no manifest in it, or one that is damaged.
  """
  path = Path(path)
  file = path / MANIFEST
  if not path.is_dir():
    raise UserError(f'no dataset at {path}: there is no such folder; make one with python -m selfie_jax.prepare')
  if not file.is_file():
    if (path / PARTIAL).is_dir():
      raise UserError(f'{path} is unfinished: its preparation was interrupted; run the same command again to go on')
    raise UserError(f'{path} is no dataset: it has no {MANIFEST}; make one with python -m selfie_jax.prepare')
  try:
    manifest = from_mapping(Manifest, json.loads(file.read_bytes()))
  except (ValueError, TypeError, AttributeError, UserError) as error:
    raise UserError(f'{file} is damaged, or of another version of this program: {error}') from error
  if manifest.format_version != FORMAT_VERSION:
    raise UserError(
      f'{file} has format_version {manifest.format_version}, this program reads {FORMAT_VERSION}; prepare it again'
    )
  clips = sum(shard.clips for shard in manifest.shards)
  if clips != manifest.num_clips:
    raise UserError(f'{file} says {manifest.num_clips} clips, its shards have {clips}; prepare the dataset again')
  rate = manifest.log_mel.sample_rate
  if rate != manifest.sample_rate:
    raise UserError(f'{file} says {manifest.sample_rate} Hz, its log_mel {rate} Hz; prepare the dataset again')
  return manifest


def write_manifest(path: Path, manifest: Manifest) -> None:
  """Writes `manifest.json` into the folder `path`, whole or not at all."""
  with write_atomically(path / MANIFEST) as file:
    file.write(json.dumps(dataclasses.asdict(manifest), indent=2).encode() + b'\n')


class Clips:
  """Random access to the clips of a dataset (the interface of Grain's sources); safe to use from several threads."""

  def __init__(self, path: Path, entries: Sequence[Shard]) -> None:
    indexes = [shards.read_index(path / entry.name, entry) for entry in entries]
    self._paths = [path / entry.name for entry in entries]
    self._starts = np.cumsum([0, *(len(index) for index in indexes[:-1])])
    self._index = np.concatenate(indexes)

  def __len__(self) -> int:
    return len(self._index)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """Returns `audio`, (samples,) int16 and read-only, and `index`, () int64.

    Raises:
      UserError: the record is damaged, or the shard cannot be read.
    """
    # The last shard that starts here or before: it is the right one also where empty shards start at the same number.
    which = int(np.searchsorted(self._starts, index, side='right')) - 1
    audio = shards.read_audio(self._paths[which], index - int(self._starts[which]), self._index[index])
    return {'audio': audio, 'index': np.int64(index)}


def open_clips(path: str | Path, entries: Sequence[Shard]) -> Clips:
  """Opens the clips of the dataset folder `path`, having checked that it holds these shards and no others.

  Checked is what costs no reading of audio: the shards' names, sizes and numbers of records, and the checksums of their
  indexes. The audio has its CRCs, checked at every read.

  Raises:
    UserError: naming the first shard that is superfluous, missing, of another size, or with another index.
  """
  path = Path(path)
  if extra := unknown_shards(path, entries):
    raise UserError(f'{path} has shards that {MANIFEST} does not list: {len(extra)}, the first is {extra[0]}')
  for entry in entries:
    file = path / entry.name
    if not file.is_file():
      raise UserError(f'{path} lacks the shard {entry.name}, which {MANIFEST} lists')
    size = file.stat().st_size
    if size != entry.bytes:
      raise UserError(f'the shard {file} has {size} bytes, {MANIFEST} says {entry.bytes}')
  return Clips(path, entries)


def unknown_shards(path: str | Path, entries: Sequence[Shard]) -> list[str]:
  """Returns the names of the shards in the folder `path` that are not among these, sorted."""
  known = {entry.name for entry in entries}
  return sorted(file.name for file in Path(path).glob('*.tfrecord') if file.name not in known)


def check_dataset(path: str | Path, log_mel: LogMel) -> Manifest:
  """Checks, before training starts, that a dataset is whole and was prepared with the configured log-mel settings.

  Raises:
    UserError: it is not; the message has both values and the remedy.
  """
  manifest = load_manifest(path)
  open_clips(path, manifest.shards)
  wanted = dataclasses.asdict(log_mel)
  found = dataclasses.asdict(manifest.log_mel)
  if differing := [
    f'log_mel.{key} is {value} in the config and {found[key]} in the dataset'
    for key, value in wanted.items()
    if value != found[key]
  ]:
    raise UserError(
      f"{path}: {'; '.join(differing)}. Take the dataset's values, or prepare it again, into another folder, with "
      'python -m selfie_jax.prepare folder --config CONFIG'
    )
  return manifest


def verify(path: str | Path, manifest: Manifest, num_workers: int) -> Iterator[list[str]]:
  """Reads the whole dataset and yields, shard by shard in the manifest's order, the list of what is wrong with it.

  Every CRC, Example, SHA-256 and count is checked, and every damaged record named, not only the first.
  """
  tasks = [(Path(path) / shard.name, shard, manifest.sample_rate) for shard in manifest.shards]
  return workers.run(_verify_shard, tasks, num_workers)


def _verify_shard(task: tuple[Path, Shard, int]) -> list[str]:
  path, shard, sample_rate = task
  if not path.is_file():
    return [f'the shard {path} is missing']
  problems = []
  with open(path, 'rb') as file:
    if hashlib.file_digest(file, 'sha256').hexdigest() != shard.sha256:
      problems.append(f"the shard {path} is damaged: its SHA-256 is not the manifest's")
  try:
    index = shards.read_index(path, shard)
  except UserError as error:
    return [*problems, str(error), *_verify_records_in_order(path, shard)]
  return problems + [
    problem for number, row in enumerate(index) if (problem := _verify_record(path, number, row, sample_rate))
  ]


def _verify_record(path: Path, number: int, row: np.void, sample_rate: int) -> str | None:
  """Returns what is wrong with a record that the index knows, or None."""
  try:
    data = tfrecord.read_record(path, number, int(row['offset']), int(row['length']))
    features = tfrecord.decode_example(data)
    if features['audio'] != [shards.audio_of(data, row).tobytes()]:
      return f'record {number} of {path}: the index points at other bytes than its audio'
    if features['sample_rate'] != [sample_rate]:
      return f'record {number} of {path}: sample_rate {features["sample_rate"]}, the manifest says {sample_rate}'
  except UserError as error:
    return str(error)
  except (ValueError, KeyError) as error:
    return f'record {number} of {path} does not hold a clip: {error}'
  return None


def _verify_records_in_order(path: Path, shard: Shard) -> list[str]:
  """Without an index, records can be found only one after the other: up to the first that is damaged."""
  try:
    clips = sum(1 for _ in tfrecord.scan(path))
  except UserError as error:
    return [str(error)]
  return [] if clips == shard.clips else [f'the shard {path} has {clips} records, the manifest says {shard.clips}']
