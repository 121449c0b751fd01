"""Checks of a configuration's values, made before any device or file is touched."""

import re

from selfie_jax import config as config_lib
from selfie_jax.config import Config, LogMel
from selfie_jax.errors import UserError

MAX_CODING_RATE_WIDTH = 2_048
MAX_ENERGY_EXPONENT = 10.0


def validate_log_mel(log_mel: LogMel) -> None:
  """Checks the front-end's settings.

  Raises:
    UserError: naming the key, its value and what is allowed.
  """
  names = ('sample_rate', 'n_fft', 'hop_length', 'n_mels')
  _check_at_least_one({f'log_mel.{name}': getattr(log_mel, name) for name in names})
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
  _validate_words(config)
  _validate_numbers(config)
  _validate_mixture(config.data)
  _validate_average(config)
  frames = 1 + config.crop_samples // config.log_mel.hop_length
  if isinstance(config.encoder, config_lib.AudioNTT):
    _validate_audiontt(config.encoder, config.log_mel.n_mels, frames)
  else:
    _validate_vit(config.encoder, config.log_mel.n_mels, frames)
    if config.projector.dense_only:
      raise UserError('config key "projector.dense_only" is True, and a vit has no convolutions to leave out: drop it')
  if config.augment.mixup_ratio > 0 and config.augment.mixup_group < 2:
    raise UserError(
      f'config key "augment.mixup_group" is {config.augment.mixup_group}; a partner to mix with needs a group of 2 or '
      'more (augment.mixup_ratio=0.0 switches mixup off)'
    )
  if config.objective.diversity_term == 'coding_rate' and config.projector.output_width > MAX_CODING_RATE_WIDTH:
    raise UserError(
      f'config key "projector.output_width" is {config.projector.output_width}; the coding rate needs all of a matrix '
      f'of that size on every device, and takes up to {MAX_CODING_RATE_WIDTH}'
    )


def _validate_words(config: Config) -> None:
  objective = config.objective
  choices = {
    'optimizer.name': (config.optimizer.name, ('adam', 'adamw', 'lars')),
    'optimizer.schedule': (config.optimizer.schedule, ('cosine', 'constant')),
    'objective.invariance_term': (
      objective.invariance_term,
      ('mean_squared_error', 'cross_correlation', 'prediction'),
    ),
    'objective.diversity_term': (
      objective.diversity_term,
      ('variance', 'uniformity', 'hyperspherical_energy', 'coding_rate'),
    ),
    'objective.decorrelation_term': (
      objective.decorrelation_term,
      ('covariance', 'debiased_covariance', 'cross_correlation'),
    ),
    'objective.variance_statistics': (objective.variance_statistics, ('per_device', 'global')),
    'compute_dtype': (config.compute_dtype, ('float32', 'bfloat16')),
    'data.read': (config.data.read, ('record', 'crop')),
    'data.on_damage': (config.data.on_damage, ('stop', 'skip')),
  }
  for i, (pattern, rule) in enumerate(config.mesh.strategy):
    choices[f'mesh.strategy[{i}]'] = (rule, ('fsdp', 'replicate'))
    try:
      re.compile(pattern)
    except re.error as error:
      raise UserError(f'config key "mesh.strategy" has {pattern!r}, no regular expression: {error}') from error
  _check_choices(choices)


def _check_choices(choices: dict[str, tuple[str, tuple[str, ...]]]) -> None:
  for name, (value, allowed) in choices.items():
    if value not in allowed:
      raise UserError(f'config key "{name}" is "{value}"; it can be {", ".join(allowed)}')


def _check_at_least_one(values: dict[str, int]) -> None:
  for name, value in values.items():
    if value < 1:
      raise UserError(f'config key "{name}" is {value}; it must be at least 1')


