"""What a crop costs, from 2,000 to 2,000,000 records, and what memory the index of all of AudioSet takes.

  python -m tests.benchmarks.data [--clips 2000] [--rounds 5] [--seconds 2]

The index is synthetic: its rows are those of the same shards, over and over, so that the order and the look-up are
those of a large dataset, and the files are not. Batches are those of parts/crops.py, which compares ours with others;
the sizes take turns as ways do (see rounds.py), and the cost is that in CPU-seconds.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from selfie_jax.config import Data
from selfie_jax.data import pipeline
from selfie_jax.data.dataset import Dataset, open_dataset
from selfie_jax.data.plan import Plan
from selfie_jax.data.reader import ClipReader
from selfie_jax.data.source import DataSource
from tests.benchmarks.machine import machine
from tests.benchmarks.parts import crops
from tests.benchmarks.rounds import Way, compare, spread

SIZES = (2_000, 20_000, 200_000, 2_000_000)
AUDIOSET_CLIPS = 2_084_320


def synthetic_source(dataset: Dataset, records: int) -> DataSource:
  """A source of so many records, whose index has the rows of the same shards over and over."""
  copies = -(-records // len(dataset.clips))
  rows = np.tile(dataset.clips._index, copies)
  files = dataset.clips._states
  reader = ClipReader(dataset.path, dataset.shards * copies, rows, 'int16', files, {})
  settings = Data(path=dataset.path, read_threads=1, prefetch_batches=2)
  return DataSource((dataclasses.replace(dataset, clips=reader),), (1.0,), settings)


def synthetic(folder: str, records: int) -> Callable[[], int]:
  """Takes batches of whole records of a synthetic source."""
  source = synthetic_source(open_dataset(Path(folder, 'dataset')), records)
  batches = pipeline.batches(source, batch_size=crops.BATCH, crop_samples=crops.CROP, seed=0, start_step=0)
  return lambda: sum(len(next(batches)['audio']) for _ in range(crops.BATCHES_A_CALL))


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
  plan = Plan(source, crops.CROP, seed=0)
  plan.clips(range(1))  # The order of the first epoch.
  return index.nbytes / 2**20, resident_mib() - before


def main() -> None:
  """Prints the report."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--clips', type=int, default=crops.CLIPS)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--seconds', type=float, default=2.0, help='of each size in each round')
  options = parser.parse_args()
  print(machine())
  with tempfile.TemporaryDirectory() as name:
    crops.write_clips(Path(name), options.clips)
    array, process = index_mib(Path(name))
    ways = {
      f'{size:,} records': Way('tests.benchmarks.data:synthetic', {'folder': name, 'records': size}) for size in SIZES
    }
    found = compare(ways, options.rounds, options.seconds)
  for way, reason in found.failed.items():
    print(f'{way} failed: {reason}')
  print('CPU-microseconds a crop, whole records: median (smallest to largest)')
  first = next(iter(found.turns))
  for way in found.turns:
    costs = spread([1e6 / speed for speed in found.per_cpu_second(way)])
    print(f'  {way}: {costs.text(1)}, {spread(found.ratios(first, way)).text(2)} times that of {first}')
  print(f'index of {AUDIOSET_CLIPS:,} clips (all of AudioSet): {array:.1f} MiB, process grew by {process:.1f} MiB')


if __name__ == '__main__':
  main()
