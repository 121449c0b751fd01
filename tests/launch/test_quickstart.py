import json
import os
import subprocess
import sys

from tests.processes import OPTIMIZED, ROOT, environment


def quickstart(folder):
  extra = {'QUICKSTART_DIR': str(folder), 'QUICKSTART_SMALL': '1', 'VENV': sys.prefix, 'SEEDS': '3'}
  command = ['bash', ROOT / 'launch/quickstart.sh']
  result = subprocess.run(
    command, env=environment(compiler=OPTIMIZED, **extra), capture_output=True, text=True, timeout=900
  )
  assert result.returncode == 0, result.stderr[-4000:]
  return result


def test_the_quick_start_trains_resumes_and_evaluates_and_a_second_run_skips_what_is_done(tmp_path, downloads):
  (tmp_path / 'data').mkdir()
  os.symlink(downloads, tmp_path / 'data/downloads')

  first = quickstart(tmp_path)
  assert 'exited with 75' in first.stdout
  assert 'resuming after step' in first.stderr
  run = tmp_path / 'seed_3'
  steps = [json.loads(line)['step'] for line in (run / 'metrics.jsonl').read_text().splitlines()]
  assert steps == list(range(1, 13))
  for name in ('results.json', 'report.html', 'scores.jsonl'):
    assert (run / 'eval' / name).stat().st_size > 0
  assert all(row in first.stdout for row in ('instrument_family', 'drum', 'pitch', 'mean'))

  second = quickstart(tmp_path)
  assert 'nothing to do' in second.stderr
  assert 'resuming after step 12' in second.stderr
  assert 'done before' in second.stdout
