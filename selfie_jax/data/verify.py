"""Every byte of a dataset, checked."""

import hashlib
from collections.abc import Iterator

import numpy as np

from selfie_jax.data import index_cache, tfrecord, workers
from selfie_jax.data import shard as shards
from selfie_jax.data.dataset import Manifest
from selfie_jax.data.shard import Shard
from selfie_jax.errors import UserError
from selfie_jax.files import PathLike, as_path, filesystem

_BLOCK = 2**23  # Bytes.


def verify(path: PathLike, manifest: Manifest, num_workers: int) -> Iterator[list[str]]:
  """Reads the whole dataset, all splits, and yields, shard by shard in the manifest's order, what is wrong with it.

  Every CRC, Example, SHA-256 and count is checked, FLAC is decoded, and every damaged record named, not only the first.
  """
  audio_format, sample_rate = manifest.source.audio_format, manifest.sample_rate
  tasks = [(str(as_path(path) / shard.name), shard, audio_format, sample_rate) for shard in manifest.shards]
  return workers.run(_verify_shard, tasks, num_workers)


def _verify_shard(task: tuple[str, Shard, str, int]) -> list[str]:
  path, shard, audio_format, sample_rate = task
  try:
    (data,) = index_cache.fetch(as_path(path).parent, [shard])  # Not one that was kept elsewhere.
    index = shards.parse_index(data, path, shard, audio_format)
  except UserError as error:
    return [str(error), *_verify_in_order(path, shard)]
  problems = []
  digest, end = hashlib.sha256(), 0
  try:
    with filesystem(path).open(path, 'rb') as file:
      # One pass, record by record. The index says where each starts, so that one is found also behind a damaged one.
      for number, row in enumerate(index):
        if int(row['offset']) != end:
          problems.append(f'the index of {path} contradicts its shard at record {number}')
          break
        record = file.read(int(row['length']) + tfrecord.FRAME_BYTES)
        digest.update(record)
        end += int(row['length']) + tfrecord.FRAME_BYTES
        if problem := _verify_record(record, path, number, row, audio_format, sample_rate):
          problems.append(problem)
      while rest := file.read(_BLOCK):
        digest.update(rest)
  except FileNotFoundError:
    return [f'the shard {path} is missing']
  except OSError as error:
    return [f'cannot read the shard {path}: {error.strerror or error}']
  if digest.hexdigest() != shard.sha256:
    problems.insert(0, f"the shard {path} is damaged: its SHA-256 is not the manifest's")
  return problems


def _verify_record(
  record: bytes, path: str, number: int, row: np.void, audio_format: str, sample_rate: int
) -> str | None:
  """Returns what is wrong with a record, or None."""
  name = tfrecord.name_record(path, number)
  try:
    data = tfrecord.unframe(record, path, number, int(row['length']), int(row['crc']))
    features = tfrecord.decode_example(bytes(data))
    start = int(row['audio_start'])
    audio = data[start : start + int(row['audio_bytes'])]
    if features['audio'] != [audio]:
      return f'{name}: the index points at other bytes than its audio'
    if features['sample_rate'] != [sample_rate]:
      return f'{name}: sample_rate {features["sample_rate"]}, the manifest says {sample_rate}'
    if audio_format == 'flac':
      shards.decode_flac(audio, 0, int(row['samples']))
  except UserError as error:
    return str(error)
  except (ValueError, KeyError) as error:
    return f'{name} does not hold a clip: {error}'
  return None


def _verify_in_order(path: str, shard: Shard) -> list[str]:
  """Without an index, records can be found only one after the other: up to the first that is damaged."""
  try:
    clips = sum(1 for _ in tfrecord.scan(path))
  except UserError as error:
    return [str(error)]
  except OSError as error:
    return [f'cannot read the shard {path}: {error.strerror or error}']
  return [] if clips == shard.clips else [f'the shard {path} has {clips} records, the manifest says {shard.clips}']
