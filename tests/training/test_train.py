import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.processes import ROOT, environment, run_python


def start_training(config_file, dataset, workdir, *overrides, devices=1, **extra):
  command = ['-m', 'selfie_jax.train', '--config', config_file, '--workdir', workdir, f'--config.data.path={dataset}']
  command += ['--config.log.tensorboard=False']  # The undisturbed run has it.
  return subprocess.Popen(
    [sys.executable, *map(str, command), *overrides],
    cwd=ROOT,
    env=environment(devices, **extra),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def train(config_file, dataset, workdir, *overrides, **keywords):
  process = start_training(config_file, dataset, workdir, *overrides, **keywords)
  errors = process.communicate(timeout=300)[1]
  return process.returncode, errors


def metrics(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def final_state(workdir, step=12):
  with ocp.CheckpointManager(workdir / 'checkpoints') as manager:
    return manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))['state']


def checkpoint_steps(workdir):
  return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit())


def assert_bitwise_equal(ours, theirs):
  ours, theirs = jax.tree.leaves_with_path(ours), jax.tree.leaves_with_path(theirs)
  assert len(ours) == len(theirs) > 20
  for (path, a), (other, b) in zip(ours, theirs, strict=True):
    assert path == other
    np.testing.assert_array_equal(a, b, err_msg=str(path))


HEALTH = ('rankme', 'alignment', 'uniformity', 'dead_dimensions', 'mean_correlation')
HEALTH += tuple(f'representation_std_{name}' for name in ('min', 'median', 'max'))


def assert_same_steps(workdir, other, rel):
  """The health of a few clips' representations feels a rounding of the weights more than the loss of a batch does.

  So does the gradient, once roundings have taken a ReLU or a maximum across its kink; in the first line they have not.
  """
  for i, (ours, theirs) in enumerate(zip(numbers(workdir), numbers(other), strict=True)):
    assert ours.keys() == theirs.keys()
    rough = (*HEALTH, 'gradient_norm') if i else HEALTH
    for name in ours:
      assert ours[name] == pytest.approx(theirs[name], rel=0.01 if name in rough else rel), name


def numbers(workdir):
  """The metrics lines without what the clock decides."""
  return [
    {k: v for k, v in line.items() if k not in ('clips_per_second', 'data_wait_fraction')} for line in metrics(workdir)
  ]


def wait_for_step(process, workdir, step):
  for _ in range(1200):
    if (workdir / 'metrics.jsonl').exists() and any(line['step'] >= step for line in metrics(workdir)):
      return
    if process.poll() is not None:
      raise AssertionError(f'training ended early:\n{process.stderr.read()}')
    time.sleep(0.05)
  raise AssertionError(f'step {step} was never logged')


def test_a_run_reports_every_metric_in_every_place(finished_run):
  lines = metrics(finished_run)
  assert [line['step'] for line in lines] == [2, 4, 6, 8, 10, 12]
  assert lines[0].keys() == {
    *('step', 'loss', 'invariance', 'diversity', 'decorrelation', 'embedding_std', 'effective_rank'),
    *('gradient_norm', 'parameter_norm', 'learning_rate', 'clips_per_second', 'data_wait_fraction'),
  }
  for line in lines:
    assert line['loss'] == pytest.approx(
      25 * line['invariance'] + 25 * line['diversity'] + line['decorrelation'], rel=1e-5
    )
  assert json.loads((finished_run / 'config.json').read_text())['encoder']['width'] == 32
  assert checkpoint_steps(finished_run) == [4, 8, 12]


def test_tensorboard_holds_the_same_numbers(finished_run):
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
  from tensorboard.util import tensor_util

  events = EventAccumulator(str(finished_run))
  events.Reload()
  for name in ('loss', 'effective_rank'):
    tensors = {event.step: float(tensor_util.make_ndarray(event.tensor_proto)) for event in events.Tensors(name)}
    assert tensors == {line['step']: pytest.approx(line[name], rel=1e-6) for line in metrics(finished_run)}


