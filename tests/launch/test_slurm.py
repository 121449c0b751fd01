"""The Slurm scripts on a real cluster of two nodes, with real training where it matters.

What Slurm and the scripts make of exit codes and signals is tried with a stand-in for training, which costs nothing.
"""

import functools
import subprocess
import sys

import pytest

from tests.chaos import compare
from tests.conftest import require
from tests.launch.slurm_cluster import is_installed, running_cluster
from tests.processes import ROOT, environment
from tests.training.conftest import config_file, dataset  # noqa: F401

SCRIPTS = ROOT / 'launch/slurm'

# In place of .venv/bin/python. Each start of each task is noted; what follows is up to the test.
STAND_IN = """#!/usr/bin/env bash
if [[ $1 == launch/progress.py ]]; then exec "$PYTHON" "$@"; fi
echo "start $SLURM_RESTART_COUNT" >>"$NOTES/starts_$SLURM_PROCID"
wait_for_the_signal() { trap 'exit 75' TERM; touch "$NOTES/waiting_$SLURM_PROCID"; while :; do sleep 0.1; done; }
start=$(wc -l <"$NOTES/starts_$SLURM_PROCID")
"""


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
  require('slurm', is_installed())
  with running_cluster(tmp_path_factory.mktemp('slurm')) as running:
    yield running


def submit_stand_in(cluster, folder, story, *options, script='train.sbatch', **variables):
  """Submits a script, with a stand-in for training whose last lines are `story`; returns the job."""
  python = folder / 'venv/bin/python'
  python.parent.mkdir(parents=True)
  python.write_text(STAND_IN + story)
  python.chmod(0o755)
  options = ('--oversubscribe', f'--output={folder}/log', *options)
  if script == 'train.sbatch':
    options += ('--nodes=2',)
  variables |= {'VENV': str(folder / 'venv'), 'NOTES': str(folder), 'PYTHON': sys.executable, 'PYTHONPATH': str(ROOT)}
  return cluster.submit(*options, SCRIPTS / script, '--workdir', folder, **variables)


@pytest.fixture
def submit(cluster, tmp_path):
  return functools.partial(submit_stand_in, cluster, tmp_path)


# The first start comes further than ever before; the others write the same step again, with other digits.
CRASH = """
if [[ $SLURM_PROCID == 0 ]]; then echo "{\\"step\\": 1, \\"rate\\": 1$start}" >"$NOTES/metrics.jsonl"; fi
sleep 0.5
kill -ABRT $$
"""
CRASH_OF_EVALUATION = 'mkdir -p "$NOTES/eval"; echo "{\\"step\\": 4}" >"$NOTES/eval/scores.jsonl"; exit 70'


@pytest.fixture(scope='module', autouse=True)
def early(cluster, tmp_path_factory):
  """Jobs that mostly wait (half a minute until a time limit is seen, seven seconds for a requeued job's start), and
  their folders: they do so in the other tests' time."""

  def submit(name, story, *options, **variables):
    folder = tmp_path_factory.mktemp(name)
    return submit_stand_in(cluster, folder, story, *options, **variables), folder

  return {
    # Asked for two minutes before the end, which is two minutes away, it signals when it looks for the first time.
    'limited': submit('limited', 'if ((start == 1)); then wait_for_the_signal; fi', '--time=2'),
    'crash': submit('crash', CRASH, FRUITLESS_RESTARTS='1'),
    'evaluation': submit('evaluation', CRASH_OF_EVALUATION, script='evaluate.sbatch', FRUITLESS_RESTARTS='1'),
  }


def lines(workdir):
  file = workdir / 'metrics.jsonl'
  return len(file.read_text().splitlines()) if file.exists() else 0


def log_of(folder):
  return (folder / 'log').read_text()


def starts(folder):
  return [len((folder / f'starts_{task}').read_text().splitlines()) for task in (0, 1)]


