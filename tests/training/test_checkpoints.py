import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
import subprocess

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from selfie_jax import config as config_lib
from selfie_jax.config import Checkpoint, Config
from selfie_jax.errors import UserError
from selfie_jax.files import as_path
from selfie_jax.from_mapping import from_mapping
from selfie_jax.training import mesh as mesh_lib
from selfie_jax.training.checkpointing import checkpoints, retention
from selfie_jax.training.checkpointing.checkpoints import DataState
from selfie_jax.training.checkpointing.checksums import leaf_checksums
from selfie_jax.training.optimizer import make_optimizer
from selfie_jax.training.state import abstract_state, build_encoder, init_state
from tests.training.test_train import assert_bitwise_equal, checkpoint_steps, final_state, numbers, train


def _weights(encoder):
  return jax.tree.leaves(nnx.to_pure_dict(nnx.state(encoder)))


@dataclasses.dataclass
class Run:
  """A run in a folder that a test may change, and what it takes to restore it."""

  workdir: object
  config: Config

  @property
  def folder(self):
    return self.workdir / 'checkpoints'

  @functools.cached_property
  def template(self):
    return abstract_state(self.config, make_optimizer(self.config), mesh_lib.make_mesh(1))

  @functools.cached_property
  def data(self):
    return DataState(**json.loads((self.folder / '4/data/metadata').read_text()))

  def restore(self):
    return checkpoints.restore(self.workdir, self.template, self.data)


@pytest.fixture
def run(run_copy):
  run = Run(run_copy, from_mapping(Config, json.loads((run_copy / 'config.json').read_text())))
  assert run.data.fingerprint  # Read before a test damages anything.
  return run


