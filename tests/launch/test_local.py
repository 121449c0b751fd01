"""launch/local.sh, with a stand-in for training that does what the test's story says."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.processes import ROOT

STAND_IN = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then echo 12345; exit; fi
if [[ $1 == launch/progress.py ]]; then exec "$PYTHON" "$@"; fi
me=${JAX_PROCESS_ID:-alone}
echo "$$ $JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_LOCAL_DEVICE_IDS $*" >>"$NOTES/starts_$me"
start=$(wc -l <"$NOTES/starts_$me")
train() { # train FROM TO: cuts the metrics back to a step, and writes lines that are never the same
  local step
  mkdir -p "$NOTES/run/checkpoints"
  sed -i "$(($1 + 1)),\\$d" "$NOTES/run/metrics.jsonl" 2>/dev/null
  for ((step = $1 + 1; step <= $2; step++)); do
    echo "{\\"step\\": $step, \\"clips_per_second\\": $start.$RANDOM$RANDOM}" >>"$NOTES/run/metrics.jsonl"
  done
}
wait_for_the_signal() { trap 'exit 75' TERM; touch "$NOTES/waiting_$me"; while :; do sleep 0.1; done; }
"""


@pytest.fixture
def launch(tmp_path):
  """Starts the script with N processes of a stand-in for training whose last lines are `story`."""
  running = []

  def launch(number, story, **variables):
    python = tmp_path / 'venv/bin/python'
    python.parent.mkdir(parents=True)
    python.write_text(STAND_IN + story)
    python.chmod(0o755)
    given = {'VENV': str(tmp_path / 'venv'), 'NOTES': str(tmp_path), 'RESTART_PAUSE': '0', 'PEER_SECONDS': '2'}
    given['PYTHON'] = sys.executable
    clean = {name: text for name, text in os.environ.items() if not name.startswith(('JAX_', 'CUDA_'))}
    command = ['bash', ROOT / 'launch/local.sh', str(number), '--workdir', str(tmp_path / 'run')]
    environment = clean | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)} | given | variables
    running.append(subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True))
    return running[-1]

  yield launch
  for process in running:
    process.kill()
    process.communicate()


def finish(process):
  output, errors = process.communicate(timeout=30)
  return process.returncode, output, errors


def wait_for(*files):
  for _ in range(200):
    if all(file.exists() for file in files):
      return
    time.sleep(0.05)
  raise AssertionError(f'{files} did not come')


def starts(folder, process):
  return (folder / f'starts_{process}').read_text().splitlines()


def all_ended(folder):
  pids = [line.split()[0] for file in folder.glob('starts_*') for line in file.read_text().splitlines()]
  return not any(os.path.exists(f'/proc/{pid}') for pid in pids)


def test_each_process_knows_its_place_and_its_lines_are_numbered(launch, tmp_path):
  code, output, errors = finish(launch(2, 'echo here; echo there >&2', CUDA_VISIBLE_DEVICES='4,5,6,7'))
  assert code == 0
  assert sorted(output.splitlines()) == ['[0] here', '[1] here']
  assert sorted(errors.splitlines()) == ['[0] there', '[1] there']
  for process, devices in ((0, '0,1'), (1, '2,3')):
    [line] = starts(tmp_path, process)
    assert line.split()[1:] == [
      *('127.0.0.1:12345', '2', devices, '-m', 'selfie_jax.train', '--workdir', str(tmp_path / 'run'))
    ]


def test_one_process_is_left_to_find_its_place_by_itself(launch, tmp_path):
  assert finish(launch(1, 'exit 0'))[0] == 0
  assert starts(tmp_path, 'alone')[0].split()[1:] == ['-m', 'selfie_jax.train', '--workdir', str(tmp_path / 'run')]


@pytest.mark.parametrize('code', [75, 70])
def test_preempted_and_crashed_training_is_started_again(launch, tmp_path, code):
  assert finish(launch(2, f'if ((start == 1)); then exit {code}; fi'))[0] == 0
  assert len(starts(tmp_path, 0)) == len(starts(tmp_path, 1)) == 2


