import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from selfie_jax.config import Evaluation
from selfie_jax.errors import ClusterError, UserError
from selfie_jax.evaluation import watch as watch_lib
from selfie_jax.evaluation.reporting.scores import is_done
from selfie_jax.evaluation.tasks.folder import LabelledFolder
from selfie_jax.evaluation.watch import watch
from selfie_jax.files import as_path
from selfie_jax.sharing.loading import load_encoder
from selfie_jax.training.checkpointing import checkpoints
from selfie_jax.training.optimizer import make_optimizer
from selfie_jax.training.state import init_state
from tests.evaluation.conftest import CONFIG
from tests.processes import ROOT, environment

STEPS = (3, 6, 9)

# The same command, but that it looks for checkpoints several times a second.
IMPATIENT = (
  'import runpy; from selfie_jax.evaluation import watch; watch.POLL_SECONDS = 0.2; '
  'runpy.run_module("selfie_jax.evaluate", run_name="__main__")'
)
CONFIG_FILE = """
import ml_collections

def get_config():
  tasks = [{{'name': 'tones', 'path': {path!r}, 'unit_seconds': 0.5}}]
  settings = {{'seeds': (0,), 'learning_rates': (1e-2,), 'epochs': 2, 'baselines': False}}
  return ml_collections.ConfigDict({{'tasks': tasks, **settings}})
"""


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A run of 9 steps with its three checkpoints, without the training."""
  folder = tmp_path_factory.mktemp('runs') / 'finished'
  config = dataclasses.replace(CONFIG, steps=STEPS[-1])
  checkpoints.claim_workdir(as_path(folder), config)
  state = init_state(config, make_optimizer(config))
  with checkpoints.open_manager(folder, config) as manager:
    for step in STEPS:
      checkpoints.save(manager, step, state, checkpoints.DataState('data', -6.0, 4.0, variance_groups=1), config)
  return folder


@pytest.fixture
def run(finished, tmp_path):
  return shutil.copytree(finished, tmp_path / 'run')


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
  monkeypatch.setattr(watch_lib, 'POLL_SECONDS', 0.05)


def watched(run, done):
  """The steps that a watch yields, each of which is then done."""
  for encoder in watch(as_path(run), done.__contains__):
    done.add(encoder.step)
    yield encoder.step


def test_a_watch_waits_for_a_run_and_takes_each_checkpoint_once_in_order(finished, tmp_path):
  run = tmp_path / 'run'
  later = tmp_path / 'later'

  def train():
    time.sleep(0.2)
    shutil.copytree(finished, later, ignore=shutil.ignore_patterns('6', '9'))
    later.rename(run)  # As a whole, as a save is.
    for step in ('6', '9'):
      time.sleep(0.3)
      shutil.copytree(finished / 'checkpoints' / step, later)
      later.rename(run / 'checkpoints' / step)

  thread = threading.Thread(target=train)
  thread.start()
  assert list(watched(run, done=set())) == list(STEPS)
  thread.join()
  assert list(watched(run, done={3, 9})) == [6]
  assert list(watched(run, done=set(STEPS))) == []


def test_a_checkpoint_that_is_damaged_or_deleted_meanwhile_is_skipped_with_a_line(run, capfd, monkeypatch):
  load = watch_lib.load_encoder

  def delete_and_load(workdir, step):
    shutil.rmtree(run / 'checkpoints/3', ignore_errors=True)
    return load(workdir, step)

  monkeypatch.setattr(watch_lib, 'load_encoder', delete_and_load)
  shutil.rmtree(run / 'checkpoints/6/state')
  assert list(watched(run, done=set())) == [9]
  errors = capfd.readouterr().err
  assert errors.count('has no checkpoint 3; it has 6, 9: looking again') == 1
  assert errors.count('skipping checkpoint 6: checkpoint 6 in ') == 1


def test_a_watch_does_not_wait_for_ever_for_a_last_checkpoint_that_is_damaged(run):
  shutil.rmtree(run / 'checkpoints/9/state')
  done = set()
  with pytest.raises(UserError, match='checkpoint 9, the last of .* could not be evaluated'):
    list(watched(run, done))
  assert done == {3, 6}


def test_a_damaged_checkpoint_that_the_run_has_saved_again_is_evaluated_after_all(run, finished):
  """Between two looks: the folder was never seen to be gone."""
  shutil.rmtree(run / 'checkpoints/3/state')

  found = []
  for encoder in watch(as_path(run), lambda step: step in found):
    if not found:  # 3 has been skipped.
      (run / 'checkpoints/3').rename(run / '3')
      shutil.copytree(finished / 'checkpoints/3', run / 'checkpoints/3')
    found.append(encoder.step)
  assert found == [6, 3, 9]


def test_a_watch_outlasts_a_store_that_does_not_answer_also_where_its_own_results_are(run, capfd):
  answers = iter([ConnectionResetError('gone'), ClusterError('cannot list'), OSError(5, 'input/output error')])

  def done(step):
    for error in answers:
      raise error
    return step != 6

  assert next(watch(as_path(run), done)).step == 6
  assert capfd.readouterr().err.count('trying again') == 3


def test_of_several_processes_none_goes_on_alone_after_an_error_that_the_others_need_not_have(run, monkeypatch):
  """They ask each other while they load: one that came back too early would answer another question."""
  loads = iter([UserError('the bucket is not there'), None])

  def fail_or_load(workdir, step):
    if error := next(loads):
      raise error
    return load_encoder(workdir, step)

  monkeypatch.setattr(watch_lib, 'load_encoder', fail_or_load)
  monkeypatch.setattr('jax.process_count', lambda: 2)
  with pytest.raises(UserError, match='the bucket is not there'):
    next(watch(as_path(run), set().__contains__))
  monkeypatch.undo()
  monkeypatch.setattr(watch_lib, 'POLL_SECONDS', 0.05)
  loads = iter([UserError('the bucket is not there'), None])
  monkeypatch.setattr(watch_lib, 'load_encoder', fail_or_load)
  assert next(watch(as_path(run), set().__contains__)).step == 3  # Alone, it looks again.


def test_a_watch_refuses_what_another_config_has_written_or_two_would_undo_each_other_for_ever(tmp_path):
  ours = Evaluation(seeds=(0,))
  results = tmp_path / 'eval/step_3/results.json'
  results.parent.mkdir(parents=True)
  tasks = {'tones': {'fingerprint': 'now'}}
  results.write_text(json.dumps({'evaluation': dataclasses.asdict(ours), 'tasks': tasks}))
  # And torn lines.
  (tmp_path / 'eval/scores.jsonl').write_bytes(b'\xff\n{"step": 3, "mean_score": 1}\n[]\n{"step": 6, "mean_sc')
  [now, changed] = (LabelledFolder('tones', '', (), None, (), (), 1, 1, data) for data in ('now', 'changed'))
  assert is_done(as_path(tmp_path), 3, ours, [now])
  assert not is_done(as_path(tmp_path), 6, ours, [now])
  assert not is_done(as_path(tmp_path), 3, ours, [changed])  # Evaluated again, and no mistake.
  with pytest.raises(UserError, match=r'step_3/results.json is of another .* seeds=\[0\], and this one has \[0, 1\]'):
    is_done(as_path(tmp_path), 3, Evaluation(seeds=(0, 1)), [now])
  for damaged in (b'{"evalua', b'[]', b'{"evaluation": 3}', b'{"evaluation": {}, "tasks": {"tones": 3}}', b'\xff', b''):
    results.write_bytes(damaged)
    assert not is_done(as_path(tmp_path), 3, ours, [now])
  results.unlink()
  assert not is_done(as_path(tmp_path), 3, ours, [now])


def test_a_watching_job_that_is_stopped_goes_on_where_it_was_and_ends_with_the_run(run, tones, tmp_path):
  config_file = tmp_path / 'tones.py'
  config_file.write_text(CONFIG_FILE.format(path=str(tones)))
  scores = run / 'eval/scores.jsonl'
  arguments = ['-c', IMPATIENT, '--watch', '--config', str(config_file), '--workdir', str(run)]

  def start():
    return subprocess.Popen(
      [sys.executable, *arguments],
      cwd=ROOT,
      env=environment(JAX_COORDINATOR_ADDRESS='n1:1234'),  # Of the training job, which it has nothing to do with.
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )

  def evaluated():
    return [json.loads(line) for line in scores.read_text().splitlines()] if scores.exists() else []

  (run / 'checkpoints/9').rename(tmp_path / '9')  # It is not there yet.
  process = start()
  while len(evaluated()) < 2:
    assert process.poll() is None, process.communicate()
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  output, errors = process.communicate(timeout=20)  # One of several would wait for the others for 25 s.
  assert process.returncode == 75, errors
  assert errors.count('evaluating step ') == 2
  assert json.loads((run / 'eval/results.json').read_text())['step'] == 6

  (tmp_path / '9').rename(run / 'checkpoints/9')
  process = start()
  output, errors = process.communicate(timeout=100)
  assert process.returncode == 0, errors
  assert errors.count('evaluating step ') == errors.count('evaluating step 9 ') == 1
  found = evaluated()
  assert [line['step'] for line in found] == list(STEPS)
  for line in found:
    results = json.loads((run / f'eval/step_{line["step"]}/results.json').read_text())
    linear = results['tasks']['tones']['readouts']['linear']['representations']
    assert line['scores'] == {'tones': linear['trained']['score']}
    assert line['mean_score'] == results['mean']['linear']['representations']['trained']['score']
  assert json.loads((run / 'eval/results.json').read_text()) == results
  assert not [file for file in (run / 'eval').rglob('*') if file.name.endswith('.tmp')]