def _flip(path):
  contents = bytearray(path.read_bytes())
  contents[len(contents) // 2] ^= 0x10
  path.write_bytes(contents)


def _truncate(path):
  os.truncate(path, path.stat().st_size // 2)


def _empty(path):
  os.truncate(path, 0)


def _remove(path):
  path.unlink()


# --------------------------------------------------------------------- damage


def test_whatever_happens_to_a_file_nothing_wrong_is_restored(run, capfd):
  """Each file is damaged in one of the ways; in all of them with SELFIE_TESTS_EVERY_DAMAGE=1, which takes a minute."""
  whole = {12: jax.device_get(run.restore()[0])}
  spare = shutil.move(run.folder / '12', run.workdir / 'spare')
  whole[8] = jax.device_get(run.restore()[0])
  names = [path.relative_to(spare) for path in sorted(spare.rglob('*')) if path.is_file() and path.stat().st_size]
  assert len(names) > 12
  damages = (_flip, _truncate, _empty, _remove)
  cases = [(name, damages[i % 4]) for i, name in enumerate(names)]
  if os.environ.get('SELFIE_TESTS_EVERY_DAMAGE'):
    cases = list(itertools.product(names, damages))
  fallen_back = 0
  for name, damage in cases:
    newest = shutil.copytree(spare, run.folder / '12')
    damage(newest / name)
    state, _ = run.restore()
    assert_bitwise_equal(jax.device_get(state), whole[int(state.step)])
    if int(state.step) == 8:  # Or it was a file that nothing depends on.
      fallen_back += 1
      printed = capfd.readouterr().err
      assert f'DAMAGED: checkpoint 12 in {run.folder} is not used: ' in printed
      assert 'Traceback' not in printed
      assert not newest.exists()
      shutil.rmtree(run.workdir / 'checkpoints_damaged')
    else:
      shutil.rmtree(newest)
  assert fallen_back >= len(cases) // 3


def _swap_states(folder):
  (folder / '8/state').rename(folder / 'spare')
  (folder / '12/state').rename(folder / '8/state')
  (folder / 'spare').rename(folder / '12/state')


def _copy_an_older_one_over_it(folder):
  shutil.rmtree(folder / '12')
  shutil.copytree(folder / '4', folder / '12')


def _leave_an_empty_folder(folder):
  shutil.rmtree(folder / '12')
  (folder / '12').mkdir()


def _put_a_file_in_its_place(folder):
  shutil.rmtree(folder / '12')
  (folder / '12').write_text('?')


def _forget_the_checksums(folder):
  shutil.rmtree(folder / '12/checksums')


def _put_another_optimizer_in(folder):
  """Of the right shapes, dtypes and names, readable, and with files that agree: only the values are another step's."""
  shutil.rmtree(folder / '12/state')
  shutil.copytree(folder / '8/state', folder / '12/state')


@pytest.mark.parametrize(
  ('damage', 'reason', 'restored'),
  [
    (_swap_states, 'not those that were saved', 4),
    (_copy_an_older_one_over_it, 'it is the checkpoint of step 4', 8),
    (_leave_an_empty_folder, 'it lacks commit_success.txt', 8),
    (_put_a_file_in_its_place, 'it is no folder', 8),
    (_forget_the_checksums, 'it has no checksums: whether it is whole cannot be told', 8),
    (_put_another_optimizer_in, 'the values of ', 8),
  ],
)
def test_a_checkpoint_that_is_another_than_it_says_is_not_used(run, capfd, damage, reason, restored):
  damage(run.folder)
  state, _ = run.restore()
  assert int(state.step) == restored
  assert reason in capfd.readouterr().err
  assert sorted(os.listdir(run.workdir / 'checkpoints_damaged'), key=int) == (['8', '12'] if restored == 4 else ['12'])
  with checkpoints.open_manager(run.workdir, run.config) as manager:
    assert max(manager.all_steps()) == restored


def test_damaged_checkpoints_are_kept_under_names_of_their_own(run):
  for _ in range(2):
    spare = shutil.copytree(run.folder / '12', run.workdir / 'spare')
    _remove(run.folder / '12/commit_success.txt')
    assert int(run.restore()[0].step) == 8
    spare.rename(run.folder / '12')
  assert sorted(os.listdir(run.workdir / 'checkpoints_damaged')) == ['12', '12-1']
  assert int(run.restore()[0].step) == 12


def test_an_older_one_that_is_not_whole_is_moved_too_and_a_killed_saves_remains_are_nothing(run, capfd):
  _remove(run.folder / '4/_CHECKPOINT_METADATA')
  shutil.copytree(run.folder / '12/state', run.folder / '16.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp')
  assert int(run.restore()[0].step) == 12
  assert os.listdir(run.workdir / 'checkpoints_damaged') == ['4']
  assert 'DAMAGED' not in capfd.readouterr().err


def test_where_none_can_be_used_each_is_named_and_nothing_is_moved(run):
  for step in (4, 8, 12):
    _remove(run.folder / f'{step}/state/manifest.ocdbt')
  with pytest.raises(UserError, match=r'none of the checkpoints .*\(12: .*; 8: .*; 4: .*never started over'):
    run.restore()
  assert checkpoint_steps(run.workdir) == [4, 8, 12]
  assert not (run.workdir / 'checkpoints_damaged').exists()


def test_what_we_may_not_read_is_not_called_damaged(run):
  secret = run.folder / '12/state/manifest.ocdbt'
  secret.chmod(0)
  run.template, run.data  # noqa: B018
  with (
    _as_nobody(run.workdir),
    pytest.raises(UserError, match=f'cannot read {secret}: Permission denied: give it back'),
  ):
    run.restore()
  assert checkpoint_steps(run.workdir) == [4, 8, 12]


@contextlib.contextmanager
def _as_nobody(folder):
  """Root may read everything; so another user looks."""
  if os.geteuid():
    yield
    return
  for parent in (folder, *folder.parents):
    if parent.name and not parent.stat().st_mode & 0o001:
      parent.chmod(parent.stat().st_mode | 0o055)
  os.seteuid(65534)
  try:
    yield
  finally:
    os.seteuid(0)


@pytest.fixture(scope='module')
def damaged_and_started_again(tmp_path_factory, config_file, dataset, finished_run):
  """The finished run, its newest checkpoint with a flipped byte and the one before without a file, run once more."""
  workdir = shutil.copytree(finished_run, tmp_path_factory.mktemp('runs') / 'damaged')
  for path in (workdir / 'checkpoints/12/state/d').iterdir():
    _flip(path)
  _remove(workdir / 'checkpoints/8/state/manifest.ocdbt')
  return workdir, *train(config_file, dataset, workdir)


def test_a_flipped_byte_and_a_missing_file_are_named_and_the_run_goes_on_from_the_one_before(damaged_and_started_again):
  workdir, code, errors = damaged_and_started_again
  assert code == 0, errors
  lines = [line for line in errors.splitlines() if line.startswith('DAMAGED')]
  assert [line.partition(' in ')[0] for line in lines] == ['DAMAGED: checkpoint 12', 'DAMAGED: checkpoint 8']
  assert 'resuming after step 4' in errors
  assert 'Traceback' not in errors
  assert sorted(os.listdir(workdir / 'checkpoints_damaged')) == ['12', '8']


def test_and_it_ends_bitwise_equal_to_the_undisturbed_run(damaged_and_started_again, finished_run):
  workdir, _, _ = damaged_and_started_again
  assert checkpoint_steps(workdir) == [4, 8, 12]
  assert_bitwise_equal(final_state(workdir), final_state(finished_run))
  assert numbers(workdir) == numbers(finished_run)
  for step in (8, 12):
    item = f'checkpoints/{step}/checksums/metadata'
    ours, theirs = (json.loads((folder / item).read_text()) for folder in (workdir, finished_run))
    assert ours['leaves'] == theirs['leaves']


# --------------------------------------------------------------------- the encoder alone


def test_the_encoder_is_loaded_without_projector_and_optimizer(finished_run):
  loaded = checkpoints.load_encoder(finished_run)
  with ocp.CheckpointManager(finished_run / 'checkpoints') as manager:
    saved = manager.restore(12, args=ocp.args.Composite(state=ocp.args.StandardRestore()))['state']
  expected = jax.tree.leaves(saved['params']['encoder']) + jax.tree.leaves(saved['batch_stats']['encoder'])
  assert loaded.step == 12
  assert loaded.config.encoder.width == 32
  assert sorted(map(np.sum, _weights(loaded.encoder))) == sorted(map(np.sum, expected))
  assert loaded.std > 0


def test_an_earlier_checkpoint_can_be_had_and_both_differ_from_the_untrained_encoder(finished_run):
  earlier = checkpoints.load_encoder(finished_run, step=4)
  untrained = build_encoder(earlier.config)
  assert earlier.step == 4
  for encoder in (earlier.encoder, checkpoints.load_encoder(finished_run).encoder):
    assert any((a != b).any() for a, b in zip(_weights(encoder), _weights(untrained), strict=True))


def test_a_damaged_encoder_is_never_evaluated_and_nothing_is_moved(run, capfd):
  for path in (run.folder / '12/state/d').iterdir():
    _flip(path)
  assert checkpoints.load_encoder(run.workdir).step == 8
  assert 'DAMAGED: checkpoint 12' in capfd.readouterr().err
  with pytest.raises(UserError, match='checkpoint 12 in .* cannot be used: '):
    checkpoints.load_encoder(run.workdir, step=12)
  assert checkpoint_steps(run.workdir) == [4, 8, 12]


def test_what_is_not_there_is_named(finished_run, tmp_path):
  with pytest.raises(UserError, match='has no checkpoints/'):
    checkpoints.load_encoder(tmp_path)
  with pytest.raises(UserError, match='has no checkpoint 5; it has 4, 8, 12'):
    checkpoints.load_encoder(finished_run, step=5)
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(UserError, match='no finished checkpoint yet'):
    checkpoints.load_encoder(tmp_path)


def test_a_warm_start_takes_the_encoder_and_nothing_else(finished_run, run):
  config = dataclasses.replace(run.config, warm_start=str(finished_run), seed=5)
  fresh = init_state(config, make_optimizer(config))
  ours, before = (leaf_checksums(state) for state in (checkpoints.warm_start(fresh, config), fresh))
  theirs = json.loads((finished_run / 'checkpoints/12/checksums/metadata').read_text())['leaves']
  encoder = {name for name in ours if name.startswith(('params/encoder/', 'batch_stats/encoder/'))}
  assert len(encoder) > 10
  assert {name for name in ours if ours[name] == theirs[name]} >= encoder
  assert {name for name in ours if ours[name] == before[name]} >= ours.keys() - encoder
  assert any(before[name] != theirs[name] for name in encoder)


def test_a_warm_start_from_another_encoder_names_the_array_and_both_shapes(finished_run, run):
  wider = dataclasses.replace(run.config.encoder, width=40)
  config = dataclasses.replace(run.config, warm_start=str(finished_run), encoder=wider)
  fresh = init_state(config, make_optimizer(config))
  with pytest.raises(UserError, match=r'params/encoder/dense1/bias is \(32,\) in .* and \(40,\) in this config'):
    checkpoints.warm_start(fresh, config)
  with pytest.raises(UserError, match='/nowhere has no checkpoints/'):
    checkpoints.warm_start(fresh, dataclasses.replace(config, warm_start='/nowhere'))


# --------------------------------------------------------------------- when and which


def test_the_newest_some_and_the_best_stay(run):
  settings = Checkpoint(keep=1, keep_every=8, keep_best=1)
  config = dataclasses.replace(run.config, checkpoint=settings)
  (run.workdir / 'eval').mkdir()
  scores = run.workdir / 'eval/scores.jsonl'
  lines = [{'step': 2, 'mean_score': 1.0}, {'step': 4, 'mean_score': 0.9}, {'step': 12, 'mean_score': 0.2}]
  scores.write_text('\n'.join(map(json.dumps, lines)) + '\n{"step": 8, "mean_acc')  # A step that is gone; a torn line.
  state, data = run.restore()
  with checkpoints.open_manager(run.workdir, config) as manager:
    for step in (13, 16, 17):
      state = dataclasses.replace(state, step=state.step * 0 + step)
      checkpoints.save(manager, step, state, data, config)
      checkpoints.save(manager, step, state, data, config)  # As a stop right after a save would.
  assert checkpoint_steps(run.workdir) == [4, 8, 16, 17]
  assert retention.mean_scores(run.workdir) == {2: 1.0, 4: 0.9, 12: 0.2}


def test_the_clock_makes_a_save_due_only_where_a_report_is(monkeypatch):
  config = dataclasses.replace(
    Config(steps=100), checkpoint=Checkpoint(every_steps=40, every_minutes=1.0), log=config_lib.Log(every_steps=5)
  )
  now = [0.0]
  monkeypatch.setattr(checkpoints.time, 'monotonic', lambda: now[0])
  schedule = checkpoints.Schedule(config)
  saved = []
  for step in range(1, 101):
    now[0] += 7.0
    if schedule.after(step):
      saved.append(step)
  assert saved == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]


# --------------------------------------------------------------------- saves that fail


@pytest.fixture
def tiny_disk(tmp_path):
  """A disk of 600 KB: room for a few checkpoints of the tests' run."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=600k', 'tmpfs', str(folder)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip('only root may mount a disk')
  yield folder
  subprocess.run(['umount', str(folder)], check=True)


def _save_twice(run, workdir, in_between):
  state, data = run.restore()
  with checkpoints.open_manager(workdir, run.config) as manager:
    checkpoints.save(manager, 12, state, data, run.config)
    manager.wait_until_finished()
    in_between()
    checkpoints.save(manager, 13, dataclasses.replace(state, step=state.step + 1), data, run.config)


@pytest.mark.parametrize('left', [60_000, 110_000], ids=['before it begins', 'on its way'])
def test_a_full_disk_ends_a_save_in_one_line_and_the_last_good_checkpoint_stays(run, tiny_disk, left):
  """The state has 101 KB, and a few more on the disk, as files."""

  def fill():
    free = shutil.disk_usage(tiny_disk).free
    (tiny_disk / 'ballast').write_bytes(b'?' * (free - left))

  message = r'no room for a checkpoint in .*/disk/checkpoints: it needs about 0.. MB and 0.. MB are free: .* is 12$'
  with pytest.raises(UserError, match=message):
    _save_twice(run, tiny_disk, fill)
  assert checkpoint_steps(tiny_disk) == [12]
  (tiny_disk / 'ballast').unlink()
  with checkpoints.open_manager(tiny_disk, run.config) as manager:
    assert manager.all_steps() == [12]


def test_a_folder_that_is_deleted_under_a_run_stops_it(run, tmp_path):
  with pytest.raises(UserError, match='cannot save in .*/gone/checkpoints .*: is the folder as it was?'):
    _save_twice(run, tmp_path / 'gone', lambda: shutil.rmtree(tmp_path / 'gone'))


def test_a_run_whose_checkpoints_are_gone_is_not_started_over(run):
  shutil.rmtree(run.folder)
  with pytest.raises(UserError, match='tells of 12 steps, and there is no checkpoint beside it: put'):
    checkpoints.claim_workdir(as_path(run.workdir), run.config)


@pytest.mark.parametrize('nonsense', ['[]', '{"commit_timestamp_nsecs": "x"}'])
def test_a_checkpoint_that_would_keep_all_others_from_being_opened_is_moved_aside(run, nonsense):
  (run.folder / '4/_CHECKPOINT_METADATA').write_text(nonsense)
  state, _ = run.restore()
  assert int(state.step) == 12
  with checkpoints.open_manager(run.workdir, run.config) as manager:
    assert manager.all_steps() == [8, 12]
