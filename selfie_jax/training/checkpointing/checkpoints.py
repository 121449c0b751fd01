"""Checkpoints of a run, with Orbax: written in the background, complete or not there at all.

Checkpoint k holds the state after k updates, so a run that restores it goes on with batch k. Each has four items:
`state` (the train state), `data` (which data set, and its z-scoring statistics), `config`, and their `checksums`.
What is restored agrees with its checksums, or is not used: then the newest one before that does takes its place.
"""

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from orbax.checkpoint import checkpoint_managers

from selfie_jax.config import Config
from selfie_jax.data.source import DataSource
from selfie_jax.errors import UserError
from selfie_jax.files import PathLike, as_path, is_remote, make_folder, write_atomically
from selfie_jax.from_mapping import from_mapping
from selfie_jax.terminal import console
from selfie_jax.training.checkpointing.checksums import DamagedError, leaf_name, make_record
from selfie_jax.training.checkpointing.retention import make_policy
from selfie_jax.training.checkpointing.saving import check_space, failures_named, tracebacks_hidden, wait_for_others
from selfie_jax.training.checkpointing.verified import Reader, find_steps, move_aside, newest_verified
from selfie_jax.training.processes import cluster
from selfie_jax.training.state import LoadedEncoder, TrainState, Weights, begin_average, build_encoder, split_model

# A run may be resumed with other values of these: but for rounding, none changes a number.
_FREE_KEYS = (
  ('checkpoint',),
  ('cluster',),
  ('watchdog_minutes',),
  ('log',),
  ('mesh',),
  ('remat',),
  ('data', 'path'),  # What is read there is told by its fingerprint.
  ('data', 'splits'),
  ('data', 'mixture'),
  ('data', 'read'),
  ('data', 'read_threads'),
  ('data', 'prefetch_batches'),
  ('data', 'on_damage'),
  ('data', 'max_damaged'),
)


@dataclasses.dataclass(frozen=True)
class DataState:
  """What a run was begun with, besides its config, and must keep to its end."""

  fingerprint: str  # Of the data: over the checksums of the shards that are read, wherever they lie.
  mean: float  # Of its log-mel values.
  std: float
  variance_groups: int  # Blocks of rows that the diversity term's variance is taken over.


def initial_data_state(config: Config, source: DataSource, num_devices: int) -> DataState:
  """Returns the data state of a run that begins. Resumed on other devices, it keeps its groups, and so its loss."""
  groups = config.objective.variance_groups(num_devices)
  return DataState(source.fingerprint, source.mean, source.std, groups)


@contextlib.contextmanager
def open_manager(workdir: PathLike, config: Config) -> Iterator[ocp.CheckpointManager]:
  """Opens (or makes) the run's checkpoint folder. Steps to save at are the caller's choice.

  Leaving the context waits for the save that is running.

  Raises:
    UserError: that save, or one before, failed; or the folder cannot be written to.
  """
  seconds = round(60 * config.cluster.barrier_minutes)
  options = ocp.CheckpointManagerOptions(
    save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
    preservation_policy=make_policy(as_path(workdir), config.checkpoint),
    cleanup_tmp_directories=True,  # What a killed save left behind.
    async_options=ocp.options.AsyncOptions(timeout_secs=seconds, barrier_sync_fn=wait_for_others),
  )
  # In an object store each array has objects of its own. Orbax's database of all arrays in a few files (OCDBT) reads
  # parts of itself again while it is written, and needs their generation, which not every such server tells.
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  handler = ocp.StandardCheckpointHandler(use_ocdbt=not is_remote(workdir))
  for arguments in (ocp.args.StandardSave, ocp.args.StandardRestore):
    registry.add('state', arguments, handler)
  folder = _folder(workdir)
  with tracebacks_hidden():
    with failures_named(folder):
      manager = ocp.CheckpointManager(folder, options=options, handler_registry=registry)
    try:
      yield manager
    finally:
      with failures_named(folder):
        manager.close()


def _folder(workdir: PathLike) -> epath.Path:
  """Returns the folder of a run's checkpoints: absolute, as Orbax wants it."""
  path = as_path(workdir) / 'checkpoints'
  return path if is_remote(path) else path.resolve()  # `resolve` would take gs:// for the name of a folder.


def save(manager: ocp.CheckpointManager, step: int, state: TrainState, data: DataState, config: Config) -> None:
  """Starts saving in the background; the previous save, if it still runs, is waited for.

  Raises:
    UserError: that one failed, or this one cannot begin; the checkpoints before them stay.
  """
  with failures_named(manager.directory):
    manager.wait_until_finished()
    if manager.latest_step() == step:
      return
    check_space(manager.directory, state)
    items = {'data': dataclasses.asdict(data), 'config': dataclasses.asdict(config)}
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      checksums=ocp.args.JsonSave(make_record(step, state, items)),
      **{name: ocp.args.JsonSave(item) for name, item in items.items()},
    )
    # Orbax copies the state to the host, which accelerators count as an implicit transfer.
    with jax.transfer_guard_device_to_host('allow'):
      if not manager.save(step, args=args):
        raise RuntimeError(f'checkpoint {step} was not saved: the newest is {manager.latest_step()}')