def test_a_finished_run_started_again_changes_nothing(config_file, dataset, finished_run, run_copy):
  before = numbers(run_copy)
  code, errors = train(config_file, dataset, run_copy)
  assert code == 0, errors
  assert numbers(run_copy) == before
  assert_bitwise_equal(final_state(run_copy), final_state(finished_run))


def test_four_devices_take_the_same_steps_as_one(config_file, dataset, finished_run, tmp_path):
  code, errors = train(
    config_file, dataset, tmp_path / 'run', '--config.objective.variance_statistics=global', devices=4
  )
  assert code == 0, errors
  for ours, theirs in zip(metrics(tmp_path / 'run'), metrics(finished_run), strict=True):
    assert ours['loss'] == pytest.approx(theirs['loss'], rel=1e-3)
    assert ours['invariance'] == pytest.approx(theirs['invariance'], rel=1e-3)


@pytest.fixture(scope='module')
def run_on_four_devices(config_file, dataset, tmp_path_factory):
  """A run whose variance is per device, so that its loss is not that of one device."""
  workdir = tmp_path_factory.mktemp('runs') / 'four'
  code, errors = train(config_file, dataset, workdir, devices=4)
  assert code == 0, errors
  return workdir


def test_a_run_resumed_on_another_number_of_devices_keeps_its_loss(config_file, dataset, run_on_four_devices, tmp_path):
  workdir = shutil.copytree(run_on_four_devices, tmp_path / 'run')
  for step in (8, 12):
    shutil.rmtree(workdir / 'checkpoints' / str(step))
  code, errors = train(config_file, dataset, workdir, devices=1)
  assert code == 0, errors
  assert 'resuming after step 4' in errors
  assert_same_steps(workdir, run_on_four_devices, rel=1e-3)


def start_processes(config_file, dataset, workdir, num_processes, devices):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  return [
    start_training(
      *(config_file, dataset, workdir),
      devices=devices,
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES=str(num_processes),
      JAX_PROCESS_ID=str(i),
    )
    for i in range(num_processes)
  ]


