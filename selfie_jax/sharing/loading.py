"""An encoder from wherever it is: a training run's folder, or a model that was exported or imported."""

from selfie_jax.errors import UserError
from selfie_jax.files import PathLike, as_path, check_reachable, is_remote
from selfie_jax.sharing.weights import WEIGHTS_FILE, Model, load_model
from selfie_jax.training.checkpointing import checkpoints
from selfie_jax.training.checkpointing.verified import Reader
from selfie_jax.training.state import LoadedEncoder


def load_encoder(path: PathLike, step: int | None = None) -> LoadedEncoder:
  """Loads an encoder with its config and its z-scoring statistics. Changes nothing.

  Args:
    path: local or gs://: a training run's folder (also while it trains), a folder with a `model.safetensors`, or such a
      file. A model may also lie in s3://.
    step: which checkpoint of a run; None for the newest that verifies. A model has the one it was made of.

  Raises:
    UserError: neither is there, no such step, or it is damaged.
  """
  if _is_run(path):
    return checkpoints.load_encoder(path, step)
  return _load_file(path, step).run


def open_model(path: PathLike, step: int | None = None) -> Model:
  """Loads an encoder as `load_encoder` does, in the precision that it trained in, with what there is to tell of it.

  Raises:
    UserError: as `load_encoder`.
  """
  if not _is_run(path):
    return _load_file(path, step)
  run = checkpoints.load_encoder(path, step)
  folder = as_path(path) / 'checkpoints'
  _, items = Reader(folder if is_remote(folder) else folder.resolve()).items(run.step)
  return Model(run, 'run', items['data']['fingerprint'], items['config']['compute_dtype'])


def _is_run(path: PathLike) -> bool:
  check_reachable(path)
  return (as_path(path) / 'checkpoints').exists()


def _load_file(path: PathLike, step: int | None) -> Model:
  folder = as_path(path)
  file = folder if folder.suffix == '.safetensors' else folder / WEIGHTS_FILE
  if not file.exists():
    raise UserError(
      f'{path} has neither checkpoints/ nor {WEIGHTS_FILE}: give the folder of a training run, or a model that '
      'selfie_jax.export or selfie_jax.import_torch wrote'
    )
  model = load_model(file)
  if step is not None and step != model.run.step:
    there = 'weights of an unknown step' if model.run.step is None else f'step {model.run.step}, and no other'
    raise UserError(f'{file} holds {there}: step {step} is not there')
  return model
