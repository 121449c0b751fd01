"""The configuration of a run: an ml-collections `ConfigDict` turned, once, into frozen dataclasses.

A config file is a Python file with `get_config() -> ml_collections.ConfigDict`; it names only what differs from the
defaults below. Everything downstream takes the dataclasses, so an unknown key or a wrong type ends before anything
starts.
"""

import ast
import dataclasses
import difflib
import importlib.util
import math
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from selfie_jax.errors import ArgumentParser, UserError

_T = typing.TypeVar('_T')


@dataclasses.dataclass(frozen=True)
class Data:
  """What is read. A clip shorter than the crop is zero-padded at its end."""

  path: str = ''  # A folder written by `selfie_jax.prepare`.
  crop_seconds: float = 0.95
  read_threads: int = 4
  prefetch_batches: int = 4


@dataclasses.dataclass(frozen=True)
class LogMel:
  """The front-end (BYOL-A's published values)."""

  sample_rate: int = 16_000
  n_fft: int = 1_024
  hop_length: int = 160
  n_mels: int = 64
  f_min: float = 60.0
  f_max: float = 7_800.0


@dataclasses.dataclass(frozen=True)
class Augment:
  """The distortions of a view (defaults: BYOL-A v2's published values)."""

  mixup_ratio: float = 0.2  # The other clip's greatest share of the energy; 0 switches mixup off.
  mixup_group: int = 16  # Partners come from the same group of consecutive examples; it divides a device's batch.
  resize_frequency: tuple[float, float] = (0.6, 1.5)  # Crop height over the view's height; (1, 1) keeps the pitch.
  resize_time: tuple[float, float] = (0.6, 1.5)
  canvas_time: float = 1.5  # The canvas a crop is taken from, over the view's width.
  fader: float = 1.0  # Ends of the linear fader are uniform in [-fader, fader]; 0 switches it off.
  noise: float = 0.0  # Greatest share of energy of Gaussian noise mixed in; 0 switches it off.


@dataclasses.dataclass(frozen=True)
class Encoder:
  """AudioNTT. `conv_blocks` halvings in time and frequency, then two dense layers of `width` on each frame."""

  conv_blocks: int = 3  # 3: AudioNTT2020; 2: AudioNTT2022.
  conv_channels: int = 64
  width: int = 2_048
  dropout: float = 0.3
  concat_conv: bool = False  # Frame features = [convolutions, dense layers], as in AudioNTT2022.


@dataclasses.dataclass(frozen=True)
class Projector:
  """MLP from the representation to the embedding that the objective sees; thrown away after training."""

  dense_only: bool = False  # See the dense layers' features alone, and ask no invariance of `concat_conv`'s others.
  hidden_width: int = 4_096
  hidden_layers: int = 1
  output_width: int = 256


