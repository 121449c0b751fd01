"""Reading speed, against tf.data and a PyTorch Dataset of wav files, all in one run.

  pip install -r tests/benchmarks/requirements.txt
  python -m tests.benchmarks.data [--clips 2000] [--rounds 5] [--seconds 4]

All ways read the same clips of ten seconds, from a page cache that is warm, and give batches of 64 random crops of 0.95
seconds, int16. Each has processes of its own. They take turns for some rounds, so that whatever else the machine does
hits all of them; a ratio is that of two ways in the same round, and the report has the median of the rounds' and the
smallest and the largest.

  ours, whole records: shuffled globally, every record's CRC checked. One thread: of local files, more read no faster.
  ours, crops alone: the same batches, of which only the crops' bytes are read.
  tf.data: the same shards, interleaved; a shuffle buffer of 500, parse_single_example, decode_raw, random_crop, batch,
    prefetch; all that may be parallel is (AUTOTUNE). It checks every CRC as well.
  PyTorch: a Dataset that reads a wav file with soundfile, all of it, and cuts a crop; DataLoader with shuffle and 2
    worker processes. There is no checksum to check.
  PyTorch, seeking: the same, but it reads no more of the file than the crop.

Then the cost of a crop is measured with 2,000 to 2,000,000 records. The index is synthetic: its rows are those of the
same shards, over and over, so that the order and the look-up are those of a large dataset, and the files are not.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import multiprocessing
import multiprocessing.connection
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from selfie_jax.config import Data, LogMel
from selfie_jax.data import pipeline
from selfie_jax.data.dataset import Dataset, open_dataset
from selfie_jax.data.reader import ClipReader
from selfie_jax.data.source import DataSource, open_data
from tests.data.sounds import RATE, voice_int16, write_dataset

BATCH = 64
CROP = 15_200
SECONDS = 10
WORKERS = 2  # Of PyTorch.
SIZES = (2_000, 20_000, 200_000, 2_000_000)
AUDIOSET_CLIPS = 2_084_320
OURS, OURS_CROP = 'ours, whole records', 'ours, crops alone'
TF_DATA, WAVS, WAVS_SEEK = 'tf.data', 'PyTorch', 'PyTorch, seeking'


def write_clips(folder: Path, count: int) -> None:
  """Writes the clips as a dataset and as wav files: parts of one long voice, each with some noise of its own."""
  sound = voice_int16(60, 0).astype(np.int32)
  rng = np.random.default_rng(0)
  (folder / 'wavs').mkdir(parents=True)
  clips = []
  for i in range(count):
    start = rng.integers(len(sound) - SECONDS * RATE)
    noise = rng.integers(-50, 50, SECONDS * RATE)
    clips.append((sound[start : start + SECONDS * RATE] + noise).clip(-32_768, 32_767).astype(np.int16))
    soundfile.write(folder / 'wavs' / f'{i:06d}.wav', clips[-1], RATE)
  write_dataset(folder / 'dataset', clips, 512)


def ours(folder: Path, read: str, threads: int) -> Iterator[np.ndarray]:
  """Our batches, without end."""
  data = Data(path=str(folder / 'dataset'), read=read, read_threads=threads, prefetch_batches=max(threads, 2))
  batches = pipeline.batches(open_data(data, LogMel()), batch_size=BATCH, crop_samples=CROP, seed=0, start_step=0)
  for batch in batches:
    yield batch['audio']


def tf_data(folder: Path) -> Iterator[np.ndarray]:
  """Batches of tf.data, without end."""
  import tensorflow as tf

  def crop(record: 'tf.Tensor') -> 'tf.Tensor':
    audio = tf.io.parse_single_example(record, {'audio': tf.io.FixedLenFeature([], tf.string)})['audio']
    return tf.image.random_crop(tf.io.decode_raw(audio, tf.int16), [CROP])

  files = tf.data.Dataset.from_tensor_slices(sorted(map(str, (folder / 'dataset').glob('*.tfrecord'))))
  records = files.shuffle(1_000).interleave(
    tf.data.TFRecordDataset, cycle_length=4, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False
  )
  crops = records.repeat().shuffle(500).map(crop, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
  return crops.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


class WavFiles:
  """A Dataset as users of PyTorch write it."""

  def __init__(self, folder: Path, seek: bool) -> None:
    self._seek = seek
    self._files = sorted(map(str, (folder / 'wavs').glob('*.wav')))

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


def torch_wavs(folder: Path, seek: bool) -> Iterator[np.ndarray]:
  """Batches of a PyTorch DataLoader, without end."""
  import torch.utils.data

  loader = torch.utils.data.DataLoader(
    WavFiles(folder, seek), BATCH, shuffle=True, num_workers=WORKERS, drop_last=True, persistent_workers=True
  )
  while True:
    for batch in loader:
      yield batch.numpy()


def crops_per_second(batches: Iterator[np.ndarray], seconds: float) -> float:
  """Takes batches for so long."""
  begin, count = time.perf_counter(), 0
  while time.perf_counter() - begin < seconds:
    count += len(next(batches))
  return count / (time.perf_counter() - begin)


def measure(pipe: multiprocessing.connection.Connection, way: Callable[[], Iterator[np.ndarray]]) -> None:
  """Measures a way, in a process of its own, for as many seconds as it is told, whenever it is told."""
  batches = way()
  assert next(batches).shape == (BATCH, CROP)
  while seconds := pipe.recv():
    pipe.send(crops_per_second(batches, seconds))
  os._exit(0)  # Without waiting for threads and workers that read ahead for ever.


def compare(ways: dict[str, Callable[[], Iterator[np.ndarray]]], rounds: int, seconds: float) -> dict[str, list[float]]:
  """Returns the crops/s of each way in each round; all are begun once, and take turns."""
  context = multiprocessing.get_context('spawn')  # None of them has another's threads.
  pipes, processes = {}, []
  for name, way in ways.items():
    pipes[name], theirs = context.Pipe()
    processes.append(context.Process(target=measure, args=(theirs, way)))
    processes[-1].start()
    theirs.close()  # Or its end would not be noticed here.
  speeds: dict[str, list[float]] = {name: [] for name in ways}
  try:
    for number in range(rounds + 1):
      for name, pipe in pipes.items():
        pipe.send(seconds)
        speed = pipe.recv()
        if number:  # Round 0 is for starting threads, workers and tuning.
          speeds[name].append(speed)
  finally:
    for pipe, process in zip(pipes.values(), processes, strict=True):
      with contextlib.suppress(OSError):
        pipe.send(0)
      process.join()
  return speeds


def spread(values: list[float], digits: int) -> str:
  """The median, with the smallest and the largest."""
  return f'{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})'


def synthetic_source(dataset: Dataset, records: int) -> DataSource:
  """A source of so many records, whose index has the rows of the same shards over and over."""
  copies = -(-records // len(dataset.clips))
  rows = np.tile(dataset.clips._index, copies)
  files = dataset.clips._states
  reader = ClipReader(dataset.path, dataset.shards * copies, rows, 'int16', files, {})
  settings = Data(path=dataset.path, read_threads=1, prefetch_batches=2)
  return DataSource((dataclasses.replace(dataset, clips=reader),), (1.0,), settings)


def synthetic(folder: Path, records: int) -> Iterator[np.ndarray]:
  """Batches of whole records of a synthetic source, without end."""
  source = synthetic_source(open_dataset(folder / 'dataset'), records)
  for batch in pipeline.batches(source, batch_size=BATCH, crop_samples=CROP, seed=0, start_step=0):
    yield batch['audio']


def cost_of_size(folder: Path, rounds: int, seconds: float) -> dict[int, list[float]]:
  """Returns the microseconds a crop of `SIZES` records, whole records, in each round."""
  speeds = compare({size: functools.partial(synthetic, folder, size) for size in SIZES}, rounds, seconds)
  return {size: [1e6 / speed for speed in values] for size, values in speeds.items()}


def resident_mib() -> float:
  """Memory of this process (Linux)."""
  for line in Path('/proc/self/status').read_text().splitlines():
    if line.startswith('VmRSS:'):
      return int(line.split()[1]) / 1_024
  raise RuntimeError('no VmRSS in /proc/self/status')


def index_mib(folder: Path) -> tuple[float, float]:
  """Returns what AudioSet's index takes: its array, and what the process grows by with the reader around it."""
  dataset = open_dataset(folder / 'dataset')
  before = resident_mib()
  source = synthetic_source(dataset, AUDIOSET_CLIPS)
  index = source.datasets[0].clips._index
  return index.nbytes / 2**20, resident_mib() - before