def test_a_signal_to_the_script_alone_saves_and_requeues(cluster, submit, tmp_path):
  job = submit('if ((start == 1)); then wait_for_the_signal; fi')
  cluster.wait_for(tmp_path / 'waiting_0', tmp_path / 'waiting_1')
  cluster.command('scancel', '--batch', '--signal=TERM', job)
  cluster.wait(job, JobState='COMPLETED', Restarts='1')
  assert starts(tmp_path) == [2, 2]


def test_a_signal_to_the_tasks_alone_saves_and_requeues(cluster, submit, tmp_path):
  job = submit('if ((start == 1)); then wait_for_the_signal; fi')
  cluster.wait_for(tmp_path / 'waiting_0', tmp_path / 'waiting_1')
  cluster.command('scancel', '--signal=TERM', job)
  cluster.wait(job, JobState='COMPLETED', Restarts='1')
  assert starts(tmp_path) == [2, 2]


def test_a_cancelled_job_stays_cancelled(cluster, submit, tmp_path):
  job = submit('wait_for_the_signal')
  cluster.wait_for(tmp_path / 'waiting_0', tmp_path / 'waiting_1')
  cluster.command('scancel', job)
  cluster.wait(job, JobState='CANCELLED', Restarts='0')


def test_a_mistake_ends_the_job_at_once(cluster, submit, tmp_path):
  cluster.wait(submit('exit 1'), JobState='FAILED', ExitCode='1:0', Restarts='0')


def test_a_watching_evaluation_that_was_told_to_stop_goes_on(cluster, submit, tmp_path):
  job = submit('echo "$*" >"$NOTES/asked"; if ((start == 1)); then exit 75; fi', script='evaluate.sbatch')
  cluster.wait(job, JobState='COMPLETED', Restarts='1')
  assert (tmp_path / 'asked').read_text() == f'-m selfie_jax.evaluate --watch --workdir {tmp_path}\n'


def test_crashes_are_tried_again_until_they_bring_no_progress(cluster, early):
  job, folder = early['crash']
  cluster.wait(job, JobState='FAILED', ExitCode='70:0', Restarts='2')
  assert starts(folder) == [3, 3]
  assert 'ended with 134, without progress 2 times in a row (checkpoint 0, step 1): giving up' in log_of(folder)
  assert not (ROOT / f'.fruitless-{job}').exists()


def test_a_crashing_evaluation_is_tried_again_until_it_brings_nothing_new(cluster, early):
  job, folder = early['evaluation']
  cluster.wait(job, JobState='FAILED', ExitCode='70:0', Restarts='2')
  assert 'without progress 2 times in a row (step 4, 1 evaluated): giving up' in log_of(folder)


def test_the_time_limit_saves_and_requeues(cluster, early):
  job, folder = early['limited']
  cluster.wait(job, JobState='COMPLETED', Restarts='1')
  assert starts(folder) == [2, 2]


def test_requeued_training_ends_as_if_nothing_had_happened(cluster, tmp_path, config_file, dataset):  # noqa: F811
  arguments = ('--config', config_file, f'--config.data.path={dataset}', '--config.steps=100')
  arguments += ('--config.checkpoint.every_steps=1000', '--config.log.every_steps=1', '--config.log.tensorboard=False')
  undisturbed, disturbed = tmp_path / 'undisturbed', tmp_path / 'disturbed'
  variables = environment(VENV=sys.prefix)

  log = tmp_path / 'log'
  job = cluster.submit(
    '--nodes=2',
    '--oversubscribe',
    f'--output={log}',
    SCRIPTS / 'train.sbatch',
    *arguments,
    '--workdir',
    disturbed,
    **variables,
  )
  cluster.wait_until(lambda: lines(disturbed) > 0)
  cluster.command('scontrol', 'requeue', job)
  cluster.wait(job, JobState='COMPLETED', Restarts='1')
  assert log.read_text().count('stopped after step') == 1

  command = ['bash', ROOT / 'launch/local.sh', '2', *arguments, '--workdir', undisturbed]
  subprocess.run(list(map(str, command)), env=variables, check=True, timeout=120)
  compare(disturbed, undisturbed, 100)