@dataclasses.dataclass(frozen=True)
class Objective:
  """Weights of the three terms (defaults: VICReg's published ones; the SELFIE paper's are not known to us)."""

  invariance: float = 25.0
  diversity: float = 25.0
  decorrelation: float = 1.0
  variance_statistics: str = 'per_device'  # Or 'global'.


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """Peak learning rate is `learning_rate * batch_size / base_batch_size`, or `learning_rate` if the latter is 0."""

  name: str = 'adam'  # Or 'adamw', 'lars'.
  learning_rate: float = 3e-4
  base_batch_size: int = 0
  schedule: str = 'cosine'  # Or 'constant'; both after a linear warm-up.
  warmup_steps: int = 0
  weight_decay: float = 0.0  # On kernels only: biases and normalisation are masked out.
  clip_norm: float = 0.0  # Greatest global norm of the gradient; 0 does not clip.


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A checkpoint is written every `every_steps`, at the end, and when the run is told to stop."""

  every_steps: int = 1_000
  keep: int = 3


@dataclasses.dataclass(frozen=True)
class Log:
  """What is reported, and when the collapse alarm rings (once)."""

  every_steps: int = 50
  tensorboard: bool = True  # Its writer imports TensorFlow, which takes seconds.
  collapse_std: float = 0.01  # Mean standard deviation of the embedding's dimensions, under which it rings.
  collapse_rank: float = 2.0  # Effective rank of the embeddings, under which it rings.


@dataclasses.dataclass(frozen=True)
class Config:
  """A training run."""

  steps: int = 100_000
  batch_size: int = 256  # Over all devices of all hosts.
  seed: int = 0
  data: Data = Data()
  log_mel: LogMel = LogMel()
  augment: Augment = Augment()
  encoder: Encoder = Encoder()
  projector: Projector = Projector()
  objective: Objective = Objective()
  optimizer: Optimizer = Optimizer()
  checkpoint: Checkpoint = Checkpoint()
  log: Log = Log()

  @property
  def crop_samples(self) -> int:
    """Samples in a crop."""
    return round(self.data.crop_seconds * self.log_mel.sample_rate)


@dataclasses.dataclass(frozen=True)
class Task:
  """A labelled folder: `metadata.csv` beside its audio. Clips are cut at `unit_seconds`."""

  name: str
  path: str
  unit_seconds: float = 10.0
  caveat: str = ''  # Printed where the trained encoder is below the untrained one: what is known of the reason.


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """An evaluation job: the corrected EVAR protocol on each task."""

  tasks: tuple[Task, ...] = ()
  seeds: tuple[int, ...] = (42, 43, 44)
  learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
  batch_size: int = 200
  epochs: int = 200
  patience: int = 20
  weight_decay: float = 1e-8
  baselines: bool = True  # Also the majority class, log-mel statistics and the untrained encoder.


def _nearest(key: str, known: Sequence[str]) -> str:
  """Returns 'Did you mean ...?' with the known key nearest to `key`, or the list of them."""
  match = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
  return f'Did you mean "{match[0]}"?' if match else f'Known keys: {", ".join(known)}.'


def from_mapping(cls: type[_T], values: Mapping[str, Any], prefix: str = '') -> _T:
  """Builds the dataclass `cls` from nested mappings.

  Raises:
    UserError: an unknown key (with the nearest known one) or a value of another type.
  """
  hints = typing.get_type_hints(cls)
  for key in values:
    if key not in hints:
      raise UserError(f'unknown config key "{prefix}{key}". {_nearest(key, list(hints))}')
  for field in dataclasses.fields(cls):
    if field.default is dataclasses.MISSING and field.name not in values:
      raise UserError(f'config key "{prefix}{field.name}" is not given')
  return cls(**{key: _convert(hints[key], value, prefix + key) for key, value in values.items()})


def _convert(kind: Any, value: Any, name: str) -> Any:
  if dataclasses.is_dataclass(kind):
    if not isinstance(value, Mapping):
      raise UserError(f'config key "{name}" is a group of settings, got {value!r}')
    return from_mapping(kind, value, name + '.')
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, (list, tuple)):
      raise UserError(f'config key "{name}" wants a list, got {value!r}')
    items = typing.get_args(kind)
    if items[-1] is Ellipsis:
      items = (items[0],) * len(value)
    if len(items) != len(value):
      raise UserError(f'config key "{name}" wants {len(items)} values, got {len(value)}: {value!r}')
    return tuple(_convert(item, part, f'{name}[{i}]') for i, (item, part) in enumerate(zip(items, value, strict=True)))
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if type(value) is not kind:
    raise UserError(f'config key "{name}" wants a value of type {kind.__name__}, got {value!r}')
  if kind is float and not math.isfinite(value):
    raise UserError(f'config key "{name}" wants a finite number, got {value!r}')
  return value


def load(path: str | Path, overrides: Sequence[str], cls: type[_T]) -> _T:
  """Reads a config file and applies `--config.key=value` overrides.

  Raises:
    UserError: no such file, no `get_config` in it, an unknown key, a value of another type.
  """
  path = Path(path)
  if not path.is_file():
    raise UserError(f'no config file at {path}')
  spec = importlib.util.spec_from_file_location(path.stem, path)
  if spec is None or spec.loader is None:
    raise UserError(f'{path} is not a Python file')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise UserError(f'{path} has no function get_config()')
  values: dict[str, Any] = ml_collections.ConfigDict(module.get_config()).to_dict()
  for override in overrides:
    _apply_override(values, override)
  return from_mapping(cls, values)


def _apply_override(values: dict[str, Any], override: str) -> None:
  name, equals, text = override.partition('=')
  if not name.startswith('--config.') or not equals:
    raise UserError(f'cannot read the argument "{override}": overrides are written --config.key=value')
  *groups, key = name.removeprefix('--config.').split('.')
  for group in groups:
    values = values.setdefault(group, {})
    if not isinstance(values, dict):
      raise UserError(f'config key "{group}" in "{override}" is a single value, not a group of settings')
  try:
    values[key] = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    values[key] = text  # A plain word, such as a path or a name.


def parse_training(arguments: Sequence[str]) -> tuple[Config, Path]:
  """Parses `--config FILE --workdir DIR [--config.key=value ...]` of a training run."""
  parser = ArgumentParser(prog='python -m selfie_jax.train', description='Starts a pre-training run, or resumes it.')
  parser.add_argument('--config', required=True, help='a Python file with get_config(), such as configs/quickstart.py')
  parser.add_argument('--workdir', required=True, type=Path, help='where checkpoints and metrics go')
  known, overrides = parser.parse_known_args(arguments)
  config = load(known.config, overrides, Config)
  validate(config)
  return config, known.workdir


def parse_evaluation(arguments: Sequence[str]) -> tuple[Evaluation, Path]:
  """Parses `--config FILE --workdir DIR [--config.key=value ...]` of an evaluation job."""
  parser = ArgumentParser(prog='python -m selfie_jax.evaluate', description="Evaluates a run's newest checkpoint.")
  parser.add_argument('--config', required=True, help='a Python file with get_config(), such as configs/eval/*.py')
  parser.add_argument('--workdir', required=True, type=Path, help="the training run's folder")
  known, overrides = parser.parse_known_args(arguments)
  config = load(known.config, overrides, Evaluation)
  if not config.tasks:
    raise UserError(f'{known.config} names no tasks: give at least one (name, path)')
  return config, known.workdir


def validate_log_mel(log_mel: LogMel) -> None:
  """Checks the front-end's settings.

  Raises:
    UserError: naming the key, its value and what is allowed.
  """
  for name in ('sample_rate', 'n_fft', 'hop_length', 'n_mels'):
    if getattr(log_mel, name) < 1:
      raise UserError(f'config key "log_mel.{name}" is {getattr(log_mel, name)}; it must be at least 1')
  if not 0 <= log_mel.f_min < log_mel.f_max <= log_mel.sample_rate / 2:
    raise UserError(
      f'config keys "log_mel.f_min" and "log_mel.f_max" are {log_mel.f_min:g} and {log_mel.f_max:g} Hz; the first is '
      f'the lower, and the second at most half the sample rate, {log_mel.sample_rate / 2:g} Hz'
    )


def validate(config: Config) -> None:
  """Checks what can be known before any device or file is touched.

  Raises:
    UserError: naming the key, its value and what is allowed.
  """
  validate_log_mel(config.log_mel)
  choices = {
    'optimizer.name': (config.optimizer.name, ('adam', 'adamw', 'lars')),
    'optimizer.schedule': (config.optimizer.schedule, ('cosine', 'constant')),
    'objective.variance_statistics': (config.objective.variance_statistics, ('per_device', 'global')),
  }
  for name, (value, allowed) in choices.items():
    if value not in allowed:
      raise UserError(f'config key "{name}" is "{value}"; it can be {", ".join(allowed)}')
  at_least_one = {
    'steps': config.steps,
    'data.read_threads': config.data.read_threads,
    'data.prefetch_batches': config.data.prefetch_batches,
    'encoder.conv_blocks': config.encoder.conv_blocks,
    'encoder.conv_channels': config.encoder.conv_channels,
    'encoder.width': config.encoder.width,
    'projector.hidden_width': config.projector.hidden_width,
    'projector.output_width': config.projector.output_width,
    'checkpoint.every_steps': config.checkpoint.every_steps,
    'checkpoint.keep': config.checkpoint.keep,
    'log.every_steps': config.log.every_steps,
  }
  for name, value in at_least_one.items():
    if value < 1:
      raise UserError(f'config key "{name}" is {value}; it must be at least 1')
  at_least_zero = {
    'seed': config.seed,
    'projector.hidden_layers': config.projector.hidden_layers,
    'objective.invariance': config.objective.invariance,
    'objective.diversity': config.objective.diversity,
    'objective.decorrelation': config.objective.decorrelation,
    'optimizer.warmup_steps': config.optimizer.warmup_steps,
    'optimizer.base_batch_size': config.optimizer.base_batch_size,
    'optimizer.weight_decay': config.optimizer.weight_decay,
    'optimizer.clip_norm': config.optimizer.clip_norm,
    'augment.fader': config.augment.fader,
  }
  for name, value in at_least_zero.items():
    if value < 0:
      raise UserError(f'config key "{name}" is {value}; it cannot be negative')
  shares = {'augment.mixup_ratio': config.augment.mixup_ratio, 'augment.noise': config.augment.noise}
  for name, value in shares.items():
    if not 0 <= value <= 1:
      raise UserError(f'config key "{name}" is {value}; a share of the energy lies between 0 and 1')
  ranges = {
    'augment.resize_frequency': config.augment.resize_frequency,
    'augment.resize_time': config.augment.resize_time,
  }
  for name, (low, high) in ranges.items():
    if not 0 < low <= high:
      raise UserError(f'config key "{name}" is {(low, high)}; it is (low, high) with 0 < low <= high')
  if not 0 <= config.encoder.dropout < 1:
    raise UserError(f'config key "encoder.dropout" is {config.encoder.dropout}; it is at least 0 and below 1')
  if config.optimizer.learning_rate <= 0:
    raise UserError(f'config key "optimizer.learning_rate" is {config.optimizer.learning_rate}; it must be above 0')
  if config.augment.canvas_time < 1:
    raise UserError(f'config key "augment.canvas_time" is {config.augment.canvas_time}; the canvas holds a view: >= 1')
  if config.batch_size < 2:
    raise UserError(f'config key "batch_size" is {config.batch_size}; statistics over a batch need at least 2 clips')
  halvings = 2**config.encoder.conv_blocks
  frames = 1 + config.crop_samples // config.log_mel.hop_length
  for name, value in (('log_mel.n_mels', config.log_mel.n_mels), ('data.crop_seconds (in frames)', frames)):
    if value < halvings:
      raise UserError(
        f'config key "{name}" is {value}; encoder.conv_blocks={config.encoder.conv_blocks} needs at least {halvings}'
      )
  if config.augment.mixup_ratio > 0 and config.augment.mixup_group < 2:
    raise UserError(
      f'config key "augment.mixup_group" is {config.augment.mixup_group}; a partner to mix with needs a group of 2 or '
      'more (augment.mixup_ratio=0.0 switches mixup off)'
    )
