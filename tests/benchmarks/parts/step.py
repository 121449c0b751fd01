"""An update of the parameters from two ready views: networks, objective, gradients and Adam; batches of 64 pairs.

AudioNTT2020 of width 2048 with dropout 0.3, projector 4096 -> 256, views of 64 mels by 96 frames, in float32.

ours: the functions that `training/step.py` is made of; glibc keeps its memory, as `selfie_jax.train` tells it to.
PyTorch: torch_peer.py, eagerly: as it comes, and with glibc told to keep its memory.
One core: ours and the latter once more, because threads that wait for each other take CPU-seconds.
"""

from collections.abc import Callable
from pathlib import Path

from selfie_jax.config import AudioNTT, Config, Objective, Projector
from tests.benchmarks.rounds import MALLOC_TUNED, ONE_CORE, Way

NAME = 'step'
UNIT = 'pairs'
BATCH = 64
FRAMES = 96
TARGETS = {'PyTorch': 1.5, 'PyTorch, glibc tuned': 1.1, 'PyTorch, glibc tuned, one core': 1.1}
CONFIG = Config(
  batch_size=BATCH,
  encoder=AudioNTT(conv_blocks=3, conv_channels=64, width=2_048, dropout=0.3),
  projector=Projector(hidden_width=4_096, output_width=256),
  objective=Objective(invariance=25.0, diversity=25.0, decorrelation=1.0),
)


def ways(folder: Path) -> dict[str, Way]:
  """Ours, and the peer's."""
  del folder
  peer, sizes = 'tests.benchmarks.torch_peer:start', {'batch_size': BATCH, 'frames': FRAMES}
  this, flops = 'tests.benchmarks.parts.step:ours', flops_per_pair(CONFIG, FRAMES)
  return {
    'ours': Way(this, flops_per_unit=flops),
    'PyTorch': Way(peer, sizes, flops_per_unit=flops),
    'PyTorch, glibc tuned': Way(peer, sizes, MALLOC_TUNED, flops_per_unit=flops),
    'ours, one core': Way(this, {}, {}, ONE_CORE, flops, cores=1),
    'PyTorch, glibc tuned, one core': Way(peer, sizes, MALLOC_TUNED, ONE_CORE, flops, cores=1),
  }


def flops_per_pair(config: Config, frames: int) -> float:
  """Floating-point operations of the matrix products that a pair needs, two for each multiplication and addition.

  Forwards, and twice as many backwards: for the gradients of a product's two factors. The first convolution needs that
  of its kernel alone. The objective's are 0.2 % of it, and left out.
  """
  encoder, projector = config.encoder, config.projector
  products = first = 0
  mels, channels = config.log_mel.n_mels, 1
  for _ in range(encoder.conv_blocks):
    # Of a 3x3 kernel those taps that are not on the border of zeros.
    products += (3 * mels - 2) * (3 * frames - 2) * channels * encoder.conv_channels
    first = first or products
    mels, frames, channels = mels // 2, frames // 2, encoder.conv_channels
  products += frames * encoder.width * (mels * channels + encoder.width)
  products += encoder.width * projector.hidden_width + projector.hidden_width * projector.output_width
  return 2 * 2 * (3 * products - first)


def ours() -> Callable[[], int]:
  """The optimizer, networks and objective of a run on one device, on two views of noise."""
  import jax
  import optax
  from flax import nnx

  from selfie_jax.objective.objective import objective_of_rows
  from selfie_jax.training.gradients import embedding_gradients
  from selfie_jax.training.optimizer import make_optimizer
  from selfie_jax.training.programs.host_memory import keep_freed_memory
  from selfie_jax.training.state import TrainState, build_model, init_state, split_model
  from selfie_jax.training.step import example_keys

  keep_freed_memory()
  optimizer = make_optimizer(CONFIG)
  state = jax.jit(lambda: init_state(CONFIG, optimizer))()
  graphdef = split_model(nnx.eval_shape(lambda: build_model(CONFIG)))[0]
  shape = (2, BATCH, CONFIG.log_mel.n_mels, FRAMES)
  views = jax.random.normal(jax.random.key(1), shape)

  def embed(params: nnx.State, batch_stats: nnx.State, inputs: list) -> tuple[list[jax.Array], nnx.State]:
    model = nnx.merge(graphdef, params, batch_stats, copy=True)
    return [model(*view_and_keys) for view_and_keys in inputs], split_model(model)[2]

  def step(state: TrainState, views: jax.Array) -> tuple[TrainState, jax.Array]:
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), state.step))
    inputs = [(view, example_keys(key, BATCH)) for view, key in zip(views, keys, strict=True)]
    (loss, _), gradients, batch_stats = embedding_gradients(
      embed,
      lambda embeddings: objective_of_rows(*embeddings, CONFIG.objective, 1, ()),
      state.params,
      state.batch_stats,
      inputs,
      microbatches=1,
    )
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), batch_stats, opt_state), loss

  compiled = jax.jit(step, donate_argnums=0)

  def work() -> int:
    nonlocal state
    state, loss = compiled(state, views)
    loss.block_until_ready()
    return BATCH

  return work
