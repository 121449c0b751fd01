import os

from selfie_jax.data.ranges import Range, read_ranges


def test_local_ranges_come_in_order_and_a_missing_file_is_the_only_one_missed(tmp_path):
  file = tmp_path / 'file'
  file.write_bytes(bytes(range(200)))
  ranges = [Range(str(file), start, 3) for start in range(40)]
  ranges[20] = Range(str(tmp_path / 'gone'), 0, 3)
  found = list(read_ranges(ranges))
  assert isinstance(found.pop(20), FileNotFoundError)
  assert [data[0] for data in found] == [start for start in range(40) if start != 20]


def test_who_stops_reading_leaves_no_file_open(tmp_path):
  file = tmp_path / 'file'
  file.write_bytes(bytes(200))
  before = os.listdir('/dev/fd')
  reading = read_ranges(
    [Range(str(file), start, 3) for start in range(10)] + [Range(str(tmp_path / 'gone'), 0, 3)] * 30
  )
  assert [next(reading) for _ in range(3)] == [bytes(3)] * 3
  assert len(os.listdir('/dev/fd')) > len(before)  # The next ones, which the kernel was told of.
  reading.close()
  assert len(os.listdir('/dev/fd')) == len(before)