def machine() -> str:
  """What the figures were taken on."""
  model = next(
    (line.split(':')[1].strip() for line in Path('/proc/cpuinfo').read_text().splitlines() if 'model name' in line),
    platform.processor(),
  )
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
  load = ' '.join(f'{value:.2f}' for value in os.getloadavg())
  return (
    f'{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}, '
    f'Python {platform.python_version()}, load before {load}'
  )


def main() -> None:
  """Prints the report."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--clips', type=int, default=2_000)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--seconds', type=float, default=4.0, help='of each way in each round')
  options = parser.parse_args()
  print(machine())
  ways = {
    OURS: functools.partial(ours, read='record', threads=1),
    OURS_CROP: functools.partial(ours, read='crop', threads=1),
    TF_DATA: tf_data,
  }
  if importlib.util.find_spec('torch'):
    ways[WAVS] = functools.partial(torch_wavs, seek=False)
    ways[WAVS_SEEK] = functools.partial(torch_wavs, seek=True)
  else:
    print('torch is not installed, its way is left out')
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    write_clips(folder, options.clips)
    print(f'{options.clips} clips of {SECONDS} s, batches of {BATCH}, {options.rounds} rounds of {options.seconds:g} s')
    grow = index_mib(folder)
    bound = {way: functools.partial(start, folder) for way, start in ways.items()}
    speeds = compare(bound, options.rounds, options.seconds)
    print('\ncrops/s: median (smallest to largest)')
    for way, values in speeds.items():
      print(f'  {way}: {spread(values, 0)}')
    print('ratios of the same round')
    for mine, peer in itertools.product((OURS, OURS_CROP), list(ways)[2:]):
      ratios = [a / b for a, b in zip(speeds[mine], speeds[peer], strict=True)]
      print(f'  {mine} / {peer}: {spread(ratios, 2)}')
    print('\nmicroseconds a crop, whole records, 1 thread, synthetic index over the same shards')
    costs = cost_of_size(folder, options.rounds, options.seconds / 2)
    for size, values in costs.items():
      ratios = [a / b for a, b in zip(values, costs[SIZES[0]], strict=True)]
      print(f'  {size:,} records: {spread(values, 1)}, {spread(ratios, 2)} times that of {SIZES[0]:,}')
    print(
      f'\nindex of {AUDIOSET_CLIPS:,} clips (all of AudioSet): {grow[0]:.1f} MiB, process grew by {grow[1]:.1f} MiB'
    )


if __name__ == '__main__':
  main()
