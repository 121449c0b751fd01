"""The configuration of a run: an ml-collections `ConfigDict` turned, once, into frozen dataclasses.

A config file is a Python file with `get_config() -> ml_collections.ConfigDict`; it names only what differs from the
defaults below. Everything downstream takes the dataclasses, so an unknown key or a wrong type ends before anything
starts.
"""

import ast
import dataclasses
import importlib.util
import traceback
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from selfie_jax.errors import UserError
from selfie_jax.from_mapping import from_mapping

_T = typing.TypeVar('_T')


@dataclasses.dataclass(frozen=True)
class Part:
  """A dataset of a mixture: of every sum-of-weights clips that are read, `weight` come from it."""

  path: str
  weight: float = 1.0
  splits: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Data:
  """What is read. A clip shorter than the crop is zero-padded at its end."""

  path: str = ''  # A folder written by `selfie_jax.prepare`: local, gs:// or s3://.
  splits: tuple[str, ...] = ()  # Which of its splits; a dataset of one needs no choice.
  mixture: tuple[Part, ...] = ()  # Several datasets, in place of `path` and `splits`.
  crop_seconds: float = 0.95
  crops: int = 1  # Of a clip: both views are made of one crop, or, with 2, of a crop each, at starts of their own.
  read: str = 'record'  # The whole record, with its checksum; or 'crop': the crop's bytes alone, which have none.
  read_threads: int = 0  # 0: 1 for int16 in local files, where more are seldom faster, and 4 for all else.
  prefetch_batches: int = 4
  # At a damaged record; or 'skip': another clip takes its place, and the metrics count it. A damaged index or manifest
  # always stops: the order of the clips rests on it.
  on_damage: str = 'stop'
  max_damaged: int = 100  # With 'skip': more damaged records than this, on one host, stop the run.


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
  equalizer: float = 0.0  # Greatest gain, either way, of a random curve over frequency; 0 switches it off.
  noise: float = 0.0  # Greatest share of energy of Gaussian noise mixed in; 0 switches it off.
  normalize_views: bool = False  # Then scale both views of the global batch, together, to mean 0 and deviation 1.


@dataclasses.dataclass(frozen=True)
class AudioNTT:
  """The convolutional encoder: `conv_blocks` halvings in time and frequency, then two dense layers on each frame."""

  name: str = 'audiontt'
  conv_blocks: int = 3  # 3: AudioNTT2020; 2: AudioNTT2022.
  conv_channels: int = 64
  width: int = 2_048
  dropout: float = 0.3
  concat_conv: bool = False  # Frame features = [convolutions, dense layers], as in AudioNTT2022.
  concat_blocks: int = 1  # Of the last so many blocks; frames of earlier ones are max-pooled to the last one's length.


@dataclasses.dataclass(frozen=True)
class ViT:
  """The vision transformer on patches of the log-mel spectrogram."""

  name: str = 'vit'
  size: str = 'base'  # Or 'tiny', 'small'.
  patch: tuple[int, int] = (16, 16)  # Mel bands x frames.
  positions: str = 'sincos'  # Or 'learned', for clips no longer than the training crop.


Encoder = AudioNTT | ViT  # Chosen by `encoder.name`.


@dataclasses.dataclass(frozen=True)
class Projector:
  """MLP from the representation to the embedding that the objective sees; thrown away after training."""

  dense_only: bool = False  # See the dense layers' features alone, and ask no invariance of `concat_conv`'s others.
  hidden_width: int = 4_096
  hidden_layers: int = 1
  output_width: int = 256


@dataclasses.dataclass(frozen=True)
class Objective:
  """The three terms and their weights (defaults: preset `selfie`; `objective.preset` sets all that is not given)."""

  # Or 'cross_correlation': that matrix's diagonal; or 'prediction': of the other view, by way of a predictor.
  invariance_term: str = 'mean_squared_error'
  diversity_term: str = 'variance'  # Or 'uniformity', 'hyperspherical_energy', 'coding_rate'.
  # Or 'debiased_covariance', without the part that is there by chance; or 'cross_correlation': off its diagonal.
  decorrelation_term: str = 'covariance'
  invariance: float = 25.0
  diversity: float = 25.0
  decorrelation: float = 1.0
  variance_statistics: str = 'per_device'  # Or 'global'.
  energy_exponent: float = 0.0  # s of the hyperspherical energy: |x - y|^-s, or -log |x - y| if 0.
  normalize: bool = False  # Scale every embedding to the norm sqrt(d) first.

  def variance_groups(self, per_device: int) -> int:
    """Returns how many blocks of rows the variance is taken over: `per_device`, or 1 where there is no such variance.

    A run that begins has a block a device, and keeps their number when it is resumed on other devices.
    """
    return per_device if self.diversity_term == 'variance' and self.variance_statistics == 'per_device' else 1


