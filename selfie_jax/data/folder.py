"""A folder of audio files, or a CSV that names some, becomes a dataset.

The sorted list of files is cut into chunks, and each chunk becomes one shard, whichever process does it. What is
finished waits in OUTPUT/.partial, where a run that was interrupted is taken up again; unfinished work of another input
or other settings is dropped. Only when all chunks are done do the duplicates go and the shards get their place;
`manifest.json` comes last, and a folder that has one is never written to again.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfie_jax.config import LogMel
from selfie_jax.data import audit, dataset, inputs, statistics, tfrecord, workers
from selfie_jax.data import shard as shards
from selfie_jax.data.audit import Finding
from selfie_jax.data.dataset import Manifest, Source
from selfie_jax.data.inputs import Clip
from selfie_jax.data.shard import Shard
from selfie_jax.errors import UserError
from selfie_jax.files import write_atomically
from selfie_jax.terminal import console, progress

AUDIT = 'audit.csv'
_SETTINGS = 'settings.json'
_REWRITTEN = 'rewritten'  # In .partial, shards without their duplicates.
_NAMED = 10  # Files left out that are named on the screen; the CSV names all.


@dataclasses.dataclass(frozen=True)
class _Chunk:
  """A finished chunk; kept as JSON beside its shard, and written after it."""

  shard: Shard
  findings: tuple[Finding, ...]


@dataclasses.dataclass(frozen=True)
class _ChunkTask:
  """Consecutive clips of the input, and the shard they become."""

  root: Path
  clips: Sequence[Clip]
  shard: Path
  sample_rate: int
  source: Source


def prepare_folder(
  input_path: Path,
  output: Path,
  *,
  log_mel: LogMel,
  clips_per_shard: int,
  min_seconds: float,
  silence_dbfs: float,
  max_bad_fraction: float,
  num_workers: int,
  command: str,
) -> Manifest:
  """Writes a dataset.

  The same input and settings give the same shards, indexes and audit.csv, byte for byte, whatever the number of
  workers. They give the same manifest only for the same files (it has a fingerprint of their times of change) named by
  the same path (it has the command).

  Args:
    input_path: a folder or a CSV, see `inputs.list_clips`.
    output: the dataset's folder. What an interrupted run left there is continued, or dropped if it belongs to
      another input or other settings; what is finished is left alone.
    log_mel: the sample rate, and the settings of the mean and the standard deviation in the manifest.
    clips_per_shard: files that make a shard, counted before any is left out.
    min_seconds: a clip that is shorter is left out.
    silence_dbfs: a clip that is less loud (`audit.loudness`) is left out.
    max_bad_fraction: the share of the files that may be unreadable, empty, too short or silent.
    num_workers: processes.
    command: what the manifest says made the dataset.

  Raises:
    UserError: no clips, more bad ones than allowed, or an output that holds other things or a finished dataset of
      another input or other settings.
  """
  clips = inputs.list_clips(input_path)
  root = input_path if input_path.is_dir() else input_path.parent
  source = Source(inputs.fingerprint(root, clips), clips_per_shard, min_seconds, silence_dbfs)
  partial = output / dataset.PARTIAL
  if (output / dataset.MANIFEST).exists():
    manifest = dataset.load_manifest(output)
    if difference := _difference(_settings(manifest.source, manifest.log_mel), _settings(source, log_mel)):
      raise UserError(
        f'{output} was made of another input or with other settings ({difference}): choose another --output'
      )
    audit.check(manifest.audit, max_bad_fraction, output / AUDIT)
    dataset.open_clips(output, manifest.shards)
    console.print(f'{output} is finished, with the same input and settings: left as it is')
  else:
    _start_or_continue(output, source, log_mel)
    chunks = list(_make_chunks(root, clips, partial, log_mel.sample_rate, source, num_workers))
    manifest = _finish(output, chunks, source, log_mel, max_bad_fraction, num_workers, command)
  shutil.rmtree(partial, ignore_errors=True)
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


def _start_or_continue(output: Path, source: Source, log_mel: LogMel) -> None:
  """Claims an empty folder for this input and these settings, or one that was claimed before and never finished."""
  claim, settings = output / dataset.PARTIAL / _SETTINGS, _settings(source, log_mel)
  if claim.exists():
    difference = _difference(json.loads(claim.read_bytes()), settings)
    if difference is None:
      console.print(f'{output} was begun before: going on')
      return
    console.print(f'{output} was begun with another input or other settings ({difference}): starting anew')
    _drop_work(output)
  elif output.exists() and (not output.is_dir() or set(os.listdir(output)) - {dataset.PARTIAL}):
    raise UserError(f'{output} is there already and is no dataset: choose another --output')
  claim.parent.mkdir(parents=True, exist_ok=True)
  with write_atomically(claim) as file:
    file.write(json.dumps(settings).encode())


def _drop_work(output: Path) -> None:
  """Deletes what an unfinished preparation wrote. Its claim stays, to be replaced: unclaimed work would be anyone's."""
  partial = output / dataset.PARTIAL
  finished = partial.glob('shard-*.json')  # First: one that is left without its shard would pass for a finished chunk.
  for file in (*finished, *partial.rglob('shard-*'), *output.glob('shard-*-of-*.tfrecord*'), output / AUDIT):
    file.unlink(missing_ok=True)


