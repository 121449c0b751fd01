import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from selfie_jax.config import Config, Data, Log
from selfie_jax.errors import UserError
from selfie_jax.files import as_path
from selfie_jax.training.monitoring import monitor as monitor_lib
from selfie_jax.training.monitoring.monitor import Monitor, NotFiniteError
from selfie_jax.training.monitoring.profile import Profile
from selfie_jax.training.programs.compilation import CompiledStep
from tests.training.test_train import checkpoint_steps, numbers, train

CONFIG = Config(steps=12, batch_size=16, log=Log(every_steps=3, tensorboard=False))
NAMES = ('loss', 'invariance', 'diversity', 'decorrelation', 'embedding_std', 'effective_rank')
NAMES += ('gradient_norm', 'parameter_norm', 'learning_rate')


def lines(workdir, name):
  return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def open_monitor(workdir, first_step=0, config=CONFIG, profile=False):
  return Monitor(as_path(workdir), config, first_step, CompiledStep(None, 1.0, None), profile)


def take_steps(monitor, first, last, value=1.0, damaged=0):
  """What the train loop does for these steps."""
  for step in range(first, last + 1):
    if monitor.report_due(step - 1):
      monitor.flush()
    monitor.add(step, {name: jnp.float32(value + step) for name in NAMES}, damaged)


def logged(workdir):
  """The steps of every scalar in TensorBoard's files, all of them, whatever their order."""
  found = {}
  for path in sorted(workdir.glob('events.out.tfevents.*')):
    for data in RawEventFileLoader(str(path)).Load():
      event = Event.FromString(data)
      for value in event.summary.value:
        found.setdefault(value.tag, []).append(event.step)
  return found


def test_a_killed_run_that_falls_back_to_an_older_checkpoint_tells_of_every_step_once(
  config_file, dataset, finished_run, run_copy
):
  """It told of every second step, and of steps that are taken again; now of every third, and saves between."""
  workdir = run_copy
  for step in checkpoint_steps(workdir):
    if step > 4:
      shutil.rmtree(workdir / 'checkpoints' / str(step))
  with (workdir / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 14, "lo')  # Killed while writing.
  code, errors = train(config_file, dataset, workdir, '--config.log.every_steps=3', '--config.log.tensorboard=True')
  assert code == 0, errors
  assert 'resuming after step 4' in errors

  assert [line['step'] for line in lines(workdir, 'metrics.jsonl')] == [2, 4, 6, 9, 12]
  undisturbed = {line['step']: line for line in numbers(finished_run)}
  for line in numbers(workdir):
    before = undisturbed.get(line['step'], line)
    told = line.keys() & before.keys()  # Of the representations' health the two tell at different steps.
    assert {name: line[name] for name in told} == {name: before[name] for name in told}
  costs = lines(workdir, 'performance.jsonl')
  assert [line['step'] for line in costs] == [0, 2, 4, 6, 8, 9, 12]
  assert [line['time'] for line in costs] == sorted(line['time'] for line in costs)
  assert costs[3]['run_restart_seconds'] > costs[2]['run_restart_seconds']
  assert costs[3]['run_compile_seconds'] > costs[2]['run_compile_seconds'] > 0
  assert 0 < costs[-1]['goodput'] < 1
  assert costs[-1]['run_seconds'] == pytest.approx(
    costs[-1]['time'] - costs[0]['time'] + costs[0]['run_seconds'], abs=2
  )
  tags = logged(workdir)
  seldom = {tag: steps for tag, steps in tags.items() if 2 not in steps}
  assert {'rankme', 'correlation', 'representation_std'} <= seldom.keys()
  assert all(sorted(steps) == [4, 6, 9, 12] for steps in seldom.values()), seldom
  assert all(sorted(tags[tag]) == [2, 4, 6, 9, 12] for tag in tags.keys() - seldom.keys()), tags


def test_a_line_between_two_checkpoints_counts_the_damaged_clips_from_before_the_resume(tmp_path):
  config = dataclasses.replace(CONFIG, data=Data(on_damage='skip'))
  with open_monitor(tmp_path, config=config) as monitor:
    take_steps(monitor, 1, 4, damaged=2)
    monitor.flush(before_save=True)
    take_steps(monitor, 5, 7, damaged=2)  # And then it is killed.
  with open_monitor(tmp_path, first_step=4, config=config) as monitor:
    take_steps(monitor, 5, 12, damaged=2)
    monitor.flush(before_save=True)
  found = lines(tmp_path, 'metrics.jsonl')
  assert [(line['step'], line['damaged_clips']) for line in found] == [(3, 6), (6, 6), (9, 6), (12, 6)]
  assert [line['loss'] for line in found] == [4.0, 7.0, 10.0, 13.0]


def test_a_run_that_is_killed_before_its_first_checkpoint_has_begun_all_the_same(tmp_path):
  with open_monitor(tmp_path) as monitor:
    take_steps(monitor, 1, 5)
  begun = lines(tmp_path, 'performance.jsonl')[0]
  with open_monitor(tmp_path):
    pass
  assert lines(tmp_path, 'performance.jsonl') == [begun]
  assert begun['step'] == 0
  assert not lines(tmp_path, 'metrics.jsonl')


def test_the_host_is_two_steps_ahead_of_the_device_at_most(tmp_path, monkeypatch):
  waited = []
  monkeypatch.setattr(jax, 'block_until_ready', waited.append)
  with open_monitor(tmp_path) as monitor:
    take_steps(monitor, 1, 3)
    assert [float(loss) for loss in waited] == [2.0]  # Of step 1, as step 3 is on its way.


def test_a_file_system_that_fills_up_ends_the_run_with_a_line_that_names_the_file(tmp_path):
  with pytest.raises(UserError, match=r'cannot write .*/metrics.jsonl: No space left on device'):  # noqa: PT012, SIM117
    with open_monitor(tmp_path) as monitor:
      (tmp_path / 'metrics.jsonl').unlink()
      (tmp_path / 'metrics.jsonl').symlink_to('/dev/full')
      take_steps(monitor, 1, 4)


def test_what_goes_wrong_while_closing_does_not_hide_why_the_run_ends(tmp_path, monkeypatch, capfd):
  def fail(self):
    raise UserError('the store is down')

  monkeypatch.setattr(monitor_lib.Mirror, 'close', fail)
  with pytest.raises(NotFiniteError, match='step 3 is not finite: loss nan'), open_monitor(tmp_path) as monitor:
    take_steps(monitor, 3, 4, value=float('nan'))
  assert 'and then: the store is down' in capfd.readouterr().err
  with pytest.raises(UserError, match='the store is down'), open_monitor(tmp_path / '.'):
    pass


def test_a_trace_of_five_steps_can_be_opened(tmp_path, capfd):
  profile = Profile(tmp_path / 'profile', as_path(tmp_path / 'profile'), first_step=100)
  for step in range(101, 120):
    jnp.sin(jnp.arange(100.0 + step)).block_until_ready()
    if profile.due(step):
      profile.switch()
  profile.close()
  assert 'traced 5 steps from 111 on' in capfd.readouterr().err
  for ending in ('perfetto_trace.json.gz', '*.xplane.pb'):
    (trace,) = Path(tmp_path).rglob(ending)
    assert trace.stat().st_size > 100