# The SELFIE paper's own terms and coefficients are not known to us: `selfie` has the statistics of our design and the
# weights of VICReg. Those of `uniformity_covariance` are ours.
PRESETS = {
  'selfie': {},
  'vicreg': {'variance_statistics': 'global'},
  'barlow_twins': {
    'invariance_term': 'cross_correlation',
    'decorrelation_term': 'cross_correlation',
    'variance_statistics': 'global',  # Of a diversity that is reported only.
    'invariance': 1.0,
    'diversity': 0.0,
    'decorrelation': 0.0051,
  },
  'uniformity_covariance': {
    'diversity_term': 'uniformity',
    'invariance': 1.0,
    'diversity': 1.0,
    'decorrelation': 0.04,
    'normalize': True,
  },
  'byol_a': {
    'invariance_term': 'prediction',
    'variance_statistics': 'global',  # Of a diversity that is reported only, as is the decorrelation.
    'invariance': 1.0,
    'diversity': 0.0,
    'decorrelation': 0.0,
  },
}
PREDICTION_DECAY = 0.99  # What the term `prediction` makes of `average.decay` where a config does not say: BYOL-A's.


@dataclasses.dataclass(frozen=True)
class Average:
  """The moving average of the weights: average <- decay * average + (1 - decay) * weights, after each step."""

  decay: float = 0.0  # 0: none is kept.
  evaluate: bool = False  # Evaluation, embedding and export read the averaged encoder in place of the last one.


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
class Mesh:
  """How devices share the work. The batch is sharded over all of them, parameters over groups of `fsdp`."""

  fsdp: int = 1  # Devices that share one copy of the parameters and the optimizer's state.
  # (pattern searched in a leaf's path, 'fsdp' or 'replicate'), the first match wins. 'fsdp' shards the longest
  # dimension that divides.
  strategy: tuple[tuple[str, str], ...] = (('bias|scale|batch_stats', 'replicate'), ('.*', 'fsdp'))


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """When a checkpoint is written, besides the end and when the run is told to stop, and which ones stay."""

  every_steps: int = 1_000
  every_minutes: float = 0.0  # And when the last one is older than this, looked at every `log.every_steps`; 0: never.
  keep: int = 3  # The newest ones that stay.
  keep_every: int = 0  # Those of every so many steps stay for ever; 0: none for this reason.
  keep_best: int = 0  # And so many of those with the best mean score that an evaluation job has found so far.


@dataclasses.dataclass(frozen=True)
class Cluster:
  """How long the processes of a run wait for each other."""

  join_minutes: float = 5.0  # For all of them to be there, at the start.
  barrier_minutes: float = 20.0  # For the slowest of them, at a save's end for one.
  heartbeat_seconds: int = 40  # One that is silent for so long is dead, and the others end, too.


@dataclasses.dataclass(frozen=True)
class Log:
  """What is reported, and when the collapse alarm rings (once)."""

  every_steps: int = 50
  health_every_steps: int = 500  # RankMe, alignment, uniformity ... of the representations; 0: never.
  tensorboard: bool = True  # Its writer imports TensorFlow, which takes seconds.
  collapse_std: float = 0.01  # Mean standard deviation of the embedding's dimensions, under which it rings.
  collapse_rank: float = 2.0  # Effective rank of the embeddings, under which it rings.


@dataclasses.dataclass(frozen=True)
class Config:
  """A training run."""

  steps: int = 100_000
  batch_size: int = 256  # Over all devices of all hosts.
  microbatches: int = 1  # Chunks that the networks see the batch in; the objective always sees all of it.
  seed: int = 0
  compute_dtype: str = 'float32'  # Or 'bfloat16'; parameters, statistics and the objective stay in float32.
  remat: bool = False  # Compute a block's activations again in the backward pass instead of keeping them.
  watchdog_minutes: float = 60.0  # Without a step, compiling included: print all threads' stacks and end. 0: never.
  warm_start: str = ''  # Another run's workdir: begin with the encoder of its newest checkpoint.
  data: Data = Data()
  log_mel: LogMel = LogMel()
  augment: Augment = Augment()
  encoder: Encoder = AudioNTT()
  projector: Projector = Projector()
  objective: Objective = Objective()
  average: Average = Average()
  optimizer: Optimizer = Optimizer()
  mesh: Mesh = Mesh()
  checkpoint: Checkpoint = Checkpoint()
  cluster: Cluster = Cluster()
  log: Log = Log()

  @property
  def crop_samples(self) -> int:
    """Samples in a crop."""
    return round(self.data.crop_seconds * self.log_mel.sample_rate)

  @property
  def batch_shape(self) -> tuple[int, int]:
    """Clips in a batch, and samples of a clip: its crops, one after the other."""
    return self.batch_size, self.data.crops * self.crop_samples


