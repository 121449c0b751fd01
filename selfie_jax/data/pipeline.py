"""Batches of crops, each a function of (seed, step) alone.

Grain shuffles all clips, anew each epoch, by a permutation that it evaluates index by index. Nothing is buffered, so
the whole state of the pipeline is the number of the next step, on any number of hosts.
"""

from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np

from selfie_jax.data import dataset
from selfie_jax.errors import UserError


def crop(audio: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
  """Cuts `samples` consecutive samples at a uniformly random place; a shorter clip is zero-padded at its end."""
  start = rng.integers(max(len(audio) - samples, 0), endpoint=True)
  piece = audio[start : start + samples]
  padded = np.zeros(samples, audio.dtype)
  padded[: len(piece)] = piece
  return padded


def batches(
  path: str | Path,
  *,
  batch_size: int,
  crop_samples: int,
  seed: int,
  start_step: int,
  read_threads: int,
  prefetch_batches: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields this host's part of every batch from `start_step` on, without end.

  Clip i of batch k is clip k * batch_size + i of an endless sequence: every clip once, in random order, then every clip
  again in another order, and so on (a batch may straddle two epochs, and a dataset may be smaller than a batch). Its
  crop is drawn from (seed, k * batch_size + i). Hosts hold contiguous parts: side by side, they are one host's batch.

  Args:
    path: a dataset written by `selfie_jax.prepare`.
    batch_size: clips in the batch of all hosts.
    crop_samples: length of a crop; shorter clips are zero-padded at their end.
    seed: of the order and of the crops.
    start_step: the first step; starting there costs as much as starting at 0.
    read_threads: threads that read, each a whole batch at a time (so more than `prefetch_batches` have nothing to do).
    prefetch_batches: batches that are ready, or being read, ahead of the one yielded last.
    process_index: this host's number.
    process_count: number of hosts.

  Yields:
    `audio`: (batch_size / process_count, crop_samples) int16; `index`: (batch_size / process_count,) int64, the clips'
    numbers in the dataset.

  Raises:
    UserError: the dataset contradicts its manifest, the hosts do not divide the batch; or, while it yields, a record is
      damaged.
  """
  if batch_size % process_count:
    raise UserError(f'batch_size {batch_size} is not a multiple of the number of hosts, {process_count}')
  # Explicit seeds: those that Grain derives by itself depend on a transformation's place in the chain.
  order_seed, crop_seed = map(int, np.random.SeedSequence(seed).generate_state(2))

  def random_crop(clip: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    return clip | {'audio': crop(clip['audio'], crop_samples, rng)}

  # `repeat` comes before `random_map` and `batch`: crops differ between epochs, and no batch is cut at an epoch's end.
  source = grain.MapDataset.source(dataset.open_clips(path, dataset.load_manifest(path).shards))
  clips = source.shuffle(seed=order_seed).repeat().random_map(random_crop, seed=crop_seed)
  # There is no remainder to drop, but without this Grain rounds the endless length in floating point, and overflows.
  parts = clips.batch(batch_size // process_count, drop_remainder=True)
  mine = parts[process_index::process_count][start_step:]
  threads = min(read_threads, prefetch_batches)
  return iter(mine.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch_batches)))