def test_a_run_goes_from_two_processes_to_one_to_four_and_takes_the_same_steps(
  config_file, dataset, run_on_four_devices, tmp_path
):
  workdir = tmp_path / 'run'
  for num_processes, told_after in ((2, 2), (1, 6), (4, None)):
    processes = start_processes(config_file, dataset, workdir, num_processes, 4 // num_processes)
    if told_after:
      wait_for_step(processes[0], workdir, told_after)
      processes[-1].send_signal(signal.SIGTERM)  # The others hear of it from this one.
    outputs = [process.communicate(timeout=300)[1] for process in processes]
    assert {process.returncode for process in processes} == {75 if told_after else 0}, outputs
  assert_same_steps(workdir, run_on_four_devices, rel=1e-4)


def test_a_run_whose_parameters_are_cut_over_devices_resumes_on_another_mesh(
  config_file, dataset, run_on_four_devices, tmp_path
):
  workdir = tmp_path / 'run'
  code, errors = train(config_file, dataset, workdir, '--config.mesh.fsdp=2', devices=4)
  assert code == 0, errors
  for step in (8, 12):
    shutil.rmtree(workdir / 'checkpoints' / str(step))
  code, errors = train(config_file, dataset, workdir, '--config.mesh.fsdp=1', devices=2)
  assert code == 0, errors
  assert 'resuming after step 4' in errors
  assert_same_steps(workdir, run_on_four_devices, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(config_file, dataset, tmp_path):
  workdir = tmp_path / 'run'
  overrides = (
    '--config.optimizer.learning_rate=1e12',
    '--config.optimizer.warmup_steps=5',
    '--config.checkpoint.every_steps=1',
  )
  code, errors = train(config_file, dataset, workdir, *overrides)
  assert code == 1
  last = errors.strip().splitlines()[-1]
  assert last.startswith('error: step '), errors
  assert 'lower optimizer.learning_rate' in last
  bad_step = int(last.split('step ')[1].split()[0])
  saved = checkpoint_steps(workdir)
  assert max(saved) == bad_step - 1
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(final_state(workdir, max(saved))['params']))


def test_the_collapse_alarm_rings_once(config_file, dataset, tmp_path):
  code, errors = train(config_file, dataset, tmp_path / 'run', '--config.log.collapse_std=1e6', '--config.steps=6')
  assert code == 0
  assert 'covariance of 16 x 24 embeddings: route gram' in errors
  assert errors.count('COLLAPSE at step 2') == errors.count('COLLAPSE') == 1


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('--config.optimizer.learning_rat=1', 'Did you mean "learning_rate"'),
    (
      '--config.batch_size=20',
      'batch_size 20 cannot be divided over 2 devices in whole mixup groups of 4: choose a multiple of 8',
    ),
    ('--config.mesh.fsdp=3', 'mesh.fsdp 3 does not divide the 2 devices'),
    ('--config.microbatches=3', 'over 2 devices in equal microbatches: choose a multiple of 24'),
    ('--config.objective.preset=barlow', 'it can be selfie, vicreg, barlow_twins, uniformity_covariance'),
    ('--config.encoder.name=resnet', 'it can be audiontt, vit'),
    ('--config.data.path=/nowhere', 'no dataset at /nowhere'),
    ('--config.log_mel.n_mels=32', 'log_mel.n_mels is 32 in the config and 64 in the dataset'),
    ('--config.optimizer.warmup_steps=12', 'warmup_steps 12 leaves nothing of steps 12'),
  ],
)
def test_a_users_mistake_is_one_line_and_leaves_no_workdir(config_file, dataset, tmp_path, override, message):
  code, errors = train(config_file, dataset, tmp_path / 'run', override, devices=2)
  assert code == 1
  assert errors.startswith('error: ')
  assert errors.count('\n') == 1
  assert message in errors
  assert not (tmp_path / 'run').exists()


def test_a_workdir_of_another_config_is_refused_with_both_values(config_file, dataset, run_copy):
  code, errors = train(config_file, dataset, run_copy, '--config.encoder.width=64')
  assert code == 1
  assert 'encoder.width=32, and this config has 64' in errors
  assert errors.count('\n') == 1


def test_how_often_a_run_logs_and_saves_may_change_when_it_is_resumed(config_file, dataset, run_copy):
  code, errors = train(config_file, dataset, run_copy, '--config.log.every_steps=3', '--config.checkpoint.keep=1')
  assert code == 0, errors


def test_a_dataset_that_its_manifest_contradicts_is_refused(config_file, dataset, tmp_path):
  copy = shutil.copytree(dataset, tmp_path / 'records')
  next(copy.glob('*.tfrecord')).unlink()
  code, errors = train(config_file, copy, tmp_path / 'run')
  assert code == 1
  assert 'lacks the shard' in errors
  assert errors.count('\n') == 1


def test_a_resumed_run_refuses_another_dataset(config_file, dataset, run_copy, tmp_path):
  from tests.training.conftest import write_sounds

  write_sounds(tmp_path / 'sounds', 20, seed=1)
  run_python('-m', 'selfie_jax.prepare', 'folder', '--input', tmp_path / 'sounds', '--output', tmp_path / 'other')
  code, errors = train(config_file, tmp_path / 'other', run_copy)
  assert code == 1
  assert 'trained on the data' in errors


def test_checkpoints_that_do_not_load_are_never_started_over(config_file, dataset, run_copy):
  for path in (run_copy / 'checkpoints').rglob('state/**/*'):
    if path.is_file() and path.stat().st_size > 1000:
      os.truncate(path, 100)
  code, errors = train(config_file, dataset, run_copy)
  assert code == 1
  assert 'none of the checkpoints' in errors
  assert 'never started over' in errors
  assert checkpoint_steps(run_copy) == [4, 8, 12]
