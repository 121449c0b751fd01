"""The arguments of the commands that take a config."""

import dataclasses
from collections.abc import Sequence

from etils import epath

from selfie_jax import config as config_lib
from selfie_jax import validation
from selfie_jax.config import Config, Evaluation
from selfie_jax.errors import ArgumentParser, UserError
from selfie_jax.files import as_path, check_reachable


@dataclasses.dataclass(frozen=True)
class Training:
  """What the training command was asked for."""

  config: Config
  workdir: epath.Path
  profile: bool


def parse_training(arguments: Sequence[str]) -> Training:
  """Parses `--config FILE --workdir DIR [--profile] [--config.key=value ...]` of a training run."""
  parser = ArgumentParser(prog='python -m selfie_jax.train', description='Starts a pre-training run, or resumes it.')
  parser.add_argument('--config', required=True, help='a Python file with get_config(), such as configs/quickstart.py')
  parser.add_argument('--workdir', required=True, help='where checkpoints and metrics go: a folder or gs://...')
  parser.add_argument('--profile', action='store_true', help='trace a few steps, for TensorBoard and Perfetto')
  known, overrides = parser.parse_known_args(arguments)
  config = config_lib.load(known.config, overrides, Config)
  validation.validate(config)
  if not config.data.path and not config.data.mixture:
    raise UserError(
      'config key "data.path" is not given: --config.data.path=DIR, a folder that selfie_jax.prepare wrote'
    )
  return Training(config, open_workdir(known.workdir), known.profile)


@dataclasses.dataclass(frozen=True)
class Evaluating:
  """What the evaluation command was asked for."""

  config: Evaluation
  workdir: epath.Path
  watch: bool
  distributed: bool


def parse_evaluation(arguments: Sequence[str]) -> Evaluating:
  """Parses `--config FILE --workdir DIR [--watch] [--distributed] [--config.key=value ...]` of an evaluation job."""
  parser = ArgumentParser(
    prog='python -m selfie_jax.evaluate', description="Evaluates a run's checkpoints, or a model."
  )
  parser.add_argument('--config', required=True, help='a Python file with get_config(), such as configs/eval/*.py')
  parser.add_argument('--workdir', required=True, help="the training run's folder, or a model's")
  parser.add_argument('--watch', action='store_true', help='evaluate every checkpoint as it appears, to the last one')
  parser.add_argument(
    '--distributed', action='store_true', help='share the work with the other processes that a launcher has started'
  )
  known, overrides = parser.parse_known_args(arguments)
  config = config_lib.load(known.config, overrides, Evaluation)
  if not config.tasks and not config.tasks_dir:
    raise UserError(f'{known.config} names no tasks: give tasks (name, path), or --config.tasks_dir=DIR')
  return Evaluating(config, open_workdir(known.workdir), known.watch, known.distributed)


def open_workdir(workdir: str) -> epath.Path:
  """Returns the path of a run's folder, local or gs://.

  Raises:
    UserError: its checkpoints could not be there, or its bucket cannot be reached.
  """
  if workdir.startswith('s3://'):
    raise UserError(
      f'--workdir is {workdir}, and Orbax, which writes the checkpoints, knows local folders and gs:// only: give one '
      'of these (data.path may well be s3://)'
    )
  check_reachable(workdir)
  return as_path(workdir)