def restore(workdir: PathLike, template: TrainState, data: DataState) -> tuple[TrainState, DataState] | None:
  """Restores the newest checkpoint that verifies, in the layout of `template`; returns None where there are none.

  Those that are newer, and damaged, are moved out of the way: before a manager is opened, or it would know them.

  Args:
    workdir: the run's folder.
    template: from `abstract_state`: what to restore (shapes), and where to (shardings).
    data: what the run would begin with; the data set must be the one that it was begun with.

  Raises:
    UserError: the run was trained on another data set; or there are checkpoints, and none can be used. Starting over
      in their folder would end with overwriting them.
  """
  reader = Reader(_folder(workdir))

  def read(step: int) -> tuple[TrainState, DataState]:
    record, items = reader.items(step)
    saved = DataState(**items['data'])
    if saved.fingerprint != data.fingerprint:
      raise UserError(
        f'this run was trained on the data {saved.fingerprint[:12]} and this config reads {data.fingerprint[:12]}: '
        'give the same data.path, data.splits and data.mixture, or another --workdir'
      )
    state = reader.arrays(step, record, ocp.args.StandardRestore(template))
    if int(state.step) != step:
      raise DamagedError(f'its state is that of step {int(state.step)}')
    return state, saved

  found = newest_verified(reader.folder, read)
  if found is None:
    return None
  move_aside(reader.folder, found.damaged)
  return found.content


class Schedule:
  """When a checkpoint is due: every so many steps, when the last one is too old, and at the end."""

  def __init__(self, config: Config) -> None:
    self._config = config
    self._last = time.monotonic()

  def after(self, step: int) -> bool:
    """True, on all processes, if one is due after update `step`. All must ask after each."""
    settings = self._config.checkpoint
    due = step % settings.every_steps == 0 or step == self._config.steps
    if settings.every_minutes and step % self._config.log.every_steps == 0 and not due:
      # Clocks differ, and one that says no while others save would be waited for.
      due = cluster.of_first_process(time.monotonic() - self._last >= 60 * settings.every_minutes)
    if due:
      self._last = time.monotonic()
    return due


def claim_workdir(workdir: epath.Path, config: Config) -> None:
  """Writes `config.json`, or checks that the one that is there is of the same run.

  Raises:
    UserError: the folder belongs to a run of another config; names the first setting that differs. Or
      its `config.json` is damaged.
  """
  path = workdir / 'config.json'
  wanted = _as_json(config)
  if path.exists():
    try:
      saved_config = json.loads(path.read_text())
    except ValueError as error:
      raise UserError(f'{path} is damaged ({error}): put a copy in its place, or delete it') from error
    try:  # A setting that an older version did not have has its default, which is what that version did.
      found = _as_json(from_mapping(Config, saved_config))
    except UserError as error:
      raise UserError(
        f'{path} is of another version of selfie_jax ({error}): use that, or another --workdir'
      ) from error
    for key, (saved, given) in _differences(found, wanted).items():
      if not any(key[: len(free)] == free for free in _FREE_KEYS):
        raise UserError(
          f'{workdir} holds a run with {".".join(key)}={saved!r}, and this config has {given!r}: '
          'give another --workdir, or the same value'
        )
    _check_history(workdir, max(config.checkpoint.every_steps, found['checkpoint']['every_steps']))
    return
  if jax.process_index() == 0:
    make_folder(workdir)
    with write_atomically(path) as file:
      file.write(json.dumps(wanted, indent=2).encode() + b'\n')


def _as_json(config: Config) -> dict[str, Any]:
  return json.loads(json.dumps(dataclasses.asdict(config)))


def _check_history(workdir: epath.Path, every_steps: int) -> None:
  """Checks that checkpoints are there if the run has come so far that there must be: without, it would start over."""
  metrics = workdir / 'metrics.jsonl'
  if find_steps(_folder(workdir)) or not metrics.exists():
    return
  # One save runs at a time, and the next waits for it: after two intervals one is finished.
  lines = metrics.read_bytes().decode(errors='replace').splitlines()
  steps = [int(found[1]) for line in lines if (found := re.match(r'{"step": (\d+)', line))]
  if max(steps, default=0) > 2 * every_steps:
    raise UserError(
      f'{metrics} tells of {max(steps)} steps, and there is no checkpoint beside it: put the checkpoints back, or '
      'begin another run in another --workdir; this one is never started over'
    )


def _differences(saved: dict[str, Any], given: dict[str, Any], prefix: tuple[str, ...] = ()) -> dict[tuple, tuple]:
  found = {}
  for key in saved | given:
    old, new = saved.get(key), given.get(key)
    if isinstance(old, dict) and isinstance(new, dict):
      found |= _differences(old, new, (*prefix, key))
    elif old != new:
      found[(*prefix, key)] = (old, new)
  return found


