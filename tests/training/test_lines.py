import json

import pytest

from selfie_jax.errors import UserError
from selfie_jax.training.monitoring.lines import JsonLines


def steps(path):
  return [json.loads(line)['step'] for line in path.read_text().splitlines()]


def test_a_run_goes_on_with_the_lines_up_to_its_checkpoint_whatever_a_kill_left_behind_them(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  lines = JsonLines(path, 0)
  assert lines.last is None
  for step in (2, 4, 6):
    lines.append({'step': step, 'loss': step / 2})
  for torn in (b'{"step": 8, "lo', b'\xff\x00', b'7', b'[]', b'{"loss": 1.0}', b'\x00' * 50):
    with path.open('ab') as file:
      file.write(torn)
    lines = JsonLines(path, 4)
    assert steps(path) == [2, 4]
    assert lines.last == {'step': 4, 'loss': 2.0}
    lines.append({'step': 6})
    lines.sync()
    assert steps(path) == [2, 4, 6]
  assert [file.name for file in tmp_path.iterdir()] == ['metrics.jsonl']


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
  lines = JsonLines(tmp_path / 'metrics.jsonl', 0)
  (tmp_path / 'metrics.jsonl').unlink()
  (tmp_path / 'metrics.jsonl').symlink_to('/dev/full')
  with pytest.raises(UserError, match=r'cannot write .*/metrics.jsonl: No space left on device'):
    lines.append({'step': 2})
