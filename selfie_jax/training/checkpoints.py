"""Checkpoints of a run, with Orbax: written in the background, complete or not there at all.

Checkpoint k holds the state after k updates, so a run that restores it goes on with batch k. Each has three items:
`state` (the train state), `data` (which data set, and its z-scoring statistics) and `config`.
"""

import dataclasses
import json
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx

from selfie_jax import config as config_lib
from selfie_jax.config import Config
from selfie_jax.data.source import DataSource
from selfie_jax.errors import UserError
from selfie_jax.files import PathLike, as_path, is_remote, make_folder, write_atomically
from selfie_jax.training.state import Encoder, TrainState, build_encoder, split_model

# A run may be resumed with other values of these: but for rounding, none changes a number.
_FREE_KEYS = (
  ('checkpoint',),
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


def open_manager(workdir: PathLike, config: config_lib.Checkpoint) -> ocp.CheckpointManager:
  """Opens (or makes) the run's checkpoint folder. Steps to save at are the caller's choice."""
  managers = ocp.checkpoint_managers
  options = ocp.CheckpointManagerOptions(
    save_decision_policy=managers.FixedIntervalPolicy(1),
    preservation_policy=managers.LatestN(config.keep),
    cleanup_tmp_directories=True,  # What a killed save left behind.
  )
  # In an object store each array has objects of its own. Orbax's database of all arrays in a few files (OCDBT) reads
  # parts of itself again while it is written, and needs their generation, which not every such server tells.
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  handler = ocp.StandardCheckpointHandler(use_ocdbt=not is_remote(workdir))
  for arguments in (ocp.args.StandardSave, ocp.args.StandardRestore):
    registry.add('state', arguments, handler)
  return ocp.CheckpointManager(_folder(workdir), options=options, handler_registry=registry)


def _folder(workdir: PathLike) -> epath.Path:
  """Returns the folder of a run's checkpoints: absolute, as Orbax wants it."""
  path = as_path(workdir) / 'checkpoints'
  return path if is_remote(path) else path.resolve()  # `resolve` would take gs:// for the name of a folder.


def save(manager: ocp.CheckpointManager, step: int, state: TrainState, data: DataState, config: Config) -> None:
  """Starts saving in the background; the previous save, if it still runs, is waited for."""
  items = ocp.args.Composite(
    state=ocp.args.StandardSave(state),
    data=ocp.args.JsonSave(dataclasses.asdict(data)),
    config=ocp.args.JsonSave(dataclasses.asdict(config)),
  )
  # Orbax copies the state to the host, which accelerators count as an implicit transfer.
  with jax.transfer_guard_device_to_host('allow'):
    manager.save(step, args=items)


def restore(
  manager: ocp.CheckpointManager, template: TrainState, data: DataState
) -> tuple[TrainState, DataState] | None:
  """Restores the newest checkpoint in the layout of `template` (shapes with shardings), or returns None.

  Args:
    manager: from `open_manager`.
    template: from `abstract_state`: what to restore, and where to.
    data: what the run would begin with; the data set must be the one that it was begun with.

  Raises:
    UserError: the run was trained on another data set, or its newest checkpoint cannot be read. Starting over in a
      folder that holds a run's checkpoints would end with overwriting them.
  """
  step = manager.latest_step()
  if step is None:
    return None
  saved = DataState(**_read(manager, step, data=ocp.args.JsonRestore())['data'])
  if saved.fingerprint != data.fingerprint:
    raise UserError(
      f'this run was trained on the data {saved.fingerprint[:12]} and this config reads {data.fingerprint[:12]}: '
      'give the same data.path, data.splits and data.mixture, or another --workdir'
    )
  return _read(manager, step, state=ocp.args.StandardRestore(template))['state'], saved


def _read(manager: ocp.CheckpointManager, step: int, **items: Any) -> Any:
  """Reads items of a checkpoint.

  Raises:
    UserError: one of them is damaged or gone.
  """
  try:
    return manager.restore(step, args=ocp.args.Composite(**items))
  except Exception as error:  # Orbax and TensorStore raise what the damage happens to lead to.
    reason = str(error).strip().partition('\n')[0]
    raise UserError(
      f'checkpoint {step} in {manager.directory} cannot be read ({type(error).__name__}: {reason}): '
      f'move {manager.directory / str(step)} away to go on from the one before'
    ) from error


def claim_workdir(workdir: epath.Path, config: Config) -> None:
  """Writes `config.json`, or checks that the one that is there is of the same run.

  Raises:
    UserError: the folder belongs to a run of another config; names the first setting that differs.
  """
  path = workdir / 'config.json'
  wanted = json.loads(json.dumps(dataclasses.asdict(config)))
  if path.exists():
    for key, (saved, given) in _differences(json.loads(path.read_text()), wanted).items():
      if not any(key[: len(free)] == free for free in _FREE_KEYS):
        raise UserError(
          f'{workdir} holds a run with {".".join(key)}={saved!r}, and this config has {given!r}: '
          'give another --workdir, or the same value'
        )
    return
  if jax.process_index() == 0:
    make_folder(workdir)
    with write_atomically(path) as file:
      file.write(json.dumps(wanted, indent=2).encode() + b'\n')


def _differences(saved: dict[str, Any], given: dict[str, Any], prefix: tuple[str, ...] = ()) -> dict[tuple, tuple]:
  found = {}
  for key in saved | given:
    old, new = saved.get(key), given.get(key)
    if isinstance(old, dict) and isinstance(new, dict):
      found |= _differences(old, new, (*prefix, key))
    elif old != new:
      found[(*prefix, key)] = (old, new)
  return found


@dataclasses.dataclass(frozen=True)
class LoadedEncoder:
  """An encoder and what its input must look like: log-mel by `config.log_mel`, z-scored with `mean` and `std`."""

  encoder: Encoder
  config: Config
  mean: float
  std: float
  step: int


def load_encoder(workdir: PathLike, step: int | None = None) -> LoadedEncoder:
  """Loads the encoder alone (no projector, no optimizer) of a run's checkpoint, the newest by default.

  Args:
    workdir: the training run's folder.
    step: which checkpoint; None for the newest.

  Raises:
    UserError: no such folder, no checkpoint in it, not the one asked for, or a damaged one.
  """
  folder = _folder(workdir)
  if not folder.exists():
    raise UserError(f'{workdir} has no checkpoints/: give the --workdir of a training run')
  # With these a manager that is asked for nothing writes nothing; `read_only` says so with a warning at each start.
  options = ocp.CheckpointManagerOptions(create=False, save_root_metadata=False)
  with ocp.CheckpointManager(folder, options=options) as manager:
    steps = manager.all_steps()
    if not steps:
      raise UserError(f'{folder} holds no finished checkpoint yet')
    step = max(steps) if step is None else step
    if step not in steps:
      raise UserError(f'{folder} has no checkpoint {step}; it has {", ".join(map(str, sorted(steps)))}')
    saved = _read(manager, step, data=ocp.args.JsonRestore(), config=ocp.args.JsonRestore())
    config = config_lib.from_mapping(Config, saved['config'])
    config = dataclasses.replace(config, compute_dtype='float32', remat=False)  # Evaluation has no need to save.
    graphdef, params, batch_stats = split_model(build_encoder(config))
    item = {'params': {'encoder': params}, 'batch_stats': {'encoder': batch_stats}}
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    weights = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
    state = _read(manager, step, state=weights)['state']
  encoder = nnx.merge(graphdef, state['params']['encoder'], state['batch_stats']['encoder'])
  return LoadedEncoder(encoder, config, saved['data']['mean'], saved['data']['std'], step)