class NoSuchStepError(UserError):
  """A run has no checkpoint of that step. Of several processes, all find the same."""


def load_encoder(workdir: PathLike, step: int | None = None) -> LoadedEncoder:
  """Loads the encoder alone (no projector, no optimizer) of a run's checkpoint; changes nothing in its folder.

  Its weights are the last ones or, where the run's `average.evaluate` says so, their moving average.

  Args:
    workdir: the training run's folder.
    step: which checkpoint; None for the newest that verifies.

  Raises:
    UserError: no such folder, no checkpoint in it, or a damaged one.
    NoSuchStepError: not the one asked for.
  """
  folder = _folder(workdir)
  if not folder.exists():
    raise UserError(f'{workdir} has no checkpoints/: give the --workdir of a training run')
  reader = Reader(folder)
  if step is None:
    found = newest_verified(folder, lambda step: _read_encoder(reader, step))
    if found is None:
      raise UserError(f'{folder} holds no finished checkpoint yet')
    return found.content
  # The others may look later, when the run has deleted it.
  if step not in (steps := cluster.of_first_process(find_steps(folder))):
    raise NoSuchStepError(f'{folder} has no checkpoint {step}; it has {", ".join(map(str, sorted(steps)))}')
  try:
    return _read_encoder(reader, step)
  except DamagedError as error:
    raise UserError(f'checkpoint {step} in {folder} cannot be used: {error}') from error


def _read_encoder(reader: Reader, step: int) -> LoadedEncoder:
  record, items = reader.items(step)
  config = from_mapping(Config, items['config'])
  config = dataclasses.replace(config, compute_dtype='float32', remat=False)  # Evaluation has no need to save.
  graphdef, params, batch_stats = split_model(build_encoder(config))
  part = _encoder_part(params, batch_stats)
  if config.average.evaluate:
    part = _read_encoder_arrays(reader, step, record, {'average': part})['average']
  else:
    part = _read_encoder_arrays(reader, step, record, part)
  encoder = nnx.merge(graphdef, part['params']['encoder'], part['batch_stats']['encoder'])
  return LoadedEncoder(encoder, config, items['data']['mean'], items['data']['std'], step)


def _encoder_part(params: nnx.State, batch_stats: nnx.State) -> dict[str, dict[str, nnx.State]]:
  """Returns the encoder's arrays where a train state has them."""
  return {'params': {'encoder': params}, 'batch_stats': {'encoder': batch_stats}}


def _read_encoder_arrays(reader: Reader, step: int, record: dict[str, Any], item: Any) -> Any:
  arguments = ocp.checkpoint_utils.construct_restore_args(item)
  return reader.arrays(step, record, ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True))


def warm_start(state: TrainState, config: Config) -> TrainState:
  """Returns the state with the encoder of the run `config.warm_start`, laid out as the state's own.

  The encoder's parameters and its batch statistics are those of that run's newest checkpoint that verifies, as it last
  trained them; a moving average begins there, too. All else stays as it was initialised.

  Raises:
    UserError: no such run, no checkpoint of it that can be used, or an encoder of another shape.
  """
  folder = _folder(config.warm_start)
  if not folder.exists():
    raise UserError(f'{config.warm_start} has no checkpoints/: give the workdir of a training run as warm_start')
  reader = Reader(folder)
  ours = _encoder_part(state.params['encoder'], state.batch_stats['encoder'])
  template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), ours)

  def read(step: int) -> Any:
    record, items = reader.items(step)
    _check_same_encoder(from_mapping(Config, items['config']), template, config.warm_start)
    return _read_encoder_arrays(reader, step, record, template)

  found = newest_verified(folder, read)
  if found is None:
    raise UserError(f'{folder} holds no finished checkpoint yet: there is nothing to warm-start from')
  console.print(f'warm start from the encoder of step {found.step} in {folder}')
  state = jax.tree.map(lambda leaf: leaf, state)  # The caller's stays as it was.
  state.params['encoder'] = found.content['params']['encoder']
  state.batch_stats['encoder'] = found.content['batch_stats']['encoder']
  if state.average is None:
    return state
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state.average)
  average = jax.jit(begin_average, out_shardings=shardings)(Weights(state.params, state.batch_stats))
  return dataclasses.replace(state, average=average)


def _check_same_encoder(theirs: Config, template: Any, workdir: str) -> None:
  shapes = jax.eval_shape(lambda: _encoder_part(*split_model(build_encoder(theirs))[1:]))
  ours, found = (
    {leaf_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)} for tree in (template, shapes)
  )
  for name in sorted(ours | found):
    if ours.get(name) != found.get(name):
      raise UserError(
        f'warm_start: {name} is {found.get(name, "not there")} in {workdir} and {ours.get(name, "not there")} in this '
        'config: give the encoder the same settings'
      )
