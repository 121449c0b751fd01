import itertools

from selfie_jax.data import pipeline
from selfie_jax.data.dataset import open_dataset
from tests.benchmarks import data
from tests.benchmarks.parts import crops
from tests.benchmarks.rounds import spread
from tests.data.sounds import voice_int16, write_dataset


def test_a_synthetic_index_reads_the_same_shards_under_many_numbers(tmp_path):
  dataset = open_dataset(write_dataset(tmp_path, [voice_int16(1, i) for i in range(5)], 2))
  source = data.synthetic_source(dataset, 1_000)
  assert source.num_clips == 1_000
  batches = pipeline.batches(source, batch_size=64, crop_samples=crops.CROP, seed=0, start_step=0)
  numbers = [number for batch in itertools.islice(batches, 3) for number in batch['index'].tolist()]
  assert len(set(numbers)) == 192
  assert max(numbers) > 500


def test_a_spread_is_the_median_and_the_extremes():
  assert spread([3.0, 1.0, 2_000.0]).text(1) == '3.0 (1.0 to 2,000.0)'
