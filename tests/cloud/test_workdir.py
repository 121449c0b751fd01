"""A training run with its dataset and its workdir on object stores, through servers on this machine."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from selfie_jax import embed, evaluate, train
from selfie_jax.config import Config
from selfie_jax.errors import UserError
from selfie_jax.files import as_path, filesystem
from selfie_jax.from_mapping import from_mapping
from selfie_jax.training.checkpointing.checkpoints import DataState
from tests.evaluation.conftest import write_tones
from tests.object_stores import connected, gated_gcs_server, gcs_server, make_bucket, s3_server
from tests.processes import ROOT, environment
from tests.training.conftest import config_file, dataset, finished_run  # noqa: F401
from tests.training.test_checkpoints import Run
from tests.training.test_train import assert_bitwise_equal, checkpoint_steps, final_state, numbers, wait_for_step

# The same command, but that it gives a store up within seconds.
IMPATIENT = (
  '-c',
  'from selfie_jax.data import ranges; ranges.TIMEOUT_SECONDS = ranges.PATIENCE_SECONDS = 1.0; '
  'from selfie_jax import errors, train; errors.run_command(train.main)',
)


class Training:
  """The command and its workdir: what is started again is started with the same words."""

  def __init__(self, config_file, data, workdir, *overrides, program=('-m', 'selfie_jax.train')):  # noqa: F811
    self.workdir = workdir
    self._command = [sys.executable, *program, '--config', str(config_file), '--workdir', str(workdir)]
    self._command += [f'--config.data.path={data}', *overrides]

  def start(self):
    return subprocess.Popen(self._command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)

  def finish(self, process=None):
    """Returns the exit code and what was printed, of `process` or of another one that it starts."""
    process = process or self.start()
    try:
      errors = process.communicate(timeout=200)[1]
    finally:
      process.kill()
    return process.returncode, errors

  def wait_for_checkpoint(self, process, step):
    for _ in range(1200):
      if (self.workdir / 'checkpoints' / str(step) / 'commit_success.txt').exists():
        return
      assert process.poll() is None, process.stderr.read()
      time.sleep(0.05)
    raise AssertionError(f'no checkpoint of step {step}')


@pytest.fixture(autouse=True, scope='module')
def _own_cache(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:  # Of the indexes.
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    yield


@pytest.fixture(scope='module')
def cloud(dataset):  # noqa: F811
  """A bucket on a Google server that holds the dataset."""
  with gcs_server() as (_, settings), connected(settings):
    bucket = make_bucket('gs')
    filesystem(bucket).put(f'{dataset}/', f'{bucket}/records/', recursive=True)
    yield as_path(bucket)


@pytest.fixture(scope='module')
def cloud_run(cloud, config_file):  # noqa: F811
  """A run on the bucket that was killed, told to stop as soon as it went on, and finished by a third process."""
  run = Training(config_file, cloud / 'records', cloud / 'run', '--config.log.tensorboard=False')
  process = run.start()
  run.wait_for_checkpoint(process, 4)
  process.kill()
  process.communicate()
  process = run.start()
  lines = []
  for line in process.stderr:
    lines.append(line)
    if 'covariance of' in line:  # It begins to step, and has something to save from here on.
      break
  assert any('resuming after step 4' in line or 'resuming after step 8' in line for line in lines), lines
  process.send_signal(signal.SIGTERM)
  code, errors = run.finish(process)
  assert code == 75, errors
  assert 'start me again' in errors
  assert 4 < max(checkpoint_steps(run.workdir)) < 12
  code, errors = Training(config_file, cloud / 'records', cloud / 'run').finish()
  assert code == 0, errors
  assert 'resuming after step' in errors
  return run.workdir


def test_a_run_on_a_bucket_that_is_cut_off_twice_ends_bitwise_equal_to_the_one_on_disk(cloud_run, finished_run):  # noqa: F811
  assert_bitwise_equal(final_state(cloud_run), final_state(finished_run))
  assert numbers(cloud_run) == numbers(finished_run)
  assert checkpoint_steps(cloud_run)[-1] == 12
  assert any(file.name.startswith('events.out') for file in cloud_run.iterdir())


def test_a_run_on_a_bucket_is_evaluated_and_embeds(cloud, cloud_run, tmp_path, capfd):
  tones = write_tones(tmp_path / 'tones', lambda _, i: ('train', 'valid', 'test', 'test')[i], 4, low=200, high=3_000)
  filesystem(cloud).put(f'{tones}/', f'{cloud}/tones/', recursive=True)
  output = cloud / 'embeddings.npz'
  embed.main(['--workdir', str(cloud_run), '--csv', f'{cloud}/tones/metadata.csv', '--output', str(output)])
  with np.load(io.BytesIO(output.read_bytes())) as found:
    assert len(found['files']) == len(found['embeddings']) == 8
  task = tmp_path / 'task.py'
  task.write_text(
    'import ml_collections\n\ndef get_config():\n'
    f'  tasks = [dict(name="tones", path="{cloud}/tones", unit_seconds=1.0)]\n'
    '  return ml_collections.ConfigDict(dict(tasks=tasks, seeds=(0,), learning_rates=(1e-2,), epochs=2,\n'
    '    baselines=False))\n'
  )
  capfd.readouterr()
  evaluate.main(['--config', str(task), '--workdir', str(cloud_run)])
  assert f'step 12 of {cloud_run}' in ' '.join(capfd.readouterr().out.split())  # It may be wrapped.
  assert json.loads((cloud_run / 'eval/results.json').read_text())['step'] == 12
  assert (cloud_run / 'eval/report.html').read_text().lstrip().lower().startswith('<!doctype html>')


def test_a_damaged_checkpoint_on_a_bucket_is_moved_aside_there(cloud, cloud_run, capfd):
  store, copy = filesystem(cloud), cloud / 'damaged'
  store.copy(f'{cloud_run}/', f'{copy}/', recursive=True)
  folder = copy / 'checkpoints'
  older, newer, newest = (folder / str(step) for step in checkpoint_steps(copy))
  largest = max(store.find(str(newest / 'state'), detail=True).values(), key=lambda facts: facts['size'])
  contents = bytearray(store.cat_file(largest['name']))
  contents[len(contents) // 2] ^= 0x10
  store.pipe_file(largest['name'], bytes(contents))
  (newer / 'commit_success.txt').unlink()
  store.pipe_file(f'{folder}/99/state/half', b'?')  # What a killed save leaves.
  store.pipe_file(f'{folder}/99/_CHECKPOINT_METADATA', b'{"commit_timestamp_nsecs": null}')
  run = Run(copy, from_mapping(Config, json.loads((copy / 'config.json').read_text())))
  run.data = DataState(**json.loads((older / 'data/metadata').read_text()))
  state, _ = run.restore()
  assert int(state.step) == int(older.name)
  assert sorted(path.name for path in (copy / 'checkpoints_damaged').iterdir()) == sorted([newer.name, newest.name])
  assert [path.name for path in folder.iterdir() if path.name == newest.name] == []
  assert f'DAMAGED: checkpoint {newer.name} in {folder} is not used: it lacks commit_success' in capfd.readouterr().err


def test_a_store_that_dies_under_a_run_is_named_and_the_run_goes_on_once_it_is_back(
  tmp_path,
  config_file,  # noqa: F811
  dataset,  # noqa: F811
  finished_run,  # noqa: F811
):
  shutil.copytree(dataset, tmp_path / 'buckets/sounds/records')
  overrides = ('--config.log.tensorboard=False', '--config.data.prefetch_batches=1', '--config.data.read_threads=1')
  run = Training(config_file, 's3://sounds/records', tmp_path / 'run', *overrides, program=IMPATIENT)
  with s3_server(tmp_path / 'buckets') as (server, settings), connected(settings):
    process = run.start()
    wait_for_step(process, run.workdir, 4)
    server.kill()
    code, errors = run.finish(process)
  assert code == 70, errors
  assert 'Traceback' not in errors
  last = errors.splitlines()[-1]
  assert last.startswith('error: cannot read s3://sounds/records/train-00000-of-00001.tfrecord: '), errors
  assert last.endswith('is the store down?')
  with s3_server(tmp_path / 'buckets') as (_, settings), connected(settings):
    code, errors = run.finish()
  assert code == 0, errors
  assert 'resuming after step 4' in errors  # Which it saved as the server died.
  assert_bitwise_equal(final_state(run.workdir), final_state(finished_run))
  assert numbers(run.workdir) == numbers(finished_run)


def test_a_workdir_that_cannot_be_written_to_is_refused(cloud, config_file, dataset):  # noqa: F811
  for workdir, message in {
    's3://sounds/run': '--workdir is s3://sounds/run, and Orbax, which writes the checkpoints, knows local folders',
    'gs://nowhere/run': 'there is no bucket gs://nowhere',
  }.items():
    with pytest.raises(UserError, match=message):
      train.main(['--config', str(config_file), '--workdir', workdir, f'--config.data.path={dataset}'])


def test_a_bucket_that_is_away_for_a_while_does_not_end_a_run(config_file, dataset, finished_run):  # noqa: F811
  seconds = float(os.environ.get('SELFIE_TESTS_AWAY_SECONDS', '3'))
  with gated_gcs_server() as (gate, settings), connected(settings):
    bucket = as_path(make_bucket('gs'))
    run = Training(config_file, dataset, bucket / 'run', '--config.log.tensorboard=False')
    process = run.start()
    run.wait_for_checkpoint(process, 4)
    gate.shut()
    time.sleep(seconds)
    gate.open()
    code, errors = run.finish(process)
    assert code == 0, errors
    assert_bitwise_equal(final_state(run.workdir), final_state(finished_run))
    assert numbers(run.workdir) == numbers(finished_run)
    assert checkpoint_steps(run.workdir) == [4, 8, 12]