def _make_chunks(
  root: Path, clips: Sequence[Clip], partial: Path, sample_rate: int, source: Source, num_workers: int
) -> Iterator[_Chunk]:
  """Yields all chunks in order, those that are not finished yet being made by worker processes."""
  size = source.clips_per_shard
  groups = [clips[i : i + size] for i in range(0, len(clips), size)]
  names = [f'shard-{i:05d}-of-{len(groups):05d}.tfrecord' for i in range(len(groups))]
  tasks = [_ChunkTask(root, group, partial / name, sample_rate, source) for group, name in zip(groups, names)]
  made = workers.run(_make_chunk, [task for task in tasks if not _chunk_path(task.shard).exists()], num_workers)
  finished = {task.shard: _read_chunk(task.shard) for task in tasks if _chunk_path(task.shard).exists()}
  for task in progress(tasks, f'decoding {len(clips)} files, in shards', len(tasks)):
    yield finished[task.shard] if task.shard in finished else next(made)


def _chunk_path(shard: Path) -> Path:
  return shard.with_suffix('.json')


def _read_chunk(shard: Path) -> _Chunk:
  values = json.loads(_chunk_path(shard).read_bytes())
  return _Chunk(Shard(**values['shard']), tuple(Finding(**finding) for finding in values['findings']))


def _make_chunk(task: _ChunkTask) -> _Chunk:
  """Decodes the clips of a chunk and writes its shard, then its JSON: with that, the chunk is finished."""
  findings: list[Finding] = []

  def examples() -> Iterator[tfrecord.Features]:
    for clip in task.clips:
      finding, audio = audit.examine(
        task.root / clip.name, clip.name, task.sample_rate, task.source.min_seconds, task.source.silence_dbfs
      )
      findings.append(finding)
      if audio is not None:
        features = {'audio': [audio.astype('<i2').tobytes()], 'sample_rate': [task.sample_rate]}
        labels = {'labels': [label.encode() for label in clip.labels]} if clip.labels else {}
        yield features | labels | {'id': [clip.name.encode()]}

  chunk = _Chunk(shards.write_shard(task.shard, examples()), tuple(findings))
  with write_atomically(_chunk_path(task.shard)) as file:
    file.write(json.dumps(dataclasses.asdict(chunk)).encode())
  return chunk


def _finish(
  output: Path,
  chunks: Sequence[_Chunk],
  source: Source,
  log_mel: LogMel,
  max_bad_fraction: float,
  num_workers: int,
  command: str,
) -> Manifest:
  """Turns finished chunks into a dataset. Each step may be repeated, so a run may be killed in the middle of any."""
  findings = audit.mark_duplicates(finding for chunk in chunks for finding in chunk.findings)
  audit.write_csv(output / AUDIT, findings)
  left_out = [finding for finding in findings if finding.status != 'ok']
  for finding in left_out[:_NAMED]:
    console.print(f'left out {finding.name}: {finding.status}, {finding.reason}')
  if len(left_out) > _NAMED:
    console.print(f'... and {len(left_out) - _NAMED} more, all named in {output / AUDIT}')
  counts = audit.count(findings)
  audit.check(counts, max_bad_fraction, output / AUDIT)
  duplicates = {finding.name for finding in findings if finding.status == 'duplicate'}
  entries = _publish(output, chunks, duplicates, num_workers)
  clips = dataset.open_clips(output, entries)
  mean, std = statistics.log_mel_mean_and_std(clips, log_mel, num_workers)
  samples = sum(finding.samples for finding in findings if finding.status == 'ok')
  manifest = Manifest(
    format_version=dataset.FORMAT_VERSION,
    command=command,
    num_clips=counts.ok,
    hours=samples / log_mel.sample_rate / 3_600,
    sample_rate=log_mel.sample_rate,
    log_mel=log_mel,
    mean=mean,
    std=std,
    audit=counts,
    source=source,
    shards=tuple(entries),
  )
  dataset.write_manifest(output, manifest)
  return manifest


def _publish(output: Path, chunks: Sequence[_Chunk], duplicates: set[str], num_workers: int) -> list[Shard]:
  """Moves the shards from `.partial` to their place; those with duplicates are written anew first, without them."""
  partial = output / dataset.PARTIAL
  rewritten_folder = partial / _REWRITTEN
  rewritten_folder.mkdir(exist_ok=True)
  tasks = [
    (partial / chunk.shard.name, rewritten_folder / chunk.shard.name, dropped)
    for chunk in chunks
    if (dropped := duplicates.intersection(finding.name for finding in chunk.findings))
  ]
  rewritten = {shard.name: shard for shard in workers.run(_rewrite, tasks, num_workers)}
  for chunk in chunks:
    folder = rewritten_folder if chunk.shard.name in rewritten else partial
    for name in (chunk.shard.name, shards.index_path(folder / chunk.shard.name).name):
      if (folder / name).exists():  # Else a run before this one moved it.
        os.replace(folder / name, output / name)
  return [rewritten.get(chunk.shard.name, chunk.shard) for chunk in chunks]


def _rewrite(task: tuple[Path, Path, set[str]]) -> Shard:
  """Copies a shard without the clips of the given names."""
  source, target, dropped = task
  examples = (tfrecord.decode_example(data) for _, data in tfrecord.scan(source))
  return shards.write_shard(target, (example for example in examples if example['id'][0].decode() not in dropped))