def test_a_mistake_is_not_tried_again(launch, tmp_path):
  assert finish(launch(2, 'exit 1'))[0] == 1
  assert len(starts(tmp_path, 0)) == 1


def test_a_crash_at_the_same_step_each_time_ends_it_whatever_the_metrics_say(launch, tmp_path):
  code, _, errors = finish(launch(1, 'train 0 6; kill -ABRT $$', FRUITLESS_RESTARTS='1'))
  assert code == 70
  assert 'train ended with 134, without progress 2 times in a row (checkpoint 0, step 6): giving up' in errors
  assert len(starts(tmp_path, 'alone')) == 3  # The first came further than ever before.


def test_crashes_do_not_end_it_for_as_long_as_it_comes_further(launch, tmp_path):
  # By a step, less far, by a checkpoint, not at all, to the end.
  story = """case $start in
    1) train 0 6 ;; 2) train 0 5 ;; 3) train 0 5; mkdir "$NOTES/run/checkpoints/5" ;; 4) train 5 6 ;; 5) exit 0 ;;
  esac
  exit 70"""
  code, _, errors = finish(launch(1, story, FRUITLESS_RESTARTS='1'))
  assert code == 0, errors
  assert len(starts(tmp_path, 'alone')) == 5


@pytest.mark.parametrize(('story', 'code'), [('exit 75', 75), ('kill -TERM $$', 75), ('kill -ABRT $$', 70)])
def test_told_to_stop_it_ends_with_a_code_that_says_whether_anything_is_lost(launch, tmp_path, story, code):
  process = launch(1, f"trap 'trap - TERM; {story}' TERM; touch $NOTES/waiting; while :; do sleep 0.1; done")
  wait_for(tmp_path / 'waiting')
  process.send_signal(signal.SIGTERM)
  assert finish(process)[0] == code


def test_a_signal_while_the_gpus_are_counted_is_heeded(launch, tmp_path):
  slow = tmp_path / 'bin/nvidia-smi'
  slow.parent.mkdir()
  slow.write_text('#!/bin/sh\ntouch "$NOTES/counting"; sleep 1\n')
  slow.chmod(0o755)
  process = launch(1, 'exit 0', JAX_PLATFORMS='', PATH=f'{slow.parent}:{os.environ["PATH"]}')
  wait_for(tmp_path / 'counting')
  process.send_signal(signal.SIGTERM)
  assert finish(process)[0] == 75
  assert not list(tmp_path.glob('starts_*'))


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_processes_and_is_the_end(launch, tmp_path, number):
  process = launch(2, 'wait_for_the_signal')
  wait_for(tmp_path / 'waiting_0', tmp_path / 'waiting_1')
  process.send_signal(number)
  assert finish(process)[0] == 75
  assert len(starts(tmp_path, 0)) == 1
  assert all_ended(tmp_path)


def test_a_process_that_outlives_the_others_is_killed(launch, tmp_path):
  story = "if ((start > 1)); then exit 0; elif [[ $me == 0 ]]; then exit 70; else trap '' TERM; sleep 60 & wait; fi"
  code, _, errors = finish(launch(2, story))
  assert code == 0
  assert '1 of 2 processes have not ended 2 s after the first: killing them' in errors
  assert all_ended(tmp_path)


def test_processes_are_told_to_stop_when_the_script_is_killed(launch, tmp_path):
  process = launch(2, 'wait_for_the_signal')
  wait_for(tmp_path / 'waiting_0', tmp_path / 'waiting_1')
  process.kill()
  for _ in range(100):
    if all_ended(tmp_path):
      return
    time.sleep(0.05)
  raise AssertionError('processes were left behind')


@pytest.mark.parametrize('number', ['', '0', 'two'])
def test_a_number_of_processes_that_is_none_is_one_line(launch, number):
  code, output, errors = finish(launch(number, ''))
  assert (code, output, errors.count('\n')) == (1, '', 1)
  assert f'and N is not "{number}"' in errors


def test_gpus_that_cannot_be_shared_are_one_line(launch):
  code, _, errors = finish(launch(2, '', CUDA_VISIBLE_DEVICES='0,1,2'))
  assert (code, errors) == (1, 'error: 3 GPUs cannot be shared evenly by 2 processes: choose another N\n')