@dataclasses.dataclass(frozen=True)
class Task:
  """A labelled folder: `metadata.csv` beside its audio, and `task.json` if `prepare task` wrote it."""

  name: str
  path: str = ''  # '': the folder of its name in `tasks_dir`.
  unit_seconds: float = 0.0  # Clips are cut there. 0: as task.json says, or at 10 s.
  caveat: str = ''  # Printed where the trained encoder is below the untrained one: what is known of the reason.


@dataclasses.dataclass(frozen=True)
class FineTuning:
  """How readout `fine_tuning` trains the encoder with a linear layer on top."""

  learning_rates: tuple[float, ...] = (1e-4, 1e-3)  # The one with the best validation score is kept.
  batch_size: int = 64
  epochs: int = 30
  patience: int = 5  # Epochs in a row worse than the best.
  warmup_epochs: int = 1  # Of a linear warm-up; then a cosine to 0.


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """An evaluation job. Protocols and readouts: `evaluation/protocol.py`."""

  tasks_dir: str = ''  # Where the tasks' folders are.
  tasks: tuple[Task, ...] = ()  # (): every folder with a metadata.csv in `tasks_dir`.
  only: tuple[str, ...] = ()  # Of these tasks, those of these names; (): all.
  protocol: str = 'corrected'  # Or 'evar': every quirk of the published tables' protocol.
  # Of 'linear', 'logistic_regression', 'knn', 'fine_tuning'; the first one is the headline.
  readouts: tuple[str, ...] = ('linear',)
  shots: tuple[int, ...] = ()  # Also a linear readout from so many labelled clips a class, for each of these.
  seeds: tuple[int, ...] = (42, 43, 44)
  learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
  weight_decays: tuple[float, ...] = (1e-8, 0.1)  # Linear: of the rates with these, the best pair on valid is kept.
  batch_size: int = 200
  epochs: int = 200
  patience: int = 20
  fine_tuning: FineTuning = FineTuning()
  baselines: bool = True  # Also the majority class, log-mel statistics and the untrained encoder.


def load(path: str | Path, overrides: Sequence[str], cls: type[_T]) -> _T:
  """Reads a config file and applies `--config.key=value` overrides.

  A preset among the overrides takes the place of all that the file says of the objective, and a mixture that of the
  file's dataset.

  Raises:
    UserError: no such file, an error in it, no `get_config` in it, an unknown key, a value of another type.
  """
  path = Path(path)
  if not path.is_file():
    raise UserError(f'no config file at {path}')
  spec = importlib.util.spec_from_file_location(path.stem, path)
  if spec is None or spec.loader is None:
    raise UserError(f'{path} is not a Python file')
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    if not hasattr(module, 'get_config'):
      raise UserError(f'{path} has no function get_config()')
    values: dict[str, Any] = ml_collections.ConfigDict(module.get_config()).to_dict()
  except UserError:
    raise
  except Exception as error:  # Whatever a user's own code raises.
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = f' (line {lines[-1]})' if lines else ''
    raise UserError(f'{path} cannot be used{line}: {type(error).__name__}: {error}') from error
  if any(override.startswith('--config.objective.preset=') for override in overrides):
    values.pop('objective', None)  # Or the preset would be mixed with what the file says of another one.
  if any(override.startswith('--config.data.mixture=') for override in overrides) and isinstance(
    values.get('data'), dict
  ):
    values['data'] = {key: value for key, value in values['data'].items() if key not in ('path', 'splits')}
  for override in overrides:
    _apply_override(values, override)
  if isinstance(values.get('objective'), dict):
    values['objective'] = _expand_preset(values['objective'])
    average = values.get('average', {})
    if values['objective'].get('invariance_term') == 'prediction' and isinstance(average, dict):
      values['average'] = {'decay': PREDICTION_DECAY} | average
  _check_kind(cls, values, path)
  return from_mapping(cls, values)


def _check_kind(cls: type, values: Mapping[str, Any], path: Path) -> None:
  """Raises `UserError` if a training config was given for an evaluation, or the other way round."""
  for kind, other in (('a training', Config), ('an evaluation', Evaluation)):
    ours, theirs = ({field.name for field in dataclasses.fields(each)} for each in (cls, other))
    if strange := next((key for key in values if key in theirs - ours), None):
      raise UserError(f'unknown config key "{strange}": it is one of {kind} config; give {path} to its own command')


def _expand_preset(objective: dict[str, Any]) -> dict[str, Any]:
  """Replaces the key `preset` by the settings it stands for; those given beside it win."""
  given = dict(objective)
  preset = given.pop('preset', 'selfie')
  if not isinstance(preset, str) or preset not in PRESETS:
    raise UserError(f'config key "objective.preset" is {preset!r}; it can be {", ".join(PRESETS)}')
  return PRESETS[preset] | given


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
