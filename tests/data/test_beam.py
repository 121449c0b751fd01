"""Preparation by Apache Beam. It runs in processes of its own: Beam takes seconds to import, and its log is global."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from selfie_jax import prepare
from tests.data.sounds import RATE, voice_int16, write_wavs
from tests.processes import ROOT, environment, run_python

BEAM = ('--runner', 'DirectRunner')
IN_MEMORY = ('--', '--direct_running_mode=in_memory')  # One process: it starts sooner.


def command(source, output, *arguments):
  return ['folder', '--input', source, '--output', output, '--clips_per_shard', 2, *arguments]


def contents(path):
  return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob('*')) if file.is_file()}


@pytest.fixture(scope='module')
def recordings(tmp_path_factory):
  """30 clips that take some time to decode; one of them is there twice."""
  path = tmp_path_factory.mktemp('recordings')
  write_wavs(path, 20)
  for i in range(10):
    soundfile.write(path / f'long{i}.flac', np.tile(voice_int16(2, i), 10), 44_100)
  soundfile.write(path / 'b/zz_again.flac', voice_int16(0.5, 0), RATE)  # a/voice000.wav in another format.
  return path


@pytest.fixture(scope='module')
def reference(recordings, tmp_path_factory):
  """What the worker processes of `prepare` make of it."""
  output = tmp_path_factory.mktemp('reference') / 'dataset'
  prepare.main(list(map(str, command(recordings, output))))
  return contents(output)


def test_beam_in_several_processes_writes_the_same_bytes(recordings, reference, tmp_path):
  result = run_python('-m', 'selfie_jax.prepare', *command(recordings, tmp_path / 'dataset', '--workers', 2, *BEAM))
  assert contents(tmp_path / 'dataset') == reference
  assert 'decoding: 31 of 31 clips, ' in result.stderr


@pytest.mark.skipif(sys.platform != 'linux', reason='sessions and signals as Linux has them')
def test_a_killed_pipeline_is_taken_up_again_and_ends_with_the_same_bytes(recordings, reference, tmp_path):
  output = tmp_path / 'dataset'
  arguments = map(str, command(recordings, output, *BEAM, *IN_MEMORY))
  process = subprocess.Popen(
    [sys.executable, '-m', 'selfie_jax.prepare', *arguments],
    cwd=ROOT,
    env=environment(),
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )
  while len(list((output / '.partial').glob('train-*.json'))) < 3:
    assert process.poll() is None
    time.sleep(0.005)
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()
  assert not (output / 'manifest.json').exists()
  before = {note.stem: (output / note.stem).stat().st_ino for note in (output / '.partial').glob('train-*.json')}
  before.pop('train-00010-of-00016.tfrecord', None)  # It is written again, without its duplicate.
  result = run_python('-m', 'selfie_jax.prepare', *command(recordings, output, *BEAM, *IN_MEMORY))
  assert 'of 31 clips were done before' in result.stderr
  assert contents(output) == reference
  assert before.items() <= {file.name: file.stat().st_ino for file in output.iterdir()}.items()


def test_a_task_that_fails_and_options_that_do_not_exist_end_in_one_clear_line(tmp_path):
  (tmp_path / 'tasks.py').write_text(
    "def work(task):\n  if task == 3:\n    raise OSError(28, 'No space left on device', '/data/x')\n"
  )
  (tmp_path / 'script.py').write_text(
    'import tasks\n'
    'from selfie_jax.data import beam\n'
    'from selfie_jax.errors import UserError\n'
    "one_process = ['--direct_running_mode=in_memory']\n"
    "for name, options in ('DirectRunner', one_process), ('NoRunner', []), ('DirectRunner', ['--wrong=1']):\n"
    '  try:\n'
    '    list(beam.make_runner(name, options, 1)(tasks.work, range(5)))\n'
    '  except UserError as error:\n'
    '    print(str(error)[:99])\n'
  )
  lines = run_python(tmp_path / 'script.py', PYTHONPATH=f'{ROOT}{os.pathsep}{tmp_path}').stdout.splitlines()
  assert lines[0] == "the Beam pipeline failed: [Errno 28] No space left on device: '/data/x'"
  assert lines[1].startswith(
    'cannot use the Beam runner NoRunner with the options given after "--": Unexpected pipeline'
  )
  assert lines[2] == 'Beam knows no option --wrong'
