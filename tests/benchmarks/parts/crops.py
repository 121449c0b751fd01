"""Crops from disk: batches of 64 random crops of 0.95 seconds, int16, of clips of ten seconds in a warm page cache.

All ways read the same 2,000 clips, from TFRecords or wav files, in processes of their own.

ours, whole records: shuffled globally, every record's CRC checked (`data.read='record'`).
ours, crops alone: the same batches, of which only the crops' bytes are read (`data.read='crop'`).
tf.data: the same shards, interleaved; a shuffle buffer of 500, parse_single_example, decode_raw, random_crop, batch,
  prefetch; all that may be parallel is (AUTOTUNE). It checks every CRC as well.
PyTorch: a Dataset that reads a wav file with soundfile, all of it, and cuts a crop; DataLoader with shuffle and 2
  worker processes. There is no checksum to check.
PyTorch, seeking: the same, but it reads no more of the file than the crop.
limit, ...: no loader, but what one must do of a record of 320 KB at least: copy it from the page cache, and compute its
  CRC, by one thread; and the copy alone, from memory to memory. It is what ours could come near to.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from selfie_jax.config import Data, LogMel
from selfie_jax.data import pipeline, tfrecord
from selfie_jax.data.dataset import open_dataset
from selfie_jax.data.source import open_data
from tests.benchmarks.rounds import Way
from tests.data.sounds import RATE, voice_int16, write_dataset

NAME = 'crops'
UNIT = 'crops'
TARGETS = {'tf.data': 3.0, 'PyTorch': 3.0, 'tf.data (beside crops alone)': 3.0, 'PyTorch, seeking': 3.0}
CLIPS = 2_000
BATCH = 64
CROP = 15_200
SECONDS = 10
CLIPS_PER_SHARD = 512
BATCHES_A_CALL = 8
WORKERS = 2  # Of PyTorch.


def prepare(folder: Path) -> None:
  """Writes the clips."""
  write_clips(folder, CLIPS)


def ways(folder: Path) -> dict[str, Way]:
  """Ours that reads all of a record beside others that do, and ours that does not beside one that need not either."""
  here, where = 'tests.benchmarks.parts.crops:', {'folder': str(folder)}
  whole, alone = 'whole records', 'crops alone'
  cpu = {'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}  # No way has any use for an accelerator.
  return {
    'ours, whole records': Way(f'{here}ours', where | {'read': 'record'}, cpu, whole),
    'tf.data': Way(f'{here}tf_data', where, cpu, whole),
    'PyTorch': Way(f'{here}torch_wavs', where | {'seek': False}, cpu, whole),
    'limit, pread and CRC': Way(f'{here}read_and_check', where, cpu, whole),
    'limit, copy of memory': Way(f'{here}copy', where, cpu, whole),
    'ours, crops alone': Way(f'{here}ours', where | {'read': 'crop'}, cpu, alone),
    'tf.data (beside crops alone)': Way(f'{here}tf_data', where, cpu, alone),
    'PyTorch, seeking': Way(f'{here}torch_wavs', where | {'seek': True}, cpu, alone),
  }


def write_clips(folder: Path, count: int) -> None:
  """Writes clips as a dataset and as wav files: parts of one long voice, each with some noise of its own."""
  sound = voice_int16(60, 0).astype(np.int32)
  rng = np.random.default_rng(0)
  (folder / 'wavs').mkdir(parents=True)
  clips = []
  for i in range(count):
    start = rng.integers(len(sound) - SECONDS * RATE)
    noise = rng.integers(-50, 50, SECONDS * RATE)
    clips.append((sound[start : start + SECONDS * RATE] + noise).clip(-32_768, 32_767).astype(np.int16))
    soundfile.write(folder / 'wavs' / f'{i:06d}.wav', clips[-1], RATE)
  write_dataset(folder / 'dataset', clips, CLIPS_PER_SHARD)


def ours(folder: str, read: str) -> Callable[[], int]:
  """Takes our batches."""
  source = open_data(Data(path=f'{folder}/dataset', read=read), LogMel())
  batches = pipeline.batches(source, batch_size=BATCH, crop_samples=CROP, seed=0, start_step=0)
  return _take(batch['audio'] for batch in batches)


def tf_data(folder: str) -> Callable[[], int]:
  """Takes batches of tf.data."""
  import tensorflow as tf

  def crop(record: 'tf.Tensor') -> 'tf.Tensor':
    audio = tf.io.parse_single_example(record, {'audio': tf.io.FixedLenFeature([], tf.string)})['audio']
    return tf.image.random_crop(tf.io.decode_raw(audio, tf.int16), [CROP])

  files = tf.data.Dataset.from_tensor_slices(_shards(folder))
  records = files.shuffle(1_000).interleave(
    tf.data.TFRecordDataset, cycle_length=4, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False
  )
  crops = records.repeat().shuffle(500).map(crop, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
  return _take(crops.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE).as_numpy_iterator())


class WavFiles:
  """A Dataset as users of PyTorch write it."""

  def __init__(self, folder: Path, seek: bool) -> None:
    self._seek = seek
    self._files = sorted(map(str, folder.glob('*.wav')))

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, i: int) -> np.ndarray:
    if not self._seek:
      audio, _ = soundfile.read(self._files[i], dtype='int16')
      start = np.random.randint(len(audio) - CROP + 1)  # noqa: NPY002 (What they use.)
      return audio[start : start + CROP]
    with soundfile.SoundFile(self._files[i]) as file:
      file.seek(np.random.randint(file.frames - CROP + 1))  # noqa: NPY002
      return file.read(CROP, dtype='int16')


def torch_wavs(folder: str, seek: bool) -> Callable[[], int]:
  """Takes batches of a PyTorch DataLoader."""
  import torch.utils.data

  loader = torch.utils.data.DataLoader(
    WavFiles(Path(folder, 'wavs'), seek),
    BATCH,
    shuffle=True,
    num_workers=WORKERS,
    drop_last=True,
    persistent_workers=True,
  )

  def batches() -> Iterator[np.ndarray]:
    while True:
      for batch in loader:
        yield batch.numpy()

  return _take(batches())


def read_and_check(folder: str) -> Callable[[], int]:
  """Reads whole records at random, into memory that is there already, and computes their CRCs."""
  clips = open_dataset(Path(folder, 'dataset')).clips
  rng = np.random.default_rng(0)
  records = [clips.record_range(clips.find(clip)) for clip in rng.permutation(len(clips)).tolist()]
  files = {path: os.open(path, os.O_RDONLY) for path in {record.path for record in records}}
  buffer = np.empty(max(record.length for record in records), np.uint8)

  def work() -> int:
    for path, start, length, _ in records:
      os.preadv(files[path], [buffer[:length]], start)
      tfrecord.masked_crc(buffer[:length])
    return len(records)

  return work


def copy(folder: str) -> Callable[[], int]:
  """Copies as many bytes as a record has, from memory that no cache holds."""
  clips = open_dataset(Path(folder, 'dataset')).clips
  length = clips.record_range(clips.find(0)).length
  source, target = np.ones((500, length), np.uint8), np.empty(length, np.uint8)

  def work() -> int:
    for record in source:
      np.copyto(target, record)
    return len(source)

  return work


def _take(batches: Iterator[np.ndarray]) -> Callable[[], int]:
  """Returns what takes some batches, having made sure that they are what was asked for."""
  first = next(batches)
  assert (first.shape, first.dtype) == ((BATCH, CROP), np.int16)
  return lambda: sum(len(next(batches)) for _ in range(BATCHES_A_CALL))


def _shards(folder: str) -> list[str]:
  return sorted(map(str, Path(folder, 'dataset').glob('*.tfrecord')))