def _validate_numbers(config: Config) -> None:
  at_least_one = {
    'steps': config.steps,
    'microbatches': config.microbatches,
    'mesh.fsdp': config.mesh.fsdp,
    'data.prefetch_batches': config.data.prefetch_batches,
    'projector.hidden_width': config.projector.hidden_width,
    'projector.output_width': config.projector.output_width,
    'checkpoint.every_steps': config.checkpoint.every_steps,
    'checkpoint.keep': config.checkpoint.keep,
    'cluster.heartbeat_seconds': config.cluster.heartbeat_seconds,
    'log.every_steps': config.log.every_steps,
  }
  _check_at_least_one(at_least_one)
  at_least_zero = {
    'seed': config.seed,
    'data.read_threads': config.data.read_threads,
    'projector.hidden_layers': config.projector.hidden_layers,
    'objective.invariance': config.objective.invariance,
    'objective.diversity': config.objective.diversity,
    'objective.decorrelation': config.objective.decorrelation,
    'objective.energy_exponent': config.objective.energy_exponent,
    'data.max_damaged': config.data.max_damaged,
    'optimizer.warmup_steps': config.optimizer.warmup_steps,
    'optimizer.base_batch_size': config.optimizer.base_batch_size,
    'optimizer.weight_decay': config.optimizer.weight_decay,
    'optimizer.clip_norm': config.optimizer.clip_norm,
    'augment.fader': config.augment.fader,
    'augment.equalizer': config.augment.equalizer,
    'checkpoint.every_minutes': config.checkpoint.every_minutes,
    'checkpoint.keep_every': config.checkpoint.keep_every,
    'checkpoint.keep_best': config.checkpoint.keep_best,
    'watchdog_minutes': config.watchdog_minutes,
    'log.health_every_steps': config.log.health_every_steps,
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
  above_zero = {
    'optimizer.learning_rate': config.optimizer.learning_rate,
    'cluster.join_minutes': config.cluster.join_minutes,
    'cluster.barrier_minutes': config.cluster.barrier_minutes,
  }
  for name, value in above_zero.items():
    if value <= 0:
      raise UserError(f'config key "{name}" is {value}; it must be above 0')
  if config.objective.energy_exponent > MAX_ENERGY_EXPONENT:
    raise UserError(
      f'config key "objective.energy_exponent" is {config.objective.energy_exponent:g}; above {MAX_ENERGY_EXPONENT:g} '
      'two equal embeddings have more energy than float32 holds'
    )
  if config.crop_samples < 1:
    raise UserError(f'config key "data.crop_seconds" is {config.data.crop_seconds:g}; a crop has at least one sample')
  if config.data.crops not in (1, 2):
    raise UserError(
      f'config key "data.crops" is {config.data.crops}; it is 1 (both views are made of one crop) or 2 (a crop each)'
    )
  if config.augment.canvas_time < 1:
    raise UserError(f'config key "augment.canvas_time" is {config.augment.canvas_time}; the canvas holds a view: >= 1')
  if config.batch_size < 2:
    raise UserError(f'config key "batch_size" is {config.batch_size}; statistics over a batch need at least 2 clips')


def _validate_mixture(data: config_lib.Data) -> None:
  if data.mixture and (data.path or data.splits):
    raise UserError('config key "data.mixture" is given, and "data.path" or "data.splits", too: give one or the other')
  for i, part in enumerate(data.mixture):
    if not part.path or part.weight <= 0:
      raise UserError(
        f'config key "data.mixture[{i}]" has path {part.path!r} and weight {part.weight:g}; it needs a path, and a '
        'weight above 0'
      )


def _validate_average(config: Config) -> None:
  decay = config.average.decay
  if not 0 <= decay < 1:
    raise UserError(f'config key "average.decay" is {decay:g}; it is at least 0 (no average is kept) and below 1')
  users = {
    'objective.invariance_term="prediction"': config.objective.invariance_term == 'prediction',
    'average.evaluate=True': config.average.evaluate,
  }
  for user, needs_average in users.items():
    if needs_average and not decay:
      raise UserError(f'{user} needs a moving average, and average.decay is 0: set it, such as to 0.99')
  if decay and not any(users.values()):
    raise UserError(
      f'average.decay is {decay:g}, and nobody reads the average: set average.evaluate to True, or drop it'
    )


def _validate_audiontt(encoder: config_lib.AudioNTT, n_mels: int, frames: int) -> None:
  names = ('conv_blocks', 'conv_channels', 'width')
  _check_at_least_one({f'encoder.{name}': getattr(encoder, name) for name in names})
  if not 0 <= encoder.dropout < 1:
    raise UserError(f'config key "encoder.dropout" is {encoder.dropout}; it is at least 0 and below 1')
  if not 1 <= encoder.concat_blocks <= encoder.conv_blocks:
    raise UserError(
      f'config key "encoder.concat_blocks" is {encoder.concat_blocks}; it is at least 1 and at most '
      f'encoder.conv_blocks, {encoder.conv_blocks}'
    )
  if encoder.concat_blocks > 1 and not encoder.concat_conv:
    raise UserError(
      f'encoder.concat_blocks is {encoder.concat_blocks} and encoder.concat_conv is False: set it to True'
    )
  halvings = 2**encoder.conv_blocks
  for name, value in (('log_mel.n_mels', n_mels), ('data.crop_seconds (in frames)', frames)):
    if value < halvings:
      raise UserError(
        f'config key "{name}" is {value}; encoder.conv_blocks={encoder.conv_blocks} needs at least {halvings}'
      )


def _validate_vit(encoder: config_lib.ViT, n_mels: int, frames: int) -> None:
  _check_choices(
    {
      'encoder.size': (encoder.size, ('tiny', 'small', 'base')),
      'encoder.positions': (encoder.positions, ('sincos', 'learned')),
    }
  )
  mels_of_patch, frames_of_patch = encoder.patch
  if min(encoder.patch) < 1 or n_mels % mels_of_patch:
    raise UserError(
      f'config key "encoder.patch" is {encoder.patch}, and log_mel.n_mels is {n_mels}: the first number of the patch '
      'divides it, and both are at least 1'
    )
  if frames < frames_of_patch:
    raise UserError(
      f'config key "data.crop_seconds (in frames)" is {frames}; encoder.patch={encoder.patch} needs at least '
      f'{frames_of_patch}'
    )
