"""Whole training, from files to updated parameters: AudioNTT2020 (2048), projector 4096 -> 256, batches of 64 pairs.

ours: the parts of `selfie_jax.train`'s loop: batches from TFRecords of ten-second clips, then one program a step
  (log-mel, two views, both networks, loss, gradients, Adam). A step is given to the device before that of the step
  before is waited for, and batches are read ahead. glibc keeps its memory, as the command tells it to.
PyTorch: what its users write (see torch_training.py): a Dataset that reads a wav file, cuts a crop and makes two
  views of its log-mel spectrogram; a DataLoader with 2 worker processes; the same network, loss and Adam. As it
  comes, and with glibc told to keep its memory.
One core: ours and the latter once more, because threads that wait for each other take CPU-seconds.
"""

import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.rounds import MALLOC_TUNED, ONE_CORE, Way

NAME = 'training'
UNIT = 'pairs'
BATCH = 64
CLIPS = 256
TARGETS = {'PyTorch': 2.0, 'PyTorch, glibc tuned': 2.0, 'PyTorch, glibc tuned, one core': 2.0}
WAITING = 'waiting for data, % of the time (to be under 2)'


def prepare(folder: Path) -> None:
  """Writes the same clips as TFRecords and as wav files."""
  from tests.benchmarks.parts.crops import write_clips

  write_clips(folder, CLIPS)


def ways(folder: Path) -> dict[str, Way]:
  """Ours, and the peer's."""
  peer = 'tests.benchmarks.parts.torch_training:start'
  wavs = {'wavs': str(folder / 'wavs'), 'batch_size': BATCH}
  this, records = 'tests.benchmarks.parts.training:ours', {'dataset': str(folder / 'dataset')}
  return {
    'ours': Way(this, records),
    'PyTorch': Way(peer, wavs),
    'PyTorch, glibc tuned': Way(peer, wavs, MALLOC_TUNED),
    'ours, one core': Way(this, records, {}, ONE_CORE, cores=1),
    'PyTorch, glibc tuned, one core': Way(peer, wavs, MALLOC_TUNED, ONE_CORE, cores=1),
  }


def ours(dataset: str) -> 'Loop':
  """The train loop's parts, ready for its first step."""
  import jax

  from selfie_jax.config import Config, Data
  from selfie_jax.data.pipeline import batches
  from selfie_jax.data.source import open_data
  from selfie_jax.training import mesh as mesh_lib
  from selfie_jax.training.checkpointing import checkpoints
  from selfie_jax.training.optimizer import make_optimizer
  from selfie_jax.training.programs.host_memory import keep_freed_memory
  from selfie_jax.training.state import abstract_state, init_state
  from selfie_jax.training.step import make_train_step

  keep_freed_memory()
  config = Config(batch_size=BATCH, data=Data(path=dataset))
  mesh = mesh_lib.make_mesh(config.mesh.fsdp)
  source = open_data(config.data, config.log_mel)
  optimizer = make_optimizer(config)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, optimizer, mesh))
  state = jax.jit(lambda: init_state(config, optimizer), out_shardings=shardings)()
  train_step = make_train_step(config, optimizer, mesh, checkpoints.initial_data_state(config, source, mesh.size))
  clips = batches(source, batch_size=BATCH, crop_samples=config.crop_samples, seed=config.seed, start_step=0)
  sharding = mesh_lib.batch_sharding(mesh)

  def step(state: object, clips: object) -> tuple[object, object]:
    state, metrics = train_step(state, mesh_lib.to_devices(clips, sharding))
    return state, metrics['loss']

  return Loop(step, state, lambda: next(clips)['audio'])


class Loop:
  """Steps of which the last one is on its way while the next batch is asked for."""

  def __init__(self, step: Callable, state: object, read: Callable) -> None:
    self._step, self._state, self._read = step, state, read
    self._loss = None
    self._waited = self._taken = 0.0

  def __call__(self) -> int:
    """Gives a step to the device, and waits for the step before it."""
    begin = time.perf_counter()
    clips = self._read()
    self._waited += time.perf_counter() - begin
    before = self._loss
    self._state, self._loss = self._step(self._state, clips)
    if before is not None:
      before.block_until_ready()
    self._taken += time.perf_counter() - begin
    return BATCH

  def notes(self) -> dict[str, float]:
    """What share of the time since the last call the loop waited for data."""
    share = self._waited / self._taken
    self._waited = self._taken = 0.0
    return {WAITING: 100 * share}
